"""What makes a function a command: the options that all have, a way to the API, and an exit code for what goes wrong."""

import functools
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

import typer
from typer.core import TyperGroup

from app.client.config import PATIENCE, resolve
from app.client.failed import Code, Failed
from app.client.screen import Screen

if TYPE_CHECKING:
    from app.client.api import Api

Work = TypeVar("Work", bound=Callable[..., None])
PANEL = "Options of all commands that call the API"

Url = Annotated[
    str | None,
    typer.Option("--url", help="Where the API is; else SLIPWAY_URL, else as `login` said.", rich_help_panel=PANEL),
]
Key = Annotated[
    str | None, typer.Option("--key", help="The API key; better in SLIPWAY_API_KEY.", rich_help_panel=PANEL)
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON: one document, or a line each when following.", rich_help_panel=PANEL)
]
Patience = Annotated[
    float, typer.Option("--patience", min=0, help="For how many seconds to try again.", rich_help_panel=PANEL)
]


@dataclass
class Caller:
    """A command at work. Nothing is looked up or opened before it is needed."""

    screen: Screen
    url: str | None = None
    key: str | None = None
    patience: float = PATIENCE

    @cached_property
    def api(self) -> "Api":
        """The API; Failed when its address or key can't be read."""
        from app.client.api import Api  # noqa: PLC0415 - httpx is a fifth of a start, and help needs none

        return Api(resolve(self.url, self.key), self.patience, self.screen.again)

    def close(self) -> None:
        """Close what was opened."""
        if "api" in vars(self):
            self.api.close()


class Listing(TyperGroup):
    """A group whose commands are about one kind of thing: without a word, it lists them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put ``list`` where no command is named."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def command(group: typer.Typer, name: str | None = None, *, panel: str | None = None) -> Callable[[Work], Work]:
    """Make a function a command of a group. It is called with a ``Caller`` first; what it raises becomes the exit code.

    Options that several commands share are a TypedDict, taken as ``**options: Unpack[TheDict]``.
    """

    def register(work: Work) -> Work:
        own = [one for given in list(inspect.signature(work).parameters.values())[1:] for one in _spread(given)]

        @functools.wraps(work)
        def run(*, url: str | None, key: str | None, as_json: bool, patience: float, **given: Any) -> None:
            caller = Caller(Screen(as_json=as_json), url, key, patience)
            raise SystemExit(_ended(caller, functools.partial(work, caller, **given)))

        run.__signature__ = inspect.Signature([*own, *_COMMON])  # type: ignore[attr-defined]
        group.command(name, rich_help_panel=panel)(run)
        return work

    return register


_ONLY = inspect.Parameter.KEYWORD_ONLY
_COMMON = (
    inspect.Parameter("url", _ONLY, default=None, annotation=Url),
    inspect.Parameter("key", _ONLY, default=None, annotation=Key),
    inspect.Parameter("as_json", _ONLY, default=False, annotation=AsJson),
    inspect.Parameter("patience", _ONLY, default=PATIENCE, annotation=Patience),
)


def _spread(parameter: inspect.Parameter) -> Iterator[inspect.Parameter]:
    """Yield a parameter, or for one that stands for many each of them; what is not given is False or None."""
    if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
        yield parameter
        return
    (options,) = get_args(parameter.annotation)
    for name, hint in get_type_hints(options, include_extras=True).items():
        default = False if get_args(hint)[0] is bool else None
        yield inspect.Parameter(name, _ONLY, default=default, annotation=hint)


def _ended(caller: Caller, work: Callable[[], None]) -> int:
    screen = caller.screen
    try:
        work()
    except Failed as failed:
        if screen.as_json:
            sys.stderr.write(json.dumps(failed.problem) + "\n")
        else:
            screen.note(f"slipway: {failed.text}", "red")
            if failed.advice:
                screen.note(f"  {failed.advice}")
        return failed.code
    except (KeyboardInterrupt, typer.Abort):
        return Code.INTERRUPTED
    except BrokenPipeError:  # whoever read this has gone, as `head` does; Python must not try to flush it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Code.BROKEN_PIPE
    except Exception:  # noqa: BLE001 - a fault of ours must not look like one of the caller's
        traceback.print_exc()
        return Code.ELSEWHERE
    finally:
        caller.close()
    return Code.OK

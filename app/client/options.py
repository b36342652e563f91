"""Arguments and options that commands share, and what is made of them."""

import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, TypedDict
from urllib.parse import quote

import typer

from app.client.failed import Json, usage

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def segment(text: str | None) -> str | None:
    """Return an argument as one segment of a path, whatever it holds; what is an id or a name stays as it is."""
    if text == "":
        raise typer.BadParameter("is empty")
    return None if text is None else quote(text, safe="")


Folder = Annotated[Path, typer.Argument(help="The agent's folder; what .gitignore names is left out.")]
Limit = Annotated[int, typer.Option(min=1, help="How many at most.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Don't follow it: print its id and end.")]
CancelOnInterrupt = Annotated[
    bool, typer.Option("--cancel-on-interrupt", help="Ctrl-C cancels the build; otherwise it goes on.")
]


class BuildOptions(TypedDict):
    """What ``deploy`` and ``build`` share."""

    builder: Annotated[str | None, typer.Option("--builder", help="Platform to build on; else the service's.")]
    package: Annotated[str | None, typer.Option(help="The program's package in the module, such as ./cmd/agent.")]
    goarch: Annotated[str | None, typer.Option(help="amd64 or arm64.")]
    builder_memory: Annotated[int | None, typer.Option(help="MiB for the builder.")]
    timeout: Annotated[int | None, typer.Option(help="Seconds that the build may take.")]
    label: Annotated[list[str] | None, typer.Option("--label", metavar="K=V", help="Any text, to find it again.")]
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Build even what was built before.")]
    no_wait: NoWait
    lenient: Annotated[bool, typer.Option("--lenient", help="Warn of what the platform can't honour, go on without.")]
    large: Annotated[bool, typer.Option("--large", help="Send it however large it is.")]
    cancel_on_interrupt: CancelOnInterrupt


def moment(text: str, option: str, *, ago: bool) -> datetime:
    """Read a time in ISO 8601, by default in UTC, or a length of time before now, or after; Failed when it is neither."""
    if match := re.fullmatch(r"(\d{1,6})([smhd])", text):
        length = timedelta(**{_UNITS[match[2]]: int(match[1])})
        return datetime.now(UTC) + (-length if ago else length)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise usage(f"{option} {text!r} is no time", "Such as 10m, 2h, 30d or 2026-01-02T03:04:05Z.") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def pairs(given: Iterable[str] | None, option: str) -> dict[str, str]:
    """Read ``K=V`` texts; Failed when one isn't, or a name comes twice."""
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise usage(f"{option} takes NAME=VALUE, not {name!r}")
        if name in found:
            raise usage(f"{option} {name} was given twice")
        found[name] = value
    return found


def secrets(given: Iterable[str] | None, file: Path | None) -> dict[str, str] | None:
    """Read secrets from options and a file of ``K=V`` lines; None when there are none, which keeps those of the live release.

    An option may be a name alone: its value is in the environment, and so in no list of processes. No value is ever printed.
    """
    found = _from_file(file) if file is not None else {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals:
            if name not in os.environ:
                raise usage(f"--secret {name}: there is no such variable", f"Set {name}, or give --secret-file.")
            value = os.environ[name]
        found[name] = value
    return found or None


def _from_file(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise usage(f"--secret-file {file} can't be read: {e}") from e
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if not name or name.startswith("#"):
            continue
        if not equals:
            raise usage(f"{file}:{number}: a line is NAME=VALUE")
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
        found[name] = value[1:-1] if quoted else value
    return found


def given(**values: object) -> Json:
    """Return the values that are there; what is left out is for the API to choose."""
    return {name: value for name, value in values.items() if value not in (None, {}, [])}

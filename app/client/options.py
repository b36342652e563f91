"""Options that ``deploy`` and ``build`` share, and what is made of them."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from app.client.failed import Json, usage

Folder = Annotated[Path, typer.Argument(help="The agent's folder; what .gitignore names is left out.")]
Builder = Annotated[str | None, typer.Option("--builder", help="Platform to build on; else the service's.")]
Package = Annotated[str | None, typer.Option(help="The program's package in the module, such as ./cmd/agent.")]
Goarch = Annotated[str | None, typer.Option(help="amd64 or arm64.")]
BuilderMemory = Annotated[int | None, typer.Option(help="MiB for the builder.")]
Timeout = Annotated[int | None, typer.Option(help="Seconds that the build may take.")]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="K=V", help="Any text, to find it again.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Build even what was built before.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Don't follow it: print its id and end.")]
Lenient = Annotated[bool, typer.Option("--lenient", help="Warn of what the platform can't honour, go on without.")]
Large = Annotated[bool, typer.Option("--large", help="Send it however large it is.")]
CancelOnInterrupt = Annotated[
    bool, typer.Option("--cancel-on-interrupt", help="Ctrl-C cancels the build; otherwise it goes on.")
]


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

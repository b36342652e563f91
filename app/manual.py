"""The commands and exit codes as tables, made from the code: ``python -m app.manual docs/cli.md`` writes them anew."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from app.cli import app
from app.client.command import PANEL
from app.client.failed import MEANINGS

BEGIN, END = "<!-- made by python -m app.manual docs/cli.md -->", "<!-- end of what was made -->"


def commands(command: Any = None, path: str = "slipway") -> Iterator[tuple[str, str, str]]:
    """Yield each command with its arguments, what it does, and its own options."""
    command = command or typer.main.get_command(app)
    if inner := getattr(command, "commands", None):
        for name, one in inner.items():
            yield from commands(one, f"{path} {name}")
        return
    words = [p.metavar or p.name.upper() for p in command.params if _is_argument(p)]
    own = [p for p in command.params if not _is_argument(p) and getattr(p, "rich_help_panel", None) != PANEL]
    options = ", ".join(f"`{p.opts[0]}`" for p in own)
    yield " ".join([path, *words]), command.help.splitlines()[0].rstrip(), options


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def tables() -> str:
    """Return both tables as Markdown."""
    rows = [("command", "does", "options"), ("---", "---", "---")]
    rows += [(f"`{words}`".replace("|", "\\|"), text, options) for words, text, options in commands()]
    codes = [("code", "means"), ("---", "---"), *((f"{code:d}", text) for code, text in MEANINGS.items())]
    return "\n\n".join("\n".join(f"| {' | '.join(row)} |" for row in table) for table in (rows, codes))


def page(text: str) -> str:
    """Return a page with what is between its marks made anew; ValueError when it has no marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError("the page has no place for the tables")
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(page(file.read_text()))

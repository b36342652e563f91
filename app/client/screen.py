"""What is printed: results to standard output, for people or as JSON; everything on the way to standard error."""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.client.failed import Json

#: Escape sequences and control characters: what others wrote must not steer this terminal.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_WIDE = 100_000
"""Columns where there is no terminal: nothing is cut off or folded."""
_UNITS = (("d", 86_400), ("h", 3600), ("min", 60))

Column = tuple[str, Callable[[Json], object]]


def clean(text: str) -> str:
    """Return a text without what would steer a terminal."""
    return _CONTROL.sub("", text)


class Screen:
    """Both outputs. Colour only on a terminal, and not with NO_COLOR (see no-color.org)."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.out, self.err = _console(sys.stdout), _console(sys.stderr)
        self._told = ""

    def document(self, found: object) -> None:
        """Print one JSON document."""
        self._write(json.dumps(found, indent=2, ensure_ascii=False))

    def line(self, found: Json) -> None:
        """Print one line of JSON lines, at once."""
        self._write(json.dumps(found, separators=(",", ":"), ensure_ascii=False))

    def text(self, text: str, style: str = "") -> None:
        """Print a result."""
        self.out.print(Text(clean(text), style), soft_wrap=True)
        self.out.file.flush()

    def address(self, url: str) -> None:
        """Print where a service is, and how to get there from a system that does not resolve ``*.localhost``."""
        parts = urlsplit(url)
        if (parts.hostname or "").endswith(".localhost"):
            self.note(f"curl -H 'Host: {parts.netloc}' http://127.0.0.1:{parts.port or 80}/", "dim")
        self.text(url)

    def note(self, text: str, style: str = "") -> None:
        """Say something on the way, or about the result; not with ``--json``."""
        if not self.as_json:
            self.err.print(Text(clean(text), style), soft_wrap=True)

    def again(self, text: str) -> None:
        """Say that something is tried again; the same thing only once in a row."""
        if text != self._told:
            self._told = text
            self.note(text, "dim")

    def show(self, found: Json, *fields: Column) -> None:
        """Print one thing: its JSON, or these fields of it that have a value."""
        if self.as_json:
            self.document(found)
            return
        grid = Table.grid(padding=(0, 2))
        for name, value in fields:
            if (text := _text(value(found))) != "":
                grid.add_row(Text(name, "dim"), Text(text, overflow="fold"))
        self.out.print(grid)

    def table(self, items: Sequence[Json], *columns: Column) -> None:
        """Print many: their JSON in one document, or a table with these columns."""
        if self.as_json:
            self.document({"items": list(items)})
            return
        if not items:
            self.note("there are none")
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        cells = [(name, [_text(value(item)) for item in items]) for name, value in columns]
        filled = [(name, texts) for name, texts in cells if any(texts)]
        for name, _ in filled:
            table.add_column(name, overflow="fold")
        for row in zip(*(texts for _, texts in filled), strict=True):
            table.add_row(*(Text(text, _STYLES.get(text, "")) for text in row))
        self.out.print(table)

    @contextlib.contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Show for the length of the block that something is under way, where there is a terminal."""
        if self.err.is_terminal and not self.as_json:
            with self.err.status(Text(text)):
                yield
        else:
            yield

    def _write(self, text: str) -> None:
        self.out.file.write(text + "\n")
        self.out.file.flush()


_STYLES = {"succeeded": "green", "live": "green", "running": "green", "failed": "red", "canceled": "yellow"}


def _console(file: Any) -> Console:
    width = None if file.isatty() else _WIDE
    return _Console(file=file, width=width, highlight=False, markup=False, emoji=False)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command, which ends as other programs do; Rich would exit with 1."""
        raise  # noqa: PLE0704 - Rich calls this where it has caught the error


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(clean(str(v)) for v in value)
        case dict():
            return ", ".join(clean(f"{k}={v}") for k, v in value.items())
        case _:
            return clean(str(value))


def get(*path: str) -> Callable[[Json], object]:
    """Return what reads a value at a path; None when it leads nowhere."""

    def read(item: Json) -> object:
        found: Any = item
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return found

    return read


def age(name: str) -> Callable[[Json], object]:
    """Return what tells how long ago a time was."""

    def read(item: Json) -> object:
        return f"{seconds(since)} ago" if (since := _since(item.get(name))) is not None else None

    return read


def _since(text: str | None) -> float | None:
    return (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds() if text else None


def seconds(count: float) -> str:
    """Return a length of time in its largest unit."""
    for unit, length in _UNITS:
        if count >= 2 * length:
            return f"{count / length:.0f} {unit}"
    return f"{max(0.0, count):.0f} s"

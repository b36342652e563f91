"""Compiler output as data: what ``go build`` and ``go vet`` say, by file, line and column."""

import re

from builder.outcome import Diagnostic

#: ``./main.go:7:2: undefined: x``, ``vet: sub/a.go:3:1: …``, ``go.mod:3: …`` (no column).
_LINE = re.compile(
    r"(?:vet: |go: )?(?P<file>[^\s:][^:\t]*\.(?:go|mod|sum|s))"
    r":(?P<line>\d{1,9})(?::(?P<column>\d{1,9}))?: (?P<message>.*)"
)
_TOO_MANY = "too many errors"
#: One message in bytes; generated code can make them endless.
LONGEST = 4096


def parse_diagnostics(output: str, most: int) -> list[Diagnostic]:
    """Return at most ``most`` diagnostics in the order of the output.

    A line that begins with a tab goes on with the message before it. ``# package`` headers and the remark that there
    were too many errors are no diagnostics. Paths are as the tool gave them, without a leading ``./``.
    """
    found: list[Diagnostic] = []
    open_message = False
    for raw in output.split("\n"):
        text = raw.rstrip("\r")
        if open_message and text.startswith("\t"):
            found[-1]["message"] = f"{found[-1]['message']}\n{text.strip()}"[:LONGEST]
            continue
        match = _LINE.fullmatch(text)
        open_message = match is not None and match["message"] != _TOO_MANY
        if match is None or not open_message:
            continue
        if len(found) >= most:
            break
        column = match["column"]
        found.append(
            Diagnostic(
                file=match["file"].removeprefix("./"),
                line=int(match["line"]),
                column=int(column) if column else None,
                message=match["message"].strip()[:LONGEST],
            )
        )
    return found

"""How a command ends early: with a sentence, what to do about it, and an exit code that tells whose move it is."""

from enum import IntEnum
from typing import Any

Json = dict[str, Any]


class Code(IntEnum):
    """Exit codes, by class of failure."""

    OK = 0
    CALLER = 1
    USAGE = 2
    REFUSED = 3
    ELSEWHERE = 4
    UNREACHABLE = 5
    INTERRUPTED = 130
    BROKEN_PIPE = 141


#: What each code means, for the page.
MEANINGS = {
    Code.OK: "done",
    Code.CALLER: "the build or release failed and the next move is yours (the source does not compile, say), or it was canceled",
    Code.USAGE: "the command was not understood, or the folder can't be sent as it is; nothing was sent",
    Code.REFUSED: "the API refused it: not found, not allowed, a wrong field, a state that does not allow it",
    Code.ELSEWHERE: "it failed and the next move is the platform's, the operator's or Slipway's own",
    Code.UNREACHABLE: "the API could not be reached, for as long as `--patience` says",
    Code.INTERRUPTED: "Ctrl-C; what was under way on the server goes on",
    Code.BROKEN_PIPE: "whoever read the output has gone, as `head` does",
}


class Failed(Exception):
    """The command is over. ``problem`` is what ``--json`` prints instead of the sentence, by default the same in JSON."""

    def __init__(self, code: Code, text: str, *, advice: str | None = None, problem: Json | None = None) -> None:
        super().__init__(text)
        self.code, self.text, self.advice = code, text, advice
        self.problem = problem or {"reason": code.name.lower(), "detail": text}


def usage(text: str, advice: str | None = None) -> Failed:
    """The caller asked for something that can't be."""
    return Failed(Code.USAGE, text, advice=advice)


def code_of(failure: Json | None) -> Code:
    """Return the exit code of a build or release that failed; the API tells whose move it is."""
    return Code.CALLER if failure is None or failure["owner"] == "caller" else Code.ELSEWHERE

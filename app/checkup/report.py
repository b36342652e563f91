"""What a check says: one line per step, with its time, and for what went wrong whose move it is and what to do."""

from dataclasses import asdict, dataclass
from typing import Any

from app.lifecycle import REASONS, Owner, Reason

#: Exit codes by whose move it is; 0: all was seen.
CODES = {Owner.OPERATOR: 1, Owner.CALLER: 1, Owner.PLATFORM: 3, Owner.US: 4}
NOT_CONFIGURED = 2


@dataclass
class Trouble(Exception):
    """A step did not see what it is about: what was seen, whose move it is, and what they can do."""

    seen: str
    owner: Owner
    advice: str
    code: int | None = None

    def __str__(self) -> str:
        return self.seen


class Stuck(Trouble):
    """The build failed, or did not get on in time."""


def operator(seen: str, advice: str, code: int | None = None) -> Trouble:
    """Return trouble that the operator can mend."""
    return Trouble(seen, Owner.OPERATOR, advice, code)


def because(reason: str, message: str) -> Stuck:
    """Return the trouble that a build's reason tells of."""
    info = REASONS[Reason(reason)]
    return Stuck(f"{reason}: {message}", info.owner, info.message)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step that was taken: its time in seconds and its verdict."""

    name: str
    ok: bool
    seconds: float
    seen: str
    owner: Owner | None = None
    advice: str | None = None

    def lines(self) -> list[str]:
        """Return the step for a person."""
        lines = [f"{'ok  ' if self.ok else 'FAIL'}  {self.seconds:7.1f} s  {self.name:<12} {self.seen}"]
        return lines if self.ok else [*lines, f"      whose move: {self.owner}", f"      what to do: {self.advice}"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All steps of a check, in order."""

    platform: str
    imitated: bool
    steps: tuple[Step, ...]
    code: int

    def as_json(self) -> dict[str, Any]:
        """Return the report for a program."""
        return {"ok": self.code == 0, **asdict(self)}

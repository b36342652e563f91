"""Where the official contracts of the cloud platforms are, if they are at hand, and what the checks against them came to."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from app.imitations.base import Imitation


@dataclass
class Record:
    """Exchanges per platform that were checked, that nobody could check, and violations found."""

    checked: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)

    def add(self, other: dict[str, dict[str, int]]) -> None:
        """Add what another process of the run recorded, in the form of ``as_words``."""
        for name, counts in other.items():
            getattr(self, name).update(counts)

    def as_words(self) -> dict[str, dict[str, int]]:
        """Return it in a form that processes can hand each other."""
        return {name: dict(getattr(self, name)) for name in ("checked", "skipped", "violations")}

    def wrong(self, at: Path | None) -> list[str]:
        """Return what must fail the run: violations and, where the contracts are at hand, exchanges that nobody checked."""
        found = [
            f"{name}: {count} violations of its official contract" for name, count in self.violations.items() if count
        ]
        if at is not None:
            found += [f"{name}: {count} exchanges not checked, though {at} is there" for name, count in self._left()]
        return found

    def told(self) -> list[str]:
        """Return one line per platform for the end of the run."""
        against = "against its official contract"
        lines = [f"{name}: {count} exchanges checked {against}" for name, count in self.checked.items() if count]
        lines += [f"{name}: {count} exchanges were not checked {against}" for name, count in self._left()]
        return sorted(lines)

    def _left(self) -> list[tuple[str, int]]:
        return [(name, count) for name, count in sorted(self.skipped.items()) if count]


#: Of this process; at the end of the run, of all of them.
RECORD = Record()


def folder() -> Path | None:
    """Return ``SLIPWAY_CONTRACTS``, or ``../shared/contracts`` beside the repository; None when neither is there."""
    given = os.environ.get("SLIPWAY_CONTRACTS")
    found = Path(given) if given else Path(__file__).parents[3] / "shared/contracts"
    return found if found.is_dir() else None


def settle(imitation: Imitation) -> None:
    """Record what was checked, and fail on violations; to be called at the end of every test with an imitation."""
    contract = imitation.contract
    RECORD.checked[imitation.name] += contract.checked
    RECORD.skipped[imitation.name] += contract.skipped
    RECORD.violations[imitation.name] += len(contract.violations)
    assert contract.violations == [], "\n".join(contract.violations)

"""Where the official contracts of the cloud platforms are, if they are at hand; the run says how many checks it skipped."""

import os
from collections import Counter
from pathlib import Path

from app.imitations.base import Imitation

#: Exchanges per platform that nobody could check in this process.
SKIPPED: Counter[str] = Counter()


def folder() -> Path | None:
    """Return ``SLIPWAY_CONTRACTS``, or ``../shared/contracts`` beside the repository; None when neither is there."""
    given = os.environ.get("SLIPWAY_CONTRACTS")
    found = Path(given) if given else Path(__file__).parents[3] / "shared/contracts"
    return found if found.is_dir() else None


def settle(imitation: Imitation) -> None:
    """Fail on violations, and count what was skipped; to be called at the end of every test with an imitation."""
    SKIPPED[imitation.name] += imitation.contract.skipped
    assert imitation.contract.violations == [], "\n".join(imitation.contract.violations)

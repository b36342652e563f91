"""Named points at which a crash test kills the process: before and after each remote call and each commit that matters.

``SLIPWAY_FAULT_POINT=dispatch.launched`` makes the process send itself SIGKILL the first time it gets there. A test reads
``POINTS`` and fails when one of them has no crash case.
"""

import os
import signal

POINTS = frozenset(
    {
        "submit.committed",
        "dispatch.claimed",
        "dispatch.launched",
        "dispatch.recorded",
        "report.inspected",
        "report.committed",
        "promote.claimed",
        "promote.deployed",
        "promote.gated",
        "promote.activated",
        "promote.recorded",
        "cleanup.stopped",
        "cleanup.recorded",
        "wake.claimed",
        "wake.started",
        "sleep.claimed",
        "sleep.stopped",
        "delete.deleted",
        "retire.retired",
    }
)

_armed: str | None = None


def arm(point: str | None) -> None:
    """Choose the point to die at; None for none. Raises ValueError on an unknown name."""
    global _armed  # noqa: PLW0603 - one process, one fault
    if point is not None and point not in POINTS:
        raise ValueError(f"SLIPWAY_FAULT_POINT: there is no point {point!r}")
    _armed = point


def at(point: str) -> None:
    """Die here if this is the point that was chosen."""
    assert point in POINTS, point
    if point == _armed:
        os.kill(os.getpid(), signal.SIGKILL)

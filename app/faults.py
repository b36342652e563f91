"""Named points at which a crash test kills the process: before and after each remote call and each commit that matters.

``SLIPWAY_FAULT_POINT=dispatch.launched`` makes the process send itself SIGKILL the first time it gets there. With
``SLIPWAY_FAULT_POINT=@/some/file`` the point is what that file says when a point is reached, nothing while there is no such
file: so a process that has been up for a while can be made to die. A test reads ``POINTS`` and fails when one of them has
no crash case.
"""

import contextlib
import os
import signal
from pathlib import Path

POINTS = frozenset(
    {
        "submit.committed",
        "batch.committed",
        "dispatch.claimed",
        "dispatch.launched",
        "dispatch.recorded",
        "reuse.checked",
        "reuse.committed",
        "claim.committed",
        "report.inspected",
        "report.committed",
        "check.inspected",
        "check.recorded",
        "cancel.committed",
        "cleanup.begun",
        "cleanup.stopped",
        "cleanup.recorded",
        "release.committed",
        "promote.claimed",
        "promote.deployed",
        "promote.gated",
        "promote.activated",
        "promote.recorded",
        "promote.failed",
        "retire.begun",
        "retire.retired",
        "retire.recorded",
        "leave.begun",
        "leave.deleted",
        "leave.recorded",
        "wake.claimed",
        "wake.started",
        "wake.recorded",
        "sleep.claimed",
        "sleep.stopped",
        "sleep.recorded",
        "delete.committed",
        "delete.begun",
        "delete.deleted",
        "delete.recorded",
        "webhook.planned",
        "webhook.claimed",
        "webhook.sent",
        "webhook.recorded",
        # The local platform's own, in the order of a start.
        "local.intent",
        "local.spawn",
        "local.record",
        "local.gate",
        "local.running",
    }
)

_armed: str | None = None
_file: Path | None = None


def arm(point: str | None) -> None:
    """Choose the point to die at, or by ``@`` the file that says it; None for none. Raises ValueError on an unknown name."""
    global _armed, _file  # noqa: PLW0603 - one process, one fault
    by_file = point is not None and point.startswith("@")
    if point is not None and not by_file and point not in POINTS:
        raise ValueError(f"SLIPWAY_FAULT_POINT: there is no point {point!r}")
    _armed = None if by_file else point
    _file = Path(point[1:]) if point is not None and by_file else None


def at(point: str) -> None:
    """Die here if this is the point that was chosen."""
    assert point in POINTS, point
    if point == _armed or (_file is not None and point == _said(_file)):
        os.kill(os.getpid(), signal.SIGKILL)


def _said(file: Path) -> str | None:
    with contextlib.suppress(FileNotFoundError):
        return file.read_text().strip()
    return None

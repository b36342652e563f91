"""The fault points themselves: names are checked, and a point that was not chosen is passed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app import faults


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    faults.arm(None)


def pass_all_but(point: str | None) -> None:
    """Pass every point but one; this process is not to survive the one."""
    for other in faults.POINTS - {point}:
        faults.at(other)


def test_a_point_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no point"):
        faults.arm("dispatch.lunched")
    with pytest.raises(AssertionError):
        faults.at("dispatch.lunched")


def test_only_the_chosen_point_kills(tmp_path: Path) -> None:
    pass_all_but(None)
    faults.arm("wake.started")
    pass_all_but("wake.started")
    file = tmp_path / "fault"
    faults.arm(f"@{file}")
    pass_all_but(None)
    file.write_text("sleep.stopped\n")
    pass_all_but("sleep.stopped")
    file.unlink()
    pass_all_but(None)

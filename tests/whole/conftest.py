"""The run's one seed, which every builder here begins with."""

from pathlib import Path

import pytest

from tests.support.agents import Toolbox, make_toolbox


@pytest.fixture(scope="session")
def toolbox(run_folder: Path) -> Toolbox:
    """Shared with the other tests of the run, by all its processes; only the first of them compiles anything."""
    return make_toolbox(run_folder)

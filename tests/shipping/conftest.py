"""The installed wheel and the toolbox of the run."""

from pathlib import Path

import pytest

from tests.shipping.installed import Installed, install
from tests.support.agents import Toolbox, make_toolbox


@pytest.fixture(scope="session")
def installed(run_folder: Path) -> Installed:
    return install(run_folder / "installed")


@pytest.fixture(scope="session")
def toolbox(run_folder: Path) -> Toolbox:
    return make_toolbox(run_folder)

"""The installed wheel."""

from pathlib import Path

import pytest

from tests.shipping.installed import Installed, install


@pytest.fixture(scope="session")
def installed(run_folder: Path) -> Installed:
    return install(run_folder / "installed")

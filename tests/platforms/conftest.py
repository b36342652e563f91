"""The program that all platforms run in their contract tests, compiled and packed once per process."""

from pathlib import Path

import pytest

from tests.platforms import cloud
from tests.support.agents import Toolbox, make_toolbox


@pytest.fixture(scope="session")
def toolbox(run_folder: Path) -> Toolbox:
    return make_toolbox(run_folder)


@pytest.fixture(scope="session")
def stored(toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> cloud.Stored:
    return cloud.stored(tmp_path_factory.mktemp("registry"), toolbox)

"""The program that all platforms run in their contract tests, packed once per process."""

import pytest

from tests.platforms import cloud
from tests.support.agents import Toolbox


@pytest.fixture(scope="session")
def stored(toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> cloud.Stored:
    return cloud.stored(tmp_path_factory.mktemp("registry"), toolbox)

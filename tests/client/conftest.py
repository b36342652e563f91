from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.client.support import Shell
from tests.support.sse import served
from tests.support.world import World, world


@pytest.fixture
async def here(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A control plane of this test alone."""
    async with world(database_url, tmp_path / "home", drain_seconds=0.0) as it:
        yield it


@pytest.fixture
async def shell(here: World, tmp_path: Path) -> AsyncIterator[Shell]:
    """Commands that reach it by a real socket."""
    async with served(here.app, here.key) as api:
        yield Shell(api.url, here.key, tmp_path / "config")

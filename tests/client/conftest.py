import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog

from tests.client.support import Shell
from tests.support.sse import served
from tests.support.world import World, world

LEAVE_SECONDS = 10.0


@pytest.fixture(autouse=True)
def _no_logs() -> Iterator[None]:
    """The server is in the command's process here, and its log is none of what the command says."""
    with Path(os.devnull).open("w") as nowhere:
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(nowhere))
        yield
        structlog.reset_defaults()


@pytest.fixture
async def here(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A control plane of this test alone."""
    async with world(database_url, tmp_path / "home", drain_seconds=0.0) as it:
        yield it


@pytest.fixture
async def shell(here: World, tmp_path: Path) -> AsyncIterator[Shell]:
    """Commands that reach it by a real socket."""
    async with served(here.app, here.key) as api:
        it = Shell(api.url, here.key, tmp_path / "config")
        try:
            yield it
        finally:
            async with asyncio.timeout(LEAVE_SECONDS):
                await it.leave(here)

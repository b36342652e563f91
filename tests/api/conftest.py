from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from tests.support.world import World, world


@pytest.fixture(autouse=True, scope="session")
def _plain_logs() -> None:
    """Without structlog's default tracebacks, which take seconds each."""
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()])


@pytest.fixture
async def here(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A control plane of this test alone."""
    async with world(database_url, tmp_path / "home") as it:
        yield it

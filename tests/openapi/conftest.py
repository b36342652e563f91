import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog

from tests.support.world import World, world


@pytest.fixture(autouse=True)
def _few_logs() -> Iterator[None]:
    """Without a line for each of thousands of requests."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    yield
    structlog.configure(**before)


@pytest.fixture
async def here(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A control plane of this test alone, with room for completions that are too long by another measure than bytes."""
    async with world(database_url, tmp_path / "home", max_completion_bytes=4 * 1024 * 1024) as it:
        yield it

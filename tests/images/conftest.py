from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.images.support import Place, registry


@pytest.fixture
async def place(tmp_path: Path) -> AsyncGenerator[Place, None]:
    """A served registry."""
    async with registry(tmp_path / "registry") as place:
        yield place

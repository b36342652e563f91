"""A Railway imitation and our platform on it, with waits made short."""

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from app.imitations.railway import TOKEN, RailwayImitation
from app.platforms import railway
from app.platforms.base import Platform
from app.platforms.budget import Unlimited
from app.settings import RailwaySettings, Settings
from tests.platforms.cloud import BUILDER_IMAGE, PROGRAM, Naps
from tests.support import contracts


@contextlib.asynccontextmanager
async def imitation(folder: Path, **options: Any) -> AsyncGenerator[RailwayImitation, None]:
    """Serve one; violations of the schema fail the test that made them."""
    values = {"builder": PROGRAM, "builder_image": BUILDER_IMAGE, "contracts": contracts.folder(), **options}
    async with RailwayImitation(folder, **values) as made:
        yield made
    contracts.settle(made)


def settings(place: RailwayImitation, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "token": SecretStr(TOKEN),
        "project": "project-services",
        "environment": "environment-services",
        "builders_project": "project-builders",
        "builders_environment": "environment-builders",
        "api_url": place.api_url,
        "service_url": place.service_url,
    }
    return Settings(railway=RailwaySettings(**(values | changes)))


def create(chosen: Settings, naps: Naps | None = None, **options: Any) -> railway.RailwayPlatform:
    """Make our platform from settings, with short waits."""
    naps = naps or Naps()
    values: dict[str, Any] = {"budget": Unlimited(), "sleep": naps, "clock": naps.now, "start_seconds": 80.0}
    return railway.create(chosen, **(values | options))


def platform(place: RailwayImitation, naps: Naps | None = None, **options: Any) -> railway.RailwayPlatform:
    return create(options.pop("settings", None) or settings(place), naps, **options)


@contextlib.asynccontextmanager
async def opened(chosen: Settings) -> AsyncGenerator[Platform, None]:
    made = create(chosen)
    try:
        yield made.platform
    finally:
        await made.aclose()

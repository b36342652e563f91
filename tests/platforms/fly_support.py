"""A Fly imitation and our platform on it, with waits made short."""

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from app.imitations.fly import ORG, TOKEN, FlyImitation
from app.platforms import fly
from app.platforms.base import Platform
from app.platforms.budget import Unlimited
from app.settings import FlySettings, Settings
from tests.platforms.cloud import BUILDER_IMAGE, PROGRAM, Naps
from tests.support import contracts


@contextlib.asynccontextmanager
async def imitation(folder: Path, **options: Any) -> AsyncGenerator[FlyImitation, None]:
    """Serve one; violations of the contract fail the test that made them."""
    values = {"builder": PROGRAM, "builder_image": BUILDER_IMAGE, "contracts": contracts.folder(), **options}
    async with FlyImitation(folder, **values) as made:
        yield made
    contracts.settle(made)


def settings(place: FlyImitation, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "token": SecretStr(TOKEN),
        "org": ORG,
        "regions": ("iad", "ord"),
        "api_url": place.url,
        "logs_url": place.url,
        "registry": place.url,
        "service_url": place.service_url,
    }
    return Settings(fly=FlySettings(**(values | changes)))


def create(chosen: Settings, **options: Any) -> fly.FlyPlatform:
    """Make our platform from settings, with short waits."""
    values: dict[str, Any] = {"allowance": Unlimited(), "sleep": Naps(), "start_seconds": 1.5}
    return fly.create(chosen, **(values | options))


def platform(place: FlyImitation, naps: Naps | None = None, **options: Any) -> fly.FlyPlatform:
    return create(options.pop("settings", None) or settings(place), sleep=naps or Naps(), **options)


@contextlib.asynccontextmanager
async def opened(chosen: Settings) -> AsyncGenerator[Platform, None]:
    made = create(chosen)
    try:
        yield made.platform
    finally:
        await made.aclose()

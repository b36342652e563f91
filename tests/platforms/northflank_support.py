"""A Northflank imitation and our platform on it, with waits made short."""

import contextlib
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from app.imitations.northflank import PROJECT, TOKEN, NorthflankImitation
from app.platforms import northflank
from app.platforms.base import Platform, ServiceRef, ServiceSpec
from app.platforms.budget import Unlimited
from app.settings import NorthflankSettings, Settings
from tests.platforms.cloud import BUILDER_IMAGE, PROGRAM, Naps
from tests.support import contracts

#: The name that the tests' registry has in image paths, where no port may stand.
REGISTRY = "registry.example.test"


@contextlib.asynccontextmanager
async def imitation(folder: Path, **options: Any) -> AsyncGenerator[NorthflankImitation, None]:
    """Serve one; violations of the contract fail the test that made them."""
    values = {"builder": PROGRAM, "builder_image": BUILDER_IMAGE, "contracts": contracts.folder(), **options}
    async with NorthflankImitation(folder, **values) as made:
        yield made
    contracts.settle(made)


def settings(place: NorthflankImitation, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "token": SecretStr(TOKEN),
        "project": PROJECT,
        "api_url": place.url,
        "registry": REGISTRY,
        "service_url": place.service_url,
    }
    return Settings(northflank=NorthflankSettings(**(values | changes)))


def create(chosen: Settings, naps: Naps | None = None, **options: Any) -> northflank.NorthflankPlatform:
    """Make our platform from settings, with short waits; ``options`` are of its parts."""
    naps = naps or Naps()
    parts: dict[str, dict[str, Any]] = {
        "client": {"sleep": naps},
        "builders": {"poll_seconds": 0.0},
        "services": {
            "sleep": naps,
            "start_seconds": 1.5,
            "look_seconds": 0.1,
            "settle_seconds": 5.0,
        },
        "edge": {"pause": 0.01},
    }
    for part, own in options.items():
        if part in parts:
            parts[part] |= own
    return northflank.create(chosen, allowance=options.get("allowance", Unlimited()), **parts)


def platform(
    place: NorthflankImitation, naps: Naps | None = None, *, changes: Mapping[str, Any] | None = None, **options: Any
) -> northflank.NorthflankPlatform:
    """Make our platform on an imitation; ``changes`` are of the settings."""
    return create(settings(place, **(changes or {})), naps, **options)


@contextlib.asynccontextmanager
async def opened(chosen: Settings) -> AsyncGenerator[Platform, None]:
    made = create(chosen)
    try:
        yield made.platform
    finally:
        await made.aclose()


def ref_of(spec: ServiceSpec) -> ServiceRef:
    return ServiceRef(service=spec.service, release=spec.release)

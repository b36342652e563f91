"""A Koyeb imitation and our platform on it, with waits made short."""

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from app.imitations.koyeb import TOKEN, KoyebImitation
from app.platforms import koyeb
from app.platforms.base import ImageRef, Platform, ServiceSpec, Size
from app.platforms.budget import Unlimited
from app.platforms.koyeb.client import Client
from app.settings import KoyebSettings, Settings
from tests.platforms import cloud
from tests.platforms.cloud import BUILDER_IMAGE, PROGRAM
from tests.support import contracts

SIZE = Size(cpus=0.25, memory_mb=256)
POLL = 0.01


@contextlib.asynccontextmanager
async def imitation(folder: Path, **options: Any) -> AsyncGenerator[KoyebImitation, None]:
    """Serve one; violations of the contract fail the test that made them."""
    values = {"builder": PROGRAM, "builder_image": BUILDER_IMAGE, "contracts": contracts.folder(), **options}
    async with KoyebImitation(folder, **values) as made:
        yield made
    contracts.settle(made)


def settings(place: KoyebImitation, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "enabled": True,
        "token": SecretStr(TOKEN),
        "regions": ("fra", "was"),
        "api_url": place.url,
        "service_url": place.service_url,
        "start_seconds": 20.0,
        **changes,
    }
    return Settings(koyeb=KoyebSettings(**values))


def opened(chosen: Settings, **options: Any) -> contextlib.AbstractAsyncContextManager[Platform]:
    """Open our platform."""
    return koyeb.opened(chosen, **{"budget": Unlimited(), "poll_seconds": POLL, **options})


@contextlib.asynccontextmanager
async def client(place: KoyebImitation) -> AsyncGenerator[Client, None]:
    """Open the wire alone."""
    one = Client(TOKEN, place.url, budget=Unlimited())
    try:
        yield one
    finally:
        await one.aclose()


def service_spec(image: ImageRef, **changes: Any) -> ServiceSpec:
    return cloud.service_spec(image, **({"size": SIZE} | changes))

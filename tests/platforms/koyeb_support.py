"""A Koyeb imitation and our platform on it, with waits made short."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from app.imitations.koyeb import TOKEN, KoyebImitation
from app.platforms import koyeb
from app.platforms.base import BuilderSpec, ImageRef, Platform, ServiceSpec, Size
from app.platforms.budget import Unlimited
from app.platforms.koyeb.client import Client
from app.settings import KoyebSettings, Settings
from tests.images.support import registry
from tests.platforms.contract import name, soon
from tests.support import contracts
from tests.support.agents import Toolbox, layer_of, push

BUILDER_IMAGE = f"ghcr.io/acme/builder@sha256:{'b' * 64}"
#: Stands in for the builder program: runs the Python that its orders hold.
PROGRAM = (sys.executable, "-B", "-u", "-c", "import os; exec(os.environ['SCRIPT'])")
STAYS = "print('hello', flush=True)\nimport time\ntime.sleep(600)"
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


def opened(place: KoyebImitation, **options: Any) -> contextlib.AbstractAsyncContextManager[Platform]:
    """Open our platform on it."""
    values: dict[str, Any] = {"budget": Unlimited(), "poll_seconds": POLL, **options}
    return koyeb.opened(values.pop("settings", None) or settings(place), **values)


@contextlib.asynccontextmanager
async def client(place: KoyebImitation) -> AsyncGenerator[Client, None]:
    """Open the wire alone."""
    one = Client(TOKEN, place.url, budget=Unlimited())
    try:
        yield one
    finally:
        await one.aclose()


@dataclass(frozen=True)
class Stored:
    """A registry's folder with the agent's image in it: packing it takes longer than most tests."""

    root: Path
    image: ImageRef

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncGenerator[ImageRef, None]:
        """Serve the registry, and give the image as it is there."""
        async with registry(self.root) as place:
            yield replace(self.image, registry=place.url)


def stored(root: Path, toolbox: Toolbox) -> Stored:
    """Push the agent's image once."""

    async def pushed() -> ImageRef:
        async with registry(root) as place:
            return await push(place, layer_of({"app/agent": toolbox.agent.read_bytes()}))

    return Stored(root, asyncio.run(pushed()))


def builder_spec(script: str = STAYS, **changes: Any) -> BuilderSpec:
    values: dict[str, Any] = {
        "name": name("run"),
        "env": {"SCRIPT": script, "SLIPWAY_RUN_TOKEN": "slr.token"},
        "image": BUILDER_IMAGE,
        "size": Size(cpus=1, memory_mb=1024),
        "deadline": soon(),
        **changes,
    }
    return BuilderSpec(**values)


def service_spec(image: ImageRef, **changes: Any) -> ServiceSpec:
    values: dict[str, Any] = {
        "service": name("svc"),
        "release": name("rel"),
        "image": image,
        "port": 8080,
        "health_path": "/",
        "env": {},
        "secrets": {},
        "size": Size(cpus=0.25, memory_mb=256),
        **changes,
    }
    return ServiceSpec(**values)

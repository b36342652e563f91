"""A Railway imitation and our platform on it, with waits made short."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from app.imitations.railway import TOKEN, RailwayImitation
from app.platforms import railway
from app.platforms.base import BuilderSpec, ImageRef, ServiceSpec, Size
from app.platforms.budget import Unlimited
from app.settings import RailwaySettings, Settings
from tests.platforms.contract import name, soon
from tests.support import contracts

BUILDER_IMAGE = f"ghcr.io/acme/builder@sha256:{'b' * 64}"
#: Stands in for the builder program: runs the Python that its orders hold.
PROGRAM = (sys.executable, "-B", "-u", "-c", "import os; exec(os.environ['SCRIPT'])")
STAYS = "print('hello', flush=True)\nimport time\ntime.sleep(600)"


class Naps:
    """Our platform's sleep and its clock, which only naps move on; it really waits a hundredth, so that others get on."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def now(self) -> float:
        return sum(self.asked)

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        await asyncio.sleep(min(seconds, 2.0) / 100)


@contextlib.asynccontextmanager
async def imitation(folder: Path, **options: Any) -> AsyncGenerator[RailwayImitation, None]:
    """Serve one; violations of the schema fail the test that made them."""
    made = RailwayImitation(
        folder,
        **{"builder": PROGRAM, "builder_image": BUILDER_IMAGE, "contracts": contracts.folder(), **options},
    )
    async with made:
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


def platform(place: RailwayImitation, naps: Naps | None = None, **options: Any) -> railway.RailwayPlatform:
    naps = naps or Naps()
    values: dict[str, Any] = {"budget": Unlimited(), "sleep": naps, "clock": naps.now, "start_seconds": 80.0}
    return railway.create(options.pop("settings", None) or settings(place), **(values | options))


def builder_spec(script: str = STAYS, env: Mapping[str, str] | None = None, **changes: Any) -> BuilderSpec:
    values: dict[str, Any] = {
        "name": name("run"),
        "env": {"SCRIPT": script, "SLIPWAY_RUN_TOKEN": "slr.token", **(env or {})},
        "image": BUILDER_IMAGE,
        "size": Size(cpus=1, memory_mb=1024),
        "deadline": soon(),
        "metadata": {"build": "bld_1"},
    }
    return BuilderSpec(**(values | changes))


def service_spec(image: ImageRef, **changes: Any) -> ServiceSpec:
    values: dict[str, Any] = {
        "service": name("svc"),
        "release": name("rel"),
        "image": image,
        "port": 8080,
        "health_path": "/",
        "env": {},
        "secrets": {},
        "size": Size(cpus=1, memory_mb=256),
        **changes,
    }
    return ServiceSpec(**values)

"""A Northflank imitation and our platform on it, with waits made short."""

import contextlib
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from app.imitations.northflank import PROJECT, TOKEN, NorthflankImitation
from app.platforms import northflank
from app.platforms.address import request_for
from app.platforms.base import Address, BuilderSpec, ImageRef, ServiceRef, ServiceSpec, Size
from app.platforms.budget import Unlimited
from app.settings import NorthflankSettings, Settings
from tests.platforms.contract import name, soon
from tests.platforms.fly_support import PROGRAM, STAYS, Naps
from tests.support import contracts

BUILDER_IMAGE = f"ghcr.io/acme/builder@sha256:{'b' * 64}"
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


def platform(
    place: NorthflankImitation, naps: Naps | None = None, *, changes: Mapping[str, Any] | None = None, **options: Any
) -> northflank.NorthflankPlatform:
    """Make our platform; ``changes`` are of the settings, ``options`` of its parts."""
    naps = naps or Naps()
    parts: dict[str, dict[str, Any]] = {
        "client": {"sleep": naps},
        "builders": {"poll_seconds": 0.0, "list_seconds": 0.0},
        "services": {
            "sleep": naps,
            "start_seconds": 1.5,
            "look_seconds": 0.1,
            "settle_seconds": 5.0,
            "list_seconds": 0.0,
        },
        "edge": {"pause": 0.01},
    }
    for part, own in options.items():
        if part in parts:
            parts[part] |= own
    allowance = options.get("allowance", Unlimited())
    return northflank.create(settings(place, **(changes or {})), allowance=allowance, **parts)


def builder_spec(script: str = STAYS, **changes: Any) -> BuilderSpec:
    values: dict[str, Any] = {
        "name": name("run"),
        "env": {"SCRIPT": script, "SLIPWAY_RUN_TOKEN": "slr.token"},
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


def ref_of(spec: ServiceSpec) -> ServiceRef:
    return ServiceRef(service=spec.service, release=spec.release)


async def get(address: Address, path: str) -> str:
    """Send a request as our gateway does; where the edge has nobody to send it to, nobody is there."""
    url, headers = request_for(address.url)
    async with httpx.AsyncClient(timeout=15, headers=headers) as client:
        answer = await client.get(url + path)
    if answer.status_code in {404, 502, 503, 504}:
        raise httpx.ConnectError(f"the edge says {answer.status_code}")
    return answer.text

"""Koyeb keeps the contract of all platforms, on an imitation that checks each request against Koyeb's own."""

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest

from app.imitations.koyeb import KoyebImitation
from app.platforms.address import request_for
from app.platforms.base import Address, BuilderSpec, Inspection, Platform, ServiceSpec
from tests.platforms import koyeb_support as support
from tests.platforms.contract import BuildersContract, Restart, ServicesContract
from tests.support.agents import make_toolbox


@pytest.fixture(scope="session")
def stored(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> support.Stored:
    return support.stored(tmp_path_factory.mktemp("registry"), make_toolbox(run_folder))


@pytest.fixture
async def imitation(tmp_path: Path) -> AsyncGenerator[KoyebImitation, None]:
    async with support.imitation(tmp_path / "koyeb") as place:
        yield place


@pytest.fixture
async def stack() -> AsyncGenerator[contextlib.AsyncExitStack, None]:
    async with contextlib.AsyncExitStack() as one:
        yield one


@pytest.fixture
async def platform(
    imitation: KoyebImitation, stack: contextlib.AsyncExitStack, request: pytest.FixtureRequest
) -> Platform:
    # What never listens is waited for to the end.
    seconds = 1.0 if "does_not_listen" in request.node.name else 20.0
    settings = support.settings(imitation, start_seconds=seconds)
    return await stack.enter_async_context(support.opened(imitation, settings=settings))


@pytest.fixture
def restart(imitation: KoyebImitation, stack: contextlib.AsyncExitStack) -> Restart:
    async def again() -> Platform:
        return await stack.enter_async_context(support.opened(imitation))

    return again


class TestBuilders(BuildersContract):
    @pytest.fixture
    def builder_spec(self, imitation: KoyebImitation) -> BuilderSpec:
        self.imitation = imitation
        return support.builder_spec()

    @pytest.fixture
    def ending_spec(self) -> BuilderSpec:
        return support.builder_spec("raise SystemExit(10)")

    async def starts(self, spec: BuilderSpec) -> int:
        return sum(s.name == spec.name for s in self.imitation.services)


class TestServices(ServicesContract):
    wakes_by_itself = True
    address_per_release = False

    @pytest.fixture
    async def service_spec(self, stored: support.Stored) -> AsyncGenerator[ServiceSpec, None]:
        async with stored.served() as image:
            yield support.service_spec(image)

    async def get(self, address: Address, path: str) -> str:
        base, headers = request_for(address.url)
        async with httpx.AsyncClient(timeout=15, headers=headers) as client:
            return (await client.get(base + path)).text

    async def ask(self, seen: Inspection) -> str:
        assert seen.address is not None
        return await self.get(seen.address, "/env?name=KOYEB_INSTANCE_ID")

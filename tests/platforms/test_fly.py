"""Fly keeps the contract of all platforms, on an imitation that checks each request against Fly's own."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest

from app.imitations.fly import FlyImitation
from app.platforms import fly
from app.platforms.base import Address, BuilderSpec, ImageRef, Inspection, Platform, ServiceSpec
from tests.images.support import registry
from tests.platforms import fly_support as support
from tests.platforms.contract import BuildersContract, Restart, ServicesContract
from tests.support.agents import Toolbox, layer_of, make_toolbox, push


@pytest.fixture(scope="session")
def toolbox(run_folder: Path) -> Toolbox:
    return make_toolbox(run_folder)


@pytest.fixture(scope="session")
def pushed(tmp_path_factory: pytest.TempPathFactory, toolbox: Toolbox) -> tuple[Path, ImageRef]:
    """A registry's folder with the agent's image in it: to pack it takes longer than any test here."""
    folder = tmp_path_factory.mktemp("fly-registry")

    async def fill() -> ImageRef:
        async with registry(folder) as place:
            return await push(place, layer_of({"app/agent": toolbox.agent.read_bytes()}))

    return folder, asyncio.run(fill())


@pytest.fixture
async def image(pushed: tuple[Path, ImageRef]) -> AsyncGenerator[ImageRef, None]:
    folder, ref = pushed
    async with registry(folder) as place:
        yield dataclasses.replace(ref, registry=place.url)


@pytest.fixture
async def imitation(tmp_path: Path) -> AsyncGenerator[FlyImitation, None]:
    async with support.imitation(tmp_path / "fly") as place:
        yield place


@pytest.fixture
async def made(imitation: FlyImitation) -> AsyncGenerator[list[fly.FlyPlatform], None]:
    """Platforms over the imitation; the last one is the present one."""
    platforms = [support.platform(imitation)]
    yield platforms
    for one in platforms:
        await one.aclose()


@pytest.fixture
def platform(made: list[fly.FlyPlatform]) -> Platform:
    return made[-1].platform


@pytest.fixture
def restart(imitation: FlyImitation, made: list[fly.FlyPlatform]) -> Restart:
    async def again() -> Platform:
        made.append(support.platform(imitation))
        return made[-1].platform

    return again


class TestBuilders(BuildersContract):
    @pytest.fixture
    def builder_spec(self, imitation: FlyImitation) -> BuilderSpec:
        self.imitation = imitation
        return support.builder_spec()

    @pytest.fixture
    def ending_spec(self) -> BuilderSpec:
        return support.builder_spec("raise SystemExit(10)")

    async def starts(self, spec: BuilderSpec) -> int:
        return sum(m.name == spec.name for a in self.imitation.apps.values() for m in a.machines.values())


class TestServices(ServicesContract):
    wakes_by_itself = True
    address_per_release = False

    @pytest.fixture
    def service_spec(self, imitation: FlyImitation, image: ImageRef) -> ServiceSpec:
        self.imitation = imitation
        return support.service_spec(image)

    async def get(self, address: Address, path: str) -> str:
        # Not every resolver knows that *.localhost is this machine.
        url = httpx.URL(address.url)
        async with httpx.AsyncClient(timeout=15, headers={"Host": url.netloc.decode()}) as client:
            return (await client.get(f"http://127.0.0.1:{url.port}{path}")).text

    async def ask(self, seen: Inspection) -> str:
        """Return the start that the answering process is of: a machine's program does not know it itself."""
        assert seen.address is not None
        pid = int((await self.get(seen.address, "/ids")).split()[1])
        machine = next(m for m in self.imitation.machines if m.running and m.running.pid == pid)
        start = next(e for e in machine.events if e["type"] == "start")
        return f"{machine.id}.{start['id']}"

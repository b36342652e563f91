"""Northflank keeps the contract of all platforms, on an imitation that checks each request against Northflank's own."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from app.imitations.northflank import NorthflankImitation
from app.platforms import northflank
from app.platforms.base import Address, BuilderSpec, Inspection, Platform, ServiceSpec
from tests.images.support import Place, registry
from tests.platforms import northflank_support as support
from tests.platforms.contract import BuildersContract, Restart, ServicesContract
from tests.support.agents import Toolbox, layer_of, make_toolbox, push


@pytest.fixture(scope="session")
def toolbox(run_folder: Path) -> Toolbox:
    return make_toolbox(run_folder)


@pytest.fixture
async def imitation(tmp_path: Path) -> AsyncGenerator[NorthflankImitation, None]:
    async with support.imitation(tmp_path / "northflank") as place:
        yield place


@pytest.fixture
async def made(imitation: NorthflankImitation) -> AsyncGenerator[list[northflank.NorthflankPlatform], None]:
    """Platforms over the imitation; the last one is the present one."""
    platforms = [support.platform(imitation)]
    yield platforms
    for one in platforms:
        await one.aclose()


@pytest.fixture
def platform(made: list[northflank.NorthflankPlatform]) -> Platform:
    return made[-1].platform


@pytest.fixture
def restart(imitation: NorthflankImitation, made: list[northflank.NorthflankPlatform]) -> Restart:
    async def again() -> Platform:
        made.append(support.platform(imitation))
        return made[-1].platform

    return again


class TestBuilders(BuildersContract):
    @pytest.fixture
    def builder_spec(self, imitation: NorthflankImitation) -> BuilderSpec:
        self.imitation = imitation
        return support.builder_spec()

    @pytest.fixture
    def ending_spec(self) -> BuilderSpec:
        return support.builder_spec("raise SystemExit(10)")

    async def starts(self, spec: BuilderSpec) -> int:
        return sum(run.job.id == spec.name for run in self.imitation.started)


class TestServices(ServicesContract):
    @pytest.fixture
    async def place(self, tmp_path: Path) -> AsyncGenerator[Place, None]:
        async with registry(tmp_path / "registry") as served:
            yield served

    @pytest.fixture
    async def service_spec(self, place: Place, imitation: NorthflankImitation, toolbox: Toolbox) -> ServiceSpec:
        imitation.registries[support.REGISTRY] = place.url
        return support.service_spec(await push(place, layer_of({"app/agent": toolbox.agent.read_bytes()})))

    async def get(self, address: Address, path: str) -> str:
        return await support.get(address, path)

    async def ask(self, seen: Inspection) -> str:
        """Return the instance that answers; a program knows its own by its host name."""
        assert seen.address is not None
        return await self.get(seen.address, "/env?name=HOSTNAME")

"""Railway keeps the contract of all platforms, on an imitation that checks each document against Railway's own schema."""

from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest

from app.imitations.railway import RailwayImitation
from app.platforms import railway
from app.platforms.base import Address, BuilderSpec, Inspection, Platform, ServiceSpec
from tests.images.support import Place, registry
from tests.platforms import railway_support as support
from tests.platforms.contract import BuildersContract, Restart, ServicesContract
from tests.support.agents import Toolbox, layer_of, make_toolbox, push


@pytest.fixture(scope="session")
def toolbox(run_folder: Path) -> Toolbox:
    return make_toolbox(run_folder)


@pytest.fixture
async def imitation(tmp_path: Path) -> AsyncGenerator[RailwayImitation, None]:
    async with support.imitation(tmp_path / "railway") as place:
        yield place


@pytest.fixture
async def made(imitation: RailwayImitation) -> AsyncGenerator[list[railway.RailwayPlatform], None]:
    """Platforms over the imitation; the last one is the present one."""
    platforms = [support.platform(imitation)]
    yield platforms
    for one in platforms:
        await one.aclose()


@pytest.fixture
def platform(made: list[railway.RailwayPlatform]) -> Platform:
    return made[-1].platform


@pytest.fixture
def restart(imitation: RailwayImitation, made: list[railway.RailwayPlatform]) -> Restart:
    async def again() -> Platform:
        made.append(support.platform(imitation))
        return made[-1].platform

    return again


class TestBuilders(BuildersContract):
    @pytest.fixture
    def builder_spec(self, imitation: RailwayImitation) -> BuilderSpec:
        self.imitation = imitation
        return support.builder_spec()

    @pytest.fixture
    def ending_spec(self) -> BuilderSpec:
        return support.builder_spec("raise SystemExit(10)")

    async def starts(self, spec: BuilderSpec) -> int:
        return len(self.imitation.deployments)


class TestServices(ServicesContract):
    address_per_release = False

    @pytest.fixture
    async def place(self, tmp_path: Path) -> AsyncGenerator[Place, None]:
        async with registry(tmp_path / "registry") as served:
            yield served

    @pytest.fixture
    async def service_spec(self, place: Place, toolbox: Toolbox) -> ServiceSpec:
        return support.service_spec(await push(place, layer_of({"app/agent": toolbox.agent.read_bytes()})))

    async def get(self, address: Address, path: str) -> str:
        # Not every resolver knows that *.localhost is this machine.
        url = httpx.URL(address.url)
        async with httpx.AsyncClient(timeout=15, headers={"Host": url.netloc.decode()}) as client:
            answer = await client.get(f"http://127.0.0.1:{url.port}{path}")
        if answer.status_code == 503:
            raise httpx.ConnectError("the proxy has nothing to send this to")
        return answer.text

    async def ask(self, seen: Inspection) -> str:
        """Return the instance that answers, which Railway tells its program by this name."""
        assert seen.address is not None
        return await self.get(seen.address, "/env?name=RAILWAY_REPLICA_ID")

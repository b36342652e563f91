"""A platform of its own for each test, and a registry."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from app.platforms import local
from app.platforms.base import BuilderSpec, ServiceSpec
from app.settings import Settings
from tests.images.support import Place, registry
from tests.local.support import Machine, builder_spec, service_spec
from tests.support.agents import Toolbox, layer_of, push


@pytest.fixture
async def place(tmp_path: Path) -> AsyncGenerator[Place, None]:
    async with registry(tmp_path / "registry") as served:
        yield served


@pytest.fixture
async def machine(tmp_path: Path, toolbox: Toolbox) -> AsyncGenerator[Machine, None]:
    """A started platform that can be made anew; everything it started ends with the test."""
    one = Machine(Settings(home=toolbox.home(tmp_path / "home")))
    await one.start()
    yield one
    await one.close()


@pytest.fixture
def platform(machine: Machine) -> local.LocalPlatform:
    return machine.platform


@pytest.fixture
async def service(place: Place, toolbox: Toolbox) -> ServiceSpec:
    return service_spec(await push(place, layer_of({"app/agent": toolbox.agent.read_bytes()})))


@pytest.fixture
def builder() -> BuilderSpec:
    return builder_spec()

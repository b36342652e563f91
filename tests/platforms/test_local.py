"""The local platform keeps the contract, with real sandboxes, a real registry and real processes."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from app.platforms.base import BuilderSpec, Platform, ServiceSpec
from app.platforms.local import procfs
from app.settings import Settings
from tests.local.support import Machine, builder_spec, service_spec
from tests.platforms.cloud import Stored
from tests.platforms.contract import BuildersContract, Restart, ServicesContract
from tests.support.agents import Toolbox


@pytest.fixture
async def machine(tmp_path: Path, toolbox: Toolbox) -> AsyncGenerator[Machine, None]:
    one = Machine(Settings(home=toolbox.home(tmp_path / "home")))
    await one.start()
    yield one
    await one.close()
    assert procfs.marked(one.platform.processes.prefix) == set()


@pytest.fixture
def platform(machine: Machine) -> Platform:
    return machine.platform.platform


@pytest.fixture
def restart(machine: Machine) -> Restart:
    async def again() -> Platform:
        return (await machine.restart()).platform

    return again


class TestBuilders(BuildersContract):
    @pytest.fixture
    def builder_spec(self, machine: Machine) -> BuilderSpec:
        self.machine = machine
        return builder_spec()

    @pytest.fixture
    def ending_spec(self) -> BuilderSpec:
        return builder_spec("raise SystemExit(10)")

    async def starts(self, spec: BuilderSpec) -> int:
        prefix = self.machine.platform.processes.prefix
        found = procfs.marked(prefix)
        # bubblewrap is two processes for one sandbox: its keeper and the sandbox's first.
        return len([p for p in found if (s := procfs.stat(p)) and s.ppid not in found])


class TestServices(ServicesContract):
    @pytest.fixture
    async def service_spec(self, stored: Stored) -> AsyncGenerator[ServiceSpec, None]:
        async with stored.served() as image:
            yield service_spec(image)

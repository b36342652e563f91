"""kill -9 of the owner at each point of a start: the next owner adopts or ends what is there, and nothing is left over."""

import os
from pathlib import Path
from typing import Literal

import pytest

from app.platforms.base import Misconfigured, Phase, Ref, ServiceRef, ServiceSpec
from app.platforms.local import procfs
from app.platforms.local.process import is_same, open_same
from app.settings import Settings
from tests.local.support import Machine, builder_spec
from tests.platforms.contract import until
from tests.support.agents import Toolbox
from tests.support.processes import python, spawned
from tests.support.waiting import eventually

POINTS = ["local.intent", "local.spawn", "local.record", "local.gate", "local.running"]
#: An owner that launches one builder and kills itself at a point; the builder says each time that it runs.
OWNER = """
import asyncio, os, signal
from pathlib import Path
from app.settings import Settings
from tests.local.support import Machine, builder_spec
import dataclasses
def fault(point):
    if point == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
async def main():
    machine = Machine(Settings(home=Path(sys.argv[1]), sandbox=sys.argv[4]), fault=fault)
    await machine.start()
    spec = dataclasses.replace(builder_spec(SCRIPT), name=sys.argv[3])
    await machine.platform.builders.launch(spec)
    print("launched", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
SCRIPT = "import time\\nprint('ran', flush=True)\\ntime.sleep(600)"
NAME = "slp-a1b2c3-run-00000000000000000000000001"


async def ran(machine: Machine) -> int:
    return sum(line.text == "ran" for line in await machine.platform.builders.logs(Ref(name=NAME)))


@pytest.mark.parametrize("sandbox", ["bubblewrap", "none"])
@pytest.mark.parametrize("point", POINTS)
async def test_a_killed_owner_s_builder_is_adopted_or_ended(
    point: str, sandbox: Literal["bubblewrap", "none"], tmp_path: Path, toolbox: Toolbox
) -> None:
    home = toolbox.home(tmp_path / "home")
    code = OWNER.replace("SCRIPT", f"'''{SCRIPT}'''")
    with spawned(*python(code, home, point, NAME, sandbox)) as owner:
        assert owner.wait(30) == -9, "".join(owner.output)
    machine = Machine(Settings(home=home, sandbox=sandbox))
    await machine.start()
    try:
        builders, prefix = machine.platform.builders, machine.platform.processes.prefix
        seen = await builders.inspect(Ref(name=NAME))
        if seen.phase is Phase.GONE:
            assert point != "local.running"
            assert procfs.marked(prefix) == set()
            assert await ran(machine) == 0 or sandbox == "none"
        else:
            assert seen.phase is Phase.RUNNING
            assert point not in {"local.intent", "local.spawn"}
        spec = builder_spec(SCRIPT.replace("\\n", "\n"))
        await builders.launch(spec.__class__(**{**vars(spec), "name": NAME}))
        assert await until(lambda: ran(machine)) == 1, "the program ran more than once"
    finally:
        await machine.close()
    assert procfs.marked(prefix) == set()
    assert list((home / "local/processes").glob(".*")) == []


async def test_an_adopted_service_keeps_address_and_exit_code(machine: Machine, service: ServiceSpec) -> None:
    await machine.platform.services.deploy(service)
    ref = ServiceRef(service=service.service, release=service.release)
    before = await machine.platform.services.wake(ref)
    services = (await machine.restart()).services
    assert await services.wake(ref) == before
    process = machine.platform.processes.live[service.release]
    assert not process.own
    await machine.platform.processes.kill(process)
    seen = await services.inspect(ref)
    assert (seen.phase, seen.exit_code) == (Phase.FAILED, 137)
    after = await services.wake(ref)
    assert after.instance_id != before.instance_id


async def test_what_ends_while_nobody_watches_is_known_to_the_next(machine: Machine) -> None:
    spec = builder_spec("import sys; sys.exit(20)")
    await machine.platform.builders.launch(spec)
    process = machine.platform.processes.live[spec.name]
    record = process.record
    machine.platform.processes.release()
    machine.platform.processes.live.clear()
    await eventually(lambda: not procfs.marked(record.marker) - _zombies(record.marker))
    builders = (await machine.restart()).builders
    seen = await builders.inspect(Ref(name=spec.name))
    assert (seen.phase, seen.exit_code) == (Phase.FAILED, 20)


def _zombies(marker: str) -> set[int]:
    return {p for p in procfs.marked(marker) if (s := procfs.stat(p)) is None or s.state == "Z"}


async def test_a_program_that_daemonizes_leaves_nothing(machine: Machine, service: ServiceSpec) -> None:
    spec = service.__class__(**{**vars(service), "env": {"MODE": "daemon"}})
    await machine.platform.services.deploy(spec)
    process = machine.platform.processes.live[spec.release]
    await eventually(lambda: not process.alive)
    assert process.record.exit_code == 4
    assert procfs.marked(process.record.marker) == set()


def test_a_reused_process_id_is_not_believed() -> None:
    me = procfs.stat(os.getpid())
    assert me is not None
    assert is_same(me.pid, me.start)
    assert not is_same(me.pid, me.start + 1)
    assert open_same(me.pid, me.start + 1) == -1


async def test_two_owners_are_refused(machine: Machine) -> None:
    second = Machine(machine.settings)
    with pytest.raises(Misconfigured, match="another running process"):
        await second.start()

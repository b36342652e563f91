"""A builder that ends without a word is noticed at once where looking costs nothing, and only there."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.builds.look_after import look_after
from app.models import Run
from app.platforms.base import Phase
from tests.support.platform import TRAITS
from tests.support.world import World, world

BOUND = replace(TRAITS, host_bound=True)


async def at_work(it: World) -> Run:
    """Return a run whose builder has claimed it."""
    build = await it.submit()
    await it.jobs()
    await (await it.builder(build)).claim()
    return await it.run_of(build)


async def status_after_a_look(it: World, run: Run) -> str:
    await look_after(it.context)
    await it.jobs()
    return str((await it.one(Run, id=run.id)).status)


@pytest.mark.parametrize("phase", [Phase.EXITED, Phase.FAILED, Phase.GONE])
async def test_a_builder_that_ended_is_noticed_at_once(phase: Phase, database_url: str, tmp_path: Path) -> None:
    async with world(database_url, tmp_path, traits=BOUND) as it:
        run = await at_work(it)
        assert await status_after_a_look(it, run) == "running"
        if phase is Phase.GONE:
            del it.yard.machines[run.name]
        else:
            it.machine(run).phase = phase
        assert await status_after_a_look(it, run) == "lost"


async def test_a_launch_on_its_way_is_left_alone(database_url: str, tmp_path: Path) -> None:
    async with world(database_url, tmp_path, traits=BOUND) as it:
        build = await it.submit()
        gate = it.yard.gate("launch")
        async with it.working():
            await gate.reached()
            machine = it.yard.machines.popitem()
            await look_after(it.context)
            assert await it.waiting("check.yard") == []
            it.yard.machines.update([machine])
            gate.go.set()
        assert (await it.run_of(build)).status == "launching"


async def test_elsewhere_a_builder_has_time_to_be_heard_of(database_url: str, tmp_path: Path) -> None:
    async with world(database_url, tmp_path) as it:
        run = await at_work(it)
        it.machine(run).phase = Phase.EXITED
        assert await status_after_a_look(it, run) == "running"

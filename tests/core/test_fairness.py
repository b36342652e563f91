"""Projects share a platform's slots: none starves, none waits for another's backlog, and choosing stays cheap.

Builds run in virtual time: one that is launched ends some seconds of it later, whatever the clock says.
"""

import heapq
import random
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import replace
from statistics import mean
from typing import Any

import pytest

from app.builds import slots
from app.models import Build, Run
from app.platforms.base import Phase
from tests.support.builder import Builder
from tests.support.platform import TRAITS
from tests.support.world import World

SECONDS = (45.0, 75.0)
"""Of a build: at least and at most."""


async def share(
    here: World, loads: dict[str, int], builders: int, concurrent: int | None = None
) -> dict[str, list[float]]:
    """Send so many builds of each project, in turns, and take all to their end; return how long each waited, by project."""
    here.yard.traits = replace(TRAITS, max_builders=builders)
    here.context.catalog.entries = {"yard": here.yard.entry()}
    async with AsyncExitStack() as stack:
        projects = {}
        for name in loads:
            project, http = await here.project(name, limit=concurrent)
            projects[project.id] = name, await stack.enter_async_context(http)
        for number in range(max(loads.values())):
            for name, http in projects.values():
                if number < loads[name]:
                    assert (await http.post("/v1/builds", json=here.order())).status_code == 202
            await here.jobs()
        waits = await _until_all_ended(here, concurrent)
    assert here.yard.most == builders, "more builders than slots, or a slot was never used"
    assert {name: len(waits[project]) for project, (name, _) in projects.items()} == loads
    return {name: waits[project] for project, (name, _) in projects.items()}


async def _until_all_ended(here: World, concurrent: int | None) -> dict[str, list[float]]:
    waits: dict[str, list[float]] = defaultdict(list)
    chance, now, seen = random.Random(7), 0.0, 0
    running: list[tuple[float, str, str]] = []
    while True:
        for name in here.yard.launched[seen:]:
            run = await here.one(Run, name=name)
            waits[run.project_id].append(now)
            heapq.heappush(running, (now + chance.uniform(*SECONDS), name, run.project_id))
        seen = len(here.yard.launched)
        if not running:
            return waits
        at_work = [project for _, _, project in running]
        assert concurrent is None or max(map(at_work.count, at_work)) <= concurrent
        now, name, _ = heapq.heappop(running)
        machine = here.yard.machines[name]
        machine.phase = Phase.EXITED
        env = machine.spec.env
        await Builder(here.http, env["SLIPWAY_RUN_ID"], env["SLIPWAY_RUN_TOKEN"]).fail("compile_error")
        await here.jobs()


@pytest.mark.parametrize(
    ("projects", "each", "builders"), [(4, 6, 4), pytest.param(20, 100, 20, marks=pytest.mark.volume)], ids=str
)
async def test_equal_loads_wait_alike(here: World, projects: int, each: int, builders: int) -> None:
    waits = await share(here, {f"p{n}": each for n in range(projects)}, builders)
    means = [mean(w) for w in waits.values()]
    assert max(means) / min(means) <= 1.5
    assert max(map(len, waits.values())) == each


@pytest.mark.parametrize(
    ("small", "large", "builders"), [(2, 20, 4), pytest.param(10, 1000, 20, marks=pytest.mark.volume)], ids=str
)
async def test_a_small_backlog_does_not_wait_for_a_large_one(
    here: World, small: int, large: int, builders: int
) -> None:
    """Alone all of the small one's builds would start at once, so its time from start to end is that of a build."""
    waits = await share(here, {"large": large, "small": small}, builders)
    alone = mean(SECONDS)
    assert mean(w + alone for w in waits["small"]) <= 2 * alone
    assert max(waits["small"]) < max(waits["large"])


async def test_a_project_s_own_limit_holds_among_others(here: World) -> None:
    await share(here, {"a": 4, "b": 4, "c": 4}, 3, concurrent=1)


async def test_a_raised_limit_starts_as_many_as_it_allows(here: World) -> None:
    here.yard.traits = replace(TRAITS, max_builders=3)
    here.context.catalog.entries = {"yard": here.yard.entry()}
    await here.http.patch("/v1/projects/default", json={"max_concurrent_builds": 1})
    for _ in range(5):
        await here.submit()
    await here.jobs()
    assert await here.reconcile() == 0, "builds that a limit holds are looked at"
    await here.http.patch("/v1/projects/default", json={"max_concurrent_builds": 4})
    await here.reconcile()
    assert sorted(b.status for b in await here.rows(Build)) == ["building"] * 3 + ["queued"] * 2


MANY = """
    insert into build (id, project_id, status, builder_platform, source, spec)
    select 'bld_' || lpad(n::text, 6, '0'), 'prj_' || (n / 200 + 1),
        case when n <= 2000 then 'failed' else 'queued' end, 'yard', '{}', '{}'
    from generate_series(1, 3999) n
"""


async def test_a_freed_slot_costs_the_same_beside_a_large_backlog(here: World) -> None:
    """Counted in rows that are looked at: some for each project, none for what it has queued behind its first, or has ended."""
    await here.sql("insert into project (id, name) select 'prj_' || n, 'p' || n from generate_series(1, 20) n")
    await here.sql(MANY)
    await here.sql("analyze build")
    values = {
        slots._ROOM: ("'bld_003000'", "'yard'", "50", "30"),
        slots._PICK: ("'yard'", "50", "20"),
        slots._HELD: ("'yard'", "'prj_20'", "array['far', 'near']"),
        slots._STARTABLE: ("'yard'", "50", "20"),
    }
    for asked, given in values.items():
        statement = asked
        for number, value in enumerate(given, 1):
            statement = statement.replace(f"${number}", value)
        (plan,) = (await here.sql(f"explain (analyze, format json) {statement}"))[0][0]
        assert rows(plan["Plan"]) < 1000, asked


def rows(node: dict[str, Any]) -> int:
    """Return how many rows a plan and all below it gave or threw away."""
    seen = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
    return int(seen * node["Actual Loops"]) + sum(map(rows, node.get("Plans", ())))

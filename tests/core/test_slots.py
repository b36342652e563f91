"""Limits hold over any number of workers, nobody is forgotten, and no project takes all."""

import asyncio
import dataclasses

import pytest

from app.builds import dispatch, slots
from app.db import transaction
from app.models import Build
from tests.support.platform import TRAITS
from tests.support.waiting import eventually
from tests.support.world import World


def limit(here: World, builders: int) -> None:
    here.yard.traits = dataclasses.replace(TRAITS, max_builders=builders)
    here.context.catalog.entries = {"yard": here.yard.entry()}


async def statuses(here: World) -> list[str]:
    return [b.status for b in await here.rows(Build)]


async def test_a_platform_s_limit_holds_against_many_dispatches_at_once(here: World) -> None:
    limit(here, 3)
    builds = [await here.submit() for _ in range(8)]
    await asyncio.gather(*(dispatch.dispatch(here.context, b.id) for b in builds * 3))
    assert sorted(await statuses(here)) == ["building"] * 3 + ["queued"] * 5
    held = [b for b in await here.rows(Build) if b.status == "queued"]
    assert [b.next_check_at for b in held] == [None] * 5


async def test_a_slot_that_is_being_taken_counts(here: World) -> None:
    """While there is room for all, slots are taken side by side; whoever looks for the last one waits for their commits."""
    limit(here, 1)
    first = await here.submit()
    async with transaction(here.context.pool) as session:
        build = await slots.room(here.context, session, first.id)
        assert build is not None
        await dispatch._claim(here.context, session, build)
        second = await here.submit()
        turn = asyncio.create_task(dispatch.dispatch(here.context, second.id))
        await eventually(lambda: here.sql("select 1 from pg_locks where locktype = 'advisory' and not granted"))
    await turn
    assert sorted(await statuses(here)) == ["dispatching", "queued"]


def two_platforms(here: World) -> None:
    here.context.catalog.entries = {"yard": here.yard.entry(), "other": here.yard.entry("other")}
    here.context.catalog.held["other"] = here.yard.platform("other")


async def elsewhere(here: World) -> Build:
    """Send a build that is built on the other platform."""
    build = await here.submit()
    await here.sql("update build set builder_platform = 'other' where id = :id", id=build.id)
    return build


async def test_a_project_s_slot_is_free_on_every_platform(here: World) -> None:
    two_platforms(here)
    await here.http.patch("/v1/projects/default", json={"max_concurrent_builds": 1})
    first = await here.submit()
    await here.jobs()
    second = await elsewhere(here)
    await here.jobs()
    assert (await here.one(Build, id=second.id)).next_check_at is None, "it is not held"
    await (await here.builder(first)).fail("compile_error")
    await here.jobs()
    assert (await here.one(Build, id=second.id)).status == "building"


@pytest.mark.parametrize("crowded", [False, True])
async def test_a_slot_that_is_being_taken_on_another_platform_counts(here: World, crowded: bool) -> None:
    two_platforms(here)
    await here.http.patch("/v1/projects/default", json={"max_concurrent_builds": 1})
    first = await here.submit()
    second = await elsewhere(here) if crowded else None
    _, neighbour = await here.project("neighbour")
    async with neighbour, transaction(here.context.pool) as session:
        build = await slots.room(here.context, session, first.id)
        if crowded:
            assert build is None
            build = await slots.pick(here.context, session, "yard")
        assert build is not None
        await dispatch._claim(here.context, session, build)
        second = second or await elsewhere(here)
        third = (await neighbour.post("/v1/builds", json=here.order())).json()["id"]
        await here.sql("update build set builder_platform = 'other' where id = :id", id=third)
        turn = asyncio.create_task(dispatch.dispatch(here.context, second.id))
        await eventually(lambda: here.sql("select 1 from pg_locks where locktype = 'advisory' and not granted"))
    await turn
    seen = {b.id: b.status for b in await here.rows(Build)}
    assert seen == {first.id: "dispatching", second.id: "queued", third: "building"}, (
        "the slot went to no other project"
    )


async def test_of_equal_projects_the_oldest_build_is_next(here: World) -> None:
    limit(here, 1)
    running = await here.submit()
    await here.jobs()
    sent = []
    for name in ("one", "two", "three"):
        _, http = await here.project(name)
        async with http:
            sent.append((await http.post("/v1/builds", json=here.order())).json()["id"])
    await here.jobs()
    await (await here.builder(running)).fail("compile_error")
    await here.jobs()
    assert [(await here.one(Build, id=i)).status for i in sent] == ["building", "queued", "queued"]


async def test_a_build_that_somebody_has_locked_does_not_keep_a_slot_empty(here: World) -> None:
    limit(here, 1)
    first, second = await here.submit(), await here.submit()
    async with here.context.sessions.begin() as session:
        await session.get(Build, first.id, with_for_update=True)
        done = asyncio.create_task(dispatch.dispatch(here.context, second.id))
        await eventually(done.done)
        done.result()
    assert await statuses(here) == ["queued", "building"]


async def test_who_is_held_just_now_is_nudged_by_the_end_that_it_did_not_see(here: World) -> None:
    limit(here, 1)
    first, second = await here.submit(), await here.submit()
    await dispatch.dispatch(here.context, first.id)
    await here.forget_jobs()
    async with transaction(here.context.pool) as session:
        assert await slots.pick(here.context, session, "yard") is None
        await slots.hold(session, second.id)
        end = asyncio.create_task((await here.builder(first)).fail("compile_error"))
        await eventually(lambda: here.sql("select 1 from pg_locks where locktype = 'advisory' and not granted"))
    await end
    await here.jobs()
    assert (await here.one(Build, id=second.id)).status == "building"


async def test_reconcile_starts_no_more_than_there_is_room_for(here: World) -> None:
    limit(here, 3)
    await here.submit()
    await here.jobs()
    for name in ("one", "two", "three"):
        _, http = await here.project(name)
        async with http:
            for _ in range(2):
                await http.post("/v1/builds", json=here.order())
    await here.forget_jobs()
    async with here.context.sessions() as session:
        assert await slots.startable(here.context, session, "yard") == [], "what is not held has its job"
    await here.sql("update build set next_check_at = null where status = 'queued'")
    async with here.context.sessions() as session:
        assert len(await slots.startable(here.context, session, "yard")) == 2


async def test_a_project_s_limit_counts_what_waits(here: World) -> None:
    _, other = await here.project("other", limit=1)
    async with other:
        for _ in range(2):
            assert (await other.post("/v1/builds", json=here.order())).status_code == 202
    async with transaction(here.context.pool) as session:
        rooms = [await slots.room(here.context, session, b.id) for b in await here.rows(Build)]
    assert rooms == [None, None]


async def test_a_freed_slot_is_filled_and_all_builds_come_through(here: World) -> None:
    limit(here, 2)
    builds = [await here.submit() for _ in range(6)]
    await here.jobs()
    done = 0
    while done < len(builds):
        running = [b for b in await here.rows(Build) if b.status == "building"]
        assert len(running) == min(2, len(builds) - done), "a slot stayed empty"
        for build in running:
            await (await here.builder(build)).finish()
        done += len(running)
        await here.jobs()
    assert await statuses(here) == ["succeeded"] * 6


async def test_slots_freed_at_once_are_all_filled(here: World) -> None:
    """Several nudges may name the same held build: each fills a slot all the same."""
    limit(here, 4)
    for _ in range(8):
        await here.submit()
    await here.jobs()
    first = [b for b in await here.rows(Build) if b.status == "building"]
    for build in first:
        await (await here.builder(build)).fail("compile_error")
    await here.jobs()
    assert sorted(await statuses(here)) == ["building"] * 4 + ["failed"] * 4
    assert [(await here.run_of(b)).launch_tries for b in await here.rows(Build)] == [1] * 8


async def test_a_project_s_limit_holds_and_leaves_room_for_others(here: World) -> None:
    _, other = await here.project("other", limit=1)
    async with other:
        for _ in range(3):
            assert (await other.post("/v1/builds", json=here.order())).status_code == 202
        await here.jobs()
        assert sorted(await statuses(here)) == ["building", "queued", "queued"]
        await here.submit()
        await here.jobs()
        assert sorted(await statuses(here)) == ["building", "building", "queued", "queued"]


async def test_the_project_with_the_fewest_builders_is_next(here: World) -> None:
    limit(here, 2)
    _, other = await here.project("other")
    async with other:
        for _ in range(5):
            await here.submit()
        late = (await other.post("/v1/builds", json=here.order())).json()["id"]
        await here.jobs()
        running = [b for b in await here.rows(Build) if b.status == "building"]
        await (await here.builder(running[0])).fail("compile_error")
        await here.jobs()
        assert (await here.one(Build, id=late)).status == "building", "the busy project took the slot"


async def test_a_held_build_makes_no_checks_and_is_found_when_its_nudge_was_lost(here: World) -> None:
    limit(here, 1)
    first, second = await here.submit(), await here.submit()
    await here.jobs()
    assert (await here.one(Build, id=second.id)).next_check_at is None
    assert await here.reconcile() == 0
    await (await here.builder(first)).fail("compile_error")
    await here.forget_jobs()
    await here.reconcile()
    assert (await here.one(Build, id=second.id)).status == "building"


async def test_canceling_frees_the_slot(here: World) -> None:
    limit(here, 1)
    first, second = await here.submit(), await here.submit()
    await here.jobs()
    await here.http.post(f"/v1/builds/{first.id}/cancel")
    await here.jobs()
    assert (await here.one(Build, id=second.id)).status == "building"


async def test_back_off_is_no_hold(here: World) -> None:
    build = await here.submit()
    await here.sql("update build set not_before = now() + interval '1 hour'")
    await here.jobs()
    assert (await here.one(Build, id=build.id)).next_check_at is not None


async def test_holding_waits_for_nobody(here: World) -> None:
    """Whoever locks a queued build and then wants the platform's lock must not meet a dispatch that wants both."""
    limit(here, 1)
    await here.submit()
    second = await here.submit()
    async with here.context.sessions.begin() as session:
        await session.get(Build, second.id, with_for_update=True)
        done = asyncio.create_task(dispatch.dispatch(here.context, second.id))
        await eventually(done.done)
        done.result()

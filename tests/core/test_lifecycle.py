"""The statuses: every one is reached, owned and rescued, and only ``store.move`` changes them."""

import asyncio
import importlib
import itertools

import pytest
from sqlalchemy import update

from app import outbox, sql, store
from app.db import transaction
from app.lifecycle import (
    AT_REST,
    OWNERS,
    REASONS,
    TRANSITIONS,
    BuildStatus,
    Owner,
    Reason,
    ReleaseStatus,
    RunStatus,
    ServiceStatus,
    Status,
    is_terminal,
)
from app.models import Build, Event, Service
from app.services import delete
from tests.support.world import World

FIRST: dict[type[Status], Status] = {
    BuildStatus: BuildStatus.QUEUED,
    RunStatus: RunStatus.LAUNCHING,
    ReleaseStatus: ReleaseStatus.PENDING,
    ServiceStatus: ServiceStatus.PENDING,
}
KINDS = list(FIRST)
TERMINAL: dict[type[Status], set[Status]] = {
    BuildStatus: {BuildStatus.SUCCEEDED, BuildStatus.FAILED, BuildStatus.CANCELED},
    RunStatus: {RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELED, RunStatus.LOST},
    ReleaseStatus: {ReleaseStatus.SUPERSEDED, ReleaseStatus.FAILED},
    ServiceStatus: {ServiceStatus.DELETED},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_open_status_has_an_owner_and_a_rescue_that_exist(kind: type[Status]) -> None:
    for status in kind:
        if is_terminal(status) or status in AT_REST[kind]:
            assert status not in OWNERS.get(kind, {}), f"{status} owes nothing"
            continue
        for place in OWNERS[kind][status]:
            module, _, name = place.partition(":")
            assert callable(getattr(importlib.import_module(module), name)), f"{status}: {place}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_status_is_reachable_and_can_end(kind: type[Status]) -> None:
    moves = TRANSITIONS[kind]
    assert set(moves) == set(kind)
    assert {s for s in kind if not moves[s]} == TERMINAL[kind]

    def reached(start: Status) -> set[Status]:
        seen, todo = {start}, [start]
        while todo:
            fresh = moves[todo.pop()] - seen
            seen |= fresh
            todo.extend(fresh)
        return seen

    assert reached(FIRST[kind]) == set(kind)
    for status in kind:
        assert reached(status) & TERMINAL[kind], f"{status} never ends"


def test_every_reason_says_whose_move_it_is_and_what_to_do() -> None:
    assert set(REASONS) == set(Reason)
    for reason, info in REASONS.items():
        assert isinstance(info.owner, Owner), reason
        assert info.message.endswith("."), reason
        assert len(info.message) > 25, reason


async def test_move_refuses_every_move_that_is_not_in_the_table(here: World) -> None:
    build = await here.submit("echo")
    for before, to in itertools.product(BuildStatus, BuildStatus):
        if to in TRANSITIONS[BuildStatus][before]:
            continue
        build.status = before
        async with here.context.sessions() as session:
            with pytest.raises(ValueError, match="is not a move"):
                await store.move(session, build, to)


async def test_move_is_lost_to_whoever_was_faster(here: World) -> None:
    build = await here.submit()

    async def cancel() -> bool:
        async with here.context.sessions.begin() as session:
            row = await session.get(Build, build.id)
            assert row is not None
            await barrier.wait()
            return await store.move(session, row, BuildStatus.CANCELED)

    barrier = asyncio.Barrier(5)
    assert (await asyncio.gather(*(cancel() for _ in range(5)))).count(True) == 1
    assert (await here.kinds(build_id=build.id)).count("build.canceled") == 1


async def test_move_keeps_to_its_condition(here: World) -> None:
    build = await here.submit()
    async with here.context.sessions.begin() as session:
        assert not await store.move(session, build, BuildStatus.CANCELED, where=(Build.attempt == 7,))
    assert (await here.one(Build, id=build.id)).status == "queued"
    assert "build.canceled" not in await here.kinds(build_id=build.id)


async def test_an_event_and_a_job_live_and_die_with_their_transaction(here: World) -> None:
    _, _, release = await here.deployed("echo")
    before = (len(await here.rows(Event)), await here.waiting())

    async def fails_late() -> None:
        async with here.context.sessions.begin() as session:
            service = await session.get(Service, release.service_id, with_for_update=True)
            assert service is not None
            await delete.request(here.context, session, service)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fails_late()
    assert (len(await here.rows(Event)), await here.waiting()) == before
    assert (await here.service("echo")).status == "running"
    assert (await here.http.delete("/v1/services/echo")).status_code == 202
    assert await here.waiting("delete") == [release.service_id]


async def test_move_sets_its_stamp_and_brings_the_row_up_to_date(here: World) -> None:
    build = await here.submit()
    async with here.context.sessions.begin() as session:
        row = await session.get(Build, build.id)
        assert row is not None
        await session.execute(update(Build).where(Build.id == build.id).values(message="changed meanwhile"))
        assert await store.move(session, row, BuildStatus.CANCELED)
        assert (row.status, row.message) == ("canceled", "changed meanwhile")
        assert row.finished_at is not None
        assert row.next_check_at is None


async def test_a_move_under_a_lock_that_nobody_holds_ends_its_transaction(here: World) -> None:
    build = await here.submit()
    before = len(await here.rows(Event))

    async def moves_without_lock() -> None:
        async with transaction(here.context.pool) as session:
            row = await sql.fetch_one(session, "select * from build where id = $1", build.id)
            assert row is not None
            await here.sql("update build set status = 'dispatching'")
            await store.move(session, sql.load(Build, row), BuildStatus.CANCELED, along=True)

    with pytest.raises(outbox.LostError):
        await moves_without_lock()
    assert len(await here.rows(Event)) == before
    assert (await here.one(Build, id=build.id)).status == "dispatching"


async def test_moves_in_one_statement_are_made_together_or_not_at_all(here: World) -> None:
    seen = [await here.submit(), await here.submit()]
    before = len(await here.rows(Event))

    async def cancel_both() -> None:
        async with transaction(here.context.pool) as session:
            for build in seen:
                await store.move(session, build, BuildStatus.CANCELED, along=True)

    await here.sql("update build set status = 'dispatching' where id = :id", id=seen[1].id)
    with pytest.raises(outbox.LostError):
        await cancel_both()
    assert [b.status for b in await here.rows(Build)] == ["queued", "dispatching"]
    assert len(await here.rows(Event)) == before
    await here.sql("update build set status = 'queued'")
    seen = await here.rows(Build)
    await cancel_both()
    assert [b.status for b in await here.rows(Build)] == ["canceled"] * 2
    assert len(await here.rows(Event)) == before + 2


async def test_every_change_of_status_has_an_event(here: World) -> None:
    """A whole life, against the rows: the last event of each row tells its status."""
    await here.deployed("echo")
    await here.http.post("/v1/services/echo/sleep")
    await here.http.delete("/v1/services/echo")
    await here.jobs()
    for table in ("build", "run", "release", "service"):
        rows = await here.sql(
            f"select t.status, (select kind from event e where e.{table}_id = t.id and e.kind like '{table}.%' "
            f"order by e.xid desc, e.id desc limit 1) as kind from {table} t"
        )
        assert rows
        for row in rows:
            assert row.kind == f"{table}.{row.status}"

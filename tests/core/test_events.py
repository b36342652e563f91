"""Whoever follows events by their positions sees each once, in an order that never changes, however transactions commit."""

import asyncio
import contextlib
import random
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import select

from app import db, events
from app.models import Event, Project
from app.outbox import add_event
from tests.docs import pages
from tests.support.databases import database_in
from tests.support.waiting import eventually
from tests.support.world import World, world


async def project_id(here: World) -> str:
    return (await here.one(Project, name="default")).id


async def read(here: World, after: events.Position, limit: int = 100) -> list[Event]:
    async with here.context.sessions() as session:
        return await events.read(session, after, limit, Event.project_id == await project_id(here))


async def test_a_transaction_that_commits_late_is_waited_for(here: World) -> None:
    project = await project_id(here)
    async with here.context.sessions() as late, here.context.sessions() as early:
        for session, kind in ((late, "test.first"), (early, "test.second")):
            await session.execute(select(Project).with_for_update(read=True))  # takes its number now
            add_event(session, project, kind, {})
        await early.commit()
        assert await read(here, events.START) == [], "an event was read that another may still precede"
        async with here.context.sessions() as session:
            now = await events.horizon(session)
        await late.commit()

    async def both() -> list[Event]:
        found = await read(here, events.START)
        assert len(found) == 2
        return found

    first, second = await eventually(both)
    assert [first.kind, second.kind] == ["test.first", "test.second"]
    assert first.id > second.id, "the ids were to be in the other order"
    assert [e.kind for e in await read(here, events.position(first))] == ["test.second"]
    assert [e.kind for e in await read(here, now)] == ["test.first", "test.second"]


async def test_who_holds_events_back_is_found_as_the_operator_is_told(here: World) -> None:
    """In another database of the server, too."""
    sessions, prepared = "".join(pages.blocks(pages.read("docs/operations.md"), "sql")).split(";\n")[:2]
    culprit = await asyncpg.connect(db.plain_dsn(database_in(here.database_url, "postgres")), timeout=10)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(culprit.close)
        await stack.enter_async_context(culprit.transaction())
        await culprit.execute("select pg_current_xact_id()")
        await here.submit()
        assert await read(here, events.START) == []
        found = [row for row in await here.sql(sessions) if row.pid == culprit.get_server_pid()]
        assert [(row.datname, row.state) for row in found] == [("postgres", "idle in transaction")]
        assert await here.sql(prepared) == []
    await here.settled()
    assert [e.kind for e in await read(here, events.START)] == ["build.queued"]


async def test_nothing_that_was_comes_after_now(here: World) -> None:
    """Also while nothing happens at all: the position of now is then that of the transaction to come."""
    async with here.context.sessions.begin() as session:
        add_event(session, await project_id(here), "test.before", {})
    await here.settled()
    async with here.context.sessions() as session:
        await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        now = await events.horizon(session)
        assert await events.read(session, now, 100, Event.project_id == await project_id(here)) == []


async def test_readers_that_page_see_each_event_once_while_writers_overlap(here: World) -> None:
    project, chance = await project_id(here), random.Random(7)
    writers, each = 6, 15
    orders = [[chance.randint(1, 4) for _ in range(each)] for _ in range(writers)]

    async def write(number: int) -> None:
        for count in orders[number]:
            async with here.context.sessions() as session:
                await session.execute(select(Project).with_for_update(read=True))
                for _ in range(count):  # round trips in which others commit
                    add_event(session, project, "test.written", {"by": number})
                    await session.execute(select(1))
                await session.commit()

    wanted = sum(map(sum, orders))
    seen: list[events.Position] = []

    async def follow() -> bool:
        page = await read(here, seen[-1] if seen else events.START, limit=7)
        seen.extend(map(events.position, page))
        return len(seen) >= wanted

    follower = asyncio.create_task(eventually(follow, 20, every=0))
    await asyncio.gather(*(write(n) for n in range(writers)))
    await follower
    everything = [events.position(e) for e in await read(here, events.START, limit=wanted + 1)]
    assert seen == everything
    assert seen == sorted(set(seen))


@pytest.mark.parametrize("text", ["", "1", "1-", "-1", "1-2-3", "a-b", "1-٣", f"{2**63}-1", "1-" + "9" * 20, " 1-2"])
def test_what_is_no_position(text: str) -> None:
    with pytest.raises(ValueError, match="not the id"):
        events.parse(text)


def test_a_position_is_read_as_it_was_written() -> None:
    assert events.parse(str(events.Position(7421, 99))) == (7421, 99)


async def test_after_a_restore_into_a_new_server_nothing_is_lost_and_the_order_is_that_of_the_ids(
    here: World, database_url: str, tmp_path: Path
) -> None:
    project, far = await project_id(here), 2**40
    for kind in ("test.first", "test.second"):
        async with here.context.sessions.begin() as session:
            add_event(session, project, kind, {})
    await here.settled()
    old = (await read(here, events.START))[0]
    # As a dump of a server that had counted further looks in this one.
    await here.sql("update event set xid = (xid::text::bigint + :far)::text::xid8", far=far)
    assert await read(here, events.START) == [], "events of the future are not settled"
    async with world(database_url, tmp_path / "restored") as restored:
        async with restored.context.sessions.begin() as session:
            add_event(session, project, "test.third", {})
        await restored.settled()
        kinds = [e.kind for e in await read(restored, events.START)]
        assert [k for k in kinds if k.startswith("test.")] == ["test.first", "test.second", "test.third"]
        left_off = events.Position(old.xid + far, old.id)
        assert [e.kind for e in await read(restored, left_off)][:1] == ["test.second"]
        async with restored.context.sessions.begin() as session:
            assert not await events.after_restore(session), "it is done once"

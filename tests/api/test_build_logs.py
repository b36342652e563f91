"""A build's log, page by page and as it is written."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.models import Build
from tests.support.builder import Builder
from tests.support.sse import Served, Stream, served
from tests.support.waiting import eventually
from tests.support.world import World


@pytest.fixture
async def open_(here: World) -> AsyncIterator[Served]:
    async with served(here.app, here.key) as it:
        yield it


async def building(here: World) -> tuple[Build, Builder]:
    build = await here.submit()
    await here.jobs()
    builder = await here.builder(build)
    await builder.claim()
    return build, builder


async def texts(stream: Stream, count: int) -> list[str]:
    return [(await stream.data()).data["text"] for _ in range(count)]


async def test_lines_follow_until_the_build_has_ended(here: World, open_: Served) -> None:
    build, builder = await building(here)
    await builder.log("one", "two")
    path = f"/v1/builds/{build.id}/logs"
    async with open_.stream(path) as stream:
        assert (await stream.block()).id == "0.0"
        assert await texts(stream, 2) == ["one", "two"]
        await builder.log("three", seq=2)
        assert await texts(stream, 1) == ["three"]
        cut = stream.last
    await builder.log("three", "four", "five", seq=2)  # a builder that had no answer sends again
    async with open_.stream(path, last=cut) as stream:
        assert await texts(stream, 1) == ["four"]
        await builder.fail("compile_error")
        blocks = await stream.rest()
    assert [b.data["text"] for b in blocks[:-1]] == ["five"]
    assert (blocks[-1].event, blocks[-1].data) == ("end", {"build_id": build.id, "status": "failed"})
    page = (await here.http.get(path)).json()
    assert [i["number"] for i in page["items"]] == [0, 1, 2, 3, 4]
    assert (page["ended"], page["after"], page["next_cursor"]) == (True, "1.5", None)


async def test_an_earlier_builder_s_last_lines_are_not_lost(here: World, open_: Served) -> None:
    """A builder that was given up for lost sends its tail after the next one has begun."""
    build, first = await building(here)
    await first.log("first, one")
    path = f"/v1/builds/{build.id}/logs"
    async with open_.stream(path) as stream:
        assert await texts(stream, 1) == ["first, one"]
        run = await here.run_of(build)
        await here.sql("update run set status = 'lost', finished_at = now() where id = :id", id=run.id)
        copy = "insert into run (id, project_id, build_id, attempt, status, platform, name, key_id, deadline_at, log_next) "
        values = "select 'run_2', project_id, build_id, 2, 'running', platform, 'n', key_id, deadline_at, 1 from run"
        await here.sql(f"{copy} {values} where id = :id", id=run.id)
        line = '[{"t": 1, "s": "stdout", "m": "second, one"}]'
        await here.sql("insert into run_log (run_id, number, lines) values ('run_2', 0, cast(:l as jsonb))", l=line)
        assert await texts(stream, 1) == ["second, one"]
        await first.log("first, two", seq=1)
        assert await texts(stream, 1) == ["first, two"]
        assert stream.last == "1.2,2.1"
    page = (await here.http.get(path, params={"after": "1.1,2.1"})).json()
    assert [i["text"] for i in page["items"]] == ["first, two"]
    page = (await here.http.get(path, params={"after": "2.1"})).json()
    assert [i["text"] for i in page["items"]] == ["first, one", "first, two"]


async def test_since_a_time(here: World, open_: Served) -> None:
    build, builder = await building(here)
    now = datetime.now(UTC)
    old, new = ({"t": (now + timedelta(seconds=s)).timestamp(), "s": "stdout", "m": str(s)} for s in (-60, 0))
    assert (await builder.post("logs", seq=0, lines=[old, new])).status_code == 204
    path, since = f"/v1/builds/{build.id}/logs", (now - timedelta(seconds=30)).isoformat()
    assert [i["text"] for i in (await here.http.get(path, params={"since": since})).json()["items"]] == ["0"]
    async with open_.stream(path, since=since) as stream:
        assert await texts(stream, 1) == ["0"]
    assert (await here.http.get(path, params={"since": "2026-01-01T00:00:00"})).status_code == 422


async def test_many_who_follow_one_log_read_it_together(here: World, open_: Served) -> None:
    build, builder = await building(here)
    path = f"/v1/builds/{build.id}/logs"
    got: list[list[str]] = []

    async def follow() -> None:
        async with open_.stream(path) as stream:
            got.append([b.data["text"] for b in await stream.rest() if b.event is None])

    tasks = [asyncio.create_task(follow()) for _ in range(20)]
    await eventually(lambda: len(here.app.state.hub.followers) == 20)
    wanted = [f"line {n}" for n in range(2500)]  # more than is read at a time
    for start in range(0, 2500, 500):
        await builder.log(*wanted[start : start + 500], seq=start)
    await builder.fail("compile_error")
    await asyncio.gather(*tasks)
    assert got == [wanted] * 20


# --------------------------------------------------------------------------------------------------- Prefer: wait


async def waits(here: World, build: Build, prefer: str) -> Any:
    return await here.http.get(f"/v1/builds/{build.id}", headers={"Prefer": prefer})


async def test_a_look_can_wait_for_the_end(here: World) -> None:
    build, builder = await building(here)
    tasks = [asyncio.create_task(waits(here, build, "respond-async, wait=60")) for _ in range(30)]
    await eventually(lambda: len(here.app.state.hub.followers) == 30)
    await eventually(lambda: here.context.engine.pool.checkedout() == 0)  # type: ignore[attr-defined]
    await builder.fail("compile_error")
    for answer in await asyncio.gather(*tasks):
        assert answer.json()["status"] == "failed"
        assert answer.headers["preference-applied"] == "wait=60"
    assert (await waits(here, build, "wait=60")).headers["preference-applied"] == "wait=60"


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("wait=0", "wait=0"),
        ('WAIT = "0"; x', "wait=0"),
        ("wait=-1", None),
        ("wait=x", None),
        ("await=5", None),
        ("", None),
    ],
)
async def test_a_look_that_does_not_wait_long(here: World, prefer: str, applied: str | None) -> None:
    build = await here.submit()
    async with asyncio.timeout(10):
        answer = await waits(here, build, prefer)
    assert answer.json()["status"] == "queued"
    assert answer.headers.get("preference-applied") == applied


async def test_a_wait_is_bounded(here: World) -> None:
    build, builder = await building(here)
    task = asyncio.create_task(waits(here, build, "wait=999999"))
    await eventually(lambda: here.app.state.hub.followers)
    await here.app.state.hub.close()  # the process ends: what is known is told
    answer = await task
    assert (answer.json()["status"], answer.headers["preference-applied"]) == ("building", "wait=60")
    await builder.fail("compile_error")

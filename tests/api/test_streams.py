"""Streams of events: what a client sees, however often it is cut off, and when its stream ends."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import psutil
import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app import events
from app.api import feeds, sse
from app.api.follower import Topic
from app.api.hub import Hub
from app.db import Sessions
from app.models import ApiKey, Event, Project
from app.outbox import add_event
from tests.support.metrics import scrape
from tests.support.problems import problem
from tests.support.sse import Served, Stream, ids, served
from tests.support.waiting import eventually
from tests.support.world import World


@pytest.fixture
async def open_(here: World) -> AsyncIterator[Served]:
    async with served(here.app, here.key) as it:
        yield it


def hub(here: World) -> Hub:
    found: Hub = here.app.state.hub
    return found


async def key_id(here: World) -> str:
    return (await here.one(ApiKey)).id


async def say(here: World, *kinds: str, **about: Any) -> None:
    """Write events, in one transaction."""
    project = await here.one(Project, name="default")
    async with here.context.sessions.begin() as session:
        for kind in kinds:
            add_event(session, project.id, kind, {}, **about)


async def written(here: World, **about: Any) -> list[str]:
    """Return the ids of all events, in their order."""
    async with here.context.sessions() as session:
        rows = (await session.execute(select(Event).filter_by(**about).order_by(Event.xid, Event.id))).scalars()
        return [str(events.position(e)) for e in rows]


async def test_a_build_is_followed_to_its_end(here: World, open_: Served) -> None:
    build = await here.submit("echo")
    path = f"/v1/builds/{build.id}/events"
    async with open_.stream(path) as stream:
        assert stream.answer.headers["cache-control"] == "no-store"
        assert stream.answer.headers["x-accel-buffering"] == "no"
        first = await stream.block()
        assert (first.id, first.data, first.retry) == ("0-0", None, 1000)
        assert (await stream.data()).data["kind"] == "build.queued"
        await here.jobs()
        await (await here.builder(build)).finish()
        await here.jobs()
        blocks = await stream.rest()
    assert blocks[-1].event == "end"
    assert blocks[-1].data == {"build_id": build.id, "status": "succeeded"}
    assert blocks[-2].data["kind"] in {"build.succeeded", "release.live"}
    everything = await written(here, build_id=build.id)
    assert ids(blocks) == everything[1 : len(blocks)]
    # Whoever comes later sees the same, and after the end there is nothing but the end.
    async with open_.stream(path) as stream:
        assert ids(await stream.rest()) == everything
    async with open_.stream(path, last=stream.last) as stream:
        assert [b.event for b in await stream.rest()] == ["end"]
    await here.settled()
    page = (await here.http.get(path)).json()
    assert ([e["id"] for e in page["items"]], page["ended"], page["next_cursor"]) == (everything, True, None)
    assert (await here.http.get(path, params={"after": page["after"]})).json()["items"] == []


async def test_open_streams_and_waiting_gets_are_counted(here: World, open_: Served) -> None:
    async def count() -> float:
        return (await scrape(here.context))("slipway_streams")

    build, before = await here.submit(), await count()

    async def both() -> bool:
        return await count() == before + 2

    async with open_.stream("/v1/events") as stream:
        await stream.block()
        waiting = asyncio.create_task(open_.http.get(f"/v1/builds/{build.id}", headers={"Prefer": "wait=60"}))
        await eventually(both)
        await here.http.post(f"/v1/builds/{build.id}/cancel")
        assert (await waiting).json()["status"] == "canceled"
    await eventually(lambda: not hub(here).followers)
    assert await count() == before


async def test_a_stream_tells_nothing_of_another_project(here: World) -> None:
    _, other = await here.project("acme")
    async with other, served(here.app, other.headers["authorization"].removeprefix("Bearer ")) as theirs:
        await here.submit()
        for last in ("0-0", None):
            async with theirs.stream("/v1/events", last=last) as stream:
                await stream.block()
                await here.submit()
                mine = (await other.post("/v1/builds", json=here.order())).json()["id"]
                assert (await stream.data()).data["build_id"] == mine
                await other.post(f"/v1/builds/{mine}/cancel")
                await here.sql("delete from event where build_id = :mine", mine=mine)


async def test_a_client_cut_off_fifty_times_sees_each_event_once_and_in_order(here: World, open_: Served) -> None:
    project, chance = await here.one(Project, name="default"), random.Random(11)
    seen: list[str] = []
    cuts = 0

    async def write(number: int, pause: random.Random) -> None:
        """Commit in another order than numbers were given out, until the client has been cut off often enough."""
        while cuts < 50:
            async with here.context.sessions() as session:
                await session.execute(select(Project).with_for_update(read=True))  # takes the transaction's number
                for _ in range(pause.randint(1, 4)):
                    await session.execute(text("select pg_sleep(:s)"), {"s": pause.random() / 100})
                    add_event(session, project.id, "test.written", {"by": number})
                await session.commit()

    async def follow(until: int | None) -> None:
        """Read so many events and let go, or all that there are."""
        async with open_.stream("/v1/events", last=seen[-1] if seen else None) as stream:
            while until != 0 if until is not None else len(seen) < len(total):
                block = await stream.data()
                assert block.data["id"] == block.id
                seen.append(block.data["id"])
                until = until - 1 if until is not None else None

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(write(number, random.Random(number)))
        while cuts < 50:
            await follow(chance.randint(0, 6))
            cuts += 1
    total = await written(here)
    await follow(None)
    assert seen == total
    assert len(seen) > 100


@pytest.mark.parametrize("many", [60, pytest.param(500, marks=pytest.mark.volume)])
async def test_nobody_waits_with_a_connection_in_hand(here: World, open_: Served, many: int) -> None:
    """Many streams cost one LISTEN, no more of the pool than their beginning does, and little memory, their clients' included."""
    hub(here).keep_alive_seconds = 5.0
    build = await here.submit()
    own = psutil.Process()
    before = own.memory_info().rss
    opened: list[Stream] = []
    told: list[Stream] = []

    async def follow(path: str) -> None:
        async with open_.stream(path, after=None if "logs" in path else "0-0") as stream:
            await stream.block()
            opened.append(stream)
            while (await stream.data()).data["kind"] != "test.last":
                pass
            told.append(stream)
            await asyncio.Event().wait()

    async def settled() -> bool:
        query = "select query, state, application_name from pg_stat_activity where datname = current_database()"
        rows = await here.sql(query)
        assert len(opened) == many == len(hub(here).followers)
        assert [r.application_name for r in rows if "listen" in r.query.lower() and "pg_stat" not in r.query] == [
            "slipway-streams"
        ]
        assert here.context.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        return True

    paths = ["/v1/events", f"/v1/builds/{build.id}/events", f"/v1/builds/{build.id}/logs"]
    tasks = [asyncio.create_task(follow(paths[n % 3])) for n in range(many)]
    try:
        await eventually(settled, 60)
        await say(here, *["test.more"] * 200, "test.last", build_id=build.id)
        await eventually(lambda: len(told) == sum("events" in paths[n % 3] for n in range(many)), 60)
        await eventually(settled)
        grown = own.memory_info().rss - before
        assert grown < many * 300_000 + 20_000_000, f"{grown / many:.0f} bytes for each stream"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await eventually(lambda: not hub(here).followers)


async def test_a_stream_that_is_cut_before_its_first_event_comes_back_to_where_it_was(
    here: World, open_: Served
) -> None:
    await say(here, "test.before")
    await here.settled()
    async with open_.stream("/v1/events", after="now") as stream:
        first = await stream.block()
    await say(here, "test.between")
    async with open_.stream("/v1/events", last=first.id) as stream:
        assert (await stream.data()).data["kind"] == "test.between"


async def test_signs_of_life_carry_the_position_past_what_was_not_wanted(here: World, open_: Served) -> None:
    hub(here).keep_alive_seconds = 0.05
    async with open_.stream("/v1/events", kind="build.*") as stream:
        opening = await stream.block()
        await say(here, "test.unwanted")

        async def moved_on() -> bool:
            block = await stream.block()
            assert (block.data, block.comments) == (None, ["keep-alive"])
            assert opening.id is not None
            assert block.id is not None
            return events.parse(block.id) > max(events.parse(i) for i in await written(here))

        await eventually(moved_on)


async def test_a_busy_project_does_not_keep_a_stream_of_rare_events_silent(here: World, open_: Served) -> None:
    hub(here).keep_alive_seconds = 0.2
    async with open_.stream("/v1/events", kind="build.*") as stream:
        await stream.block()
        going = True

        async def chatter() -> None:
            while going:
                await say(here, "test.unwanted")

        task = asyncio.create_task(chatter())
        try:
            assert (await stream.block()).comments == ["keep-alive"]
        finally:
            going = False
            await task


async def test_who_reads_too_slowly_reads_the_database_and_loses_nothing(here: World) -> None:
    followed = hub(here)
    followed.bound = 5
    project = await here.one(Project, name="default")
    blocks = feeds.stream(followed, feeds.Feed(project.id), events.START, await key_id(here))
    await anext(blocks)
    await say(here, "test.first")
    got = [await anext(blocks)]
    (follower,) = followed.followers
    for _ in range(20):
        await say(here, "test.more")
    await eventually(lambda: follower.behind)
    while b"".join(got).count(b"data: ") < 21:
        got.append(await anext(blocks))
    lines = b"".join(got).decode().splitlines()
    assert [line[4:] for line in lines if line.startswith("id: ")] == await written(here)
    await blocks.aclose()
    assert not followed.followers


async def test_who_takes_nothing_is_let_go(here: World) -> None:
    project = await here.one(Project, name="default")
    followed = hub(here)
    answer = sse.EventStream(
        feeds.stream(followed, feeds.Feed(project.id), events.START, await key_id(here)), write_seconds=0.05
    )
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) > 2:
            await asyncio.Event().wait()

    async def receive() -> Any:
        await asyncio.Event().wait()

    await say(here, "test.first")
    async with asyncio.timeout(10):
        await answer({"type": "http"}, receive, send)
    assert not followed.followers
    assert sent[-1].get("more_body", True), "an end was said that was none"


async def test_a_key_that_is_revoked_ends_its_streams_and_no_others(here: World, open_: Served) -> None:
    hub(here).key_seconds = 0.05
    project, other = await here.project("acme")
    async with other, open_.stream("/v1/events") as mine:
        other_headers = {"Authorization": other.headers["authorization"], "Accept": "text/event-stream"}
        async with open_.http.stream("GET", "/v1/events", headers=other_headers) as answer:
            theirs = Stream(answer)
            await theirs.block()
            await here.sql("update api_key set revoked_at = now() where project_id = :p", p=project.id)
            assert await theirs.rest() == []
        await mine.block()
        await say(here, "test.on")
        assert (await mine.data()).data["kind"] == "test.on"


async def test_streams_end_when_the_process_does_and_not_with_an_end(here: World, open_: Served) -> None:
    build = await here.submit()
    async with (
        open_.stream("/v1/events", after="now") as one,
        open_.stream(f"/v1/builds/{build.id}/logs") as two,
    ):
        for stream in (one, two):
            await stream.block()
        await eventually(lambda: len(hub(here).followers) == 2)
        open_.task.cancel()
        assert [await s.rest() for s in (one, two)] == [[], []]
    async with asyncio.timeout(5):  # long before uvicorn would lose its patience
        await asyncio.gather(open_.task, return_exceptions=True)


async def test_a_client_that_goes_is_noticed_at_once(here: World, open_: Served) -> None:
    async with open_.stream("/v1/events") as stream:
        await stream.block()
        await eventually(lambda: len(hub(here).followers) == 1)
    await eventually(lambda: not hub(here).followers)


async def test_a_database_that_comes_back_goes_on_telling(here: World, open_: Served) -> None:
    async with open_.stream("/v1/events", after="now") as stream:
        await stream.block()
        await say(here, "test.before")
        assert (await stream.data()).data["kind"] == "test.before"
        kill = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
        kill += "and application_name = 'slipway-streams'"
        assert len(await here.sql(kill)) == 1
        await say(here, "test.after")
        assert (await stream.data()).data["kind"] == "test.after"


async def test_events_can_be_narrowed(here: World, open_: Served) -> None:
    build, service, _ = await here.deployed("echo")
    other = await here.submit("other")
    await here.settled()
    for query, about in (
        ({"build": build.id}, {"build_id": build.id}),
        ({"service": "echo"}, {"service_id": service.id}),
        ({"service": "echo", "build": build.id}, {"build_id": build.id, "service_id": service.id}),
        ({"kind": "build.queued", "build": other.id}, {"build_id": other.id, "kind": "build.queued"}),
        ({"kind": "build.queued"}, {"kind": "build.queued"}),
    ):
        page = (await here.http.get("/v1/events", params=query)).json()
        assert page["items"]
        assert [e["id"] for e in page["items"]] == await written(here, **about), query
        assert not page["ended"]
        async with open_.stream("/v1/events", **query) as stream:
            assert [(await stream.data()).id for _ in page["items"]] == [e["id"] for e in page["items"]], query
    kinds = [e["kind"] for e in (await here.http.get("/v1/events?kind=release.*&kind=service.asleep")).json()["items"]]
    assert {k.partition(".")[0] for k in kinds} == {"release"}
    # What comes is narrowed as what was.
    async with open_.stream("/v1/events", after="now", service="echo", kind="test.*") as stream:
        await stream.block()
        await eventually(lambda: hub(here).followers)
        await say(here, "test.without")
        await say(here, "build.other", "test.with", service_id=service.id)
        assert (await stream.data()).data["kind"] == "test.with"


async def test_a_rare_kind_gives_short_pages_and_none_that_looks_at_everything(here: World) -> None:
    project = await here.one(Project, name="default")
    await say(here, "test.rare")
    many = "insert into event (project_id, kind) select :p, 'test.common' from generate_series(1, :n)"
    await here.sql(many, p=project.id, n=2 * feeds.SCAN)
    await say(here, "test.rare")
    await here.settled()
    found, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        query = {"kind": "test.rare"} | ({"cursor": cursor} if cursor else {})
        answer = (await here.http.get("/v1/events", params=query)).json()
        found += answer["items"]
        cursor, pages = answer["next_cursor"], pages + 1
    assert [e["id"] for e in found] == await written(here, kind="test.rare")
    assert pages == 3


async def test_a_time_is_found_without_a_walk_to_it(here: World, open_: Served) -> None:
    """Each page is full, however much was before and after."""
    project, now = await here.one(Project, name="default"), datetime.now(UTC)
    many = "insert into event (project_id, kind, at) select :p, :kind, :at from generate_series(1, :n)"
    for hour in (-3, -2, -1):
        at = now + timedelta(hours=hour)
        await here.sql(many, p=project.id, kind="test.many", at=at, n=2 * feeds.SCAN)
        await here.sql(many, p=project.id, kind=f"test.few{-hour}", at=at + timedelta(minutes=30), n=3)
    await here.settled()
    wanted = await written(here, kind="test.few2")
    since, until = ((now + timedelta(hours=-2, minutes=m)).isoformat() for m in (20, 40))
    for query, found in (({}, wanted), ({"limit": 2}, wanted[:2]), ({"after": wanted[0]}, wanted[1:])):
        answer = await here.http.get("/v1/events", params={"since": since, "until": until, **query})
        assert [e["id"] for e in answer.json()["items"]] == found, query
        assert ("next" in answer.links) == ("limit" in query)
    async with open_.stream("/v1/events", since=since) as stream:
        assert [(await stream.data()).id for _ in wanted] == wanted
    headers = {"Accept": "text/event-stream"}
    problem(await here.http.get("/v1/events", params={"until": until}, headers=headers), 422, "invalid_request")


async def test_any_time_of_the_calendar_is_one(here: World) -> None:
    for day in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        for path in ("events", "builds", "services", "batches"):
            for name in ("since", "until"):
                answer = await here.http.get(f"/v1/{path}", params={name: day})
                assert answer.status_code == 200, answer.text


async def test_where_a_stream_can_t_begin(here: World) -> None:
    build = await here.submit()
    for path in ("/v1/events", f"/v1/builds/{build.id}/events", f"/v1/builds/{build.id}/logs"):
        for bad in ("x", "1", "1-2-3", f"{2**64}-1", "1.x", ""):
            for query, headers in (({"after": bad or "-"}, {}), ({}, {"Last-Event-ID": bad or "-"})):
                for accept in ("text/event-stream", "application/json"):
                    answer = await here.http.get(path, params=query, headers={"Accept": accept, **headers})
                    problem(answer, 422, "invalid_cursor")
    problem(await here.http.get("/v1/events?service=none"), 404, "service_not_found")
    problem(await here.http.get("/v1/events?build=bld_none"), 404, "build_not_found")
    problem(await here.http.get("/v1/events?kind=Build"), 422, "invalid_request")


async def test_a_process_has_so_many_streams_and_no_more(here: World, open_: Served) -> None:
    object.__setattr__(here.context.settings, "max_streams", 1)
    async with open_.stream("/v1/events") as stream:
        await stream.block()
        await eventually(lambda: hub(here).followers)
        answer = await open_.http.get("/v1/events", headers={"Accept": "text/event-stream"})
        problem(answer, 503, "too_many_streams")
        assert (await open_.http.get("/v1/events")).status_code == 200


class Between(AsyncSession):
    """A session in which something happens after its first statement."""

    act: Callable[[], Awaitable[None]] | None = None
    statements = 0

    async def execute(self, *statement: Any, **options: Any) -> Any:
        self.statements += 1
        if self.act and self.statements == 2:
            await self.act()
        return await super().execute(*statement, **options)


async def test_a_build_that_ends_while_it_is_looked_at_is_ending(here: World) -> None:
    """Its status was read before its end, its last event after: nothing would ever tell of the end again."""
    build = await here.submit()

    async def last() -> bool:
        items = (await here.http.get(f"/v1/builds/{build.id}/events")).json()["items"]
        return bool(items[-1]["kind"] == "build.canceled")

    async def cancel() -> None:
        assert (await here.http.post(f"/v1/builds/{build.id}/cancel")).is_success
        await eventually(last)  # other tests' transactions may hold it back

    feed = feeds.Feed(build.project_id, build_id=build.id, ends=True)
    async with Between(here.context.engine) as session:
        session.act = cancel
        found = await feeds.look(session, feed, events.START, 100)
    assert [e.kind for e in found.events][-1] == "build.canceled"
    assert (found.ended, found.ending) == (None, True)


async def test_what_is_newer_than_a_look_is_for_the_next(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes while it reads is not asked for by it, and is not to be told that it was."""
    one, other = await here.submit(), await here.submit()
    sessions = async_sessionmaker(here.context.engine, class_=Between)
    hub = Hub(replace(here.context, sessions=cast("Sessions", sessions)))
    hub._working = True  # each look is made here
    await hub._look()
    started = hub.head

    await here.submit()  # something to look at

    async def ended() -> bool:
        found = [(await here.http.get(f"/v1/builds/{b.id}/events")).json()["items"][-1] for b in (other, one)]
        return [e["kind"] for e in found] == ["build.canceled"] * 2

    async def end_both() -> None:
        for build in (other, one):
            assert (await here.http.post(f"/v1/builds/{build.id}/cancel")).is_success
        await eventually(ended)  # other tests' transactions may hold it back

    with hub.follow("key_x", Topic("build", one.id)):
        monkeypatch.setattr(Between, "act", staticmethod(end_both))
        await hub._look()
        assert hub.head > started
        settled = (await here.http.get(f"/v1/builds/{other.id}/events")).json()["items"][-1]["id"]
        assert hub.head < events.parse(settled)

"""One look at the database for all that wait in this process: streams, and GETs that wait for a build's end.

While anybody follows anything, one task asks every quarter of a second what has been written since, and tells the followers
in memory. One LISTEN connection on the queue's channel makes that sooner where a job was enqueued; plain events and log
lines do not notify, since NOTIFY takes a lock that all commits of a database share. A follower holds no connection.

What a follower is told is bounded. One that does not take it in time is told that it is behind: it reads the database
again from its own position, so that slowness costs it time and never an event.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Iterator
from typing import Annotated, Any, TypeVar

import asyncpg
import structlog
from fastapi import Depends, Request
from sqlalchemy import ColumnElement, Row, String, any_, literal, or_, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import InstrumentedAttribute

from app import db, events, metrics
from app.api import sse
from app.api.follower import Follower, News, Topic
from app.api.views import event_out
from app.context import Context
from app.errors import unavailable
from app.keys import valid
from app.models import ApiKey, Event, Run
from app.queue import SETTINGS

log = structlog.get_logger()
T = TypeVar("T")

PAGE = 1000
"""Events read at a time."""
SETTLE_SECONDS = 0.02
"""How long a notification waits for others: a busy queue sends hundreds a second."""
LISTEN_AGAIN_SECONDS = 5.0
CLOSE_SECONDS = 2.0
LINGER_SECONDS = 5.0
"""How long it goes on after the last follower left: the next one is often near."""


class Hub:
    """All followers of this process. Works only while there are any; ``close`` sends them away."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.poll_seconds, self.keep_alive_seconds, self.key_seconds, self.write_seconds = 0.25, 15.0, 5.0, 30.0
        self.bound = 1000
        """Events that wait for one follower, at most."""
        self.head = events.START
        """Everything up to here was told."""
        self.turn = 0
        """Counts what was told. A reading is shared within one turn only: one that began before would lack what was told."""
        self.followers: set[Follower] = set()
        self._topics: dict[Topic, set[Follower]] = {}
        self._logs: dict[str, tuple[tuple[int, int], ...]] = {}
        self._reads: dict[Hashable, asyncio.Task[Any]] = {}
        self._woken = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._working = self._closed = False

    def check_room(self) -> None:
        """Refusal (503) when this process has as many followers as it may."""
        if len(self.followers) >= self.context.settings.max_streams:
            raise unavailable("This process has as many streams as it may; try again.", reason="too_many_streams")

    @contextlib.contextmanager
    def follow(self, key_id: str, *topics: Topic) -> Iterator[Follower]:
        """Follow topics for the length of a block. ``key_id`` is the API key that allows it."""
        follower = Follower(key_id, self.bound)
        if self._closed:
            follower.leave()
        self.followers.add(follower)
        metrics.STREAMS.inc()
        for topic in topics:
            self._topics.setdefault(topic, set()).add(follower)
        if not self._closed and not self._working:
            self._working = True
            task = asyncio.create_task(self._work(), name="streams")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._woken.set()
        try:
            yield follower
        finally:
            self.followers.discard(follower)
            metrics.STREAMS.dec()
            for topic in topics:
                self._topics[topic].discard(follower)
                if not self._topics[topic]:
                    del self._topics[topic]

    async def close(self) -> None:
        """Send everybody away, and whoever comes still; what is being read is read to its end."""
        self._closed = True
        for follower in self.followers:
            follower.leave()
        self._woken.set()
        if running := [*self._tasks, *self._reads.values()]:
            _, left = await asyncio.wait(running, timeout=CLOSE_SECONDS)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def shared(self, what: Hashable, read: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what ``read`` does; those who ask for the same after the same look at the database share one reading.

        It goes on when who asked is gone: a connection in the middle of a statement is not to be dropped.
        """
        key = (what, self.turn)
        task = self._reads.get(key)
        if task is None:
            task = self._reads[key] = asyncio.create_task(read())
            task.add_done_callback(lambda done: self._forget(key, done))
        result: T = await asyncio.shield(task)
        return result

    def _forget(self, key: Hashable, done: "asyncio.Task[Any]") -> None:
        self._reads.pop(key, None)
        if not done.cancelled():
            done.exception()  # asked for here, in case that nobody waits for it any more

    # ------------------------------------------------------------------------------------------------- the one task

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        listening: asyncpg.Connection[asyncpg.Record] | None = None
        listen_at = keys_at = used_at = loop.time()
        self.head = events.START
        try:
            while not self._closed and (self.followers or loop.time() < used_at + LINGER_SECONDS):
                used_at = loop.time() if self.followers else used_at
                if (listening is None or listening.is_closed()) and loop.time() >= listen_at:
                    listen_at = loop.time() + LISTEN_AGAIN_SECONDS
                    listening = await self._quietly(self._listen)
                self._woken.clear()
                await self._quietly(self._look)
                if loop.time() >= keys_at:
                    keys_at = loop.time() + self.key_seconds
                    await self._quietly(self._check_keys)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.poll_seconds):
                        await self._woken.wait()
                    await asyncio.sleep(SETTLE_SECONDS)
        finally:
            self._logs.clear()
            self._working = False  # who comes from here on starts another
            if listening is not None:
                with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    await listening.close(timeout=CLOSE_SECONDS)

    async def _quietly(self, act: Callable[[], Awaitable[T]]) -> T | None:
        """Do something; its failure ends nothing, for followers go on where they were once the database is back."""
        try:
            return await act()
        except Exception:
            log.exception("streams could not ask the database; they go on with the next try")
            return None

    async def _listen(self) -> "asyncpg.Connection[asyncpg.Record]":
        connection = await db.connect(self.context.engine, "slipway-streams")
        try:
            await connection.add_listener(SETTINGS.channel, lambda *_: self._woken.set())
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _look(self) -> None:
        async with db.alone(self.context.sessions) as session:
            more = True
            while more:
                now = await events.horizon(session)
                if self.head == events.START:
                    # Whoever read the database before this moment may have missed what was written since.
                    for follower in self.followers:
                        follower.fall_behind()
                    self.head = now
                # After the horizon: who comes while it is asked reads up to there by itself.
                about = or_(self._about(Event.project_id, "project"), self._about(Event.build_id, "build"))
                seen = await events.read(session, self.head, PAGE, about) if now > self.head else []
                # What is newer than the horizon is for the next look: who came meanwhile was not asked for in this one.
                found = [e for e in seen if events.position(e) < now]
                more = len(found) == PAGE
                self._tell(found)
                self.head = events.position(found[-1]) if more else max(now, self.head)
                self.turn += 1
            if builds := [t.id for t in self._topics if t.kind == "log"]:
                runs = select(Run.build_id, Run.attempt, Run.log_next).where(_is_any(Run.build_id, builds))
                self._tell_of_logs((await session.execute(runs.order_by(Run.attempt))).all())

    def _about(self, column: InstrumentedAttribute[Any], kind: str) -> ColumnElement[bool]:
        return _is_any(column, [t.id for t in self._topics if t.kind == kind])

    def _tell(self, found: list[Event]) -> None:
        for event in found:
            topics = (Topic("project", event.project_id), Topic("build", event.build_id or ""))
            if followers := [f for t in topics for f in self._topics.get(t, ())]:
                position = events.position(event)
                news = News(event, position, sse.item(event_out(event), position))
                for follower in followers:
                    follower.tell(news)

    def _tell_of_logs(self, rows: Iterable[Row[str, int, int]]) -> None:
        lengths: dict[str, tuple[tuple[int, int], ...]] = {}
        for build_id, attempt, count in rows:
            lengths[build_id] = (*lengths.get(build_id, ()), (attempt, count))
        changed = [build_id for build_id, state in lengths.items() if self._logs.get(build_id) != state]
        self._logs = lengths
        self.turn += 1
        for build_id in changed:
            for follower in self._topics.get(Topic("log", build_id), ()):
                follower.wake()

    async def _check_keys(self) -> None:
        shown = sorted({f.key_id for f in self.followers})
        statement = select(ApiKey.id).where(_is_any(ApiKey.id, shown), *valid())
        async with db.alone(self.context.sessions) as session:
            good = set((await session.execute(statement)).scalars())
        for follower in self.followers:
            if follower.key_id in shown and follower.key_id not in good:
                follower.leave()


def _is_any(column: InstrumentedAttribute[Any], values: list[str]) -> ColumnElement[bool]:
    """Return ``column = any(values)``: one statement however many there are."""
    return column == any_(literal(values, ARRAY(String)))


def get_hub(request: Request) -> Hub:
    """Return the process's hub."""
    hub: Hub = request.app.state.hub
    return hub


Streams = Annotated[Hub, Depends(get_hub)]

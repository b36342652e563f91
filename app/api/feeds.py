"""Events as pages and as streams: of a project, of one build, and narrowed to what the caller wants to hear."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import db, events
from app.api import sse
from app.api.follower import Topic
from app.api.hub import Hub
from app.api.schemas import BuildEnd, EventPage
from app.api.views import event_out
from app.events import Position
from app.lifecycle import BuildStatus, is_terminal
from app.models import Build, Event

READ = 500
"""Events read at a time by a stream that catches up."""
SCAN = 2000
"""Events looked through for one page, at most: a rare kind gives short pages and not slow ones."""
LAST = {f"build.{s}" for s in BuildStatus if is_terminal(s)}


@dataclass(frozen=True)
class Feed:
    """What is wanted: all of a project's events, or those of one build, of a service (its ids), of some kinds."""

    project_id: str
    build_id: str | None = None
    service_ids: tuple[str, ...] | None = None
    kinds: tuple[str, ...] = ()
    """Each a kind, or all of one thing: ``build.*``."""
    since: datetime | None = None
    until: datetime | None = None
    """For pages only."""
    ends: bool = False
    """Whether it is over with its build."""
    topic: Topic = field(init=False)

    def __post_init__(self) -> None:
        topic = Topic("build", self.build_id) if self.build_id else Topic("project", self.project_id)
        object.__setattr__(self, "topic", topic)

    def base(self) -> ColumnElement[bool]:
        """Return the part of the condition that an index answers in the order of events."""
        if self.build_id is not None:
            return and_(Event.build_id == self.build_id, Event.project_id == self.project_id)
        if self.service_ids is not None and len(self.service_ids) == 1:
            return and_(Event.service_id == self.service_ids[0], Event.project_id == self.project_id)
        return Event.project_id == self.project_id

    def rest(self) -> ColumnElement[bool] | None:
        """Return the part that each row is looked at for, if there is one."""
        parts: list[ColumnElement[bool]] = []
        if self.kinds:
            whole = [k for k in self.kinds if not k.endswith(".*")]
            begun = [Event.kind.startswith(k[:-1], autoescape=True) for k in self.kinds if k.endswith(".*")]
            parts.append(or_(Event.kind.in_(whole), *begun))
        if self.service_ids is not None and (self.build_id is not None or len(self.service_ids) != 1):
            parts.append(Event.service_id.in_(self.service_ids))
        if self.since is not None:
            parts.append(Event.at >= self.since)
        if self.until is not None:
            parts.append(Event.at < self.until)
        return and_(*parts) if parts else None

    def wants(self, event: Event) -> bool:
        """Tell the same of an event in memory; its topic is right already."""
        if self.kinds and not {event.kind, f"{event.kind.partition('.')[0]}.*"} & set(self.kinds):
            return False
        if self.since is not None and event.at < self.since:
            return False
        return self.service_ids is None or event.service_id in self.service_ids


class Found(NamedTuple):
    """Some events, how far was looked, whether there is more now, and how the build ended if nothing will ever come.

    ``ending``: the build has ended, but something that was written before its end can't be read yet.
    """

    events: list[Event]
    upto: Position
    more: bool
    ended: BuildEnd | None = None
    ending: bool = False


async def look(session: AsyncSession, feed: Feed, after: Position, limit: int) -> Found:
    """Read the next events. The statements may see different moments: each later one sees at least as much."""
    status, hidden = await _status(session, feed) if feed.ends else (None, False)
    now = await events.horizon(session)
    base, rest = feed.base(), feed.rest()
    if feed.until is not None and (bound := await events.bound(session, feed.until)) is not None:
        base = and_(base, ~events.later(bound))
    edge = None if rest is None else await events.nth(session, after, SCAN, base)
    parts = [base, *([] if rest is None else [rest]), *([] if edge is None else [~events.later(edge)])]
    found = await events.read(session, after, limit, *parts)
    last = [events.position(e) for e in found[-1:]]
    if len(found) == limit:
        return Found(found, last[0], more=True)
    if edge is not None:
        return Found(found, edge, more=True)
    upto = max(now, after, *last)
    if status is None or not is_terminal(status):
        # It may have ended since its status was read; who saw its last event is told of no other.
        return Found(found, upto, more=False, ending=feed.ends and any(e.kind in LAST for e in found))
    end = None if hidden else BuildEnd(build_id=str(feed.build_id), status=status)
    return Found(found, upto, more=False, ended=end, ending=True)


async def _status(session: AsyncSession, feed: Feed) -> tuple[BuildStatus | None, bool]:
    """Return the build's status, and whether anything written of it by now can't be read yet."""
    hidden = select(Event.id).where(Event.build_id == feed.build_id, ~events.settled())
    statement = select(Build.status, hidden.exists()).where(Build.id == feed.build_id)
    row = (await session.execute(statement)).one_or_none()
    return (row[0], row[1]) if row else (None, False)


async def page(session: AsyncSession, feed: Feed, after: Position, limit: int) -> EventPage:
    """Return one page, oldest first."""
    found = await look(session, feed, after, limit)
    return EventPage(
        items=[event_out(e) for e in found.events],
        next_cursor=str(found.upto) if found.more else None,
        after=str(found.upto),
        ended=found.ended is not None,
    )


async def stream(hub: Hub, feed: Feed, after: Position, key_id: str) -> sse.Blocks:
    """Yield blocks from a position on: what is there, then what comes. See ``app.api.hub`` for who tells it."""
    at, ending, pulse = after, False, sse.Pulse(hub.keep_alive_seconds)

    async def read() -> tuple[Found, bytes]:
        async with db.alone(hub.context.sessions) as session:
            found = await look(session, feed, at, READ)
        return found, b"".join(sse.item(event_out(e), events.position(e)) for e in found.events)

    yield sse.opening(at)
    with hub.follow(key_id, feed.topic) as follower:
        while not follower.over:
            if follower.behind:
                follower.collect()
                found, blocks = await hub.shared((feed, at), read)
                if blocks:
                    yield pulse.of(blocks)
                at, ending = found.upto, ending or found.ending
                if found.ended:
                    yield sse.end(found.ended, at)
                    return
                if found.more:
                    follower.fall_behind()
            if follower.behind:
                continue  # there is more to read, or too much was told while this was sent
            # What was told and how far belong together: nothing is awaited between.
            news, upto = follower.take(), hub.head
            fresh = [n for n in news if n.position > at]
            at = max(at, upto)
            if blocks := b"".join(n.block for n in fresh if feed.wants(n.event)):
                yield pulse.of(blocks)
            ending = ending or (feed.ends and any(n.event.kind in LAST for n in fresh))
            if ending:
                await follower.wait(hub.poll_seconds)
                follower.fall_behind()  # the database tells whether that was all
            elif not await follower.wait(pulse.left()):
                yield pulse.of(sse.keep_alive(at))

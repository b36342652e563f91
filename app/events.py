"""Events in their one order, for whoever follows them: streams and webhooks.

Ids are given out before a transaction commits, so a later id may be seen before an earlier one, and who remembers only an id
loses events. So events are read in the order of (transaction, id), and only those of transactions that no open one precedes:
what is before a position that was read is never added to. A transaction that stays open with writes in it holds back the
events of all later ones, no longer than that.
"""

import re
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, DateTime, String, and_, case, cast, func, literal, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import Event, Xid8

_FORM = re.compile(r"([0-9]{1,19})-([0-9]{1,19})")
LARGEST = 2**63 - 1


class Position(NamedTuple):
    """A place in the order; positions compare as the events do. Written ``<transaction>-<id>``."""

    xid: int
    id: int

    def __str__(self) -> str:
        return f"{self.xid}-{self.id}"


START = Position(0, 0)
"""Before every event."""
SKEW = timedelta(minutes=10)
"""Events are in the order in which their transactions began to write, and hold when they were written. No transaction of ours
takes so long; those of a dump that was restored are in the order of their ids (see ``after_restore``)."""


def parse(text: str) -> Position:
    """Read a position back; ValueError when it isn't one."""
    match = _FORM.fullmatch(text)
    if match is None or max(int(match[1]), int(match[2])) > LARGEST:
        raise ValueError(f"{text[:64]!r} is not the id of an event")
    return Position(int(match[1]), int(match[2]))


def position(event: Event) -> Position:
    """Return the place of an event."""
    return Position(event.xid, event.id)


def settled() -> ColumnElement[bool]:
    """Return the condition that nothing can come before an event any more."""
    return Event.xid < func.pg_snapshot_xmin(func.pg_current_snapshot())


def xid8(value: int) -> ColumnElement[int]:
    """Return a transaction's id as SQL: the driver takes it as text only."""
    return cast(literal(str(value), String), Xid8)


def later(than: Position) -> ColumnElement[bool]:
    """Return the condition that an event comes after a position.

    One from a transaction that this server has not reached is from before a restore: see ``after_restore``. The next one
    counts as reached: while nothing happens it is the position of now.
    """
    of_here = xid8(than.xid) <= func.pg_snapshot_xmax(func.pg_current_snapshot())
    return tuple_(Event.xid, Event.id) > tuple_(case((of_here, xid8(than.xid)), else_=xid8(0)), literal(than.id))


async def read(session: AsyncSession, after: Position, limit: int, *where: ColumnElement[bool]) -> list[Event]:
    """Return up to ``limit`` events after a position, in order; fewer means that there are no more for now.

    ``where`` should name a project, a build or a service: each has its index in this order.
    """
    statement = select(Event).where(and_(settled(), later(after), *where)).order_by(Event.xid, Event.id).limit(limit)
    return list((await session.execute(statement)).scalars())


async def horizon(session: AsyncSession) -> Position:
    """Return the position of this moment: all that can be read is before it, all that is yet to come is after it."""
    xmin = select(cast(func.pg_snapshot_xmin(func.pg_current_snapshot()), String))
    return Position(int((await session.execute(xmin)).scalar_one()), 0)


async def nth(session: AsyncSession, after: Position, number: int, *where: ColumnElement[bool]) -> Position | None:
    """Return the position of the ``number``-th event after a position; None when there are not so many."""
    statement = select(Event.xid, Event.id).where(and_(settled(), later(after), *where))
    row = (await session.execute(statement.order_by(Event.xid, Event.id).offset(number - 1).limit(1))).one_or_none()
    return Position(*row) if row else None


async def begin(session: AsyncSession, since: datetime) -> Position:
    """Return a position that every event written at a time or later comes after: a walk to them begins there."""
    at = literal(since, DateTime(timezone=True)) - SKEW
    newest = select(Event.xid, Event.id).where(Event.at < at).order_by(Event.at.desc(), Event.id.desc()).limit(1)
    row = (await session.execute(newest)).one_or_none()
    return START if row is None else Position(*row)


async def bound(session: AsyncSession, until: datetime) -> Position | None:
    """Return a position that no event written before a time comes after; None when nothing is that late."""
    at = literal(until, DateTime(timezone=True)) + SKEW
    oldest = select(Event.xid, Event.id).where(Event.at >= at).order_by(Event.at, Event.id).limit(1)
    row = (await session.execute(oldest)).one_or_none()
    return None if row is None else Position(*row)


_RESTORED = text("select xid >= pg_snapshot_xmax(pg_current_snapshot()) from event order by id desc limit 1")
_ENDPOINTS = text("""
    update webhook set xid = '0', event_id = coalesce(
        (select min(id) - 1 from event where event.project_id = webhook.project_id
            and (event.xid, event.id) > (webhook.xid, webhook.event_id)), event_id)
""")
_EVENTS = text("update event set xid = '0' where xid > '0'")


async def after_restore(session: AsyncSession) -> bool:
    """Put events in order again whose transactions are of another server: a dump that was restored into a new one.

    A new server counts transactions from the start, so that old events would come after all new ones, and not be read for
    ages. They get the transaction 0, and their ids order them; an endpoint may be told again of what was near its position.
    Returns whether there was anything to do.
    """
    if not (await session.execute(_RESTORED)).scalar_one_or_none():
        return False
    await session.execute(_ENDPOINTS)
    await session.execute(_EVENTS)
    return True

"""What a transaction says to the world: its events and its jobs, gathered while it runs and written once, right before its
commit, in one statement. A rollback forgets them.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from asyncpg import DivisionByZeroError
from sqlalchemy import event
from sqlalchemy.orm import Session as OrmSession

from app import faults, sql
from app.queue import ENQUEUE, Nudge
from app.sql import Session, Transaction, as_json

_ABOUT = ("build_id", "run_id", "service_id", "release_id")
_EVENTS = """
    insert into event (project_id, kind, data, build_id, run_id, service_id, release_id)
    select * from unnest(${}::text[], ${}::text[], ${}::jsonb[], ${}::text[], ${}::text[], ${}::text[], ${}::text[])
"""
_BATCHES = """
    batched as (
        update batch set unfinished = unfinished - ended.n, ended_at = case when unfinished = ended.n then now() end
        from (select id, count(*) as n from unnest(${}::text[]) as id group by id) as ended where batch.id = ended.id
        returning batch.*
    ), batch_told as (
        insert into event (project_id, kind, data)
        select project_id, 'batch.ended', jsonb_build_object('batch_id', id, 'size', size, 'accepted', accepted)
        from batched where unfinished = 0 and (select count(*) from told) > 0  -- after the events of its builds
    )
"""


class LostError(Exception):
    """A row was no longer as it was read, so nothing of the transaction was done: start again from the row."""


class OutboxSession(OrmSession):
    """A session that writes its outbox before it commits."""


def add_event(session: Session, project_id: str, kind: str, data: dict[str, Any], **about: str | None) -> None:
    """Say that something happened."""
    row = (project_id, kind, as_json(data), *map(about.get, _ABOUT))
    session.info.setdefault("events", []).append(row)


def enqueue(session: Session, *nudges: Nudge) -> None:
    """Ask for jobs; one that waits already under its dedupe key is left alone."""
    session.info.setdefault("nudges", []).extend(nudges)


def write_along(session: Transaction, *update: Any) -> None:
    """Make an update with the rest, in the one statement; LostError when it misses. See ``sql.compose_update``."""
    session.info.setdefault("updates", []).append(update)


def end_of(session: Session, batch_id: str) -> None:
    """Count down a batch, one of whose builds ends; its event is written with the last one's."""
    session.info.setdefault("batches", []).append(batch_id)


def mark(session: Session, point: str) -> None:
    """Name the fault point right after this transaction's commit, which its caller makes."""
    session.info.setdefault("points", []).append(point)


def afterwards(session: Session, act: Callable[[], None]) -> None:
    """Do something quick that can't fail once this transaction is committed: count what happened."""
    session.info.setdefault("afterwards", []).append(act)


async def write(transaction: Transaction) -> None:
    """Write what a transaction has to say; its last statement."""
    if found := _statement(transaction.info):
        try:
            await transaction.fetch(found[0], *found[1], last=True)
        except DivisionByZeroError as e:
            raise LostError from e


def committed(info: dict[Any, Any]) -> None:
    """Count what a transaction that has just been committed did, and pass its fault points."""
    for act in info.pop("afterwards", ()):
        act()
    for point in info.pop("points", ()):
        faults.at(point)


@event.listens_for(OutboxSession, "before_commit")
def _write(session: OrmSession) -> None:
    if found := _statement(session.info):
        session.connection().exec_driver_sql(*found)


@event.listens_for(OutboxSession, "after_commit")
def _committed(session: OrmSession) -> None:
    committed(session.info)


@event.listens_for(OutboxSession, "after_soft_rollback")
def _forget(session: OrmSession, _transaction: object) -> None:
    session.info.pop("events", None)
    session.info.pop("nudges", None)
    session.info.pop("batches", None)
    session.info.pop("points", None)
    session.info.pop("afterwards", None)


def _statement(info: dict[Any, Any]) -> tuple[str, tuple[object, ...]] | None:
    """Return one statement for all that was gathered; None when there is nothing."""
    updates, events, nudges = info.pop("updates", ()), info.pop("events", ()), info.pop("nudges", ())
    batches = info.pop("batches", None)
    if not (updates or events or nudges):
        return None
    values, parts = list[object](), list[str]()
    for number, update in enumerate(updates):
        text, more = sql.compose_update(*update, first=len(values) + 1)
        parts.append(f"updated_{number} as ({text})")
        values += more
    if events:
        text = _EVENTS.format(*range(len(values) + 1, len(values) + 8))
        parts.append(f"told as ({text} where {_all_there(len(updates))} returning id)")
        values += map(list, zip(*events, strict=True))
    if batches:  # an end has its event, so there is ``told``
        parts.append(_BATCHES.format(len(values) + 1))
        values.append(batches)
    rest = "select"
    if nudges:
        rest = ENQUEUE.format(*range(len(values) + 1, len(values) + 5))
        asked = ((n.entrypoint, n.payload, timedelta(seconds=n.delay), n.dedupe_key) for n in nudges)
        values += map(list, zip(*asked, strict=True))
    return (f"with {', '.join(parts)} {rest}" if parts else rest), tuple(values)


def _all_there(updates: int) -> str:
    """Return the condition under which events are told: PostgreSQL ends the transaction by an error unless each update hit."""
    if not updates:
        return "true"
    hits = " + ".join(f"(select count(*) from updated_{number})" for number in range(updates))  # noqa: S608
    return f"1 / (case when {hits} = {updates} then 1 else 0 end) = 1"

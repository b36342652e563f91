"""What a transaction says to the world: its events and its jobs, gathered while it runs and written once, right before its
commit, in one statement each. A rollback forgets them.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from pgqueuer.adapters.persistence.qb import QueryQueueBuilder
from pgqueuer.adapters.persistence.query_helpers import normalize_enqueue_params
from sqlalchemy import event
from sqlalchemy.orm import Session as OrmSession

from app import faults, sql
from app.queue import SETTINGS, Nudge
from app.sql import Session, Transaction, as_json

_ABOUT = ("build_id", "run_id", "service_id", "release_id")
_EVENTS = """
    insert into event (project_id, kind, data, build_id, run_id, service_id, release_id)
    select * from unnest($1::text[], $2::text[], $3::jsonb[], $4::text[], $5::text[], $6::text[], $7::text[])
"""
_JOBS = QueryQueueBuilder(SETTINGS).build_enqueue_query("skip")


class OutboxSession(OrmSession):
    """A session that writes its outbox before it commits."""


def add_event(session: Session, project_id: str, kind: str, data: dict[str, Any], **about: str | None) -> None:
    """Say that something happened."""
    row = (project_id, kind, as_json(data), *map(about.get, _ABOUT))
    session.info.setdefault("events", []).append(row)


def enqueue(session: Session, *nudges: Nudge) -> None:
    """Ask for jobs; one that waits already under its dedupe key is left alone."""
    session.info.setdefault("nudges", []).extend(nudges)


def mark(session: Session, point: str) -> None:
    """Name the fault point right after this transaction's commit, which its caller makes."""
    session.info.setdefault("points", []).append(point)


async def write(transaction: Transaction) -> None:
    """Write what a transaction has to say; its last statement."""
    for statement, values in _statements(transaction.info):
        await sql.fetch(transaction, statement, *values)


def committed(info: dict[Any, Any]) -> None:
    """Pass the fault points of a transaction that has just been committed."""
    for point in info.pop("points", ()):
        faults.at(point)


@event.listens_for(OutboxSession, "before_commit")
def _write(session: OrmSession) -> None:
    for statement, values in _statements(session.info):
        session.connection().exec_driver_sql(statement, values)


@event.listens_for(OutboxSession, "after_commit")
def _committed(session: OrmSession) -> None:
    committed(session.info)


@event.listens_for(OutboxSession, "after_soft_rollback")
def _forget(session: OrmSession, _transaction: object) -> None:
    session.info.pop("events", None)
    session.info.pop("nudges", None)
    session.info.pop("points", None)


def _statements(info: dict[Any, Any]) -> Iterator[tuple[str, tuple[object, ...]]]:
    if events := info.pop("events", None):
        yield _EVENTS, tuple(map(list, zip(*events, strict=True)))
    if nudges := info.pop("nudges", None):
        yield _JOBS, _parameters(nudges)


def _parameters(nudges: list[Nudge]) -> tuple[object, ...]:
    """Return what PgQueuer's own enqueue would send: its statement, on our connection, in our transaction."""
    normal = normalize_enqueue_params(
        [n.entrypoint for n in nudges],
        [n.payload for n in nudges],
        [0] * len(nudges),
        [timedelta(seconds=n.delay) for n in nudges],
        [n.dedupe_key for n in nudges],
        None,
    )
    return (
        normal.priority,
        normal.entrypoint,
        normal.payload,
        normal.execute_after,
        normal.dedupe_key,
        [as_json(h) for h in normal.headers],
    )

"""What a transaction says to the world: its events and its jobs, gathered while it runs and written once, right before its
commit, in one statement each. A rollback forgets them.
"""

from datetime import timedelta
from typing import Any

from pgqueuer.adapters.persistence.qb import QueryQueueBuilder
from pgqueuer.adapters.persistence.query_helpers import normalize_enqueue_params
from pydantic_core import to_json
from sqlalchemy import event, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from app import faults
from app.models import Event
from app.queue import SETTINGS, Nudge

_ENQUEUE = QueryQueueBuilder(SETTINGS).build_enqueue_query("skip")
_EVENTS = insert(Event).inline()  # nobody wants their ids back
_COLUMNS = ("build_id", "run_id", "service_id", "release_id")


class OutboxSession(Session):
    """A session that writes its outbox before it commits."""


def add_event(session: AsyncSession, project_id: str, kind: str, data: dict[str, Any], **about: str | None) -> None:
    """Say that something happened."""
    row = {"project_id": project_id, "kind": kind, "data": data, **dict.fromkeys(_COLUMNS), **about}
    session.info.setdefault("events", []).append(row)


def enqueue(session: AsyncSession, *nudges: Nudge) -> None:
    """Ask for jobs; one that waits already under its dedupe key is left alone."""
    session.info.setdefault("nudges", []).extend(nudges)


def mark(session: AsyncSession, point: str) -> None:
    """Name the fault point right after this transaction's commit, which its caller makes."""
    session.info.setdefault("points", []).append(point)


@event.listens_for(OutboxSession, "before_commit")
def _write(session: Session) -> None:
    events, nudges = session.info.pop("events", None), session.info.pop("nudges", None)
    if events:
        session.connection().execute(_EVENTS, events)
    if nudges:
        session.connection().exec_driver_sql(_ENQUEUE, _parameters(nudges))


@event.listens_for(OutboxSession, "after_commit")
def _committed(session: Session) -> None:
    for point in session.info.pop("points", ()):
        faults.at(point)


@event.listens_for(OutboxSession, "after_soft_rollback")
def _forget(session: Session, _transaction: object) -> None:
    session.info.pop("events", None)
    session.info.pop("nudges", None)
    session.info.pop("points", None)


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
        [to_json(h).decode() for h in normal.headers],
    )

"""Status changes, all in one place, each with its event in the same transaction.

``move`` is a compare-and-set on the exact status the caller read. False is normal: somebody else was faster, and the caller
starts again from the row.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.sql import ColumnElement

from app import metrics, outbox, sql
from app.lifecycle import (
    REASONS,
    BuildStatus,
    Reason,
    ReleaseStatus,
    RunStatus,
    ServiceStatus,
    Status,
    is_terminal,
    may_follow,
)
from app.models import Build, Release, Run, Service
from app.outbox import add_event
from app.sql import NOW, Expression, Session, Transaction

Row = Build | Run | Release | Service

_STAMPS: dict[type[Status], dict[Status, str]] = {
    BuildStatus: {
        BuildStatus.DISPATCHING: "dispatched_at",
        BuildStatus.BUILDING: "building_at",
        BuildStatus.PROMOTING: "promoting_at",
        BuildStatus.SUCCEEDED: "finished_at",
        BuildStatus.FAILED: "finished_at",
        BuildStatus.CANCELED: "finished_at",
    },
    RunStatus: {s: "finished_at" for s in RunStatus if is_terminal(s)},
    ReleaseStatus: {
        ReleaseStatus.DEPLOYING: "deploying_at",
        ReleaseStatus.LIVE: "live_at",
        ReleaseStatus.SUPERSEDED: "finished_at",
        ReleaseStatus.FAILED: "finished_at",
    },
    ServiceStatus: dict.fromkeys(ServiceStatus, "status_at"),
}


GOOD = frozenset({BuildStatus.SUCCEEDED, RunStatus.SUCCEEDED, ReleaseStatus.LIVE})
"""What is counted without a reason: a row may keep that of an earlier try."""


async def move(
    session: Session,
    row: Row,
    to: Status,
    *,
    where: tuple[ColumnElement[bool] | Expression, ...] = (),
    event: dict[str, Any] | None = None,
    along: bool = False,
    **values: Any,
) -> bool:
    """Move ``row`` from the status it was read in to ``to``; return whether it was still there.

    ``values`` are set along with it, ``where`` are further conditions, ``event`` is the data of the event that is
    written. What was set is set on the object too. Raises ValueError on a move that TRANSITIONS doesn't have.

    ``along``: in plain SQL it is written with the outbox, in the same statement, and what the database works out does not
    come back to the object: its times are then those of this process's clock. It can't lose where this transaction holds a
    lock on the row; where it does, the whole transaction comes to ``outbox.LostError``.
    """
    model, before, now = type(row), row.status, datetime.now(UTC)
    since = row.updated_at if isinstance(row, Build) else None
    if to not in may_follow(before):
        raise ValueError(f"{model.__name__}: {before} → {to} is not a move")
    values = {"status": to, **values}
    if stamp := _STAMPS[type(to)].get(to):
        values[stamp] = NOW
    if isinstance(row, Build | Service):
        values["updated_at"] = NOW
    if is_terminal(to) and not isinstance(row, Run | Release) and "next_check_at" not in values:
        values["next_check_at"] = None
    key = {"id": row.id, "status": before}
    if along and isinstance(session, Transaction):
        outbox.write_along(session, model, key, where, values)
        fresh: Mapping[str, Any] | None = {
            n: now if v is NOW else getattr(row, n) for n, v in values.items() if isinstance(v, Expression)
        }
    else:
        fresh = await sql.update(session, model, key, *where, **values)
    if fresh is None:
        return False
    for name, value in (values | dict(fresh)).items():
        set_committed_value(row, name, value)
    record(session, row, f"{model.__tablename__}.{to}", event)
    outbox.afterwards(session, lambda: _count(row, to, before, since, now))
    if isinstance(row, Build) and row.batch_id is not None and is_terminal(to):
        outbox.end_of(session, row.batch_id)
    return True


def _count(row: Row, to: Status, before: Status, since: datetime | None, now: datetime) -> None:
    """Count a move that is committed. Times are the database's, ``now`` is ours: they differ by what the clocks do."""
    reason = "" if isinstance(row, Service) or to in GOOD else row.reason or ""
    if isinstance(row, Build):
        if since is not None:
            metrics.STAGES.labels(before).observe(max(0.0, (now - since).total_seconds()))
        if is_terminal(to):
            metrics.BUILDS.labels(to, reason, row.builder_platform).inc()
            metrics.BUILD_SECONDS.labels(to).observe(max(0.0, (now - row.created_at).total_seconds()))
    elif isinstance(row, Run) and is_terminal(to):
        metrics.RUNS.labels(to, reason, row.platform).inc()
    elif isinstance(row, Release) and to in {ReleaseStatus.LIVE, ReleaseStatus.FAILED}:
        metrics.RELEASES.labels(to, reason, row.platform).inc()


def record(session: Session, row: Row, kind: str, data: dict[str, Any] | None = None) -> None:
    """Say that something happened to a row; written with the caller's transaction."""
    about: dict[str, str | None] = {f"{type(row).__tablename__}_id": row.id}
    if isinstance(row, Run):
        about["build_id"] = row.build_id
    elif isinstance(row, Release):
        about |= {"service_id": row.service_id, "build_id": row.build_id}
    elif isinstance(row, Build):
        about["service_id"] = row.service_id
    add_event(session, row.project_id, kind, data or {}, **about)


def explain(reason: Reason, message: str | None) -> str:
    """Return the text for a person: what happened, else what the reason means."""
    return message or REASONS[reason].message


async def fail(
    session: Session, row: Build | Release, reason: Reason, message: str | None = None, **values: Any
) -> bool:
    """Move a build or a release to failed, with a reason and a message fit for a person."""
    to: Status = BuildStatus.FAILED if isinstance(row, Build) else ReleaseStatus.FAILED
    text = explain(reason, message)
    return await move(
        session, row, to, reason=reason, message=text, event={"reason": reason, "message": text}, **values
    )

"""The queue as the rest sees it: the names of jobs, and what is said of one.

Everything of PgQueuer hides here, in ``app.outbox`` and in ``app.jobs``. A job is a nudge: it names a row, and whoever gets
it starts from the row. It may come twice, late or never (reconcile makes up for that).
"""

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from pgqueuer.adapters.persistence.composer import ComposedQuery
from pgqueuer.adapters.persistence.qb import QueryBuilderEnvironment, QueryQueueBuilder, QuerySchedulerBuilder
from pgqueuer.domain.settings import DBSettings
from pgqueuer.ports.driver import Driver
from pgqueuer.queries import Queries
from sqlalchemy import TextClause, text

SETTINGS = DBSettings(db_schema="pgqueuer", prefix="")
TABLE = f"{SETTINGS.db_schema}.{SETTINGS.queue_table}"
ENQUEUE = f"""
    insert into {TABLE} (priority, status, entrypoint, payload, execute_after, dedupe_key)
    select 0, 'queued', entrypoint, payload, now() + delay, dedupe_key
    from unnest(${{}}::text[], ${{}}::bytea[], ${{}}::interval[], ${{}}::text[]) as asked (entrypoint, payload, delay, dedupe_key)
    on conflict (dedupe_key) where status in ('queued', 'picked') and dedupe_key is not null do nothing
"""  # noqa: S608 - our own names
"""What PgQueuer's own enqueue does with ``on_conflict="skip"``, but for its log."""


class Job(StrEnum):
    """What can be asked for; each name is a verb's file in ``builds`` or ``services``."""

    DISPATCH = "dispatch"
    """A build wants a builder."""
    REUSE = "reuse"
    """A queued build may take another's artifact."""
    CHECK = "check"
    """A run has gone quiet: look at its machine."""
    CLEANUP = "cleanup"
    """A run is over: remove its machine."""
    PROMOTE = "promote"
    """A release wants to go live."""
    RETIRE = "retire"
    """A release is no longer wanted: remove what is left of it."""
    WAKE = "wake"
    SLEEP = "sleep"
    DELETE = "delete"
    """A service shall go."""


@dataclass(frozen=True)
class Nudge:
    """One job to put on the queue. ``host_bound`` names a platform whose jobs go to the one process that owns it."""

    job: Job
    row_id: str
    attempt: int = 0
    host_bound: str | None = None
    delay: float = 0.0
    """Seconds."""
    once: bool = True
    """False on wake-ups, which must never be folded into a job that is already running."""

    @property
    def entrypoint(self) -> str:
        """Return the queue's name for this job."""
        return entrypoint(self.job, self.host_bound)

    @property
    def dedupe_key(self) -> str | None:
        """Return the key under which a second job of the same kind, row and attempt is dropped."""
        return f"{self.entrypoint}:{self.row_id}:{self.attempt}" if self.once else None

    @property
    def payload(self) -> bytes:
        """Return ``<row id>:<attempt>``."""
        return f"{self.row_id}:{self.attempt}".encode()


def entrypoint(job: Job, host_bound: str | None) -> str:
    """Return the queue's name for a job: ``dispatch``, or ``dispatch.local`` for a host-bound platform."""
    return f"{job}.{host_bound}" if host_bound else str(job)


_LOG_PICK = re.compile(r",\s*-- [^\n]*\s*log_pick AS \(.*?\n\)", re.S)


class _Statements(QueryQueueBuilder):
    """PgQueuer's statements without its log: three rows in six indexes for each job, and nobody reads them.

    Rows have their events and workers their metrics.
    """

    def build_dequeue_query(self, **asked: Any) -> ComposedQuery:
        query = super().build_dequeue_query(**asked)
        return replace(query, sql=_LOG_PICK.sub("", query.sql))

    def build_log_job_query(self) -> str:
        # No entrypoint of ours holds what has failed, so whatever the status is, the job goes; no matter is not even typed.
        return f"""
            delete from {TABLE} where id = any($1::bigint[])
                and cardinality($2::text[]) = cardinality($3::text[])  -- statuses and tracebacks, one for each
        """  # noqa: S608 - our own names


def queries(driver: Driver) -> Queries:
    """Return PgQueuer's queries on our schema, whatever the environment says."""
    return Queries(
        driver,
        qbe=QueryBuilderEnvironment(SETTINGS),
        qbq=_Statements(SETTINGS),
        qbs=QuerySchedulerBuilder(SETTINGS),
    )


def orphan(entrypoints: list[str]) -> TextClause:
    """Return the statement that makes the running jobs of these names due at once: their worker is known to be dead.

    PgQueuer takes a job over whose heartbeat is too old; ``to_timestamp(0)`` is older than any time-out.
    """
    statement = f"update {TABLE} set heartbeat = to_timestamp(0) where status = 'picked' and entrypoint = any(:names)"  # noqa: S608 - our own names
    return text(statement).bindparams(names=entrypoints)

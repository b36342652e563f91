"""The queue as the rest sees it: job names, and putting a job on it inside the caller's transaction.

Everything of PgQueuer hides here and in ``app.jobs``. A job is a nudge: it names a row, and whoever gets it starts from
the row. It may come twice, late or never (reconcile makes up for that).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Self

from pgqueuer.adapters.persistence.qb import QueryBuilderEnvironment, QueryQueueBuilder, QuerySchedulerBuilder
from pgqueuer.core.tm import TaskManager
from pgqueuer.domain.settings import DBSettings
from pgqueuer.ports.driver import Driver, NotifyCallback
from pgqueuer.queries import Queries
from sqlalchemy.ext.asyncio import AsyncSession

SETTINGS = DBSettings(db_schema="pgqueuer", prefix="")


class Job(StrEnum):
    """What can be asked for; each name is a verb's file in ``builds`` or ``services``."""

    DISPATCH = "dispatch"
    """A build wants a builder."""
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


class SessionDriver(Driver):
    """PgQueuer's driver over a session's own connection, so that a job commits or rolls back with the rows.

    Goes through ``exec_driver_sql``: on the raw asyncpg connection SQLAlchemy would not have begun yet, and a rollback
    would not undo the job.
    """

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        """Run a query and return its rows."""
        connection = await self._session.connection()
        return [dict(m) for m in (await connection.exec_driver_sql(query, args)).mappings()]

    async def execute(self, query: str, *args: object) -> str:
        """Run a statement."""
        connection = await self._session.connection()
        await connection.exec_driver_sql(query, args)
        return ""

    @property
    def tm(self) -> TaskManager:
        """Return nothing to wait for: a session has no background work."""
        return TaskManager()

    @property
    def shutdown(self) -> asyncio.Event:
        """Return an event that nobody sets."""
        return asyncio.Event()

    async def notify(self, channel: str, payload: str) -> None:
        """Refuse: a trigger of the queue's table notifies."""
        raise TypeError("a session only enqueues")

    async def add_listener(self, channel: str, callback: NotifyCallback) -> None:
        """Refuse: a session that listened would never end."""
        raise TypeError("a session only enqueues")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...


def queries(driver: Driver) -> Queries:
    """Return PgQueuer's queries on our schema, whatever the environment says."""
    return Queries(
        driver,
        qbe=QueryBuilderEnvironment(SETTINGS),
        qbq=QueryQueueBuilder(SETTINGS),
        qbs=QuerySchedulerBuilder(SETTINGS),
    )


async def enqueue(session: AsyncSession, *nudges: Nudge) -> None:
    """Put jobs on the queue within the caller's transaction; one that waits already under its key is left alone."""
    await enqueue_all(session, nudges)


async def enqueue_all(session: AsyncSession, nudges: Sequence[Nudge]) -> None:
    """As ``enqueue``, in one statement."""
    if not nudges:
        return
    await session.flush()
    await queries(SessionDriver(session)).enqueue(
        [n.entrypoint for n in nudges],
        [n.payload for n in nudges],
        [0] * len(nudges),
        [timedelta(seconds=n.delay) for n in nudges],
        [n.dedupe_key for n in nudges],
        None,
        on_conflict="skip",
    )

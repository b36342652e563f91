"""The page that Prometheus reads: this process's own counters, and what the database says, asked at most every few seconds.

However many builds have ended, the statements look at open ones only, along partial indexes.
"""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from prometheus_client import Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import QueuePool

from app import breaker, budgets, metrics, sql
from app.capabilities import allowance
from app.context import Context
from app.db import DATABASE_ERRORS, alone
from app.lifecycle import OPEN_BUILD
from app.queue import SETTINGS

log = structlog.get_logger()

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
FRESH_SECONDS = 5.0
"""However often the page is read, the database is asked no more often than this."""
ASK_SECONDS = 5.0

_BUILDS = """
    select status, builder_platform as platform, count(*) as count,
        extract(epoch from clock_timestamp() - min(created_at))::float as age
    from build where status in ({}) group by status, builder_platform
""".format(", ".join(f"'{s}'" for s in OPEN_BUILD))  # noqa: S608 - our own words
_SERVICES = "select status, platform, count(*) as count from service where deleted_at is null group by status, platform"
_QUEUE = f"""
    select entrypoint as job, status::text as state, count(*) as count,
        extract(epoch from clock_timestamp() - min(execute_after) filter (where status = 'queued'))::float as age
    from "{SETTINGS.db_schema}".{SETTINGS.queue_table} group by entrypoint, status
"""  # noqa: S608 - our own names
_WEBHOOKS = """
    select count(*) as count, coalesce(extract(epoch from clock_timestamp() - min(d.next_attempt_at)), 0)::float as age
    from webhook w join webhook_delivery d on d.webhook_id = w.id
    where w.status = 'enabled' and d.status = 'pending' and d.next_attempt_at <= now()
"""

# One look into the index for each project.
_EVENTS = """
    select coalesce(extract(epoch from clock_timestamp() - min(first.at)), 0)::float as age
    from project cross join lateral (
        select at from event
        where project_id = project.id and xid >= pg_snapshot_xmin(pg_current_snapshot()) order by xid, id limit 1
    ) as first
"""

Samples = dict[Gauge, dict[tuple[str, ...], float]]


@dataclass
class Page:
    """The metrics of one process."""

    context: Context
    clock: Callable[[], float] = time.monotonic
    _read_at: float | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def render(self) -> bytes:
        """Return the page in Prometheus's text format; without the database's part while the database does not answer."""
        async with self._lock:
            if self._read_at is None or self.clock() >= self._read_at + FRESH_SECONDS:
                await self._refresh()
                self._read_at = self.clock()
        _connections(self.context)
        return generate_latest(metrics.REGISTRY)

    def forget(self) -> None:
        """Ask the database for the next page, however fresh the last one is."""
        self._read_at = None

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(ASK_SECONDS), alone(self.context.sessions) as session:
                found = await _ask(self.context, session)
            metrics.DATABASE_UP.set(1)
        except (*DATABASE_ERRORS, PoolTimeout) as e:
            log.warning("the metrics of the database can't be read", error=str(e) or type(e).__name__)
            found = {}
            metrics.DATABASE_UP.set(0)
        for gauge in (metrics.EVENTS_HELD, metrics.WEBHOOKS_DUE, metrics.WEBHOOKS_OLDEST):
            gauge.set(math.nan)
        for gauge in metrics.SHARED:
            gauge.clear()
        for gauge, samples in found.items():
            for labels, value in samples.items():
                (gauge.labels(*labels) if labels else gauge).set(value)


async def _ask(context: Context, session: AsyncSession) -> Samples:
    found: Samples = {gauge: {} for gauge in metrics.SHARED}
    for row in await sql.fetch(session, _BUILDS):
        found[metrics.BUILDS_OPEN][row["status"], row["platform"]] = row["count"]
        found[metrics.BUILDS_OLDEST][row["status"], row["platform"]] = row["age"]
    for row in await sql.fetch(session, _SERVICES):
        found[metrics.SERVICES][row["status"], row["platform"]] = row["count"]
    for row in await sql.fetch(session, _QUEUE):
        found[metrics.QUEUE_JOBS][row["job"], row["state"]] = row["count"]
        if row["age"] is not None:
            # One that is delayed on purpose is not due yet.
            found[metrics.QUEUE_OLDEST][(row["job"],)] = max(0.0, row["age"])
    (row,) = await sql.fetch(session, _EVENTS)
    found[metrics.EVENTS_HELD][()] = max(0.0, row["age"])
    (row,) = await sql.fetch(session, _WEBHOOKS)
    found[metrics.WEBHOOKS_DUE][()], found[metrics.WEBHOOKS_OLDEST][()] = row["count"], row["age"]
    for entry in context.catalog.entries.values():
        if counted := allowance(context.settings, entry):
            left = await budgets.left(session, counted)
            found[metrics.BUDGET_LEFT][(entry.name,)] = left.requests
            found[metrics.BUDGET_CLOSED][(entry.name,)] = left.closed_seconds
    for state in await breaker.states(session):
        region = state.region if state.region in _regions(context, state.platform) else "other"
        labels = (state.platform, region, state.operation, state.state)
        found[metrics.BREAKERS][labels] = found[metrics.BREAKERS].get(labels, 0) + 1
    return found


def _regions(context: Context, platform: str) -> frozenset[str]:
    """Return the regions of a platform that are known here: a request may name others, as many as it likes."""
    entry = context.catalog.entry(platform)
    return frozenset(("", *entry.traits.regions, *entry.traits.default_regions) if entry else ("",))


def _connections(context: Context) -> None:
    """Read the two pools of this process; nothing is asked."""
    pool, plain = context.engine.pool, context.pool
    assert isinstance(pool, QueuePool)
    idle = plain.get_idle_size()
    for name, used, waiting in (
        ("sessions", pool.checkedout(), pool.checkedin()),
        ("plain", plain.get_size() - idle, idle),
    ):
        metrics.DATABASE_CONNECTIONS.labels(name, "used").set(used)
        metrics.DATABASE_CONNECTIONS.labels(name, "idle").set(waiting)

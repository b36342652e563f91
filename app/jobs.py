"""The worker: takes jobs off the queue and runs their verbs; beside it the loops that reconcile and sweep.

A job is short and safe to repeat. Its failure is logged and reconcile tries again from the row, so no job is retried by the
queue itself. When the database goes away the worker leaves loudly, and its supervisor starts it again.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import asyncpg
import structlog
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job as QueueJob
from pgqueuer.types import Channel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app import logs, metrics
from app.builds import cleanup, dispatch, retention, reuse
from app.builds import reconcile as builds_reconcile
from app.builds import sweep as builds_sweep
from app.builds.look_after import look_after
from app.context import Context
from app.db import plain_dsn
from app.queue import SETTINGS, Job, entrypoint, queries
from app.services import delete, promote, pull, retire, sleep_wake
from app.services import sweep as services_sweep
from app.services.rewrap import rewrap
from app.takeover import take_over
from app.webhooks import courier

log = structlog.get_logger()

Handler = Callable[[Context, str], Awaitable[object]]
Runner = Callable[[QueueJob], Awaitable[None]]

HANDLERS: dict[Job, tuple[Handler, float]] = {
    Job.DISPATCH: (dispatch.dispatch, 320),
    Job.REUSE: (reuse.reuse, 60),
    Job.CHECK: (cleanup.check, 150),
    Job.CLEANUP: (cleanup.cleanup, 90),
    Job.PROMOTE: (promote.promote, 900),
    Job.RETIRE: (retire.retire, 90),
    Job.WAKE: (sleep_wake.start, 300),
    Job.SLEEP: (sleep_wake.stop, 300),
    Job.DELETE: (delete.delete, 120),
}
"""Verb and time-out in seconds; each verb has shorter time-outs of its own for what it calls."""

DEQUEUE_TIMEOUT = timedelta(seconds=2)
HEARTBEAT_TIMEOUT = timedelta(seconds=10)
RETENTION_SECONDS = 300.0
UNNAMED_IMAGES = timedelta(hours=3)
"""How long an image without a row may be one that is still on its way: longer than any run."""
RECONCILE_LOCK = 0x736C7072


async def work(
    context: Context, database_url: str, *, ready: asyncio.Event | None = None, host_bound_only: bool = False
) -> None:
    """Run a worker until it is canceled; raises when the database goes away.

    Takes the jobs of every platform, and those of a host-bound platform only where this process holds it; with
    ``host_bound_only`` no others, since ``worker --local`` is not told what the other platforms need.
    """
    logging.getLogger("pgqueuer").setLevel(logging.WARNING)
    await take_over(context)
    async with _connection(database_url) as connection:
        driver = AsyncpgDriver(connection)
        pgq = PgQueuer(driver, channel=Channel(SETTINGS.channel), queries=queries(driver))
        for name, runner in runners(context, host_bound_only=host_bound_only).items():
            pgq.entrypoint(name, accepts_context=False, on_failure="delete")(runner)
        run = pgq.qm.run(
            batch_size=min(10, context.settings.worker_concurrency),
            dequeue_timeout=DEQUEUE_TIMEOUT,
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
            max_concurrent_tasks=context.settings.worker_concurrency * 2,
            shutdown_on_listener_failure=True,
            log_aggregation_interval=timedelta(0),  # there is no log: see app.queue
        )
        if ready is not None:
            ready.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(_left_loudly(run), name="queue")
            group.create_task(_every(context.settings.reconcile_seconds, lambda: reconcile(context)), name="reconcile")
            group.create_task(
                _every(context.settings.reconcile_seconds, lambda: look_after(context)), name="look after"
            )
            group.create_task(_every(context.settings.sweep_seconds, lambda: sweep(context)), name="sweep")
            group.create_task(notice_deaths(context), name="deaths")
            group.create_task(_every(RETENTION_SECONDS, lambda: keep(context)), name="retention")
            if not host_bound_only:
                group.create_task(courier.deliver(context), name="webhooks")


async def _left_loudly(run: Awaitable[None]) -> None:
    await run
    raise ConnectionError("the queue stopped: its connection to the database is gone")


@contextlib.asynccontextmanager
async def _connection(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    # A crash of the server may lose that a job was taken or done: jobs may come twice, so nobody waits for the disk.
    settings = {"application_name": "slipway-worker", "synchronous_commit": "off"}
    connection = await asyncpg.connect(
        plain_dsn(database_url), timeout=10, command_timeout=60, server_settings=settings
    )
    try:
        yield connection
    finally:
        with contextlib.suppress(Exception):
            await connection.close(timeout=5)


def runners(context: Context, *, host_bound_only: bool = False) -> dict[str, Runner]:
    """Return what this process runs, by the queue's name: every job, and a host-bound platform's only where it is held."""
    held = [n for n, p in context.catalog.held.items() if p.traits.host_bound]
    bound = held if host_bound_only else [None, *held]
    named = ((entrypoint(job, host), work) for job, work in HANDLERS.items() for host in bound)
    return {name: _runner(context, name, handler, seconds) for name, (handler, seconds) in named}


def _runner(context: Context, name: str, handler: Handler, seconds: float) -> Runner:
    async def run(job: QueueJob) -> None:
        row_id = (job.payload or b"").decode().partition(":")[0]
        structlog.contextvars.bind_contextvars(job=name)
        logs.about_id(row_id)
        begun, outcome = time.perf_counter(), "failed"
        try:
            async with asyncio.timeout(seconds):
                await handler(context, row_id)
            outcome = "done"
        except sleep_wake.WakeFailed as e:
            log.warning("service did not start", error=str(e), reason=e.reason)
        except TimeoutError:
            log.error("job took too long; reconcile starts it again", seconds=seconds)
        except Exception:
            # The row is the truth and reconcile its keeper: a job that fails must not be retried in a tight loop.
            log.exception("job failed; reconcile starts it again")
        finally:
            metrics.JOB_SECONDS.labels(name, outcome).observe(time.perf_counter() - begun)
            structlog.contextvars.clear_contextvars()

    return run


async def _every(seconds: float, act: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await act()
        except (ConnectionError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError):
            raise  # the database is gone; any other OSError is a disk's or a time-out, and no reason to leave
        except Exception:
            log.exception("a periodic pass failed; the next one starts afresh")
        await asyncio.sleep(seconds)


async def reconcile(context: Context) -> None:
    """Give quiet rows their jobs again; one process at a time."""
    async with context.sessions.begin() as session:
        if not await _mine(session, RECONCILE_LOCK):
            return
        await builds_reconcile.reconcile(context, session)
        await services_sweep.reconcile(context, session)
        runs, releases = await cleanup.overdue(session), await promote.overdue(context, session)
    await cleanup.end_overdue(context, runs)
    await promote.end_overdue(context, releases)


async def sweep(context: Context) -> None:
    """Compare rows with platforms: dead instances first, then what no row owns."""
    await services_sweep.look_after(context)
    await builds_sweep.sweep(context)


async def notice_deaths(context: Context) -> None:
    """Correct the rows as soon as a platform here says that a service ended by itself; the sweep would, but later."""
    told = [p.ended for p in context.catalog.held.values() if p.ended is not None]

    async def listen(ended: asyncio.Event) -> None:
        await ended.wait()
        ended.clear()
        await services_sweep.look_after(context)

    async with asyncio.TaskGroup() as group:
        for ended in told:
            group.create_task(_every(0.0, functools.partial(listen, ended)))


async def keep(context: Context) -> None:
    """Remove what is past its keeping, from the database and from the embedded registry."""
    await retention.keep(context)
    await rewrap(context)
    await collect_images(context)


async def collect_images(context: Context) -> None:
    """Remove what no row knows from the embedded registry on this process's disk."""
    async with context.sessions() as session:
        kept = await retention.kept_images(session) | await pull.kept_images(session)
    await context.images.collect(kept, UNNAMED_IMAGES, limit=500)


async def tidy_registry(context: Context) -> None:
    """Go on collecting, whatever happens: in a split installation the API's disk is one that no worker sees."""
    while True:
        try:
            await collect_images(context)
        except Exception:
            log.exception("the registry could not be tidied; the next pass starts afresh")
        await asyncio.sleep(RETENTION_SECONDS)


async def _mine(session: AsyncSession, key: int) -> bool:
    statement = text("select pg_try_advisory_xact_lock(:key)")
    return bool((await session.execute(statement, {"key": key})).scalar_one())

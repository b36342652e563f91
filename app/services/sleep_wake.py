"""Take a running service to zero, and bring a sleeping one back.

Both are a compare-and-set on the service's row, so that any number of callers in any number of processes make one start. Where
the platform belongs to another process (the local platform in a split installation) the move is made here and the act nudged
there; the waker waits for the row.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import structlog

from app import faults, metrics, outbox, queue, sql, store
from app.context import Context
from app.db import transaction
from app.lifecycle import Reason, ServiceStatus
from app.models import Release, Service
from app.platforms.base import Address, PlatformError, StartFailed
from app.services.release import ref_of
from app.sql import NOW, Expression, Session, after

log = structlog.get_logger()

STALE_SECONDS = 15
"""A wake or sleep that has not ended so long after its time-out was cut short; reconcile takes it up."""
FAILED_PAUSE_SECONDS = 3.0
"""How long a service that failed to start is left alone: every request would only start it again."""


@dataclass
class WakeFailed(Exception):
    """The service is not up. ``retry_after`` in seconds; ``reason`` is None when it is just not done yet."""

    message: str
    reason: str | None = None
    retry_after: float = 5.0

    def __str__(self) -> str:
        return self.message


async def wake(context: Context, service_id: str) -> Address:
    """Return the address of the service's running instance, starting it if it sleeps. Raises WakeFailed."""
    asked, pause = time.monotonic(), 0.005
    while True:
        service, release, status_age = await _look(context, service_id)
        if service.status == ServiceStatus.RUNNING and service.address and service.instance_id:
            return Address(url=service.address, instance_id=service.instance_id)
        if service.status == ServiceStatus.PENDING:
            raise WakeFailed(f"Service {service.name} has no live release yet.", retry_after=5)
        if service.status in {ServiceStatus.DELETING, ServiceStatus.DELETED}:
            raise WakeFailed(f"Service {service.name} was deleted.", reason="deleted", retry_after=60)
        if service.status == ServiceStatus.FAILED and status_age < FAILED_PAUSE_SECONDS:
            wait = max(1.0, FAILED_PAUSE_SECONDS - status_age)
            raise WakeFailed(service.message or "The service did not start.", service.reason, wait)
        if service.status in {ServiceStatus.ASLEEP, ServiceStatus.FAILED}:
            begun = await _begin_wake(context, service)
            if begun and (address := await _start(context, service, release)) is not None:
                return address
            continue
        if time.monotonic() > asked + context.wake_seconds(service.platform):
            raise WakeFailed(f"Service {service.name} is still {service.status}; try again.", retry_after=2)
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.05)


_LOOK = f"""
    select {sql.columns(Service, "service", "s_")}, {sql.columns(Release, "release", "r_")},
        extract(epoch from clock_timestamp() - service.status_at)::float as age
    from service left join release on release.id = service.live_release_id
    where service.id = $1
"""  # noqa: S608 - our own names


async def _look(context: Context, service_id: str) -> tuple[Service, Release | None, float]:
    """Return the service, its live release, and for how many seconds it has been in its status."""
    row = await context.pool.fetchrow(_LOOK, service_id)
    if row is None:
        raise WakeFailed("There is no such service.", reason="deleted", retry_after=60)
    release = sql.load(Release, row, "r_") if row["r_id"] else None
    return sql.load(Service, row, "s_"), release, row["age"]


def _stale(context: Context, service: Service) -> Expression:
    """Return when a wake or sleep that begins now counts as cut short."""
    return after(context.wake_seconds(service.platform) + STALE_SECONDS)


async def _begin_wake(context: Context, service: Service) -> bool:
    async with transaction(context.pool) as session:
        moved = await store.move(
            session,
            service,
            ServiceStatus.WAKING,
            next_check_at=_stale(context, service),
        )
        if moved and context.platform(service.platform) is None:
            _nudge(context, session, service, queue.Job.WAKE)
    faults.at("wake.claimed")
    return moved


async def start(context: Context, service_id: str) -> Address | None:
    """Start a service that is waking, if its platform is in this process; None when it is not or the row moved on."""
    service, release, _ = await _look(context, service_id)
    return await _start(context, service, release) if service.status == ServiceStatus.WAKING else None


async def _start(context: Context, service: Service, release: Release | None) -> Address | None:
    begun = time.monotonic()
    platform = context.platform(service.platform)
    if release is None or platform is None or platform.services is None:
        return None
    services = platform.services
    try:
        async with asyncio.timeout(context.wake_seconds(service.platform)):
            address = await services.wake(ref_of(context, release))
    except StartFailed as e:
        metrics.WAKE_SECONDS.labels(service.platform, "failed").observe(time.monotonic() - begun)
        await _not_up(context, service, release, e.reason, e.message)
        raise WakeFailed(e.message, e.reason) from e
    except (PlatformError, TimeoutError) as e:
        metrics.WAKE_SECONDS.labels(service.platform, "failed").observe(time.monotonic() - begun)
        message = str(e) or "The platform did not start the service in time."
        await _not_up(context, service, release, Reason.INTERNAL_ERROR, message)
        raise WakeFailed(message, Reason.INTERNAL_ERROR) from e
    faults.at("wake.started")
    took = (time.monotonic() - begun) * 1000
    metrics.WAKE_SECONDS.labels(service.platform, "up").observe(took / 1000)
    async with transaction(context.pool) as session:
        moved = await store.move(
            session,
            service,
            ServiceStatus.RUNNING,
            where=_still(release),
            address=address.url,
            instance_id=address.instance_id,
            starts=Expression("starts + 1"),
            wake_ms=took,
            last_request_at=NOW,
            next_check_at=None,
            reason=None,
            message=None,
            event={"instance_id": address.instance_id, "wake_ms": round(took, 1)},
        )
    faults.at("wake.recorded")
    return address if moved else None


def _still(release: Release) -> tuple[Expression, ...]:
    """Another release may have gone live, slept and begun to wake meanwhile: the status alone does not tell."""
    return (Expression("live_release_id = ?", (release.id,)),)


async def _not_up(context: Context, service: Service, release: Release, reason: str, message: str) -> None:
    async with transaction(context.pool) as session:
        await store.move(
            session,
            service,
            ServiceStatus.FAILED,
            where=_still(release),
            reason=reason,
            message=message,
            address=None,
            instance_id=None,
            next_check_at=None,
            event={"reason": reason, "message": message},
        )


async def sleep(context: Context, service_id: str, *, only_if: tuple[Expression, ...] = ()) -> bool:
    """Take a running service to zero; False when it wasn't running or ``only_if`` did not hold in the same statement."""
    async with transaction(context.pool) as session:
        service = await _read(session, service_id)
        if service is None or service.status != ServiceStatus.RUNNING:
            return False
        values: dict[str, Any] = {
            "next_check_at": _stale(context, service),
            "address": None,
            "instance_id": None,
        }
        if not await store.move(session, service, ServiceStatus.SLEEPING, where=only_if, **values):
            return False
        if context.platform(service.platform) is None:
            _nudge(context, session, service, queue.Job.SLEEP)
    faults.at("sleep.claimed")
    await stop(context, service_id)
    return True


async def stop(context: Context, service_id: str) -> None:
    """Stop a service that is going to sleep, if its platform is in this process; reconcile tries again if that fails."""
    service, release, _ = await _look(context, service_id)
    platform = context.platform(service.platform)
    if service.status != ServiceStatus.SLEEPING or release is None or platform is None or platform.services is None:
        return
    try:
        async with asyncio.timeout(context.wake_seconds(service.platform)):
            await platform.services.sleep(ref_of(context, release))
    except (PlatformError, TimeoutError) as e:
        log.warning("sleep will be tried again", service_id=service_id, error=str(e) or type(e).__name__)
        return
    faults.at("sleep.stopped")
    async with transaction(context.pool) as session:
        await store.move(session, service, ServiceStatus.ASLEEP, where=_still(release), next_check_at=None)
    faults.at("sleep.recorded")


async def mark_down(context: Context, service_id: str, instance_id: str, message: str | None = None) -> bool:
    """Note that a running instance is no longer there, so that the next request starts another; False if it moved on."""
    async with transaction(context.pool) as session:
        service = await _read(session, service_id)
        if service is None or service.status != ServiceStatus.RUNNING:
            return False
        entry = context.catalog.entry(service.platform)
        if entry is not None and entry.traits.scale_to_zero != "manual":
            return False  # its platform starts another by itself, at the next request
        return await store.move(
            session,
            service,
            ServiceStatus.ASLEEP,
            where=(Expression("instance_id = ?", (instance_id,)),),
            address=None,
            instance_id=None,
            message=message,
            event={"message": message or "The instance ended by itself.", "instance_id": instance_id},
        )


async def _read(session: Session, service_id: str) -> Service | None:
    row = await sql.fetch_one(session, "select * from service where id = $1", service_id)
    return sql.load(Service, row) if row else None


def _nudge(context: Context, session: Session, service: Service, job: queue.Job) -> None:
    host_bound = context.catalog.host_bound(service.platform)
    outbox.enqueue(session, queue.Nudge(job, service.id, host_bound=host_bound, once=False))

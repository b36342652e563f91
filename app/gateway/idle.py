"""Put services to sleep that nobody called for their idle time."""

import asyncio
import logging

from sqlalchemy import Float, cast, exists, func, or_, select
from sqlalchemy.sql import ColumnElement

from app.context import Context
from app.gateway.leases import LEASE_SECONDS
from app.gateway.rows import fronted
from app.lifecycle import ServiceStatus
from app.models import GatewayLease, Release, Service
from app.services import sleep_wake

log = logging.getLogger(__name__)

#: Services put to sleep at once, and the most that one pass takes up.
_AT_ONCE, _IN_A_PASS = 4, 100


def _seconds(value: ColumnElement[float] | float) -> ColumnElement[float]:
    return func.make_interval(0, 0, 0, 0, 0, 0, value)


def _idle() -> ColumnElement[bool]:
    """Nobody called the service for its idle time, its release may sleep, and no process has anything open to it.

    ``last_request_at`` is a column of the row that moves, so PostgreSQL looks at it again after waiting for a claim;
    see ``leases`` for why that matters.
    """
    scale = Release.config["scale"]
    idle = (
        select(cast(scale["idle_seconds"].as_float(), Float))
        .where(Release.id == Service.live_release_id, scale["min"].as_integer() == 0)
        .correlate(Service)  # in the inner query too, which does not have the table itself
        .scalar_subquery()
    )
    now = func.clock_timestamp()
    in_use = exists().where(
        GatewayLease.service_id == Service.id,
        or_(
            GatewayLease.last_seen_at > now - _seconds(idle),
            (GatewayLease.in_flight > 0) & (GatewayLease.last_seen_at > now - _seconds(LEASE_SECONDS)),
        ),
    )
    # Without a release that may sleep `idle` is NULL and so is the comparison: it stays awake.
    last = func.greatest(Service.last_request_at, Service.status_at)  # leaves NULL out
    return (last < now - _seconds(idle)) & ~in_use


async def idle_pass(context: Context) -> int:
    """Put every idle service of a platform that the gateway fronts to sleep; return how many went.

    Safe to run in any number of processes at once. The look only finds candidates: whether one sleeps is decided in the
    statement that moves it. A platform error is logged by the verb, and reconcile tries again.
    """
    statement = (
        select(Service.id)
        .where(Service.status == ServiceStatus.RUNNING, Service.platform.in_(fronted(context)), _idle())
        .order_by(Service.status_at)
        .limit(_IN_A_PASS)
    )
    async with context.sessions() as session:
        idle = (await session.execute(statement)).scalars().all()
    if not idle:
        return 0
    gate = asyncio.Semaphore(_AT_ONCE)

    async def put_to_sleep(service_id: str) -> bool:
        async with gate:
            return await sleep_wake.sleep(context, service_id, only_if=(_idle(),))

    results = await asyncio.gather(*(put_to_sleep(service_id) for service_id in idle), return_exceptions=True)
    for service_id, result in zip(idle, results, strict=True):
        if isinstance(result, Exception):
            log.error("service %s could not be put to sleep", service_id, exc_info=result)
    return sum(result is True for result in results)

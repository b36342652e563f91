"""Put services to sleep that nobody called for their idle time."""

import asyncio
import logging

from app.context import Context
from app.gateway.leases import LEASE_SECONDS
from app.gateway.rows import fronted
from app.services import sleep_wake
from app.sql import Expression

log = logging.getLogger(__name__)

#: Services put to sleep at once, and the most that one pass takes up.
_AT_ONCE, _IN_A_PASS = 4, 100


_IDLE_SECONDS = """
    select (release.config #>> '{scale,idle_seconds}')::float from release
    where release.id = service.live_release_id and (release.config #>> '{scale,min}')::int = 0
"""

#: Nobody called the service for its idle time, its release may sleep, and no process has anything open to it.
#: ``last_request_at`` is a column of the row that moves, so PostgreSQL looks at it again after waiting for a claim; see
#: ``leases`` for why that matters. Without a release that may sleep the idle time is NULL and so is the comparison: it stays
#: awake. ``greatest`` leaves NULL out.
_IDLE = f"""
    greatest(service.last_request_at, service.status_at) < clock_timestamp() - make_interval(secs => ({_IDLE_SECONDS}))
    and not exists (
        select from gateway_lease
        where gateway_lease.service_id = service.id
            and (last_seen_at > clock_timestamp() - make_interval(secs => ({_IDLE_SECONDS}))
                or in_flight > 0 and last_seen_at > clock_timestamp() - make_interval(secs => {LEASE_SECONDS}))
    )
"""
_CANDIDATES = f"""
    select id from service where status = 'running' and platform = any($1) and {_IDLE} order by status_at limit {_IN_A_PASS}
"""  # noqa: S608 - our own names


async def idle_pass(context: Context) -> int:
    """Put every idle service of a platform that the gateway fronts to sleep; return how many went.

    Safe to run in any number of processes at once. The look only finds candidates: whether one sleeps is decided in the
    statement that moves it. A platform error is logged by the verb, and reconcile tries again.
    """
    idle = [row["id"] for row in await context.pool.fetch(_CANDIDATES, fronted(context))]
    if not idle:
        return 0
    gate = asyncio.Semaphore(_AT_ONCE)

    async def put_to_sleep(service_id: str) -> bool:
        async with gate:
            return await sleep_wake.sleep(context, service_id, only_if=(Expression(_IDLE),))

    results = await asyncio.gather(*(put_to_sleep(service_id) for service_id in idle), return_exceptions=True)
    for service_id, result in zip(idle, results, strict=True):
        if isinstance(result, Exception):
            log.error("service %s could not be put to sleep", service_id, exc_info=result)
    return sum(result is True for result in results)

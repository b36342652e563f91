"""Routes as the rows have them: hosts from ``service.host``, addresses of running instances, waking by its verb."""

import asyncio
import logging
import math
from dataclasses import dataclass

from app.context import Context
from app.db import DATABASE_ERRORS
from app.errors import Refusal, unavailable
from app.gateway.knock import AWAKE_SECONDS, knock
from app.gateway.leases import Leases, describe
from app.gateway.routes import Route
from app.platforms.base import Address
from app.services import sleep_wake

log = logging.getLogger(__name__)

#: How long an address is trusted without a look: so long may a rollout's old release still be sent to by this process.
FRESH_SECONDS = 0.05
#: How long a host's service is known, and that there is none.
HOST_SECONDS, NO_HOST_SECONDS = 1.0, 0.5
HOSTS = 4096
#: A look at the database; past it the last known address is used, since nothing can be put to sleep without it either.
LOOK_SECONDS = 3.0
_TRIES = 3

_BY_HOST = """
    select service.id, service.platform, service.url,
        coalesce((release.config ->> 'stable_name')::boolean, false) or exists (
            select from release as left_one
            where left_one.service_id = service.id and left_one.keep_until > clock_timestamp()
        ) as ours
    from service left join release on release.id = service.live_release_id
    where host = $1 and deleted_at is null
"""
_LIVE = """
    select release.platform, release.config ->> 'health_path' as path
    from service join release on release.id = service.live_release_id where service.id = $1
"""
_RUNNING = "select address, instance_id from service where id = $1 and status = 'running'"


def fronted(context: Context) -> list[str]:
    """Return the names of the platforms where nothing wakes a service but this gateway."""
    return [name for name, entry in context.catalog.entries.items() if entry.traits.scale_to_zero == "manual"]


@dataclass(frozen=True)
class _Known:
    route: Route | None
    elsewhere: str | None
    until: float


@dataclass
class _Seen:
    address: Address
    fresh_until: float


class RowRoutes:
    """``Routes`` over the rows; one per gateway process."""

    def __init__(self, context: Context, leases: Leases) -> None:
        self._context = context
        self._leases = leases
        self._suffix = "." + context.settings.gateway_domain.lower().strip(".")
        self._platforms = frozenset(fronted(context))
        self._hosts: dict[str, _Known] = {}
        self._seen: dict[str, _Seen] = {}
        self._looks: dict[str, asyncio.Task[Address]] = {}
        self._awake: dict[str, float] = {}
        """Until when a service that wakes by itself is not asleep, by its address."""

    # ------------------------------------------------------------------------------------------------- hosts

    async def find(self, host: str) -> Route | None:
        """Return the service of this host; Refusal 421 when its platform serves it and not this gateway.

        Besides those whose platform has nobody else to wake them, the gateway serves the ones that want a stable name, and
        for a while those that have moved: whoever knew them here finds them.
        """
        label = host.removesuffix(self._suffix)
        if label == host or not label or len(label) > 80:
            return None
        now = asyncio.get_running_loop().time()
        known = self._hosts.get(label)
        if known is None or now >= known.until:
            known = await self._find(label, known, now)
        if known.elsewhere is not None:
            raise Refusal(421, "served_elsewhere", f"This service is served by its platform, at {known.elsewhere}.")
        return known.route

    async def _find(self, label: str, before: _Known | None, now: float) -> _Known:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                row = await self._context.pool.fetchrow(_BY_HOST, label)
        except DATABASE_ERRORS as error:
            if before is None:
                raise _no_database(error) from error
            return before
        if row is None:
            known = _Known(None, None, now + NO_HOST_SECONDS)
        elif row["ours"] or row["platform"] in self._platforms:
            route = Route(row["id"], label, wakes_itself=row["platform"] not in self._platforms)
            known = _Known(route, None, now + HOST_SECONDS)
        else:
            known = _Known(None, row["url"] or "an address it does not have yet", now + HOST_SECONDS)
        if len(self._hosts) >= HOSTS:
            del self._hosts[next(iter(self._hosts))]
        self._hosts.pop(label, None)
        self._hosts[label] = known
        return known

    # ------------------------------------------------------------------------------------------------- addresses

    async def ready(self, route: Route) -> Address:
        """Return where the service takes requests: from memory while that is good, else by one look for all callers."""
        now = asyncio.get_running_loop().time()
        seen, use = self._seen.get(route.service_id), self._leases.use(route.service_id)
        if seen is not None and now < seen.fresh_until and now < use.right_until:
            return seen.address
        look = self._looks.get(route.service_id)
        if look is None:
            look = self._looks[route.service_id] = asyncio.create_task(self._look(route))
            look.add_done_callback(lambda task: self._looked(route, task))
        return await asyncio.shield(look)  # a caller that leaves must not stop the start that others wait for

    def _looked(self, route: Route, task: asyncio.Task[Address]) -> None:
        del self._looks[route.service_id]
        if not task.cancelled():
            task.exception()  # whoever waited has it; all of them may have left

    async def _look(self, route: Route) -> Address:
        service_id = route.service_id
        try:
            for _ in range(_TRIES):
                now, use = asyncio.get_running_loop().time(), self._leases.use(service_id)
                async with asyncio.timeout(LOOK_SECONDS):
                    renew = now >= use.right_until
                    address = await (self._leases.claim(service_id) if renew else self._read(service_id))
                if address is not None:
                    if route.wakes_itself and now >= self._awake.get(address.url, 0.0):
                        await self._knock(service_id, address)
                    self._remember(service_id, address, now + FRESH_SECONDS)
                    return address
                use.right_until = 0.0
                self._seen.pop(service_id, None)
                # The address that comes back is not taken: only a claim makes sure that it stays awake.
                await sleep_wake.wake(self._context, service_id)
        except sleep_wake.WakeFailed as error:
            raise self._not_up(route, error) from error
        except DATABASE_ERRORS as error:
            seen = self._seen.get(service_id)
            if seen is None:
                raise _no_database(error) from error
            log.warning("the database can't be asked, so the last known address is used: %s", describe(error))
            self._remember(service_id, seen.address, now + LOOK_SECONDS)
            return seen.address
        raise unavailable("The service does not stay awake.", reason="unavailable", retry_after=2)

    async def _knock(self, service_id: str, address: Address) -> None:
        row = await self._context.pool.fetchrow(_LIVE, service_id)
        if row is not None:
            seconds = self._context.wake_seconds(row["platform"])
            if not await knock(address.url, row["path"], seconds):
                raise sleep_wake.WakeFailed(f"Nothing answered at its platform's address for {seconds:g} seconds.")
        self._stays_awake(address)

    def _stays_awake(self, address: Address) -> None:
        if len(self._awake) >= HOSTS:
            del self._awake[next(iter(self._awake))]
        self._awake[address.url] = asyncio.get_running_loop().time() + AWAKE_SECONDS

    async def _read(self, service_id: str) -> Address | None:
        row = await self._context.pool.fetchrow(_RUNNING, service_id)
        if row is None or row["address"] is None or row["instance_id"] is None:
            return None
        return Address(url=row["address"], instance_id=row["instance_id"])

    def _remember(self, service_id: str, address: Address, until: float) -> None:
        if len(self._seen) >= HOSTS:
            del self._seen[next(iter(self._seen))]
        self._seen.pop(service_id, None)
        self._seen[service_id] = _Seen(address, until)

    def _not_up(self, route: Route, error: sleep_wake.WakeFailed) -> Refusal:
        if error.reason == "deleted":
            self._hosts.pop(route.host, None)
            return Refusal(404, "unknown_host", f"The service of {route.host} was deleted.")
        retry_after = max(1, math.ceil(error.retry_after))
        return unavailable(error.message, reason=error.reason or "not_ready", retry_after=retry_after)

    async def failed(self, route: Route, address: Address) -> None:
        """Nobody takes connections there: forget it, and if the rows still believe in it, correct them."""
        seen = self._seen.get(route.service_id)
        if seen is not None and seen.address == address:
            del self._seen[route.service_id]
        self._awake.pop(address.url, None)
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                if await self._read(route.service_id) == address:
                    message = "Its address took no connections."
                    await sleep_wake.mark_down(self._context, route.service_id, address.instance_id, message)
        except DATABASE_ERRORS as error:
            log.warning("a service that is down could not be marked so: %s", describe(error))

    # ------------------------------------------------------------------------------------------------- in flight

    def entered(self, route: Route) -> None:
        """Count one request more in flight."""
        self._leases.entered(route.service_id)

    def left(self, route: Route) -> None:
        """Count one request less in flight."""
        self._leases.left(route.service_id)
        if route.wakes_itself and (seen := self._seen.get(route.service_id)) and seen.address.url in self._awake:
            self._stays_awake(seen.address)

    async def close(self) -> None:
        """Wait no longer for what is being looked at."""
        looks = list(self._looks.values())
        for look in looks:
            look.cancel()
        await asyncio.gather(*looks, return_exceptions=True)


def _no_database(error: BaseException) -> Refusal:
    log.warning("the database can't be asked: %s", describe(error))
    return unavailable("The gateway can't look up the service now.", reason="database_unavailable", retry_after=2)

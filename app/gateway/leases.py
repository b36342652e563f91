"""What this process has in flight, and the rows that tell the other processes of it.

Why a request never meets a service that is being put to sleep. A service sleeps through one statement
(``idle.idle_pass``): running → sleeping, if ``last_request_at`` is older than its idle time and no fresh lease has
anything in flight. Against it stands ``claim``, one statement too: it sets ``last_request_at`` on the same row, if that
is still running, and writes the lease.

- Claim first: the sleeper waits for the row, then PostgreSQL checks its conditions again on the row's new version and
  finds ``last_request_at`` too young. (A share lock on the row would not do: a row that was only locked is not checked
  again, and a subquery on the leases keeps seeing what it saw before it waited.)
- Sleeper first: the claim finds the row not running any more, and the request goes the way of waking.

So a claim is good until its idle time has passed, and the process need not ask again for every request: it holds the
*right* to send for half of the idle time, at most a second. Whoever enters under it is in the lease row within another
quarter (``period``), before the idle time is over. A process that dies takes its leases with it after
``LEASE_SECONDS``. Clocks: all times in rows are the database's; rights are counted from before the statement was sent.
"""

import asyncio
from dataclasses import dataclass, field

from app.platforms.base import Address
from app.sql import Pool

#: A lease that was not renewed for so long belongs to a process that died.
LEASE_SECONDS = 10.0
#: Leases are written no more often than this.
WRITE_SECONDS = 1.0
_KEEP_DAYS = 1

CLAIM = """
    with awake as (
        update service set last_request_at = clock_timestamp()
        where id = $1 and status = 'running' and address is not null and instance_id is not null
        returning id, address, instance_id, live_release_id
    ), lease as (
        insert into gateway_lease (service_id, process, in_flight, last_seen_at)
        select id, $2, $3, clock_timestamp() from awake
        on conflict (service_id, process)
        do update set in_flight = excluded.in_flight, last_seen_at = excluded.last_seen_at
    )
    select awake.address, awake.instance_id, (release.config #>> '{scale,idle_seconds}')::float as idle_seconds
    from awake left join release on release.id = awake.live_release_id
"""

_WRITE = """
    insert into gateway_lease (service_id, process, in_flight, last_seen_at)
    select service.id, $1, seen.in_flight, clock_timestamp() - make_interval(secs => seen.age)
    from unnest($2::text[], $3::bigint[], $4::float[]) as seen (service_id, in_flight, age)
    join service on service.id = seen.service_id
    on conflict (service_id, process) do update set
        in_flight = excluded.in_flight, last_seen_at = greatest(gateway_lease.last_seen_at, excluded.last_seen_at)
"""

_FORGET = "delete from gateway_lease where last_seen_at < now() - make_interval(days => $1)"


def describe(error: BaseException) -> str:
    """Return what the database said, without the statement and its values."""
    return f"{type(error).__name__}: {getattr(error, 'orig', None) or error}"


@dataclass
class Use:
    """One service as this process uses it. Times are the event loop's."""

    in_flight: int = 0
    last_traffic: float = 0.0
    idle_seconds: float = 1.0
    right_until: float = 0.0
    written_at: float = 0.0
    written_in_flight: int = 0

    @property
    def unwritten(self) -> bool:
        """Whether the row says something else, or must be renewed."""
        return self.in_flight > 0 or self.written_in_flight > 0 or self.last_traffic > self.written_at

    @property
    def period(self) -> float:
        """How long a change may wait to be written."""
        return min(WRITE_SECONDS, self.idle_seconds / 4)


@dataclass
class Leases:
    """The uses of all services by one process, known to the others as ``process``."""

    pool: Pool
    process: str
    uses: dict[str, Use] = field(default_factory=dict)

    def use(self, service_id: str) -> Use:
        """Return how this process uses the service."""
        use = self.uses.get(service_id)
        if use is None:
            use = self.uses[service_id] = Use()
        return use

    def entered(self, service_id: str) -> None:
        """Count one more in flight."""
        use = self.use(service_id)
        use.in_flight += 1
        use.last_traffic = asyncio.get_running_loop().time()

    def left(self, service_id: str) -> None:
        """Count one less in flight."""
        use = self.uses[service_id]
        use.in_flight -= 1
        use.last_traffic = asyncio.get_running_loop().time()

    async def claim(self, service_id: str) -> Address | None:
        """Take the right to send to a running service; None when it isn't running."""
        use = self.use(service_id)
        sent_at = asyncio.get_running_loop().time()
        in_flight = use.in_flight
        row = await self.pool.fetchrow(CLAIM, service_id, self.process, in_flight)
        if row is None:
            use.right_until = 0.0
            return None
        use.idle_seconds = row["idle_seconds"] or 1.0
        use.right_until = sent_at + min(WRITE_SECONDS, use.idle_seconds / 2)
        use.written_at, use.written_in_flight = sent_at, in_flight
        return Address(url=row["address"], instance_id=row["instance_id"])

    async def write(self, *, all_of_them: bool = False) -> int:
        """Write what has changed or must be renewed; return how many leases that were. None is no statement."""
        now = asyncio.get_running_loop().time()
        due = {
            service_id: use
            for service_id, use in self.uses.items()
            if use.unwritten and (all_of_them or now - use.written_at >= use.period)
        }
        if due:
            rows = {service_id: use.in_flight for service_id, use in due.items()}
            ages = [0.0 if use.in_flight else now - use.last_traffic for use in due.values()]
            await self.pool.execute(_WRITE, self.process, list(rows), list(rows.values()), ages)
            for service_id, use in due.items():
                use.written_at, use.written_in_flight = now, rows[service_id]
        for service_id, use in list(self.uses.items()):
            if not use.unwritten and now > use.right_until:
                del self.uses[service_id]
        return len(due)

    async def forget_the_dead(self) -> None:
        """Remove leases of processes that have been gone for long."""
        await self.pool.execute(_FORGET, _KEEP_DAYS)

"""Circuit breakers: a target that keeps failing is left alone for a while, then one caller tries it for all.

A target is a platform's region, for one operation. Rows in PostgreSQL are what all workers know of it: none, or a few failures,
is *closed*; ``FAILURES`` in a row open it; once ``open_until`` is past it is *half open*, and whoever claims the probe goes
first, while the rest still stay away. A success removes the row, a failed probe opens it again for twice as long, and one that
came to neither lets the next one try. What stops or deletes something never asks here.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import structlog
from sqlalchemy import case, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import ColumnElement

from app import sql
from app.db import Sessions, alone
from app.models import Breaker
from app.sql import Session

log = structlog.get_logger()

LAUNCH, DEPLOY = "launch", "deploy"
FAILURES = 5
"""So many in a row open it …"""
WINDOW_SECONDS = 180.0
"""… unless so long a time lies between one and the next."""
OPEN_SECONDS = 30.0
LONGEST_SECONDS = 600.0
PROBE_SECONDS = 300.0
"""How long a probe may take, longer than a launch; who died over one is waited for so long."""


@dataclass(frozen=True)
class Shut:
    """Why a target is left alone, and in how many seconds somebody may try it."""

    message: str
    seconds: float


@dataclass(frozen=True)
class Seen:
    """What is known of some targets: those to leave alone, and all that have failed of late."""

    shut: Mapping[str, Shut]
    troubled: frozenset[str]
    probe: tuple[str, str, str] | None = None
    """The one that is the caller's to try: platform, region, operation."""


_LOOK = """
    select region, open_until, message,
        extract(epoch from greatest(open_until, probe_until) - clock_timestamp())::float as seconds
    from breaker where platform = $1 and operation = $2 and region = any($3)
"""
_LET_GO = "update breaker set probe_until = null where platform = $1 and region = $2 and operation = $3"
_PROBE = """
    update breaker set probe_until = clock_timestamp() + make_interval(secs => $4)
    where platform = $1 and region = $2 and operation = $3
        and open_until <= clock_timestamp() and (probe_until is null or probe_until <= clock_timestamp())
    returning region
"""


async def look(session: Session, platform: str, regions: Sequence[str], operation: str) -> Seen:
    """Return which of the regions, in the caller's order, are to be left alone now.

    A half-open one that is not among them is the caller's to probe: at most one, and none behind a region that is closed. One
    query where nothing has failed. The claim of a probe holds from the caller's commit on.
    """
    rows = {row["region"]: row for row in await sql.fetch(session, _LOOK, platform, operation, list(regions))}
    shut, may_go, probe = {}, False, None
    for region in regions:
        row = rows.get(region)
        if row is None or row["open_until"] is None:
            may_go = True
        elif not may_go and await _probe(session, platform, region, operation):
            may_go, probe = True, (platform, region, operation)
        else:
            message = f"left alone after it failed repeatedly: {row['message']}"
            shut[region] = Shut(message, max(1.0, row["seconds"]))
    return Seen(shut, frozenset(rows), probe)


async def _probe(session: Session, platform: str, region: str, operation: str) -> bool:
    """Claim the probe of a target that is open, if it is time and nobody else has; a dead prober's claim ends by itself."""
    return await sql.fetch_one(session, _PROBE, platform, region, operation, PROBE_SECONDS) is not None


async def let_go(session: Session, seen: Seen) -> None:
    """Give a probe back that was not made, or came to no verdict, so that nobody waits for it; without one do nothing."""
    if seen.probe is not None:
        await sql.fetch(session, _LET_GO, *seen.probe)


@contextlib.asynccontextmanager
async def probing(sessions: Sessions, seen: Seen | None) -> AsyncIterator[None]:
    """Make the probe in the block, which may end without a verdict: when the target refuses a request for what it is."""
    try:
        yield
    finally:
        if seen is not None and seen.probe is not None:
            async with alone(sessions) as session:
                await let_go(session, seen)


async def failed(sessions: Sessions, platform: str, region: str, operation: str, message: str) -> None:
    """Note that a call found no room or no answer; enough of them in a row, or a failed probe, open the breaker."""
    now = func.clock_timestamp()
    long_ago = Breaker.open_until.is_(None) & (Breaker.failed_at < now - timedelta(seconds=WINDOW_SECONDS))
    failures = case((long_ago, 1), else_=Breaker.failures + 1)
    opens = case((Breaker.open_until.is_(None), failures >= FAILURES), else_=Breaker.open_until <= now)
    # 2^trips is bounded before it is used: a target may stay away for weeks.
    seconds = func.least(LONGEST_SECONDS, OPEN_SECONDS * func.power(2, func.least(Breaker.trips, 10)))
    new = insert(Breaker).values(platform=platform, region=region, operation=operation, failures=1, message=message)
    noted = new.on_conflict_do_update(
        index_elements=["platform", "region", "operation"],
        set_={
            "failures": failures,
            "failed_at": now,
            "message": message,
            "trips": Breaker.trips + case((opens, 1), else_=0),
            "open_until": case((opens, now + func.make_interval(0, 0, 0, 0, 0, 0, seconds)), else_=Breaker.open_until),
            "probe_until": case((opens, None), else_=Breaker.probe_until),
        },
    )
    async with alone(sessions) as session:
        row = (await session.execute(noted.returning(Breaker.open_until, Breaker.trips))).one()
    if row.open_until is not None:
        target = {"platform": platform, "region": region, "operation": operation}
        log.warning("a target is left alone", **target, times=row.trips, error=message)


async def succeeded(sessions: Sessions, platform: str, region: str, operation: str) -> None:
    """Note that a call was answered: the breaker is closed, and all is forgotten."""
    async with alone(sessions) as session:
        await session.execute(delete(Breaker).where(*_target(platform, region, operation)))


def _target(platform: str, region: str, operation: str) -> tuple[ColumnElement[bool], ...]:
    return (Breaker.platform == platform, Breaker.region == region, Breaker.operation == operation)


@dataclass(frozen=True)
class State:
    """A target that has failed of late, for people; ``seconds`` until it may be tried again."""

    platform: str
    region: str
    operation: str
    state: Literal["closed", "open", "half_open"]
    failures: int
    seconds: float
    message: str


async def states(session: AsyncSession) -> list[State]:
    """Return all that have failed of late: ``closed``, ``open`` or ``half_open``."""
    left = func.extract("epoch", Breaker.open_until - func.clock_timestamp())
    statement = select(Breaker, left).order_by(Breaker.platform, Breaker.region, Breaker.operation)
    found = []
    for row, seconds in (await session.execute(statement)).all():
        state: Literal["closed", "open", "half_open"] = "closed"
        if row.open_until is not None:
            state = "open" if seconds > 0 else "half_open"
        away = max(0.0, float(seconds or 0))
        found.append(State(row.platform, row.region, row.operation, state, row.failures, away, row.message))
    return found

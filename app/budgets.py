"""Request budgets that all processes share: token buckets in PostgreSQL, one row per account, or per operation and object.

A request costs one short statement of its own, whose clock is the database's. Whoever asks while this process's statement is
under way goes with its next one, so that a crowd of callers is one waiter on the row, however many they are. What an answer
says is left is kept for the next statement; that a request was refused is written at once, for all.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import structlog
from sqlalchemy import Float, bindparam, case, func, literal, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Sessions, alone, is_away
from app.models import Budget
from app.platforms.base import RateLimited, Transient
from app.platforms.budget import Allowance, Kind, Limit, number

log = structlog.get_logger()

MAX_WAIT_SECONDS = 10.0
THROTTLE_SECONDS = 5.0
"""For how long a refusal closes a bucket when the platform does not say."""
TOLD_SECONDS = 60.0
"""For how long it counts what an answer without the window's end said to be left."""

# In one statement, since the row is locked no longer than that. A window whose end the platform told is not refilled before.
_TAKE = text("""
    update budget set (tokens, granted, refilled_at, full_at) = (
        select has.tokens - gets.granted, gets.granted, at.now,
               case when :ends > 0 then at.now + make_interval(secs => :ends) when full_at > at.now then full_at end
        from (select greatest(budget.refilled_at, clock_timestamp()) as now) at,
             lateral (select least(:capacity, :told, case
                 when full_at is null then budget.tokens + extract(epoch from at.now - budget.refilled_at) * :rate
                 when full_at <= at.now then :capacity
                 else budget.tokens end) as tokens) has,
             lateral (select case when closed_until > at.now then 0
                 else greatest(0, least(:want, floor(has.tokens - :floor + 1e-6))) end as granted) gets)
    where name = :name
    returning granted, tokens, extract(epoch from closed_until - clock_timestamp()) as closed,
              extract(epoch from full_at - clock_timestamp()) as ends
""").bindparams(*(bindparam(n, type_=Float) for n in ("ends", "capacity", "told", "rate", "want", "floor")))


@dataclass
class _Pool:
    """Those of this process that ask for one kind of request of one bucket."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    spare: int = 0
    """Granted for those who wait."""
    refusals: int = 0
    wait: float = 0.0
    """What the last refusal said."""


@dataclass(frozen=True)
class _Told:
    """What an answer said: requests left, and when the window ends (monotonic), if it said so."""

    left: float
    ends: float | None
    at: float


class SharedBudget:
    """The ``Budget`` of one account, which every process over this database shares."""

    def __init__(
        self,
        sessions: Sessions,
        allowance: Allowance,
        *,
        max_wait: float = MAX_WAIT_SECONDS,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sessions = sessions
        self._allowance = allowance
        self._max_wait = max_wait
        self._sleep = sleep
        self._clock = clock
        self._pools: dict[tuple[str, Kind], _Pool] = {}
        self._told: dict[str, _Told] = {}

    async def acquire(self, kind: Kind, *, operation: str = "", key: str = "") -> None:
        """Take one request, waiting a short while for it; RateLimited with ``retry_after`` when the wait would be long.

        Transient when the database can't be asked; what stops or deletes then goes without asking.
        """
        waited = 0.0
        try:
            while (wait := await self._ask(kind, operation, key)) > 0:
                if waited + wait > self._max_wait:
                    message = "the account's request budget is used up"
                    raise RateLimited(self._allowance.platform, operation, message, retry_after=wait)
                await self._sleep(wait)
                waited += wait
        except (SQLAlchemyError, OSError) as e:
            if not is_away(e):
                raise
            if kind != "stop":
                message = "the request budget can't be asked for"
                raise Transient(self._allowance.platform, operation, message) from e

    async def _ask(self, kind: Kind, operation: str, key: str) -> float:
        """Return 0 for a request that was granted, else for how long to wait."""
        name = bucket_name(self._allowance, operation, key)
        pool = self._pools.setdefault((name, kind), _Pool())
        pool.waiting += 1
        refusals = pool.refusals
        try:
            async with pool.lock:
                if pool.spare:
                    pool.spare -= 1
                    return 0.0
                if pool.refusals != refusals:  # the statement that we waited for was for us, too
                    return pool.wait
                granted, wait = await self._take(name, self._allowance.limit(operation), kind, pool.waiting)
                if granted:
                    pool.spare = granted - 1
                    return 0.0
                pool.refusals, pool.wait = pool.refusals + 1, wait
                return wait
        finally:
            pool.waiting -= 1
            if not pool.waiting and not pool.spare:
                self._pools.pop((name, kind), None)

    async def _take(self, name: str, limit: Limit, kind: Kind, want: int) -> tuple[int, float]:
        """Return how many of ``want`` requests were granted and, for none, in how many seconds there will be one."""
        told = self._fresh(name)
        values = {
            "name": name,
            "want": want,
            "floor": limit.floor(kind),
            "capacity": limit.capacity,
            "rate": limit.limit / limit.window,
            "told": told.left if told else None,
            "ends": told.ends - self._clock() if told and told.ends is not None else None,
        }
        async with alone(self._sessions) as session:
            row = (await session.execute(_TAKE, values)).one_or_none()
            if row is None:
                new = insert(Budget).values(name=name, tokens=limit.capacity, granted=0)
                await session.execute(new.on_conflict_do_nothing())
                row = (await session.execute(_TAKE, values)).one()
        if row.granted:
            return int(row.granted), 0.0
        short = limit.floor(kind) + 1 - row.tokens
        # A clock's rounding must not make a wait of nothing that never ends.
        refill = (float(row.ends) if row.ends else short * limit.window / limit.limit) if short > 0 else 0.0
        return 0, max(refill, float(row.closed or 0), 0.001)

    def _fresh(self, name: str) -> _Told | None:
        told, now = self._told.pop(name, None), self._clock()
        return told if told and now < (told.ends if told.ends is not None else told.at + TOLD_SECONDS) else None

    async def feed(
        self, headers: Mapping[str, str], *, throttled: float | None = None, operation: str = "", key: str = ""
    ) -> None:
        """See ``app.platforms.budget.Budget``; the platform's own word about how long to wait goes before ours."""
        name, limit = bucket_name(self._allowance, operation, key), self._allowance.limit(operation)
        left, reset = number(headers.get(limit.remaining)), number(headers.get(limit.reset))
        reset = reset if reset is not None and 0 < reset <= limit.window else None
        if left is not None:
            now = self._clock()
            before = self._fresh(name)
            least = min(left, before.left) if before else left
            self._told[name] = _Told(least, now + reset if reset is not None else None, now)
        if throttled is None:
            return
        said = throttled or reset
        closed = func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, said or THROTTLE_SECONDS)
        # Who says how long to wait says that there is nothing before and enough after; who doesn't is asked more slowly.
        refused = insert(Budget).values(
            name=name,
            tokens=0 if said else limit.capacity / 2,
            granted=0,
            closed_until=closed,
            full_at=closed if said else None,
        )
        refused = refused.on_conflict_do_update(
            index_elements=["name"],
            set_={
                "tokens": 0 if said else Budget.tokens / 2,
                "closed_until": func.greatest(Budget.closed_until, closed),
                "full_at": func.greatest(Budget.full_at, closed) if said else Budget.full_at,
            },
        )
        try:
            async with alone(self._sessions) as session:
                await session.execute(refused)
        except (SQLAlchemyError, OSError) as e:
            if not is_away(e):
                raise
            log.warning("a refusal was not written down for all", budget=name, error=str(e))


def bucket_name(allowance: Allowance, operation: str, key: str) -> str:
    """Return the row's name: the account's, or that of the operation on one object."""
    account = f"{allowance.platform}:{allowance.account}"
    return f"{account}:{operation}:{key}" if allowance.per_object else account


@dataclass(frozen=True)
class Left:
    """What an account may still send now; ``closed_seconds`` is how long the platform wants to hear nothing."""

    requests: float
    closed_seconds: float


async def left(session: AsyncSession, allowance: Allowance) -> Left:
    """Return what is left of an account's budget, of its emptiest bucket where there are several; nothing is taken."""
    name = bucket_name(allowance, "", "")
    prefix = f"{allowance.platform}:{allowance.account}:"
    mine = Budget.name.startswith(prefix, autoescape=True) if allowance.per_object else Budget.name == name
    age = func.extract("epoch", func.clock_timestamp() - Budget.refilled_at)
    ended = case((Budget.full_at.is_(None), literal(value=False)), else_=Budget.full_at <= func.clock_timestamp())
    closed = func.greatest(0, func.extract("epoch", Budget.closed_until - func.clock_timestamp()))
    rows = await session.execute(select(Budget.name, Budget.tokens, age, ended, Budget.full_at, closed).where(mine))
    found = [Left(allowance.limit("").capacity, 0.0)]
    for row_name, tokens, seconds, is_full, full_at, closed_seconds in rows:
        limit = allowance.limit(row_name.removeprefix(prefix).partition(":")[0])
        refilled = tokens if full_at else tokens + float(seconds) * limit.limit / limit.window
        now = limit.capacity if is_full else min(limit.capacity, refilled)
        found.append(Left(max(0.0, now), float(closed_seconds or 0)))
    return min(found, key=lambda at: (-at.closed_seconds, at.requests))

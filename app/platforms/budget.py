"""How many requests an account may send, so that stopping what costs money is never what has no request left.

``Budget`` is what ``http.JsonApi`` asks before each request; each platform says by an ``Allowance`` how its requests are counted.
``Bucket`` is a token bucket in memory, right for one process; ``app.budgets`` has the one that all processes share.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, Protocol

from app.platforms.base import RateLimited

Kind = Literal["call", "poll", "stop"]
"""``stop`` ends or deletes something and may use the last request; ``poll`` can come later and leaves the most to others."""

RESERVE: Mapping[Kind, float] = {"stop": 0.0, "call": 0.2, "poll": 0.4}
"""The share of the bucket that requests of a kind leave alone."""


class Budget(Protocol):
    """One account's allowance."""

    async def acquire(self, kind: Kind, *, operation: str = "", key: str = "") -> None:
        """Take one request, waiting a short while for it; RateLimited with ``retry_after`` when the wait would be long.

        ``key`` is the object that the request is about, for platforms that count per object.
        """
        ...

    async def feed(
        self, headers: Mapping[str, str], *, throttled: float | None = None, operation: str = "", key: str = ""
    ) -> None:
        """Learn from an answer: rate headers, or that it was throttled for so many seconds (0: it did not say)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Limit:
    """``limit`` requests per ``window`` seconds, ``burst`` at once (default: all of them).

    ``remaining`` and ``reset`` name the answer's headers that tell what is left, and seconds until it is full again; empty
    where there is none.
    """

    limit: float
    window: float
    burst: float | None = None
    remaining: str = "x-ratelimit-remaining"
    reset: str = "x-ratelimit-reset"

    @property
    def capacity(self) -> float:
        """How many requests there are when none was sent for long."""
        return self.limit if self.burst is None else self.burst

    def floor(self, kind: Kind) -> float:
        """Return how many requests this kind leaves alone; a bucket of a few is not worth parting."""
        return RESERVE[kind] * self.capacity if self.capacity >= 10 else 0.0


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """How a platform counts the requests of one account: all together, or per operation and object."""

    platform: str
    account: str
    limit: Callable[[str], Limit]
    """The limit of an operation; the same for all where they are counted together."""
    per_object: bool = False


class Unlimited:
    """A budget without a limit."""

    async def acquire(self, kind: Kind, *, operation: str = "", key: str = "") -> None:
        """See ``Budget``."""

    async def feed(
        self, headers: Mapping[str, str], *, throttled: float | None = None, operation: str = "", key: str = ""
    ) -> None:
        """See ``Budget``."""


@dataclass(kw_only=True)
class Bucket:
    """A token bucket: ``limit`` requests per ``window`` seconds, refilled evenly, ``burst`` at once (default: all of it).

    ``remaining`` and ``reset`` name the answer's headers that tell what is left, and seconds until it is full again: where they
    say less than we believe, they are right. A request that would have to wait longer than ``max_wait`` is refused.
    """

    platform: str
    limit: float
    window: float
    burst: float | None = None
    remaining: str = "x-ratelimit-remaining"
    reset: str = "x-ratelimit-reset"
    max_wait: float = 10.0
    throttle_seconds: float = 5.0
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic
    _tokens: float = field(init=False)
    _at: float = field(init=False)
    _closed_until: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._tokens, self._at = self.capacity, self.clock()

    @property
    def capacity(self) -> float:
        """How many requests the bucket holds when full."""
        return self.limit if self.burst is None else self.burst

    @property
    def left(self) -> float:
        """Requests that could be sent now."""
        self._refill()
        return self._tokens

    def _refill(self) -> None:
        now = self.clock()
        self._tokens = min(self.capacity, self._tokens + (now - self._at) * self.limit / self.window)
        self._at = now

    async def acquire(self, kind: Kind, *, operation: str = "", key: str = "") -> None:
        """See ``Budget``."""
        waited = 0.0
        while (wait := self._wait(kind)) > 0:
            if waited + wait > self.max_wait:
                raise RateLimited(self.platform, operation, "our own request budget is used up", retry_after=wait)
            await self.sleep(wait)
            waited += wait
        self._tokens -= 1

    def _wait(self, kind: Kind) -> float:
        """Return how long a request of this kind has to wait from now; 0 when there is one for it."""
        self._refill()
        floor = RESERVE[kind] * self.capacity if self.capacity >= 10 else 0.0
        short = floor + 1 - self._tokens
        # A clock's rounding must not make a wait of nothing that never ends.
        refill = max(short * self.window / self.limit, 0.001) if short > 1e-9 else 0.0
        return max(refill, self._closed_until - self.clock())

    async def feed(
        self, headers: Mapping[str, str], *, throttled: float | None = None, operation: str = "", key: str = ""
    ) -> None:
        """See ``Budget``."""
        self._refill()
        left, reset = number(headers.get(self.remaining)), number(headers.get(self.reset))
        if left is not None:
            self._tokens = min(self._tokens, left)
        if throttled is not None:
            self._tokens = min(self._tokens, 0.0)
            self._closed_until = max(self._closed_until, self.clock() + (throttled or reset or self.throttle_seconds))


@dataclass(kw_only=True)
class PerObject:
    """Buckets per (operation, object), for platforms that count so; ``make`` gives the bucket of an operation.

    Forgets full buckets once there are ``most`` of them.
    """

    make: Callable[[str], Bucket]
    most: int = 1000
    _buckets: dict[tuple[str, str], Bucket] = field(default_factory=dict, init=False)

    async def acquire(self, kind: Kind, *, operation: str = "", key: str = "") -> None:
        """See ``Budget``."""
        await self._bucket(operation, key).acquire(kind, operation=operation, key=key)

    async def feed(
        self, headers: Mapping[str, str], *, throttled: float | None = None, operation: str = "", key: str = ""
    ) -> None:
        """See ``Budget``."""
        if throttled is not None:
            await self._bucket(operation, key).feed(headers, throttled=throttled)

    def _bucket(self, operation: str, key: str) -> Bucket:
        if len(self._buckets) >= self.most:
            self._buckets = {k: b for k, b in self._buckets.items() if b.left < b.capacity}
        return self._buckets.setdefault((operation, key), self.make(operation))


def in_memory(allowance: Allowance) -> Budget:
    """Return a budget of this process alone, for tests and for commands without a database."""

    def bucket(operation: str) -> Bucket:
        limit = {f.name: getattr(allowance.limit(operation), f.name) for f in fields(Limit)}
        return Bucket(platform=allowance.platform, **limit)

    return PerObject(make=bucket) if allowance.per_object else bucket("")


def number(text: str | None) -> float | None:
    """Return what a header says as a number, None when it says none."""
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None

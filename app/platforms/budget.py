"""How many requests an account may send, so that stopping what costs money is never what has no request left.

``Budget`` is what ``http.JsonApi`` asks before each request. ``Bucket`` is a token bucket in memory, right for one process; an
implementation that all workers share (one row per account) has the same two verbs.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
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

    def feed(self, headers: Mapping[str, str], *, throttled: float | None = None) -> None:
        """Learn from an answer: rate headers, or that it was throttled for so many seconds (0: it did not say)."""
        ...


class Unlimited:
    """A budget without a limit."""

    async def acquire(self, kind: Kind, *, operation: str = "", key: str = "") -> None:
        """See ``Budget``."""

    def feed(self, headers: Mapping[str, str], *, throttled: float | None = None) -> None:
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

    def feed(self, headers: Mapping[str, str], *, throttled: float | None = None) -> None:
        """See ``Budget``."""
        self._refill()
        left, reset = _number(headers.get(self.remaining)), _number(headers.get(self.reset))
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
        if len(self._buckets) >= self.most:
            self._buckets = {k: b for k, b in self._buckets.items() if b.left < b.capacity}
        at = (operation, key)
        bucket = self._buckets.get(at)
        if bucket is None:
            bucket = self._buckets[at] = self.make(operation)
        await bucket.acquire(kind, operation=operation, key=key)

    def feed(self, headers: Mapping[str, str], *, throttled: float | None = None) -> None:
        """Nothing to learn: such platforms send no rate headers, and the retry of a 429 waits by itself."""


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None

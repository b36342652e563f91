"""How long an outside call may take, and how long to wait before it is tried again."""

import asyncio
import random
import time
from dataclasses import dataclass

import httpx

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds. Waits double from ``first`` to ``most``, each with up to half of it taken off by chance."""

    connect: float = 10.0
    read: float = 30.0
    first: float = 0.25
    most: float = 10.0
    registry_patience: float = 90.0
    """How long a registry may stay away before the build is given up."""
    flush: float = 10.0
    """How long the end of a build waits for its last log lines to be taken."""

    @property
    def timeout(self) -> httpx.Timeout:
        """The same as httpx wants it."""
        return httpx.Timeout(self.read, connect=self.connect)

    async def wait(self, attempt: int, asked: str | None = None) -> None:
        """Sleep before attempt ``attempt`` + 1; ``asked`` is the other side's Retry-After, obeyed up to ``most``."""
        pause = min(self.most, self.first * 2.0 ** min(attempt, 16)) * random.uniform(0.5, 1.0)  # noqa: S311
        if asked and asked.isdigit():
            pause = max(pause, min(self.most, float(asked)))
        await asyncio.sleep(pause)


def seconds_until(moment: float) -> float:
    """Return the seconds from now to a Unix time, at least 0."""
    return max(0.0, moment - time.time())

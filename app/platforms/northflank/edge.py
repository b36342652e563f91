"""Northflank's public edge, as a client sees it: whether it passes requests to a program yet."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import httpx

from app.platforms.address import request_for
from app.platforms.http import USER_AGENT, trust

TIMEOUT = 5.0
PAUSE_SECONDS = 0.25
#: What the edge answers by itself while a name, a certificate or an instance is not there yet.
_NOT_YET = frozenset({404, 502, 503, 504})


class Edge:
    """Asks public addresses. Close it with ``aclose``."""

    def __init__(
        self,
        *,
        pause: float = PAUSE_SECONDS,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pause = pause
        self._sleep = sleep
        self._clock = clock
        self._http = httpx.AsyncClient(
            timeout=TIMEOUT,
            headers={"User-Agent": USER_AGENT},
            verify=trust(),
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def passes(self, url: str, path: str) -> bool:
        """Tell whether a program answers this path, however it answers."""
        at, headers = request_for(url)
        try:
            async with self._http.stream("GET", at + path, headers=headers) as answer:
                return answer.status_code not in _NOT_YET
        except httpx.HTTPError:
            return False

    async def wait(self, url: str | None, path: str, seconds: float) -> None:
        """Return when a program answers, or after so many seconds."""
        until = self._clock() + seconds
        while url is None or not await self.passes(url, path):
            if self._clock() >= until:
                return
            await self._sleep(self._pause)

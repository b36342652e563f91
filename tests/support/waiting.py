"""Waiting for conditions, with a deadline and no guess at how long things take."""

import asyncio
import inspect
import socket
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")
POLL_SECONDS = 0.01


@overload
async def eventually(look: Callable[[], Awaitable[T]], timeout: float = 10.0, *, every: float = POLL_SECONDS) -> T: ...
@overload
async def eventually(look: Callable[[], T], timeout: float = 10.0, *, every: float = POLL_SECONDS) -> T: ...
async def eventually(look: Callable[[], T | Awaitable[T]], timeout: float = 10.0, *, every: float = POLL_SECONDS) -> T:
    """Call ``look`` until it returns something true, and return that; AssertionError after ``timeout`` seconds.

    ``look`` may be a coroutine function. An AssertionError in it means "not yet"; anything else it raises is final.
    """
    deadline = time.monotonic() + timeout
    while True:
        last: object
        try:
            found = look()
            result = await found if inspect.isawaitable(found) else found
            if result:
                return result
            last = f"it is {result!r}"
        except AssertionError as error:
            last = error
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout} s: {getattr(look, '__qualname__', look)}: {last}")
        await asyncio.sleep(every)


def eventually_sync(look: Callable[[], T], timeout: float = 10.0, *, every: float = POLL_SECONDS) -> T:
    """Do the same for a plain function, in a test without an event loop."""

    async def waiting() -> T:
        return await eventually(look, timeout, every=every)

    return asyncio.run(waiting())


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now; prefer binding port 0 where the program can tell."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

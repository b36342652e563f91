"""A raw pipe between client and upstream, after the upstream said 101."""

import asyncio

from app.gateway.limits import Limits
from app.gateway.wire import Wire


async def tunnel(client: Wire, upstream: Wire, limits: Limits) -> None:
    """Pass bytes both ways until both sides have ended; each side's end is passed on by itself.

    Returns when nothing more can flow; an error on one side ends both.
    """
    pipes = {
        asyncio.create_task(_pipe(client, upstream, limits.stall)),
        asyncio.create_task(_pipe(upstream, client, limits.stall)),
    }
    try:
        done, pending = await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        if pending and not any(pipe.exception() for pipe in done):
            await asyncio.wait(pending, timeout=limits.half_open_tunnel)
    finally:
        for pipe in pipes:
            pipe.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)


async def _pipe(source: Wire, sink: Wire, stall_seconds: float) -> None:
    while data := await source.read():
        sink.write(data)
        await sink.drain(stall_seconds)
    sink.end()

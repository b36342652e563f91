"""A whole gateway: the server, its routes, and the two loops that keep leases and let services sleep."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from app.context import Context
from app.db import DATABASE_ERRORS
from app.gateway.idle import idle_pass
from app.gateway.leases import LEASE_SECONDS, Leases, describe
from app.gateway.limits import Limits
from app.gateway.rows import RowRoutes
from app.gateway.server import Server, serve
from app.ids import new_id

log = logging.getLogger(__name__)

LEASE_TICK_SECONDS = 0.1
IDLE_TICK_SECONDS = 1.0


@asynccontextmanager
async def serve_gateway(
    context: Context,
    *,
    host: str,
    port: int,
    listener: socket.socket | None = None,
    limits: Limits | None = None,
    grace_seconds: float = 10.0,
    access_log: bool = False,
) -> AsyncIterator[Server]:
    """Run a gateway while the block runs; ``server.port`` is the port it was bound to, port 0 takes a free one.

    Any number of gateways may run over one database, in one process or many. OSError when the port is taken.
    """
    leases = Leases(context.pool, new_id("gwy"))
    routes = RowRoutes(context, leases)
    async with serve(
        routes,
        host=host,
        port=port,
        listener=listener,
        limits=limits,
        grace_seconds=grace_seconds,
        access_log=access_log,
        trusted=context.settings.gateway_trusted_proxies,
    ) as server:
        loops = [
            asyncio.create_task(_every(LEASE_TICK_SECONDS, leases.write)),
            asyncio.create_task(_every(IDLE_TICK_SECONDS, lambda: idle_pass(context))),
            asyncio.create_task(_every(24 * 3600.0, leases.forget_the_dead)),
        ]
        try:
            yield server
        finally:
            await server.stop(grace_seconds)  # what is in flight keeps its leases until it is done
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await routes.close()
            try:
                async with asyncio.timeout(LEASE_SECONDS):
                    await leases.write(all_of_them=True)
            except DATABASE_ERRORS:
                log.warning("the last leases could not be written; they end by themselves")


async def _every(seconds: float, act: Callable[[], Awaitable[object]]) -> None:
    """Act, pause, and so on; a failed act is logged once and tried again, more slowly while it goes on failing."""
    failures = 0
    while True:
        try:
            await act()
            failures = 0
        except DATABASE_ERRORS as error:
            failures += 1
            if failures == 1:
                log.warning("gateway: the database can't be asked: %s", describe(error))
        except Exception:
            failures += 1
            log.exception("gateway: a loop failed")
        await asyncio.sleep(max(seconds, min(failures, 5)))

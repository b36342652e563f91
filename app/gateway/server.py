"""The gateway's server: accepts connections and ends them gracefully."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app import metrics
from app.gateway.connection import Connection
from app.gateway.limits import Limits
from app.gateway.pool import Pool
from app.gateway.proxy import Proxy
from app.gateway.routes import Routes
from app.gateway.wire import Wire
from app.settings import Networks


class Server:
    """A running gateway; ``port`` is the one it was bound to."""

    def __init__(
        self,
        routes: Routes,
        limits: Limits,
        *,
        access_log: bool,
        tls: ssl.SSLContext | None = None,
        trusted: Networks = (),
    ) -> None:
        self.limits = limits
        self.access_log = access_log
        self.proxy = Proxy(routes, limits, Pool(limits, tls=tls), trusted)
        self.connections: set[Connection] = set()
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int, listener: socket.socket | None = None) -> None:
        """Bind, or take a socket that is bound already, and accept; OSError when the port is taken."""
        loop = asyncio.get_running_loop()
        if listener is not None:
            self._server = await loop.create_server(lambda: Wire(self._opened), sock=listener, backlog=1024)
        else:
            self._server = await loop.create_server(lambda: Wire(self._opened), host, port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    def _opened(self, wire: Wire) -> None:
        too_many = len(self.connections) >= self.limits.connections
        connection = Connection(self.proxy, wire, too_many=too_many, access_log=self.access_log)
        self.connections.add(connection)
        metrics.GATEWAY_CONNECTIONS.inc()
        connection.task.add_done_callback(lambda _: self._closed(connection))

    def _closed(self, connection: Connection) -> None:
        self.connections.discard(connection)
        metrics.GATEWAY_CONNECTIONS.dec()

    async def stop(self, grace_seconds: float) -> None:
        """Accept no more, let what is in flight end within the grace, then cut the rest off."""
        if self._server is not None:
            self._server.close()
        self.proxy.draining = True
        for connection in list(self.connections):
            if not connection.busy:
                connection.wire.close(self.limits.stall)
        tasks = {connection.task for connection in self.connections}
        if tasks:
            _, rest = await asyncio.wait(tasks, timeout=grace_seconds)
            for task in rest:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self.proxy.pool.close()
        if self._server is not None:
            await self._server.wait_closed()


@asynccontextmanager
async def serve(
    routes: Routes,
    *,
    host: str,
    port: int,
    listener: socket.socket | None = None,
    limits: Limits | None = None,
    grace_seconds: float = 10.0,
    access_log: bool = False,
    tls: ssl.SSLContext | None = None,
    trusted: Networks = (),
) -> AsyncIterator[Server]:
    """Serve while the block runs; port 0 takes a free one. Leaving it stops gracefully within ``grace_seconds``.

    ``tls`` verifies upstreams with https addresses, by default against the public authorities.
    ``trusted`` are the networks of the operator's own proxies.
    """
    server = Server(routes, limits or Limits(), access_log=access_log, tls=tls, trusted=trusted)
    await server.start(host, port, listener)
    try:
        yield server
    finally:
        await server.stop(grace_seconds)

"""What the gateway adds to a warm small request, against the same request sent straight to the upstream.

Both are measured in turns in one run, over one keep-alive connection, on this machine. The routes are held in memory, so
this is the cost of parsing, checking and passing on; looks at the database come every 50 ms and are not in it. Then a whole
``serve`` is asked while it works; see ``busy``.
"""

import asyncio
import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import uvloop

from app.gateway.routes import Route
from app.gateway.server import serve
from app.platforms.base import Address
from benchmarks import busy

REQUESTS = 3000
ROUNDS = 6
LIMIT_SECONDS = 60.0
_REQUEST = (
    b"GET /hello HTTP/1.1\r\nHost: x.localhost\r\nUser-Agent: bench\r\nAccept: */*\r\nAccept-Encoding: gzip\r\n\r\n"
)
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"


class _Upstream(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(_ANSWER * data.count(b"\r\n\r\n"))  # type: ignore[attr-defined]


class _OneRoute:
    """Routes to one upstream that is always awake."""

    def __init__(self, port: int) -> None:
        self._address = Address(url=f"http://127.0.0.1:{port}", instance_id="1")
        self._route = Route("svc", "x")

    async def find(self, host: str) -> Route | None:
        return self._route

    async def ready(self, route: Route) -> Address:
        return self._address

    def entered(self, route: Route) -> None:
        pass

    def left(self, route: Route) -> None:
        pass

    async def failed(self, route: Route, address: Address) -> None:
        pass


def _serve(ports: Connection) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        upstream = await loop.create_server(_Upstream, "127.0.0.1", 0)
        port = upstream.sockets[0].getsockname()[1]
        async with serve(_OneRoute(port), host="127.0.0.1", port=0, grace_seconds=0.1) as server:
            ports.send((port, server.port))
            await loop.run_in_executor(None, ports.poll, LIMIT_SECONDS)
        upstream.close()

    uvloop.run(main())


@contextlib.contextmanager
def _servers() -> Iterator[tuple[int, int]]:
    """Run upstream and gateway in a process of their own; yields both ports."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        if not ours.poll(30):
            raise TimeoutError("the servers did not start")
        yield ours.recv()
    finally:
        ours.send("end")
        process.join(10)
        ours.close()
        theirs.close()


async def _timed(port: int, count: int) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    took = []
    try:
        for _ in range(count):
            begun = time.perf_counter()
            writer.write(_REQUEST)
            answer = await reader.read(65536)
            took.append((time.perf_counter() - begun) * 1000)
            if not answer.endswith(b"hello"):
                raise RuntimeError(f"unexpected answer: {answer!r}")
    finally:
        writer.close()
        await writer.wait_closed()
    return took


async def run() -> dict[str, float]:
    """Measure; prints and returns milliseconds: p50 and p99, straight and through the gateway, and what it adds."""
    direct: list[float] = []
    through: list[float] = []
    with _servers() as (upstream, gateway):
        async with asyncio.timeout(LIMIT_SECONDS):
            await _timed(gateway, 200)
            for _ in range(ROUNDS):
                direct += await _timed(upstream, REQUESTS // ROUNDS)
                through += await _timed(gateway, REQUESTS // ROUNDS)
    d, t = statistics.quantiles(direct, n=100), statistics.quantiles(through, n=100)
    figures = {
        "direct_p50_ms": d[49],
        "direct_p99_ms": d[98],
        "gateway_p50_ms": t[49],
        "gateway_p99_ms": t[98],
        "added_p50_ms": t[49] - d[49],
        "added_p99_ms": t[98] - d[98],
    }
    for name, value in figures.items():
        print(f"  {name:<18}{value:8.3f}")
    return figures | await busy.run()


if __name__ == "__main__":
    asyncio.run(run())

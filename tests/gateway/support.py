"""Real sockets for the gateway's tests: raw clients, raw upstreams, and routes held in memory."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

import h11

from app.errors import Refusal, unavailable
from app.gateway.limits import Limits
from app.gateway.routes import Route
from app.gateway.server import Server, serve
from app.platforms.base import Address
from tests.support.waiting import eventually

DEADLINE = 10.0


async def comes_true(condition: Callable[[], Awaitable[bool]], timeout: float = DEADLINE) -> None:
    """Wait until a coroutine function says so."""
    look: Callable[[], Any] = condition
    await eventually(look, timeout)


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    informational: list[int]
    trailers: list[tuple[str, str]]

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} came more than once"
        return values[0] if values else None


def _text(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode(), value.decode()) for name, value in headers]


@dataclass
class Client:
    """A connection on which a test writes raw bytes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    rest: bytes = b""

    def send(self, data: bytes | str) -> None:
        self.writer.write(data.encode() if isinstance(data, str) else data)

    def get(self, host: str = "a.localhost", path: str = "/", method: str = "GET", *fields: str) -> None:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *fields, "", ""]
        self.send("\r\n".join(lines))

    async def answer(self, method: str = "GET") -> Answer:
        """Read one whole answer; bytes after it are kept for the next."""
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("host", "x"), ("content-length", "0")]))
        parser.send(h11.EndOfMessage())
        status, headers, body, informational = 0, [], b"", []
        parser.receive_data(self.rest) if self.rest else None
        async with asyncio.timeout(DEADLINE):
            while True:
                event = parser.next_event()
                if event is h11.NEED_DATA:
                    parser.receive_data(await self.reader.read(65536))
                elif isinstance(event, h11.InformationalResponse):
                    informational.append(event.status_code)
                elif isinstance(event, h11.Response):
                    status, headers = event.status_code, _text(event.headers)
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    self.rest = parser.trailing_data[0]
                    return Answer(status, headers, body, informational, _text(event.headers))
                else:
                    raise AssertionError(f"the connection ended: {event}")

    def reset(self) -> None:
        """Leave so that the other side hears of it at once."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(DEADLINE):
            data, self.rest = self.rest, b""
            while mark not in data:
                more = await self.reader.read(65536)
                assert more, f"the connection ended before {mark!r}: {data!r}"
                data += more
            return data

    async def rest_of_it(self) -> bytes:
        """Read to the end; a reset counts as one."""
        data, self.rest = self.rest, b""
        async with asyncio.timeout(DEADLINE):
            with suppress(ConnectionResetError):
                while more := await self.reader.read(65536):
                    data += more
        return data


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        await hang_up(writer)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with suppress(ConnectionError):
        await writer.wait_closed()


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Upstream:
    """A server of raw bytes; ``connections`` counts, ``heads`` are the request heads it read."""

    port: int = 0
    connections: int = 0
    heads: list[bytes] = field(default_factory=list)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    server: asyncio.Server | None = None
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def address(self) -> Address:
        return Address(url=f"http://127.0.0.1:{self.port}", instance_id=f"instance-{self.port}")

    async def head(self, reader: asyncio.StreamReader) -> bytes:
        """Read one request head; IncompleteReadError when the gateway has hung up."""
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        return head

    def fields(self, index: int = -1) -> list[tuple[str, str]]:
        lines = self.heads[index].decode().split("\r\n")[1:-2]
        return [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]

    def hang_up(self) -> None:
        """Close every connection, as a process that ends does."""
        for writer in list(self.writers):
            writer.close()


Maker = Callable[[Upstream], Handler]


@asynccontextmanager
async def upstream(handler: Maker, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    """Serve each connection with ``handler(upstream)``; the connection is closed when that returns."""
    it = Upstream()
    handle = handler(it)
    tasks: set[asyncio.Task[None]] = set()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        it.connections += 1
        it.writers.add(writer)
        try:
            await handle(reader, writer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            it.lost.set()
        finally:
            it.writers.discard(writer)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(connection(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    it.server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    it.port = it.server.sockets[0].getsockname()[1]
    try:
        yield it
    finally:
        it.server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await it.server.wait_closed()


def replying(body: bytes = b"ok", *fields: str) -> Maker:
    """Answer every request on every connection with 200 and this body; request bodies must have a Content-Length."""
    head = "\r\n".join(["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *fields, "", ""]).encode()

    def make(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await it.head(reader)
                lengths = [int(value) for name, value in it.fields() if name == "content-length"]
                if lengths:
                    await reader.readexactly(lengths[0])
                writer.write(head + body)

        return handle

    return make


@dataclass
class Sleeper:
    """A service of MemoryRoutes. ``starting`` is set once a start is under way, which ends when ``may_start`` is."""

    address: Address
    awake: bool = True
    starts: int = 0
    in_flight: int = 0
    broken: bool = False
    starting: asyncio.Event = field(default_factory=asyncio.Event)
    may_start: asyncio.Event = field(default_factory=asyncio.Event)
    start: asyncio.Task[None] | None = None
    failures: list[Address] = field(default_factory=list)
    next_address: Address | None = None


class MemoryRoutes:
    """Routes without rows: passes the contract in ``test_routes_contract`` as the real ones do."""

    def __init__(self, **services: Sleeper) -> None:
        self.services = services

    async def find(self, host: str) -> Route | None:
        label, _, domain = host.partition(".")
        return Route(label, label) if domain == "localhost" and label in self.services else None

    async def ready(self, route: Route) -> Address:
        service = self.services[route.service_id]
        if not service.awake:
            if service.start is None:
                service.start = asyncio.create_task(self._start(service))
            await asyncio.shield(service.start)
        return service.address

    async def _start(self, service: Sleeper) -> None:
        service.starts += 1
        service.starting.set()
        try:
            await service.may_start.wait()
            if service.broken:
                raise unavailable("It crashed.", reason="crashed_at_start", retry_after=7)
            service.awake = True
        finally:
            service.start = None

    def entered(self, route: Route) -> None:
        self.services[route.service_id].in_flight += 1

    def left(self, route: Route) -> None:
        self.services[route.service_id].in_flight -= 1

    async def failed(self, route: Route, address: Address) -> None:
        service = self.services[route.service_id]
        service.failures.append(address)
        if service.next_address is not None:
            service.address, service.next_address = service.next_address, None


@asynccontextmanager
async def gateway(
    limits: Limits | None = None,
    *,
    grace_seconds: float = 5.0,
    tls: ssl.SSLContext | None = None,
    trusted: str | None = None,
    **services: Upstream | Sleeper,
) -> AsyncIterator[Server]:
    """Serve the given services under their names; each must have nothing in flight in the end."""
    sleepers = {name: Sleeper(it.address) if isinstance(it, Upstream) else it for name, it in services.items()}
    routes = MemoryRoutes(**sleepers)
    networks = (ip_network(trusted),) if trusted else ()
    async with serve(
        routes, host="127.0.0.1", port=0, limits=limits, grace_seconds=grace_seconds, tls=tls, trusted=networks
    ) as server:
        yield server
    assert {name: it.in_flight for name, it in sleepers.items()} == dict.fromkeys(sleepers, 0)


def problem_of(answer: Answer) -> Refusal:
    """Check that the answer is a problem document and return what it says."""
    import json

    assert answer.header("content-type") == "application/problem+json"
    document = json.loads(answer.body)
    assert set(document) == {"type", "title", "status", "detail", "reason", "instance"}
    assert document["status"] == answer.status
    assert document["type"].endswith(document["reason"])
    headers = {"Retry-After": value} if (value := answer.header("retry-after")) else {}
    return Refusal(answer.status, document["reason"], document["detail"], headers=headers)

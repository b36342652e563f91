"""After an upstream's 101 the connection is a pipe; before, and without one, it never is."""

import asyncio
from http import HTTPStatus

import pytest
import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from app.gateway.limits import Limits
from app.platforms.base import Address
from tests.gateway.support import DEADLINE, Handler, Sleeper, Upstream, connected, gateway, replying, upstream
from tests.support.waiting import eventually

UPGRADE = ("Connection: Upgrade", "Upgrade: raw")
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: raw\r\nX-A: 1\r\n\r\n"


async def test_websocket_echo() -> None:
    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with serve(echo, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        service = Sleeper(Address(url=f"http://127.0.0.1:{port}", instance_id="1"))
        async with (
            gateway(a=service) as it,
            connect(f"ws://a.localhost:{it.port}/", host="127.0.0.1", proxy=None) as socket,
        ):
            assert service.in_flight == 1
            for message in ("hello", b"x" * 300_000):
                await socket.send(message)
                assert await asyncio.wait_for(socket.recv(), DEADLINE) == message


async def test_a_refused_websocket_gets_the_upstreams_answer() -> None:
    async def never(connection: ServerConnection) -> None:
        raise AssertionError("not reached")

    def refuse(connection: ServerConnection, request: object) -> object:
        return connection.respond(HTTPStatus.FORBIDDEN, "no\n")

    async with serve(never, "127.0.0.1", 0, process_request=refuse) as server:  # type: ignore[arg-type]
        port = next(iter(server.sockets)).getsockname()[1]
        service = Sleeper(Address(url=f"http://127.0.0.1:{port}", instance_id="1"))
        async with gateway(a=service) as it:
            with pytest.raises(websockets.InvalidStatus) as refused:
                await connect(f"ws://a.localhost:{it.port}/", host="127.0.0.1", proxy=None)
            assert refused.value.response.status_code == 403


def switching(it: Upstream) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await it.head(reader)
        writer.write(SWITCH + b"hello ")
        while data := await reader.read(100):
            writer.write(data.upper())
            await writer.drain()
        writer.write(b" bye")

    return handle


async def test_bytes_around_the_switch_are_kept_and_each_sides_end_passes() -> None:
    async with upstream(switching) as a, gateway(a=a) as server, connected(server.port) as client:
        client.get("a.localhost", "/", "GET", *UPGRADE)
        client.send("early ")
        head = await client.until(b"EARLY")
        assert b"\r\nX-A: 1\r\n".lower() in head.lower()
        assert dict(a.fields())["upgrade"] == "raw"
        client.send("late")
        client.writer.write_eof()
        assert await client.rest_of_it() == b"LATE bye" or head.endswith(b"EARLY")


async def test_without_a_101_the_next_bytes_are_the_next_request() -> None:
    async with (
        upstream(replying()) as a,
        upstream(replying(b"from b")) as b,
        gateway(a=a, b=b) as server,
        connected(server.port) as client,
    ):
        client.get("a.localhost", "/", "GET", *UPGRADE)
        client.get("b.localhost")
        assert (await client.answer()).body == b"ok"
        assert (await client.answer()).body == b"from b"
        assert len(a.heads) == 1


@pytest.mark.parametrize(
    "fields",
    [("Connection: Upgrade", "Upgrade: h2c", "HTTP2-Settings: x"), ("Upgrade: raw",), ("Connection: upgrade",)],
)
async def test_an_upgrade_that_is_none_does_not_pass(fields: tuple[str, ...]) -> None:
    async with upstream(switching) as a, gateway(a=a) as server, connected(server.port) as client:
        client.get("a.localhost", "/", "GET", *fields)
        assert (await client.answer()).status == 502
        assert not {"upgrade", "connection"} & set(dict(a.fields()))


async def test_a_client_that_leaves_ends_the_tunnel() -> None:
    async with upstream(switching) as a, gateway(a=a) as server:
        async with connected(server.port) as client:
            client.get("a.localhost", "/", "GET", *UPGRADE)
            await client.until(b"hello")
        await eventually(lambda: not a.writers)


async def test_a_tunnel_with_one_end_gone_is_bounded() -> None:
    def deaf(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            writer.write(SWITCH)
            await reader.read()
            await asyncio.Event().wait()

        return handle

    limits = Limits(half_open_tunnel=0.05, half_closed=0.01)
    async with upstream(deaf) as a, gateway(limits, a=a) as server, connected(server.port) as client:
        client.get("a.localhost", "/", "GET", *UPGRADE)
        await client.until(b"\r\n\r\n")
        client.writer.write_eof()
        assert await client.rest_of_it() == b""

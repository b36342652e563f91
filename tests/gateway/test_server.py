"""The server's own bounds: time, number, and its end."""

import asyncio
import logging

import pytest

from app.gateway.limits import Limits
from app.gateway.routes import Route
from app.gateway.server import serve
from app.platforms.base import Address
from tests.gateway.support import DEADLINE, Handler, Maker, Upstream, connected, gateway, problem_of, replying, upstream
from tests.support.waiting import eventually


async def test_a_head_that_takes_too_long_is_a_408() -> None:
    async with upstream(replying()) as a, gateway(Limits(head=0.05), a=a) as server, connected(server.port) as client:
        client.send("GET / HTTP/1.1\r\nHost")
        answer = await client.answer()
        assert (answer.status, problem_of(answer).reason) == (408, "head_timeout")


async def test_an_idle_connection_is_closed() -> None:
    async with upstream(replying()) as a, gateway(Limits(idle=0.05), a=a) as server, connected(server.port) as client:
        client.get()
        await client.answer()
        assert await client.rest_of_it() == b""


async def test_a_body_that_stops_is_a_408_and_ends_the_upstreams_request() -> None:
    async with upstream(replying()) as a, gateway(Limits(body=0.05), a=a) as server, connected(server.port) as client:
        client.get("a.localhost", "/", "POST", "Content-Length: 10")
        client.send("abc")
        answer = await client.answer("POST")
        assert (answer.status, problem_of(answer).reason) == (408, "body_timeout")
        await asyncio.wait_for(a.lost.wait(), DEADLINE)


async def test_an_upstream_that_stops_reading_is_a_504() -> None:
    def deaf(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            await asyncio.Event().wait()

        return handle

    async with upstream(deaf) as a, gateway(Limits(stall=0.05), a=a) as server, connected(server.port) as client:
        client.get("a.localhost", "/", "POST", "Content-Length: 64000000")
        client.send(bytes(64_000_000))
        answer = await client.answer("POST")
        assert (answer.status, problem_of(answer).reason) == (504, "upstream_timeout")


async def test_a_client_that_stops_reading_is_cut_off() -> None:
    def endless(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n")
            while True:
                writer.write(bytes(1_000_000))
                await writer.drain()

        return handle

    async with upstream(endless) as a, gateway(Limits(stall=0.05), a=a) as server, connected(server.port) as client:
        client.get()
        await client.until(b"\r\n\r\n")
        await asyncio.wait_for(a.lost.wait(), DEADLINE)


async def test_more_clients_than_allowed_are_turned_away() -> None:
    async with (
        upstream(replying()) as a,
        gateway(Limits(connections=1), a=a) as server,
        connected(server.port) as first,
        connected(server.port) as second,
    ):
        first.get()
        assert (await first.answer()).status == 200
        second.get()
        answer = await second.answer()
        assert (answer.status, problem_of(answer).reason) == (503, "too_many_connections")
        assert await second.rest_of_it() == b""
        first.get()
        assert (await first.answer()).status == 200


def held(go_on: asyncio.Event) -> Maker:
    def make(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            await go_on.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await it.head(reader)

        return handle

    return make


async def test_stopping_lets_what_is_in_flight_end() -> None:
    go_on = asyncio.Event()
    async with (
        upstream(held(go_on)) as a,
        gateway(a=a) as server,
        connected(server.port) as busy,
        connected(server.port) as idle,
    ):
        busy.get()
        await eventually(lambda: a.heads)
        stopping = asyncio.create_task(server.stop(60))
        assert await idle.rest_of_it() == b""
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection("127.0.0.1", server.port)
        go_on.set()
        answer = await busy.answer()
        assert (answer.body, answer.header("connection")) == (b"ok", "close")
        await asyncio.wait_for(stopping, DEADLINE)


async def test_stopping_cuts_off_what_outlasts_the_grace() -> None:
    def silent(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            await it.head(reader)

        return handle

    async with upstream(silent) as a, gateway(a=a) as server, connected(server.port) as busy:
        busy.get()
        await eventually(lambda: a.heads)
        await asyncio.wait_for(server.stop(0.05), DEADLINE)
        assert await busy.rest_of_it() == b""
        await asyncio.wait_for(a.lost.wait(), DEADLINE)


class Broken:
    """Routes with a bug in them."""

    async def find(self, host: str) -> Route | None:
        raise RuntimeError("a bug")

    async def ready(self, route: Route) -> Address:
        raise NotImplementedError

    def entered(self, route: Route) -> None:
        raise NotImplementedError

    def left(self, route: Route) -> None:
        raise NotImplementedError

    async def failed(self, route: Route, address: Address) -> None:
        raise NotImplementedError


async def test_a_bug_of_ours_is_a_500_and_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(Broken(), host="127.0.0.1", port=0) as server, connected(server.port) as client:
        client.get()
        answer = await client.answer()
        assert (answer.status, problem_of(answer).reason) == (500, "internal_error")
    assert "a bug" in caplog.text


async def test_the_access_log_is_off_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serve(Broken(), host="127.0.0.1", port=0) as quiet, connected(quiet.port) as client:
        client.get()
        await client.answer()
    assert "app.gateway.access" not in {record.name for record in caplog.records}
    async with serve(Broken(), host="127.0.0.1", port=0, access_log=True) as loud, connected(loud.port) as client:
        client.get("a.localhost", "/p?secret=1")
        await client.answer()
    lines = [record.getMessage() for record in caplog.records if record.name == "app.gateway.access"]
    assert len(lines) == 1
    assert " GET a.localhost /p 500 " in lines[0]

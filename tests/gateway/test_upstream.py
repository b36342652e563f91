"""Upstreams that close, refuse, talk nonsense or die: what is repeated, and what the client hears."""

import asyncio

import pytest

from app.gateway.limits import Limits
from app.platforms.base import Address
from tests.gateway.support import Handler, Maker, Sleeper, Upstream, connected, gateway, problem_of, replying, upstream
from tests.support.waiting import eventually, free_port

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def nowhere() -> Address:
    return Address(url=f"http://127.0.0.1:{free_port()}", instance_id="gone")


async def test_one_upstream_connection_serves_many_requests_of_many_clients() -> None:
    async with upstream(replying()) as a, gateway(a=a) as server:
        for _ in range(5):
            async with connected(server.port) as client:
                client.get()
                assert (await client.answer()).body == b"ok"
        assert (a.connections, len(a.heads)) == (1, 5)


async def test_an_idle_connection_is_closed_after_its_time() -> None:
    async with (
        upstream(replying()) as a,
        gateway(Limits(pooled_idle=0.05), a=a) as server,
        connected(server.port) as client,
    ):
        client.get()
        await client.answer()
        await asyncio.wait_for(a.lost.wait(), 10)


async def test_no_more_idle_connections_are_kept_than_allowed() -> None:
    together = asyncio.Barrier(3)

    def meeting(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await it.head(reader)
                await together.wait()
                writer.write(OK)

        return handle

    async with (
        upstream(meeting) as a,
        gateway(Limits(pooled=1), a=a) as server,
        connected(server.port) as one,
        connected(server.port) as two,
        connected(server.port) as three,
    ):
        for client in (one, two, three):
            client.get()
        for client in (one, two, three):
            await client.answer()
        await eventually(lambda: len(a.writers) == 1)


def closing_after(answers: int, *, hint: bool = False) -> Maker:
    """Answer so often per connection, then close it: on the next request's arrival, so that the gateway can't know."""

    def make(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(answers):
                await it.head(reader)
                writer.write(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") if hint else OK)
            if not hint:
                await it.head(reader)

        return handle

    return make


async def test_a_stale_connection_costs_a_repeatable_request_nothing() -> None:
    async with upstream(closing_after(1)) as a, gateway(a=a) as server, connected(server.port) as client:
        client.get()
        await client.answer()
        client.get()
        assert (await client.answer()).body == b"ok"
        assert (a.connections, len(a.heads)) == (2, 3)


async def test_a_stale_connection_costs_a_post_an_honest_502() -> None:
    async with upstream(closing_after(1)) as a, gateway(a=a) as server, connected(server.port) as client:
        client.get()
        await client.answer()
        client.get("a.localhost", "/", "POST", "Content-Length: 0")
        answer = await client.answer("POST")
        assert (answer.status, problem_of(answer).reason) == (502, "upstream_failed")
        assert len(a.heads) == 2  # it may have been carried out, so it was not sent again


async def test_a_post_takes_no_connection_that_was_idle_for_long() -> None:
    async with (
        upstream(replying()) as a,
        gateway(Limits(pooled_unsafe=0), a=a) as server,
        connected(server.port) as client,
    ):
        client.get()
        await client.answer()
        client.get("a.localhost", "/", "POST", "Content-Length: 0")
        assert (await client.answer("POST")).status == 200
        assert a.connections == 2


async def test_a_body_that_was_begun_is_not_sent_twice() -> None:
    async with upstream(closing_after(1)) as a, gateway(a=a) as server, connected(server.port) as client:
        client.get()
        await client.answer()
        client.get("a.localhost", "/", "PUT", "Content-Length: 3")
        client.send("abc")
        assert (await client.answer("PUT")).status == 502
        assert len(a.heads) == 2


async def test_a_connection_the_upstream_wants_closed_is_not_used_again() -> None:
    async with (
        upstream(closing_after(1, hint=True)) as a,
        gateway(a=a) as server,
        connected(server.port) as client,
    ):
        for _ in range(3):
            client.get("a.localhost", "/", "POST", "Content-Length: 0")
            answer = await client.answer("POST")
            assert (answer.status, answer.header("connection")) == (200, None)
        assert a.connections == 3


async def test_bytes_past_an_answer_reach_nobody() -> None:
    def chatty(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await it.head(reader)
                writer.write(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

        return handle

    async with upstream(chatty) as a, gateway(a=a) as server, connected(server.port) as client:
        for _ in range(3):
            client.get()
            assert (await client.answer()).body == b"ok"
        assert a.connections == 3


async def test_a_refused_address_is_looked_up_again_once() -> None:
    async with upstream(replying()) as a:
        moved = Sleeper(nowhere(), next_address=a.address)
        gone = Sleeper(nowhere())
        async with gateway(moved=moved, gone=gone) as server, connected(server.port) as client:
            client.send("POST / HTTP/1.1\r\nHost: moved.localhost\r\nContent-Length: 3\r\n\r\nabc")
            assert (await client.answer("POST")).body == b"ok"
            assert len(moved.failures) == 1
            client.get("gone.localhost")
            answer = await client.answer()
            assert (answer.status, problem_of(answer).reason) == (502, "upstream_failed")
            assert len(gone.failures) == 2


async def test_an_instance_that_ends_is_looked_up_again_for_what_can_be_repeated() -> None:
    def dying(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            assert it.server is not None
            it.server.close()

        return handle

    for method, status in (("GET", 200), ("POST", 502)):
        async with upstream(dying) as old, upstream(replying()) as new:
            service = Sleeper(old.address, next_address=new.address)
            async with gateway(a=service) as server, connected(server.port) as client:
                client.get("a.localhost", "/", method, "Content-Length: 0")
                assert (await client.answer(method)).status == status
                assert (len(old.heads), len(service.failures)) == (1, 1 if status == 200 else 0)


async def test_a_handler_that_breaks_off_every_time_is_asked_twice_at_most() -> None:
    def dying(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)

        return handle

    async with upstream(dying) as a:
        service = Sleeper(a.address)
        async with gateway(a=service) as server, connected(server.port) as client:
            client.get()
            assert (await client.answer()).status == 502
            # It takes connections, so it is not down, and the rest of its requests are left alone.
            assert (len(a.heads), service.failures) == (2, [])


NONSENSE = {
    "no HTTP": b"hello\r\n\r\n",
    "both framings, then junk": b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "101 unasked": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "endless head": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000,
}


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_is_a_502(name: str) -> None:
    def babbling(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            writer.write(NONSENSE[name])
            await it.head(reader)

        return handle

    async with upstream(babbling) as a, gateway(a=a) as server, connected(server.port) as client:
        client.get()
        answer = await client.answer()
        assert (answer.status, problem_of(answer).reason) == (502, "upstream_failed")
        assert len(a.heads) == 1


HALF = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
}


@pytest.mark.parametrize("name", HALF)
async def test_an_answer_that_breaks_off_is_not_made_whole(name: str) -> None:
    def dying(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            writer.write(HALF[name])

        return handle

    async with upstream(dying) as a, gateway(a=a) as server, connected(server.port) as client:
        client.get()
        data = await client.rest_of_it()
        assert b"half" in data
        assert b"\r\n0\r\n" not in data
        assert len(a.heads) == 1


async def test_an_old_client_is_reset_when_the_answer_breaks_off() -> None:
    def dying(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            writer.write(HALF["chunks"])
            await writer.drain()
            await it.head(reader)

        return handle

    async with upstream(dying) as a, gateway(a=a) as server, connected(server.port) as client:
        client.send("GET / HTTP/1.0\r\nHost: a.localhost\r\n\r\n")
        await client.until(b"half")
        a.hang_up()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(client.reader.read(), 10)


async def test_an_answer_that_ends_with_its_connection_is_passed_on_whole() -> None:
    def old(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 100_000)

        return handle

    async with upstream(old) as a, gateway(a=a) as server, connected(server.port) as client:
        for _ in range(2):
            client.get()
            answer = await client.answer()
            assert (answer.header("transfer-encoding"), len(answer.body)) == ("chunked", 100_000)


async def test_an_early_answer_reaches_a_client_that_is_still_sending() -> None:
    def early(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            await reader.read(1000)

        return handle

    async with upstream(early) as a, gateway(a=a) as server, connected(server.port) as client:
        client.get("a.localhost", "/", "POST", "Content-Length: 50000000")
        client.send(bytes(16_000_000))
        transport = client.writer.transport
        transport.pause_reading()  # type: ignore[attr-defined]
        await eventually(lambda: not server.connections)
        # Closed with bytes unread, the connection would have been reset, and the answer lost to whoever still writes.
        assert transport.get_write_buffer_size() == 0
        assert not transport.is_closing()
        transport.resume_reading()  # type: ignore[attr-defined]
        assert (await client.answer("POST")).status == 413
        assert await client.rest_of_it() == b""


async def test_an_upstream_that_does_not_answer_in_time_is_a_504() -> None:
    def silent(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            await it.head(reader)

        return handle

    async with upstream(silent) as a, gateway(Limits(answer=0.05), a=a) as server, connected(server.port) as client:
        client.get()
        answer = await client.answer()
        assert (answer.status, problem_of(answer).reason) == (504, "upstream_timeout")


async def test_a_slow_upload_is_not_a_slow_upstream() -> None:
    limits = Limits(answer=0.05, body=30)
    async with upstream(replying()) as a, gateway(limits, a=a) as server, connected(server.port) as client:
        client.get("a.localhost", "/", "POST", "Content-Length: 3")
        await eventually(lambda: a.heads)
        started = asyncio.get_running_loop().time()
        await eventually(lambda: asyncio.get_running_loop().time() > started + 0.15)
        client.send("abc")
        assert (await client.answer("POST")).body == b"ok"

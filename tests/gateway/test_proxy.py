"""One request through: what passes, in which order, and how much of it is held."""

import asyncio

import pytest

from app.gateway.limits import Limits
from tests.gateway.support import (
    DEADLINE,
    Handler,
    Maker,
    Upstream,
    connected,
    gateway,
    problem_of,
    replying,
    upstream,
)
from tests.support.waiting import eventually

MIB = 1024 * 1024


async def test_one_connection_two_hosts() -> None:
    async with (
        upstream(replying(b"from a")) as a,
        upstream(replying(b"from b")) as b,
        gateway(a=a, b=b) as server,
        connected(server.port) as client,
    ):
        for host, body in [("a.localhost", b"from a"), ("b.localhost", b"from b"), ("a.localhost:1", b"from a")]:
            client.get(host)
            assert (await client.answer()).body == body
        assert [name for name, _ in a.fields()].count("host") == 1
        assert dict(a.fields())["host"] == "a.localhost:1"


async def test_pipelined_requests_are_answered_in_order_and_routed_apart() -> None:
    async with (
        upstream(replying(b"from a")) as a,
        upstream(replying(b"from b")) as b,
        gateway(a=a, b=b) as server,
        connected(server.port) as client,
    ):
        client.send("POST / HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: 3\r\n\r\nabc")
        client.get("b.localhost")
        client.send("\r\n")
        client.get("a.localhost", "/last")
        assert [(await client.answer()).body for _ in range(3)] == [b"from a", b"from b", b"from a"]
        assert a.heads[1].startswith(b"GET /last HTTP/1.1")


async def test_unknown_host_is_a_problem_and_the_connection_goes_on() -> None:
    async with upstream(replying()) as a, gateway(a=a) as server, connected(server.port) as client:
        client.get("nobody.localhost")
        answer = await client.answer()
        assert (answer.status, problem_of(answer).reason) == (404, "unknown_host")
        client.send("POST / HTTP/1.1\r\nHost: nobody.localhost\r\nContent-Length: 3\r\n\r\nabc")
        assert (await client.answer("POST")).status == 404
        client.get("nobody.localhost", "/", "HEAD")
        assert (await client.answer("HEAD")).body == b""
        client.get()
        assert (await client.answer()).body == b"ok"


async def test_request_fields_are_ours_or_the_clients_and_never_hop_by_hop() -> None:
    async with upstream(replying()) as a, gateway(a=a) as server, connected(server.port) as client:
        client.get(
            "a.localhost", "/", "GET", "X-Forwarded-For: 1.2.3.4", "Connection: X-Drop", "X-Drop: 1", "X-Keep: 1"
        )
        await client.answer()
        fields = dict(a.fields())
        assert fields["x-forwarded-for"] == "127.0.0.1"
        assert fields["x-forwarded-host"] == "a.localhost"
        assert fields["x-request-id"].startswith("req_")
        assert fields["x-keep"] == "1"
        assert not {"x-drop", "connection"} & set(fields)


@pytest.mark.parametrize(
    ("trusted", "said", "seen"),
    [
        ("127.0.0.0/8", "https", ("https", "1.2.3.4, 127.0.0.1")),
        ("127.0.0.0/8", "gopher", ("http", "1.2.3.4, 127.0.0.1")),
        ("10.0.0.0/8", "https", ("http", "127.0.0.1")),
        (None, "https", ("http", "127.0.0.1")),
    ],
)
async def test_only_a_trusted_proxy_says_where_a_request_came_from(
    trusted: str | None, said: str, seen: tuple[str, str]
) -> None:
    async with (
        upstream(replying()) as a,
        gateway(trusted=trusted, a=a) as server,
        connected(server.port) as client,
    ):
        client.get("a.localhost", "/", "GET", "X-Forwarded-For: 1.2.3.4", f"X-Forwarded-Proto: {said}")
        await client.answer()
        fields = dict(a.fields())
        assert (fields["x-forwarded-proto"], fields["x-forwarded-for"]) == seen


async def test_answer_fields_pass_but_the_hop_by_hop_ones() -> None:
    fields = ("Connection: X-Drop, keep-alive", "X-Drop: 1", "Keep-Alive: timeout=5", "Set-Cookie: a", "Set-Cookie: b")
    async with upstream(replying(b"ok", *fields)) as a, gateway(a=a) as server, connected(server.port) as client:
        client.get()
        answer = await client.answer()
        assert answer.headers == [("content-length", "2"), ("set-cookie", "a"), ("set-cookie", "b")]


async def test_head_has_the_length_and_no_body() -> None:
    def head_only(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await it.head(reader)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n")

        return handle

    async with upstream(head_only) as a, gateway(a=a) as server, connected(server.port) as client:
        for _ in range(2):
            client.get("a.localhost", "/", "HEAD")
            answer = await client.answer("HEAD")
            assert (answer.header("content-length"), answer.body) == ("1234", b"")
        assert a.connections == 1


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_that_have_no_body(status: int) -> None:
    def empty(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await it.head(reader)
                writer.write(f"HTTP/1.1 {status} X\r\nETag: 1\r\n\r\n".encode())

        return handle

    async with upstream(empty) as a, gateway(a=a) as server, connected(server.port) as client:
        for _ in range(2):
            client.get()
            answer = await client.answer()
            assert (answer.status, answer.headers, answer.body) == (status, [("etag", "1")], b"")


def continuing(interim: bytes) -> Maker:
    def make(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            writer.write(interim)
            body = await reader.readexactly(3)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + body)

        return handle

    return make


async def test_expect_continue_is_the_upstreams_to_answer() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    async with upstream(continuing(interim)) as a, gateway(a=a) as server, connected(server.port) as client:
        client.get("a.localhost", "/", "POST", "Content-Length: 3", "Expect: 100-continue")
        early = await client.until(b"100 Continue\r\n\r\n") if b"100" not in client.rest else client.rest
        assert early.startswith(b"HTTP/1.1 103")
        assert dict(a.fields())["expect"] == "100-continue"
        client.send("abc")
        assert (await client.answer("POST")).body == b"abc"


async def test_a_refusal_instead_of_continue_needs_no_body() -> None:
    def refusing(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")

        return handle

    async with upstream(refusing) as a, gateway(a=a) as server, connected(server.port) as client:
        client.get("a.localhost", "/", "POST", "Content-Length: 99999999", "Expect: 100-continue")
        assert (await client.answer("POST")).status == 413
        assert await client.rest_of_it() == b""


async def test_unasked_continue_is_dropped_and_trailers_pass_both_ways() -> None:
    seen = asyncio.get_running_loop().create_future()

    def with_trailers(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            seen.set_result(await reader.readuntil(b"0\r\nx-sum: 1\r\n\r\n"))
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(b"2\r\nok\r\n0\r\nX-Sum: 2\r\nContent-Length: 5\r\n\r\n")

        return handle

    async with upstream(with_trailers) as a, gateway(a=a) as server, connected(server.port) as client:
        client.get("a.localhost", "/", "POST", "Transfer-Encoding: chunked")
        client.send("3\r\nabc\r\n0\r\nX-Sum: 1\r\nHost: evil\r\n\r\n")
        answer = await client.answer("POST")
        assert (answer.body, answer.informational, answer.trailers) == (b"ok", [], [("x-sum", "2")])
        assert await seen == b"3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n"


async def test_an_old_client_gets_no_chunks_and_no_interim_answers() -> None:
    def chunked(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(b"2\r\nok\r\n0\r\n\r\n")

        return handle

    async with upstream(chunked) as a, gateway(a=a) as server, connected(server.port) as client:
        client.send("GET / HTTP/1.0\r\nHost: a.localhost\r\n\r\n")
        assert await client.rest_of_it() == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok"


async def test_an_event_arrives_before_the_next_is_sent() -> None:
    next_event = asyncio.Event()

    def events(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            for n in range(3):
                writer.write(b"9\r\ndata: %d\n\n\r\n" % n)
                await next_event.wait()
                next_event.clear()
            writer.write(b"0\r\n\r\n")

        return handle

    async with upstream(events) as a, gateway(a=a) as server, connected(server.port) as client:
        client.get()
        for n in range(3):
            await client.until(b"data: %d\n\n" % n)
            next_event.set()
        await client.until(b"0\r\n\r\n")


async def test_an_upload_arrives_piece_by_piece_and_whole() -> None:
    seen: asyncio.Queue[bytes] = asyncio.Queue()

    def counting(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            await seen.put(await reader.readexactly(5))
            total = 5
            while total < 40 * MIB:
                total += len(await reader.read(MIB))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        return handle

    async with upstream(counting) as a, gateway(a=a) as server, connected(server.port) as client:
        client.get("a.localhost", "/", "PUT", f"Content-Length: {40 * MIB}")
        client.send("first")
        assert await asyncio.wait_for(seen.get(), DEADLINE) == b"first"
        block = bytes(MIB)
        for n in range(40):
            client.send(block if n < 39 else block[5:])
            await client.writer.drain()
        assert (await client.answer("PUT")).status == 200


async def test_a_slow_reader_holds_the_upstream_back() -> None:
    sent = 0
    total = 64 * MIB

    def download(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await it.head(reader)
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n".encode())
            block = bytes(MIB)
            while sent < total:
                writer.write(block)
                await writer.drain()
                sent += len(block)

        return handle

    async with upstream(download) as a, gateway(a=a) as server, connected(server.port) as client:
        client.get()
        await client.until(b"\r\n\r\n")
        before = -1

        def stands_still() -> bool:
            nonlocal before
            still, before = sent == before, sent
            return still and not client.reader._transport.is_reading()  # type: ignore[attr-defined]

        await eventually(stands_still)
        # What is under way fits the sockets' own buffers and ours, which are a fraction of a MiB.
        assert sent < 32 * MIB
        async with asyncio.timeout(DEADLINE):
            while sent < total:
                assert await client.reader.read(MIB)


async def test_a_slow_upstream_holds_the_client_back() -> None:
    go_on = asyncio.Event()

    def slow(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            await go_on.wait()
            total = 0
            while total < 64 * MIB:
                total += len(await reader.read(MIB))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        return handle

    async with upstream(slow) as a, gateway(a=a) as server, connected(server.port) as client:
        client.get("a.localhost", "/", "POST", f"Content-Length: {64 * MIB}")
        client.send(bytes(64 * MIB))
        transport = client.writer.transport
        before = -1

        def stands_still() -> bool:
            nonlocal before
            size = transport.get_write_buffer_size()
            still, before = size == before, size
            return still and size < 64 * MIB

        await eventually(stands_still)
        assert transport.get_write_buffer_size() > 32 * MIB
        go_on.set()
        assert (await client.answer("POST")).status == 200


async def test_a_client_that_leaves_ends_its_request_at_once() -> None:
    def silent(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            await it.head(reader)

        return handle

    async with upstream(silent) as a, gateway(Limits(half_closed=60), a=a) as server:
        async with connected(server.port) as client:
            client.get()
            await eventually(lambda: a.heads)
            client.reset()
        await asyncio.wait_for(a.lost.wait(), DEADLINE)


async def test_a_client_that_closed_its_half_gets_its_answer() -> None:
    go_on = asyncio.Event()

    def waiting(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            await go_on.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        return handle

    async with upstream(waiting) as a, gateway(Limits(half_closed=60), a=a) as server, connected(server.port) as client:
        client.get()
        client.writer.write_eof()
        await eventually(lambda: a.heads)
        go_on.set()
        assert (await client.answer()).body == b"ok"
        assert await client.rest_of_it() == b""


async def test_a_silent_stream_to_a_half_closed_client_ends_after_a_moment() -> None:
    def silent(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
            await it.head(reader)

        return handle

    async with (
        upstream(silent) as a,
        gateway(Limits(half_closed=0.05), a=a) as server,
        connected(server.port) as client,
    ):
        client.get()
        await client.until(b"a\r\n")
        client.writer.write_eof()
        await asyncio.wait_for(a.lost.wait(), DEADLINE)


async def test_a_client_that_vanishes_inside_its_body_ends_the_upstreams_request() -> None:
    def reading(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            await reader.readexactly(100)

        return handle

    async with upstream(reading) as a, gateway(Limits(half_closed=60), a=a) as server, connected(server.port) as client:
        client.get("a.localhost", "/", "POST", "Content-Length: 100")
        client.send("abc")
        await eventually(lambda: a.heads)
        client.writer.write_eof()
        assert (await client.answer("POST")).status == 400
        await asyncio.wait_for(a.lost.wait(), DEADLINE)

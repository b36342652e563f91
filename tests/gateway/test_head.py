"""What is let in: one reading of a request, or none."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Refusal
from app.gateway.head import parse, trailers, upstream_request
from tests.gateway.support import connected, gateway, problem_of, replying, upstream

H = "GET / HTTP/1.1\r\nHost: a.localhost\r\n"
P = "POST / HTTP/1.1\r\nHost: a.localhost\r\n"

REFUSED = {
    "both lengths": (P + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "both, other order": (P + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400),
    "two lengths, different": (P + "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd", 400),
    "two lengths, alike": (P + "Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd", 400),
    "length list": (P + "Content-Length: 4, 5\r\n\r\nabcd", 400),
    "length with sign": (P + "Content-Length: +4\r\n\r\nabcd", 400),
    "length in hex": (P + "Content-Length: 0x4\r\n\r\nabcd", 400),
    "negative length": (P + "Content-Length: -1\r\n\r\n", 400),
    "two transfer encodings": (P + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "identity encoding": (P + "Transfer-Encoding: identity\r\n\r\n", 501),
    "gzip, chunked": (P + "Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "xchunked": (P + "Transfer-Encoding: xchunked\r\n\r\n", 501),
    "vertical tab chunked": (P + "Transfer-Encoding: \x0bchunked\r\n\r\n", 400),
    "space before colon": (P + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    "space before length's colon": (P + "Content-Length : 4\r\n\r\nabcd", 400),
    "chunked in HTTP/1.0": (P.replace("1.1", "1.0") + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "folded line": (H + "X-A: b\r\n c\r\n\r\n", 400),
    "folded framing": (P + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
    "bare LF between fields": (H + "X-A: b\nX-B: c\r\n\r\n", 400),
    "bare LF everywhere": ("GET / HTTP/1.1\nHost: a.localhost\n\n", 400),
    "bare CR in a value": (H + "X-A: b\rX-B: c\r\n\r\n", 400),
    "NUL in a value": (H + "X-A: b\0c\r\n\r\n", 400),
    "field without colon": (H + "X-A\r\n\r\n", 400),
    "empty field name": (H + ": x\r\n\r\n", 400),
    "first field begins with a space": ("GET / HTTP/1.1\r\n Host: a.localhost\r\n\r\n", 400),
    "no host": ("GET / HTTP/1.1\r\n\r\n", 400),
    "no host in HTTP/1.0": ("GET / HTTP/1.0\r\n\r\n", 400),
    "two hosts": (H + "Host: b.localhost\r\n\r\n", 400),
    "two hosts, alike": (H + "Host: a.localhost\r\n\r\n", 400),
    "host list": ("GET / HTTP/1.1\r\nHost: a.localhost, b.localhost\r\n\r\n", 400),
    "host with user": ("GET / HTTP/1.1\r\nHost: x@a.localhost\r\n\r\n", 400),
    "host with path": ("GET / HTTP/1.1\r\nHost: a.localhost/x\r\n\r\n", 400),
    "empty host": ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
    "absolute form with another host": ("GET http://b.localhost/ HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    "absolute form with user": ("GET http://u@a.localhost/ HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    "another scheme": ("GET ftp://a.localhost/ HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    "target without slash": ("GET x HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    "space in target": ("GET /a b HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    "two spaces": ("GET  / HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    "no version": ("GET /\r\nHost: a.localhost\r\n\r\n", 400),
    "version 2": ("GET / HTTP/2.0\r\nHost: a.localhost\r\n\r\n", 505),
    "method is no token": ("G(T / HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    "CONNECT": ("CONNECT a.localhost:80 HTTP/1.1\r\nHost: a.localhost:80\r\n\r\n", 501),
    "TLS": ("\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
    "too many fields": (H + "".join(f"X-{n}: 1\r\n" for n in range(200)) + "\r\n", 431),
    "head too large": (H + "X-A: " + "a" * 70_000 + "\r\n\r\n", 431),
    "head too large, no end": (H + "X-A: " + "a" * 70_000, 431),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_head_that_can_be_read_in_two_ways_is_refused_and_ends_the_connection(name: str) -> None:
    data, status = REFUSED[name]
    async with upstream(replying()) as a, gateway(a=a) as server, connected(server.port) as client:
        client.send(data.encode("latin-1") + b"GET /smuggled HTTP/1.1\r\nHost: a.localhost\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (status, "close")
        problem_of(answer)
        assert await client.rest_of_it() == b""
        assert a.heads == []


BAD_BODIES = {
    "no size": b"\r\nabc\r\n0\r\n\r\n",
    "size in decimal words": b"xyz\r\nabc\r\n0\r\n\r\n",
    "negative size": b"-3\r\nabc\r\n0\r\n\r\n",
    "size with prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "size with 21 digits": b"0" * 20 + b"3\r\nabc\r\n0\r\n\r\n",
    "chunk longer than its size": b"3\r\nabcd\r\n0\r\n\r\n",
    "bare LF after the size": b"3\nabc\r\n0\r\n\r\n",
    "bare LF in an extension": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "bare LF after the data": b"3\r\nabc\n0\r\n\r\n",
    "trailer without colon": b"3\r\nabc\r\n0\r\nX\r\n\r\n",
    "endless chunk head": b"3;" + b"a" * 70_000,
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_a_body_with_bad_chunks_is_refused_and_ends_both_connections(name: str) -> None:
    async with upstream(replying()) as a, gateway(a=a) as server, connected(server.port) as client:
        client.send(P.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + BAD_BODIES[name])
        answer = await client.answer("POST")
        assert (answer.status, answer.header("connection")) == (400, "close")
        assert await client.rest_of_it() == b""
        assert len(a.heads) <= 1


def test_chunk_extensions_and_what_hides_in_them_do_not_pass() -> None:
    incoming = parse((P + "Transfer-Encoding: chunked\r\n\r\n").encode())
    incoming.parser.receive_data(b'3;ext="x"\r\nabc\r\n0;more\r\nX-T: 1\r\n\r\nGET')
    assert incoming.parser.next_event().data == b"abc"  # type: ignore[union-attr]
    assert incoming.parser.next_event().headers == [(b"x-t", b"1")]  # type: ignore[union-attr]
    assert incoming.parser.trailing_data[0] == b"GET"


@pytest.mark.parametrize(
    ("target", "host", "name", "origin"),
    [
        ("/p?q=1", "A.LocalHost:8081", "a.localhost", b"/p?q=1"),
        ("http://a.localhost:8081/p?q", "a.localhost:8081", "a.localhost", b"/p?q"),
        ("HTTP://a.localhost", "A.localhost", "a.localhost", b"/"),
        ("http://a.localhost?q", "a.localhost", "a.localhost", b"/?q"),
        ("*", "a.localhost.", "a.localhost", b"*"),
        ("/", "[::1]:80", "[::1]", b"/"),
    ],
)
def test_forms_of_target_and_host(target: str, host: str, name: str, origin: bytes) -> None:
    incoming = parse(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert (incoming.host, incoming.target, incoming.authority) == (name, origin, host.encode())


def test_only_fields_meant_for_the_upstream_pass() -> None:
    head = (
        H + "Connection: close, X-Secret, Content-Type\r\nX-Secret: 1\r\nKeep-Alive: 1\r\nTE: trailers\r\n"
        "Proxy-Authorization: x\r\nProxy-Connection: x\r\nForwarded: for=1\r\nX-Forwarded-For: 1.1.1.1\r\n"
        "X-Forwarded-Port: 1\r\nX-Real-IP: 1\r\nX-Request-Id: theirs\r\nContent-Type: text/plain\r\nX-Kept: a\r\n"
        "X-Kept: b\r\nCookie: c\r\n\r\n"
    )
    incoming = parse(head.encode())
    request = upstream_request(incoming, "9.9.9.9")
    assert list(request.headers) == [
        (b"host", b"a.localhost"),
        (b"content-type", b"text/plain"),
        (b"x-kept", b"a"),
        (b"x-kept", b"b"),
        (b"cookie", b"c"),
        (b"x-forwarded-for", b"9.9.9.9"),
        (b"x-forwarded-proto", b"http"),
        (b"x-forwarded-host", b"a.localhost"),
        (b"x-request-id", incoming.id.encode()),
        (b"via", b"1.1 slipway"),
    ]


def test_trailers_do_not_frame_or_authenticate() -> None:
    given_fields = [(b"x-checksum", b"1"), (b"content-length", b"9"), (b"transfer-encoding", b"chunked")]
    given_fields += [(b"host", b"b"), (b"authorization", b"x"), (b"x-forwarded-for", b"1"), (b"set-cookie", b"x")]
    assert trailers(given_fields) == [(b"x-checksum", b"1")]


@given(st.binary(max_size=300))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    with suppress(Refusal):
        parse(b"GET / HTTP/1.1\r\nHost: a\r\n" + data + b"\r\n\r\n")

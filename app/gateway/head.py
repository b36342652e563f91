"""Heads of requests and answers: what is let in, what is passed on.

A request that two servers could read in two ways is refused, since we are one of two (request smuggling, RFC 9112
section 11.2). h11 parses; the checks here are for what h11 forgives. What is passed on is written anew from the parsed
form, never copied.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import h11

from app.errors import Refusal
from app.gateway.wire import Wire
from app.ids import new_id

MAX_HEAD_BYTES = 64 * 1024
MAX_FIELDS = 128

Headers = list[tuple[bytes, bytes]]

_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\x00")
_FOLD = re.compile(rb"\r\n[ \t]")
_FRAMING = re.compile(rb"\r\n(content-length|transfer-encoding):", re.IGNORECASE)
_HOST = re.compile(r"([a-z0-9_](?:[a-z0-9_.-]{0,253}[a-z0-9_])?\.?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_ABSOLUTE = re.compile(rb"http://([^/?#]*)(.*)", re.IGNORECASE)

# RFC 9110 section 7.6.1, and the two old names that clients still send.
_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade", b"proxy-authenticate"}
    | {b"proxy-authorization"}
)
#: Ours to say, so not the client's.
_OURS = frozenset({b"forwarded", b"x-real-ip", b"x-request-id"})
#: Named in Connection, these would take from the upstream what decides over framing and routing.
_NEVER_NAMED = frozenset({b"host", b"content-length", b"expect", b"content-type", b"authorization", b"cookie"})
_NO_TRAILER = frozenset({b"host", b"content-length", b"trailer", b"expect", b"authorization", b"cookie", b"set-cookie"})


@dataclass
class Incoming:
    """One request as it came in: its parsed head, and the parser that goes on with its body."""

    id: str
    parser: h11.Connection
    method: bytes
    target: bytes
    """Origin form (or ``*``)."""
    authority: bytes
    """Host as the client wrote it."""
    host: str
    """Lower case, without port."""
    headers: Headers
    upgrade: bytes | None


def bad_request(detail: str, *, status: int = 400, reason: str = "bad_request") -> Refusal:
    """A request that can't be understood in one way only, so the connection ends with it."""
    return Refusal(status, reason, detail)


async def read_head(wire: Wire) -> bytes | None:
    """Return the bytes of the next request head, None when the client is done; the rest stays on the wire."""
    data = b""
    while True:
        more = await wire.read()
        if not more:
            if data:
                raise bad_request("The connection ended inside a request head.")
            return None
        data += more
        if data[:2] == b"\r\n":  # RFC 9112 section 2.2: an empty line before a request is skipped
            data = data[2:]
        at = data.find(b"\r\n\r\n")
        if at >= 0:
            at += 4
            wire.put_back(data[at:])
            data = data[:at]
        if len(data) > MAX_HEAD_BYTES:
            raise bad_request(f"The request head is over {MAX_HEAD_BYTES} bytes.", status=431, reason="head_too_large")
        if _BARE.search(data):
            raise bad_request("The request head has a bare CR, a bare LF or a NUL in it.")
        if at >= 0:
            return data


def parse(head: bytes) -> Incoming:
    """Parse and check one head; Refusal when it may not pass."""
    if _FOLD.search(head):
        raise bad_request("The request head has folded lines.")
    if len(_FRAMING.findall(head)) > 1:
        raise bad_request("Content-Length and Transfer-Encoding may come once, and only one of them.")
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    parser.receive_data(head)
    try:
        request = parser.next_event()
    except h11.RemoteProtocolError as error:
        raise bad_request(f"The request can't be parsed: {error}.", status=error.error_status_hint) from error
    assert isinstance(request, h11.Request)
    headers = list(request.headers)
    if request.http_version not in {b"1.1", b"1.0"}:
        raise bad_request("Only HTTP/1.1 and HTTP/1.0 are spoken here.", status=505)
    if request.method == b"CONNECT":
        raise bad_request("CONNECT is not offered here.", status=501)
    if len(headers) > MAX_FIELDS:
        raise bad_request(f"The request has more than {MAX_FIELDS} header fields.", status=431, reason="head_too_large")
    hosts = [value for name, value in headers if name == b"host"]
    authority, target = _authority(request.target, hosts)
    chunked = any(name == b"transfer-encoding" for name, _ in headers)
    if chunked and request.http_version == b"1.0":
        raise bad_request("HTTP/1.0 has no Transfer-Encoding.")
    return Incoming(
        id=new_id("req"),
        parser=parser,
        method=request.method,
        target=target,
        authority=authority,
        host=_host(authority),
        headers=headers,
        upgrade=_upgrade(request.http_version, headers),
    )


def _authority(target: bytes, hosts: list[bytes]) -> tuple[bytes, bytes]:
    if len(hosts) != 1:
        raise bad_request("A request needs exactly one Host.")
    host = hosts[0]
    if target.startswith(b"/") or target == b"*":
        return host, target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise bad_request("The request target has neither origin form nor absolute form.")
    # RFC 9112 section 3.2.2 lets the target win; two different names are refused, since something odd is going on.
    if absolute[1].lower() != host.lower():
        raise bad_request("Host and the request target name different hosts.")
    rest = absolute[2].partition(b"#")[0]
    return host, rest if rest.startswith(b"/") else b"/" + rest


def _host(authority: bytes) -> str:
    text = authority.decode("latin-1").lower()
    match = _HOST.fullmatch(text)
    if match is None:
        raise bad_request("Host is not a host name.")
    return match[1].removesuffix(".")


def _tokens(headers: Headers, name: bytes) -> set[bytes]:
    return {word.strip().lower() for key, value in headers if key == name for word in value.split(b",")}


def _upgrade(version: bytes, headers: Headers) -> bytes | None:
    value = b", ".join(value for name, value in headers if name == b"upgrade")
    # h2c would carry requests that nobody here parses.
    if not value or version == b"1.0" or b"upgrade" not in _tokens(headers, b"connection") or b"h2c" in value.lower():
        return None
    return value


def _passed(headers: Headers) -> Headers:
    named = _tokens(headers, b"connection") - _NEVER_NAMED
    return [(name, value) for name, value in headers if name not in _HOP and name not in named]


def upstream_request(incoming: Incoming, peer: str, host: bytes | None = None, *, trusted: bool = False) -> h11.Request:
    """Write the request for the upstream: hop-by-hop fields gone, the forwarded ones ours.

    A ``trusted`` peer is a proxy of the operator's, whose word on the client's address and scheme is passed on. ``host`` is
    for an upstream that finds its services by their own names; the client's is in X-Forwarded-Host either way.
    """
    headers: Headers = [(b"host", host or incoming.authority)]
    chunked = any(name == b"transfer-encoding" for name, _ in incoming.headers)
    headers += (
        (name, value)
        for name, value in _passed(incoming.headers)
        if name not in _OURS and name != b"host" and not name.startswith(b"x-forwarded-")
    )
    if chunked:
        headers.append((b"transfer-encoding", b"chunked"))
    if incoming.upgrade is not None:
        headers += ((b"connection", b"upgrade"), (b"upgrade", incoming.upgrade))
    before = [value for name, value in incoming.headers if trusted and name == b"x-forwarded-for"]
    schemes = [value for name, value in incoming.headers if trusted and name == b"x-forwarded-proto"]
    headers += (
        (b"x-forwarded-for", b", ".join([*before, peer.encode("ascii")])),
        (b"x-forwarded-proto", b"https" if schemes == [b"https"] else b"http"),
        (b"x-forwarded-host", incoming.authority),
        (b"x-request-id", incoming.id.encode("ascii")),
        (b"via", b"1.1 slipway"),
    )
    return h11.Request(method=incoming.method, target=incoming.target, headers=headers)


def client_headers(headers: Iterable[tuple[bytes, bytes]], *, switching: bool = False) -> Headers:
    """Return the fields of an upstream's answer that go on to the client; h11 adds the framing for its version."""
    received = list(headers)
    passed = _passed(received)
    if switching:
        passed.append((b"connection", b"upgrade"))
        passed += ((name, value) for name, value in received if name == b"upgrade")
    elif any(name == b"transfer-encoding" for name, _ in received):
        passed = [(name, value) for name, value in passed if name != b"content-length"]
    return passed


def trailers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the trailer fields that may pass: none that frames, routes or authenticates (RFC 9110 section 6.5.1)."""
    return [
        (name, value)
        for name, value in headers
        if name not in _HOP | _OURS | _NO_TRAILER and not name.startswith(b"x-forwarded-")
    ]

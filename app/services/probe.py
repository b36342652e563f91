"""Ask a service for its health path once, from outside.

An instance's own plain address is asked by a few lines on a bare connection: all that matters is the status, and a client made
for everything costs more than the rest of a release. What is behind TLS, or a platform's edge, goes by httpx.
"""

import asyncio

import h11
import httpx

from app.platforms.address import own_name, request_for
from app.platforms.http import trust

PROBE_SECONDS = 5.0
HEAD_BYTES = 64 * 1024


async def probe(url: str, path: str, host: str, *, seconds: float = PROBE_SECONDS) -> tuple[bool, str]:
    """Return whether ``path`` at an address answers with 2xx, and what was seen; ``host`` is the name it is known under."""
    # An instance's own address takes any name; behind a platform's edge only its own one leads to it.
    at, headers = request_for(url)
    named = own_name(url)
    try:
        async with asyncio.timeout(seconds):
            plain = None if named else _plain(at)
            status = await (
                _ask(*plain, path, host) if plain else _get(at + path, headers if named else {"Host": host})
            )
    except (httpx.HTTPError, h11.ProtocolError, OSError) as e:  # a time-out is an OSError too
        return False, f"{type(e).__name__} {e}".strip()
    return 200 <= status < 300, f"status {status}"


def _plain(url: str) -> tuple[str, int] | None:
    parsed = httpx.URL(url)
    return (parsed.host, parsed.port or 80) if parsed.scheme == "http" and parsed.path in {"", "/"} else None


async def _get(url: str, headers: dict[str, str]) -> int:
    async with httpx.AsyncClient(timeout=PROBE_SECONDS, trust_env=False, verify=trust()) as client:
        return (await client.get(url, headers=headers)).status_code


async def _ask(address: str, port: int, path: str, host: str) -> int:
    """Return the status of a GET on a connection of its own; the body is not waited for."""
    wire = h11.Connection(h11.CLIENT, HEAD_BYTES)
    reader, writer = await asyncio.open_connection(address, port)
    try:
        asked = h11.Request(
            method="GET", target=path, headers=[("Host", host), ("Accept", "*/*"), ("Connection", "close")]
        )
        writer.write((wire.send(asked) or b"") + (wire.send(h11.EndOfMessage()) or b""))
        while True:
            event = wire.next_event()
            if isinstance(event, h11.Response):
                return event.status_code
            if event is h11.NEED_DATA:
                wire.receive_data(await reader.read(HEAD_BYTES))
    finally:
        writer.transport.abort()  # nothing more is to be sent or read

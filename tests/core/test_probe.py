"""A health probe on a bare connection: what it takes for healthy, and that nothing an instance says upsets it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from app.services.probe import probe
from tests.support.waiting import free_port


@contextlib.asynccontextmanager
async def answering(answer: bytes, *, hang: bool = False) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Serve one answer to everybody and then close, unless ``hang``; give the address and what was asked."""
    asked: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            if hang:
                await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()
        for writer in writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@pytest.mark.parametrize(
    ("answer", "healthy", "seen"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", True, "status 204"),
        (b"HTTP/1.0 200 OK\r\n\r\nfine", True, "status 200"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True, "status 200"),
        (b"HTTP/1.1 301 Moved\r\nLocation: /\r\n\r\n", False, "status 301"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 99\r\n\r\n", False, "status 500"),
        (b"SSH-2.0-OpenSSH_9.7\r\n", False, "RemoteProtocolError"),
        (b"", False, "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, False, "RemoteProtocolError"),
    ],
)
async def test_only_a_2xx_is_healthy(answer: bytes, healthy: bool, seen: str) -> None:
    async with answering(answer) as (url, asked):
        found = await probe(url, "/healthz?a=b", "echo.localhost")
    assert found[0] is healthy
    assert found[1].startswith(seen)
    assert asked[0].startswith(b"GET /healthz?a=b HTTP/1.1\r\nHost: echo.localhost\r\n")


async def test_nobody_there_and_nobody_answering() -> None:
    assert not (await probe(f"http://127.0.0.1:{free_port()}", "/", "a"))[0]
    async with answering(b"", hang=True) as (url, _):
        assert await probe(url, "/", "a", seconds=0.05) == (False, "TimeoutError")

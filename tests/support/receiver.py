"""An HTTP server that takes webhooks: it notes what it gets and answers as the test says."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def message(self) -> Json:
        return dict(json.loads(self.body))

    @property
    def kind(self) -> str:
        return str(self.message["type"])


Reply = tuple[int, dict[str, str], bytes]


def reply(status: int = 204, body: bytes = b"", **headers: str) -> Reply:
    return status, {k.replace("_", "-"): v for k, v in headers.items()}, body


@dataclass
class Receiver:
    """``got`` has every request, ``taken`` those that were answered with a 2xx."""

    url: str = ""
    got: list[Received] = field(default_factory=list)
    taken: list[Received] = field(default_factory=list)
    connections: int = 0
    answer: Callable[[Received], Reply | Awaitable[Reply]] = lambda request: reply()
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def kinds(self) -> list[str]:
        return [r.kind for r in self.taken]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        request = Received(head[0].split(" ")[1], headers, body)
        self.got.append(request)
        found = self.answer(request)
        status, more, content = await found if isinstance(found, Awaitable) else found
        if 200 <= status < 300:
            self.taken.append(request)
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{k}: {v}" for k, v in more.items())]
        if status != 204:
            lines.append(f"content-length: {len(content)}")
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        await writer.drain()
        return True

    def hang_up(self) -> None:
        for writer in list(self._writers):
            writer.close()


@contextlib.asynccontextmanager
async def receiver(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """Listen on a loopback port for the length of the block."""
    it = Receiver()
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    it.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/hook"
    try:
        yield it
    finally:
        server.close()
        it.hang_up()
        await server.wait_closed()

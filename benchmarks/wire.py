"""The least HTTP/1.1 client that will do: what drives a benchmark must cost little beside what it measures."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

Headers = Mapping[str, str]


class Wire:
    """Keep-alive connections to one server on the loopback; each is used by one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: bytes, headers: Headers) -> tuple[int, bytes]:
        """Send JSON; return status and body."""
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        return await self._ask("POST", path, fields, body)

    async def get(self, path: str, headers: Headers) -> tuple[int, bytes]:
        """Ask; return status and body."""
        return await self._ask("GET", path, headers, b"")

    async def _ask(self, method: str, path: str, headers: Headers, body: bytes) -> tuple[int, bytes]:
        reader, writer = self._free.pop() if self._free else await asyncio.open_connection("127.0.0.1", self._port)
        fields = {"Host": "bench", **headers}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in fields.items()) + "\r\n"
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(answer.partition("content-length:")[2].partition("\r\n")[0])
        content = await reader.readexactly(length)
        self._free.append((reader, writer))
        return int(answer.split(" ", 2)[1]), content

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Wire]:
    wire = Wire(port)
    try:
        yield wire
    finally:
        wire.close()

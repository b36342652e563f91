"""Bytes in and out of the embedded registry: a part of a file as an answer, a request's body into an upload."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.images import uploads
from app.images.errors import Fault

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?(\d+)-(\d+)(?:/.*)?")
_READ = 256 * 1024
_WRITE = 1024 * 1024
#: How long a request waits for another one that writes to the same upload, in seconds.
HOLD_SECONDS = 2.0
#: How long a body may stand still before its connection counts as cut, in seconds.
IDLE_SECONDS = 60.0


class FilePart(Response):
    """``length`` bytes of an open file from ``start``; the file is closed at the end, however that comes."""

    def __init__(self, file: IO[bytes], start: int, length: int, *, status: int, headers: dict[str, str]) -> None:
        super().__init__(status_code=status, headers={**headers, "Content-Length": str(length)})
        self._file, self._start, self._left = file, start, length

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the part in small pieces; reading is done in a thread."""
        with self._file as file:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await asyncio.to_thread(file.seek, self._start)
            while self._left > 0:
                data = await asyncio.to_thread(file.read, min(_READ, self._left))
                if not data:
                    raise OSError("a blob is shorter than it was")
                self._left -= len(data)
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return (start, length) that a Range header asks of ``size`` bytes; None when all of them are meant.

    Raises the 416 when nothing of it is there. Several ranges at once are not offered: they get everything.
    """
    match = _RANGE.fullmatch((header or "").strip())
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        start, end = max(0, size - int(match[2])), size - 1
    else:
        start, end = int(match[1]), min(int(match[2] or size), size - 1)
    if start >= size or start > end:
        raise Fault(416, "SIZE_INVALID", f"the blob has {size} bytes", {"Content-Range": f"bytes */{size}"})
    return start, end - start + 1


@dataclass(frozen=True)
class Target:
    """The upload that a body goes to."""

    root: Path
    repository: str
    upload: str
    max_bytes: int

    def room(self) -> int:
        """Return how many more bytes it may take."""
        return uploads.room(self.root, self.repository, self.upload, self.max_bytes)

    def offset(self) -> int:
        """Return how many bytes it has."""
        return uploads.offset(self.root, self.repository, self.upload)


async def hold(to: Target) -> IO[bytes]:
    """Open an upload for writing; wait a little for whoever has it, who may be a connection that was just cut."""
    deadline = time.monotonic() + HOLD_SECONDS
    while True:
        try:
            return await asyncio.to_thread(uploads.append_to, to.root, to.repository, to.upload)
        except Fault as fault:
            if fault.status != 429 or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.02)


async def settled_offset(to: Target) -> int:
    """Return how far an upload is, once all that has arrived is counted, or after a little while as it is."""
    try:
        (await hold(to)).close()
    except Fault as fault:
        if fault.status != 429:
            raise
    return await asyncio.to_thread(to.offset)


async def receive_body(request: Request, to: Target) -> None:
    """Add the request's body to an upload, in bounded memory; what came before a cut stays.

    Raises 416 when its Content-Range does not go on from the offset, 413 when it is too much (the upload is gone then).
    """
    file = await hold(to)
    try:
        begin = await asyncio.to_thread(to.offset)
        declared = _declared(request, begin)
        end = await _pour(request, file, to)
        if declared is not None and end - begin != declared:
            await asyncio.to_thread(file.truncate, begin)
            raise Fault(400, "SIZE_INVALID", f"{end - begin} bytes came, Content-Range says {declared}")
    finally:
        file.close()


async def _pour(request: Request, file: IO[bytes], to: Target) -> int:
    buffer = bytearray()
    try:
        left = await asyncio.to_thread(to.room)
        if int(request.headers.get("content-length") or 0) > left:
            raise _too_large(to.max_bytes)
        async for data in _patient(request.stream()):
            buffer += data
            if len(buffer) > left:
                raise _too_large(to.max_bytes)
            if len(buffer) >= _WRITE:
                await asyncio.to_thread(_write, file, buffer)
                left = await asyncio.to_thread(to.room)
        await asyncio.to_thread(_write, file, buffer)
    except ClientDisconnect:
        await asyncio.to_thread(_write, file, buffer)
        raise
    except Fault as fault:
        if fault.status == 413:
            await asyncio.to_thread(uploads.cancel, to.root, to.repository, to.upload)
        raise
    return file.tell()


async def _patient(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    # A peer that vanished without a word would hold the upload for good.
    while True:
        try:
            data = await asyncio.wait_for(anext(stream), IDLE_SECONDS)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise ClientDisconnect from error
        yield data


def _write(file: IO[bytes], buffer: bytearray) -> None:
    while buffer:
        del buffer[: file.write(buffer)]


def _declared(request: Request, begin: int) -> int | None:
    header = request.headers.get("content-range")
    if header is None:
        return None
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None or int(match[1]) != begin or int(match[2]) < begin:
        raise Fault(416, "BLOB_UPLOAD_INVALID", f"the upload goes on at {begin}", upload_headers(request, begin))
    return int(match[2]) - begin + 1


def upload_headers(request: Request, offset: int, location: str | None = None) -> dict[str, str]:
    """Return the headers that tell where an upload stands; an empty one is ``0-0``, as everywhere."""
    path = location or request.url.path
    return {"Location": path, "Range": f"0-{max(offset - 1, 0)}", "Docker-Upload-UUID": path.rsplit("/", 1)[-1]}


def _too_large(max_bytes: int) -> Fault:
    return Fault(413, "SIZE_INVALID", f"a blob may have at most {max_bytes} bytes")

"""Uploading one blob to any registry, in one request or in chunks, and going on after a cut.

After a failure the registry is asked how far it got. What it says is where we go on, in chunks; when it has lost the
upload we look whether the blob is there after all (an answer that got lost), and else start over.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass

import httpx

from app.images.answers import unavailable
from app.images.errors import ImageInvalid, ImageNotFound, RegistryError, RegistryUnavailable
from app.images.wire import ATTEMPTS, Wire

Reader = Callable[[int], AsyncGenerator[bytes, None]]

#: Size of a chunk when an upload goes on after a cut; also the most that is held in memory.
RESUME_CHUNK = 8 * 1024 * 1024
_PIECE = 128 * 1024


@dataclass
class Upload:
    """One blob on its way; ``location`` and ``sent`` say where the registry stands, as far as we know."""

    wire: Wire
    start: str
    scope: str
    digest: str
    size: int
    source: Reader
    location: str | None = None
    sent: int = 0
    least: int = 1


class _Again(Exception):
    """The registry has to be asked how far it is."""

    def __init__(self, problem: RegistryError) -> None:
        super().__init__(str(problem))
        self.problem = problem


async def run(job: Upload, done: Callable[[], Awaitable[bool]], chunk_bytes: int | None) -> None:
    """Upload the blob; ``done`` tells whether the registry has it."""
    failures, best = 0, 0
    while True:
        try:
            if job.location is None:
                await _begin(job)
            if chunk_bytes is None and job.sent == 0:
                await _whole(job)
            else:
                await _chunks(job, chunk_bytes or RESUME_CHUNK)
        except (httpx.TransportError, _Again) as error:
            problem = error.problem if isinstance(error, _Again) else unavailable(job.wire.base, error)
            failures += 1
            if failures >= ATTEMPTS:
                raise problem from error
            await job.wire.back_off(failures, problem.retry_after if isinstance(problem, RegistryUnavailable) else None)
            await _ask(job)
            if job.location is None and await done():
                return
            if job.sent > best:
                best, failures = job.sent, 0
        else:
            return


async def cancel(wire: Wire, location: str, scope: str) -> None:
    """Tell the registry that an upload won't come; whether it cares is its own business."""
    with suppress(RegistryError):
        await wire.call("DELETE", wire.absolute(location), scope)


async def _begin(job: Upload) -> None:
    answer = await job.wire.call("POST", job.start, job.scope)
    _moved(job, answer.url, answer.headers)
    least = answer.headers.get("oci-chunk-min-length", "")
    job.least = int(least) if least.isdecimal() else 1
    if job.location is None:
        raise RegistryUnavailable(f"{job.wire.base} opens no upload")
    job.sent = 0


async def _whole(job: Upload) -> None:
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(job.size)}
    await _send(job, "PUT", _with_digest(job), headers, _exactly(job, 0))


async def _chunks(job: Upload, size: int) -> None:
    size, buffer = max(size, job.least), bytearray()
    async with aclosing(_exactly(job, job.sent)) as pieces:
        async for data in pieces:
            buffer += data
            while len(buffer) >= size:
                rest = buffer[size:]
                del buffer[size:]
                await _patch(job, buffer)
                buffer = rest
    if buffer:
        await _patch(job, buffer)
    await _send(job, "PUT", _with_digest(job), {"Content-Length": "0"}, b"")


async def _patch(job: Upload, data: bytearray) -> None:
    end = job.sent + len(data)
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(len(data)),
        "Content-Range": f"{job.sent}-{end - 1}",
    }
    response = await _send(job, "PATCH", str(job.location), headers, _pieces(data))
    _moved(job, response.url, response.headers)
    job.sent = end


async def _pieces(data: bytearray) -> AsyncGenerator[bytes, None]:
    # Not handed over as bytes: httpx ties request and response in a circle, and the body would live until it is broken.
    for at in range(0, len(data), _PIECE):
        yield bytes(data[at : at + _PIECE])


async def _send(
    job: Upload, method: str, url: str, headers: dict[str, str], content: bytes | AsyncGenerator[bytes, None]
) -> httpx.Response:
    response, problem = await job.wire.send(method, url, job.scope, headers=headers, content=content)
    if problem is None:
        return response
    if response.status_code == 401:
        try:
            renewed = await job.wire.renew(response, job.scope)
        except RegistryUnavailable as error:
            raise _Again(error) from error
        if renewed:
            raise _Again(problem)
    if isinstance(problem, RegistryUnavailable | ImageNotFound) or response.status_code == 416:
        raise _Again(problem)
    raise problem


async def _ask(job: Upload) -> None:
    """Learn how far the registry is; leave ``location`` None when there is nothing to go on with."""
    location, job.location, job.sent = job.location, None, 0
    if location is None:
        return
    try:
        answer = await job.wire.call("GET", location, job.scope)
    except (ImageNotFound, ImageInvalid):
        return
    end = answer.headers.get("range", "").removeprefix("bytes=").rpartition("-")[2]
    # `0-0` is written for nothing as well as for one byte, so that one starts over.
    if end.isdecimal() and 0 < int(end) < job.size:
        job.sent, job.location = int(end) + 1, location
        _moved(job, answer.url, answer.headers)


async def _exactly(job: Upload, offset: int) -> AsyncGenerator[bytes, None]:
    """Yield the rest of the blob; a source that has more or less than it said is at fault, not the registry."""
    left = job.size - offset
    if left:
        async for data in job.source(offset):
            left -= len(data)
            if left < 0:
                break
            yield data
    if left:
        raise ImageInvalid(f"the blob {job.digest} does not have {job.size} bytes")


def _moved(job: Upload, at: httpx.URL, headers: httpx.Headers) -> None:
    if location := headers.get("location"):
        job.location = job.wire.absolute(str(at.join(location)))


def _with_digest(job: Upload) -> str:
    # Appended as text: what the registry put into its own query is not ours to write anew.
    return f"{job.location}{'&' if '?' in str(job.location) else '?'}digest={job.digest}"

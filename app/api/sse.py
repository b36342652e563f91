"""Server-sent events: the answer, its blocks, where a client wants to begin, and how OpenAPI is told of it.

The form is that of the HTML standard, section 9.2. Every block that moves a client on has an ``id``; a browser sends the last
one it saw as ``Last-Event-ID`` when it connects again. A stream that has said all there will ever be ends with the event
``end``; one that ends without it (a deploy, a cut, a client that took nothing for too long) is to be connected to again.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import structlog
from fastapi import Request
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Send

from app.db import is_away
from app.errors import Refusal

log = structlog.get_logger()

MEDIA_TYPE = "text/event-stream"
RETRY_MS = 1000
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Nothing on the way may keep the stream or gather it up; the second is how nginx is told."""

Blocks = AsyncGenerator[bytes, None]


class EventStream(StreamingResponse):
    """A stream of blocks. Ends when they do, when the client goes, or when it takes nothing for ``write_seconds``."""

    media_type = MEDIA_TYPE

    def __init__(self, blocks: Blocks, write_seconds: float) -> None:
        super().__init__(blocks, headers=HEADERS)
        self._blocks, self._write_seconds = blocks, write_seconds

    async def stream_response(self, send: Send) -> None:
        """Send the blocks, each within its time; the generator is closed whatever happens."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with contextlib.aclosing(self._blocks):
            try:
                async for block in self._blocks:
                    async with asyncio.timeout(self._write_seconds):
                        await send({"type": "http.response.body", "body": block, "more_body": True})
            except TimeoutError:
                log.info("a stream was cut off: its client took nothing for too long", seconds=self._write_seconds)
                return
            except Exception as e:
                if not is_away(e):
                    raise
                log.warning("a stream ended: the database does not answer", error=f"{type(e).__name__}: {e}"[:300])
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Pulse:
    """Knows when a keep-alive is due: so long after the last block."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due = asyncio.get_running_loop().time() + seconds

    def of(self, block: bytes) -> bytes:
        """Return the block, which is about to be sent."""
        self._due = asyncio.get_running_loop().time() + self._seconds
        return block

    def left(self) -> float:
        """Return the seconds until one is due."""
        return max(0.0, self._due - asyncio.get_running_loop().time())


def wanted(request: Request) -> bool:
    """Tell whether the caller wants a stream and not a page."""
    return MEDIA_TYPE in request.headers.get("accept", "")


def opening(position: object) -> bytes:
    """Return the first block: where the stream begins, so that a client cut off before any event comes back to there."""
    return format_sse_event(comment="slipway", id=str(position), retry=RETRY_MS)


def item(model: BaseModel, position: object) -> bytes:
    """Return one event or line."""
    return format_sse_event(data_str=model.model_dump_json(), id=str(position))


def keep_alive(position: object) -> bytes:
    """Return what shows that the stream lives; its id moves a client on past what it did not want."""
    return format_sse_event(comment="keep-alive", id=str(position))


def end(model: BaseModel, position: object) -> bytes:
    """Return the last block: nothing will ever come after it."""
    return format_sse_event(event="end", data_str=model.model_dump_json(), id=str(position))


def invalid_position(text: str) -> Refusal:
    """422: it is not one that this stream gave."""
    return Refusal(422, "invalid_cursor", f"{text[:64]!r} is not a position that this list or stream gave.")


def described(
    item_model: type[BaseModel], end_model: type[BaseModel] | None, example: str
) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's words for the stream beside the JSON page: what ``data`` holds, and an example."""
    kinds: list[dict[str, Any]] = [{"$ref": f"#/components/schemas/{item_model.__name__}"}]
    if end_model is not None:  # no page has it, so it is no component
        plain = end_model.model_json_schema(ref_template="#/components/schemas/{model}")
        kinds.append({k: v for k, v in plain.items() if k != "$defs"})
    data = {"anyOf": kinds}
    block = {
        "type": "object",
        "properties": {
            "id": {"type": "string", "description": "Send it back as `Last-Event-ID` to go on after it."},
            "event": {"type": "string", "const": "end", "description": "Only on the last block, if there is one."},
            "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": data},
            "retry": {"type": "integer", "description": "Milliseconds to wait before connecting again."},
        },
    }
    stream = {
        "type": "string",
        "contentMediaType": MEDIA_TYPE,
        "contentSchema": {"type": "array", "items": block},
        "description": "Server-sent events; comments keep the connection alive.",
    }
    words = "A page, or with `Accept: text/event-stream` a stream that goes on as things happen."
    return {200: {"description": words, "content": {MEDIA_TYPE: {"schema": stream, "example": example}}}}

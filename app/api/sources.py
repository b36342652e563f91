"""Sources: archives sent ahead of their builds."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from typing import IO

from fastapi import APIRouter, Request
from sqlalchemy import select

from app.api.deps import BuildsWrite, Ctx, Db
from app.api.once import OnceRoute, OnceStreamed
from app.api.reasons import responses
from app.api.schemas import SourceOut
from app.builds import archives, sources
from app.builds.limits import limits
from app.errors import invalid, too_large
from app.models import Source

router = APIRouter(prefix="/v1/sources", tags=["sources"], route_class=OnceRoute)

BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/gzip": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "", status_code=201, responses=responses(source_invalid=422, source_rejected=(413, 422)), openapi_extra=BODY
)
async def create_source(
    request: Request, context: Ctx, project: BuildsWrite, once: OnceStreamed, session: Db
) -> SourceOut:
    """Send a gzipped tar; answers with the digest to name in `POST /v1/builds`. The same tree has the same digest."""
    settings = context.settings
    with tempfile.TemporaryFile(prefix="slipway-source-") as file:
        size = await _receive(request, file, limits(settings, project).source_bytes)
        if size == 0:
            raise invalid("body", "is empty; send a gzipped tar", reason="source_invalid")
        file.seek(0)
        tree = await asyncio.to_thread(archives.read_archive, file, size, settings)
        file.seek(0)
        if once is not None:
            await once.enter(session, tree.digest.encode())
        await sources.save_stream(session, project.id, tree, size, _pieces(file))
        key = (Source.project_id == project.id, Source.digest == tree.digest)
        row = (await session.execute(select(Source).where(*key))).scalar_one()
        return SourceOut.model_validate(row, from_attributes=True)


async def _receive(request: Request, file: IO[bytes], limit: int) -> int:
    """Stream the body to disk, off the loop in large pieces; Refusal (413) as soon as it is over the limit."""
    size, buffer = 0, bytearray()
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise too_large(f"the archive has more than {limit} bytes")
        buffer += piece
        if len(buffer) >= archives.CHUNK:
            await asyncio.to_thread(file.write, bytes(buffer))
            buffer.clear()
    if buffer:
        await asyncio.to_thread(file.write, bytes(buffer))
    return size


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    while data := await asyncio.to_thread(file.read, archives.CHUNK):
        yield data

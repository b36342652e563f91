"""Sources: content-addressed, kept in Postgres as a gzipped tar in pieces of 1 MiB; ``archives`` makes and reads them."""

from collections.abc import AsyncIterator, Collection, Mapping

from sqlalchemy import select

from app import sql
from app.builds.archives import CHUNK, Tree
from app.db import Sessions
from app.models import SourceChunk
from app.sql import Session

_RENEW_SECONDS = 3600.0
"""A source's last use is written no more often: what is kept for days needs no more, and one row is not fought over."""
_KNOWN = """
    select digest, last_used_at < now() - make_interval(secs => $3) as long_ago
    from source where project_id = $1 and digest = any($2::text[])
"""
_RENEW = """
    update source set last_used_at = now() where project_id = $1 and digest = any($2::text[]) returning digest
"""
_SAVE = """
    insert into source (project_id, digest, size_bytes, files)
    select $1, s.* from unnest($2::text[], $3::bigint[], $4::bigint[]) as s(digest, size_bytes, files) order by s.digest
    on conflict do nothing returning digest
"""
_SAVE_CHUNKS = """
    insert into source_chunk (project_id, digest, number, data) select $1, * from unnest($2::text[], $3::bigint[], $4::bytea[])
"""


async def touch(session: Session, project_id: str, digests: Collection[str]) -> set[str]:
    """Renew the last use of sources, so that retention keeps them; returns those that are there."""
    rows = await sql.fetch(session, _KNOWN, project_id, sorted(digests), _RENEW_SECONDS)
    there = {row["digest"] for row in rows if not row["long_ago"]}
    if old := sorted(row["digest"] for row in rows if row["long_ago"]):  # retention may be taking them right now
        there |= {row["digest"] for row in await sql.fetch(session, _RENEW, project_id, old)}
    return there


async def save(session: Session, project_id: str, packed: Mapping[str, tuple[Tree, bytes]]) -> None:
    """Keep archives, each under its tree digest; the same tree again only renews its last use."""
    new = sorted(packed.keys() - await touch(session, project_id, packed.keys()))
    if not new:
        return
    sizes, files = [len(packed[d][1]) for d in new], [packed[d][0].files for d in new]
    saved = [row["digest"] for row in await sql.fetch(session, _SAVE, project_id, new, sizes, files)]
    pieces = [
        (d, start // CHUNK, packed[d][1][start : start + CHUNK])
        for d in saved
        for start in range(0, len(packed[d][1]), CHUNK)
    ]
    if pieces:
        await sql.fetch(session, _SAVE_CHUNKS, project_id, *map(list, zip(*pieces, strict=True)))


async def save_stream(session: Session, project_id: str, tree: Tree, size: int, archive: AsyncIterator[bytes]) -> None:
    """Do the same with one archive of ``size`` bytes that comes in pieces."""
    if await touch(session, project_id, [tree.digest]):
        return
    if not await sql.fetch(session, _SAVE, project_id, [tree.digest], [size], [tree.files]):
        return
    number = 0
    async for data in archive:
        await sql.fetch(session, _SAVE_CHUNKS, project_id, [tree.digest], [number], [data])
        number += 1


async def read(sessions: Sessions, project_id: str, digest: str) -> AsyncIterator[bytes]:
    """Yield the archive piece by piece, each in a transaction of its own so that none waits for a slow reader."""
    number = 0
    while True:
        async with sessions() as session:
            key = (SourceChunk.project_id == project_id, SourceChunk.digest == digest, SourceChunk.number == number)
            data = (await session.execute(select(SourceChunk.data).where(*key))).scalar_one_or_none()
        if data is None:
            return
        yield data
        number += 1

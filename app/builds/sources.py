"""Sources: content-addressed, kept in Postgres as a gzipped tar in pieces of 1 MiB.

The digest is over the tree, not the archive (see ``docs/builder-protocol.md``), so that the same files have one digest
however they were sent. An upload is read through here once, off the event loop, under the limits the builder keeps too.
"""

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

from sqlalchemy import select

from app import sql
from app.db import Sessions
from app.errors import Refusal, invalid, too_large
from app.models import SourceChunk
from app.settings import Settings
from app.sql import Session

CHUNK = 1024 * 1024
MAX_RATIO = 200
"""Unpacked to packed; source code packs about 5 to 1, and past 200 to 1 it is a bomb."""
MAX_PATH = 1024


@dataclass(frozen=True)
class Tree:
    """What an archive holds: its tree digest, how many files, and their size unpacked in bytes."""

    digest: str
    files: int
    size_bytes: int


def tree_digest(entries: dict[str, tuple[bool, str]]) -> str:
    """Return the digest of a tree given as path → (executable, hex SHA-256 of the content)."""
    total = hashlib.sha256()
    for path in sorted(entries, key=lambda p: p.encode()):
        executable, content = entries[path]
        total.update(f"{path}\0{'x' if executable else '-'}\0{content}\n".encode())
    return f"sha256:{total.hexdigest()}"


def check_path(path: str) -> str | None:
    """Return what is wrong with a path inside a source, None when it is fine."""
    parts = PurePosixPath(path).parts
    if not path or len(path) > MAX_PATH:
        return f"a path has 1 to {MAX_PATH} characters"
    if path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        return "a path must be relative, with `/` between its parts and without `..`"
    if any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in path):  # surrogates: bytes that are no UTF-8
        return "a path must be UTF-8 without control characters"
    if str(PurePosixPath(path)) != path:
        return "a path must be plain: no `./`, no `//`, no `/` at its end"
    return None


def pack_files(files: dict[str, str], settings: Settings) -> tuple[Tree, bytes]:
    """Make the archive of inline files; Refusal names the file that can't be taken."""
    if len(files) > settings.max_inline_files:
        raise too_large(f"source.files: {len(files)} files; inline sources have at most {settings.max_inline_files}")
    contents = {path: text.encode() for path, text in files.items()}
    size = sum(len(c) for c in contents.values())
    if size > settings.max_inline_bytes:
        raise too_large(
            f"source.files: {size} bytes; inline sources have at most {settings.max_inline_bytes}. "
            "Send an archive by POST /v1/sources instead"
        )
    folders = {str(parent) for path in contents for parent in PurePosixPath(path).parents}
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(contents):
            if wrong := check_path(path) or ("is a folder of another file too" if path in folders else None):
                raise invalid(f"source.files.{path[:100]}", wrong, reason="source_rejected")
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(contents[path]), 0o644
            tar.addfile(info, io.BytesIO(contents[path]))
    entries = {path: (False, hashlib.sha256(content).hexdigest()) for path, content in contents.items()}
    return Tree(tree_digest(entries), len(contents), size), buffer.getvalue()


class _Counted(io.RawIOBase):
    """Reads through to a file and stops a bomb: too much out of too little."""

    def __init__(self, inner: gzip.GzipFile, packed: int, limit: int) -> None:
        self._inner, self._packed, self._limit, self.seen = inner, packed, limit, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._inner.read(len(buffer))
        buffer[: len(data)] = data
        self.seen += len(data)
        if self.seen > self._limit:
            raise too_large(f"the archive unpacks to more than {self._limit} bytes", reason="source_rejected")
        if self.seen > CHUNK and self.seen > MAX_RATIO * self._packed:
            raise _rejected(f"the archive unpacks to more than {MAX_RATIO} times its size")
        return len(data)


def _rejected(detail: str) -> Refusal:
    return invalid("body", detail, reason="source_rejected")


def read_archive(file: IO[bytes], size: int, settings: Settings) -> Tree:
    """Read a gzipped tar through and return its tree; Refusal when it is no such thing or isn't safe. Blocking."""
    entries: dict[str, tuple[bool, str]] = {}
    folders: set[str] = set()
    total = 0
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
            counted = io.BufferedReader(_Counted(unpacked, size, settings.max_unpacked_bytes), CHUNK)
            with tarfile.open(fileobj=counted, mode="r|") as tar:
                for member in tar:
                    path = member.name.removeprefix("./").rstrip("/")
                    if member.isdir() and path in {"", "."}:
                        continue
                    if wrong := check_path(path):
                        raise _rejected(f"{path[:100]!r}: {wrong}")
                    if member.isdir():
                        folders.add(path)
                        continue
                    if not member.isreg():
                        raise _rejected(f"{path[:100]!r} is a link or a special file; only files and folders are taken")
                    if path in entries:
                        raise _rejected(f"{path[:100]!r} is there twice")
                    if len(entries) >= settings.max_source_files:
                        raise _rejected(f"more than {settings.max_source_files} files")
                    body = tar.extractfile(member)
                    assert body is not None
                    entries[path] = (bool(member.mode & 0o100), hashlib.file_digest(body, "sha256").hexdigest())  # type: ignore[arg-type]
                    total += member.size
            while counted.read(CHUNK):  # what follows the end of the tar counts for the bomb limits too
                pass
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, UnicodeError, ValueError) as e:
        raise invalid("body", f"not a gzipped tar archive ({e})", reason="source_invalid") from e
    clash = (folders | {str(parent) for path in entries for parent in PurePosixPath(path).parents}) & entries.keys()
    if clash:
        raise _rejected(f"{min(clash)[:100]!r} is a file and a folder at once")
    if not entries:
        raise invalid("body", "the archive holds no files", reason="source_invalid")
    return Tree(tree_digest(entries), len(entries), total)


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

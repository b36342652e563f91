"""A source as a gzipped tar: inline files are made into one, and an upload that nobody vouches for is read through.

The digest is over the tree, not the archive (see ``docs/builder-protocol.md``), so that the same files have one digest
however they were sent. An upload is read once, off the event loop, under the limits the builder keeps too.
"""

import gzip
import hashlib
import io
import math
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from app.errors import Refusal, invalid, too_large
from app.settings import Settings

CHUNK = 1024 * 1024
MAX_RATIO = 200
"""Unpacked to packed; source code packs about 5 to 1, and past 200 to 1 it is a bomb."""
MAX_PATH, MAX_PART, MAX_DEPTH = 1024, 255, 64
"""Of a path, and of each of its parts, in bytes; and how many parts it may have. Builders take no more."""
MAX_HEADER = 64 * 1024
"""What a tar may say of one file before its content, in bytes: tarfile takes it into memory as a whole."""


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
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        return "a path must be UTF-8"
    if not 1 <= size <= MAX_PATH:
        return f"a path has 1 to {MAX_PATH} bytes"
    parts = path.split("/")
    if path.startswith("/") or ".." in parts or "\\" in path or any(ord(c) < 32 or ord(c) == 127 for c in path):
        return "a path must be relative, with `/` between its parts, without `..` and without control characters"
    if "" in parts or "." in parts:
        return "a path must be plain: no `./`, no `//`, no `/` at its end"
    if len(parts) > MAX_DEPTH or any(len(part.encode()) > MAX_PART for part in parts):
        return f"a path has at most {MAX_DEPTH} parts of at most {MAX_PART} bytes"
    return None


def _add_folders(folders: set[str], path: str, most: int) -> None:
    """Add the folders that a path is in; Refusal when they become too many."""
    while (path := path.rpartition("/")[0]) and path not in folders:
        if len(folders) >= most:
            raise _rejected(f"more than {most} folders")
        folders.add(path)


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
    folders: set[str] = set()
    for path in contents:
        if wrong := check_path(path):
            raise invalid(f"source.files.{path[:100]}", wrong, reason="source_rejected")
        _add_folders(folders, path, settings.max_source_files)
    if clash := folders & contents.keys():
        raise invalid(f"source.files.{min(clash)[:100]}", "is a folder of another file too", reason="source_rejected")
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(contents):
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(contents[path]), 0o644
            tar.addfile(info, io.BytesIO(contents[path]))
    entries = {path: (False, hashlib.sha256(content).hexdigest()) for path, content in contents.items()}
    return Tree(tree_digest(entries), len(contents), size), buffer.getvalue()


class _Counted(io.RawIOBase):
    """Reads through to a file and stops a bomb: too much out of too little, or too much before the next file."""

    def __init__(self, inner: gzip.GzipFile, packed: int, limit: int) -> None:
        self._inner, self._packed, self._limit, self._seen = inner, packed, limit, 0
        self._next = 0.0
        self.expect(0)

    def expect(self, size: float) -> None:
        """Let the next file begin after so many bytes. Whoever reads from here reads ahead by up to two chunks."""
        self._next = self._seen + size + MAX_HEADER + 2 * CHUNK

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._inner.read(len(buffer))
        buffer[: len(data)] = data
        self._seen += len(data)
        if self._seen > self._limit:
            raise too_large(f"the archive unpacks to more than {self._limit} bytes", reason="source_rejected")
        if self._seen > CHUNK and self._seen > MAX_RATIO * self._packed:
            raise _rejected(f"the archive unpacks to more than {MAX_RATIO} times its size")
        if self._seen > self._next:
            raise _rejected("a tar header of unreasonable size")
        return len(data)


def _rejected(detail: str) -> Refusal:
    return invalid("body", detail, reason="source_rejected")


def _members(tar: tarfile.TarFile, counted: _Counted, most: int) -> Iterator[tuple[str, tarfile.TarInfo]]:
    for number, member in enumerate(tar):
        if number >= most:
            raise _rejected(f"more than {most} entries")
        counted.expect(max(member.size, 0))
        path = member.name.removeprefix("./").rstrip("/")
        if member.isdir() and path in {"", "."}:
            continue
        if wrong := check_path(path):
            raise _rejected(f"{path[:100]!r}: {wrong}")
        yield path, member


def read_archive(file: IO[bytes], size: int, settings: Settings) -> Tree:
    """Read a gzipped tar through and return its tree; Refusal when it is no such thing or isn't safe. Blocking."""
    entries: dict[str, tuple[bool, str]] = {}
    folders: set[str] = set()
    most, total = settings.max_source_files, 0
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
            counted = _Counted(unpacked, size, settings.max_unpacked_bytes)
            stream = io.BufferedReader(counted, CHUNK)
            with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK) as tar:
                for path, member in _members(tar, counted, 2 * most):
                    _add_folders(folders, f"{path}/" if member.isdir() else path, most)
                    if member.isdir():
                        continue
                    if not member.isreg() or member.issparse() or member.size < 0:
                        raise _rejected(f"{path[:100]!r} is a link or a special file; only files and folders are taken")
                    if path in entries:
                        raise _rejected(f"{path[:100]!r} is there twice")
                    if len(entries) >= most:
                        raise _rejected(f"more than {most} files")
                    body = tar.extractfile(member)
                    assert body is not None
                    entries[path] = (bool(member.mode & 0o100), hashlib.file_digest(body, "sha256").hexdigest())  # type: ignore[arg-type]
                    total += member.size
            counted.expect(math.inf)
            while stream.read(CHUNK):  # what follows the end of the tar counts for the bomb limits too
                pass
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, OverflowError, RecursionError) as e:
        raise invalid("body", f"not a gzipped tar archive ({e})", reason="source_invalid") from e
    if clash := folders & entries.keys():
        raise _rejected(f"{min(clash)[:100]!r} is a file and a folder at once")
    if not entries:
        raise invalid("body", "the archive holds no files", reason="source_invalid")
    return Tree(tree_digest(entries), len(entries), total)

"""Unpack an archive that nobody vouches for.

It is read in two steps so that every bound holds before it costs anything: the compression first, into a file that
stops growing at the limit, then the tar from that file. Files are only ever created, never opened again, in a tree
where no link is ever made: there is nothing to follow out of it.
"""

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from builder.orders import Limits
from builder.outcome import Failure, Reason
from builder.tree import Content, plain_path, rejected

CHUNK = 1 << 20
#: The most that is read from the tar at once. tarfile takes extended headers in one piece and searches them slowly.
PIECE = 64 << 10
#: gzip can't do better than 1032:1; sources reach 20:1. Below the floor a ratio means nothing.
MOST_RATIO, RATIO_FLOOR = 200, 16 << 20
#: What a tar adds to each entry at most, in bytes: headers of names and times, padding.
ENTRY_OVERHEAD = 4096

Check = Callable[[], None]


def unpack(archive: Path, into: Path, scratch: Path, limits: Limits, check: Check) -> dict[str, Content]:
    """Unpack a gzipped tar into the new folder ``into``; returns its files by path.

    ``scratch`` is a path for the bare tar while it is read. ``check`` is called between chunks and ends the work by
    raising. Raises Failure: source_rejected for what is not safe, source_invalid for what can't be read.
    """
    try:
        with _readable("gzipped tar"):
            _decompress(archive, scratch, limits, check)
        return unpack_tar(scratch, into, limits, check)
    finally:
        scratch.unlink(missing_ok=True)


def most_tar_bytes(limits: Limits) -> int:
    """Return how large a tar within the limits can be: its content, and the headers of files and folders."""
    return limits.unpacked_bytes + limits.files * 2 * ENTRY_OVERHEAD


def unpack_tar(bare: Path, into: Path, limits: Limits, check: Check) -> dict[str, Content]:
    """Unpack a bare tar file; for the rest see ``unpack``."""
    with _readable("tar"), bare.open("rb") as file:
        return _unpack_members(file, into, limits, check)


@contextmanager
def _readable(what: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, UnicodeError, OverflowError, ValueError) as error:
        raise Failure(Reason.SOURCE_INVALID, f"The source is not a readable {what}: {error}.") from error
    except RecursionError:
        raise rejected("The source's tar headers are nested too deep.") from None


def _unpack_members(file: IO[bytes], into: Path, limits: Limits, check: Check) -> dict[str, Content]:
    into.mkdir(mode=0o755, exist_ok=True)
    folders = {""}
    files: dict[str, Content] = {}
    left = limits.unpacked_bytes
    entries = 0
    with tarfile.open(fileobj=_Frugal(file), mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        for member in tar:
            check()
            entries += 1
            if entries > limits.files * 2:
                raise rejected(f"The source's archive holds more than {limits.files * 2} entries.")
            path = plain_path(member.name)
            if member.size < 0 or member.size > left:
                raise rejected(f"The source unpacks to more than {limits.unpacked_bytes} bytes.")
            if member.type == tarfile.DIRTYPE:
                _make_folders(path, into, folders, files, limits)
            elif member.type in {tarfile.REGTYPE, tarfile.AREGTYPE} and not member.issparse():
                if not path:
                    raise rejected("The source holds a file without a name.")
                if path in files or path in folders:
                    raise rejected(f"The source holds {path!r} twice.")
                _make_folders(path.rpartition("/")[0], into, folders, files, limits)
                if len(files) >= limits.files:
                    raise rejected(f"The source holds more than {limits.files} files.")
                left -= member.size
                files[path] = _write(tar, member, into / path, check)
            else:
                raise rejected(f"The source holds something that is neither a file nor a folder: {path!r}.")
    return files


def _decompress(archive: Path, to: Path, limits: Limits, check: Check) -> None:
    most = most_tar_bytes(limits)
    written = 0
    with archive.open("rb") as packed, gzip.GzipFile(fileobj=packed) as stream, to.open("xb") as out:
        while chunk := stream.read(CHUNK):
            check()
            written += len(chunk)
            if written > most:
                raise rejected(f"The source unpacks to more than {limits.unpacked_bytes} bytes.")
            if written > RATIO_FLOOR and written > MOST_RATIO * packed.tell():
                raise rejected(f"The source is packed more than {MOST_RATIO} to 1.")
            out.write(chunk)


def _make_folders(path: str, into: Path, folders: set[str], files: dict[str, Content], limits: Limits) -> None:
    if path in folders:
        return
    parent = path.rpartition("/")[0]
    _make_folders(parent, into, folders, files, limits)
    if path in files:
        raise rejected(f"The source holds {path!r} both as a file and as a folder.")
    if len(folders) > limits.files:
        raise rejected(f"The source holds more than {limits.files} folders.")
    (into / path).mkdir(mode=0o755)
    folders.add(path)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, check: Check) -> Content:
    executable = bool(member.mode & 0o100)
    digest = hashlib.sha256()
    source = tar.extractfile(member)
    if source is None:
        raise tarfile.ReadError(f"no content for {member.name!r}")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with source, os.fdopen(descriptor, "wb") as out:
        left = member.size
        while left:
            check()
            chunk = source.read(min(PIECE, left))
            if not chunk:
                raise tarfile.ReadError("unexpected end of data")
            digest.update(chunk)
            out.write(chunk)
            left -= len(chunk)
        # Not left to the umask: two builders must see one tree.
        os.fchmod(out.fileno(), 0o755 if executable else 0o644)
    return Content(executable, digest.hexdigest())


class _Frugal(io.RawIOBase):
    """A file that refuses to be read in one great piece: tarfile takes whole extended headers into memory."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= PIECE:
            raise rejected("The source holds a tar header of unreasonable size.")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

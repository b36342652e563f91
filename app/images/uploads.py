"""Unfinished uploads of the embedded registry. All of it blocks; every refusal is a ``Fault``.

An upload is one file, ``_uploads/<hash of the repository>-<random>``: its size is the offset to go on from, so it
survives a restart, and its name binds it to its repository. Who writes to it holds an ``flock`` on the file itself.
"""

import fcntl
import hashlib
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import IO

from app.images import layout
from app.images.blobs import add_blob
from app.images.errors import Fault

_ID = re.compile(r"[0-9a-f]{32}")
#: Unfinished uploads one repository may have at a time.
MAX_OPEN = 64


def start(root: Path, repository: str) -> str:
    """Begin an upload and return its id."""
    layout.repository_path(root, repository)
    layout.make_folder(root / layout.UPLOADS)
    if len(_open(root, repository)) >= MAX_OPEN:
        raise Fault(429, "TOOMANYREQUESTS", "this repository has too many unfinished uploads", {"Retry-After": "60"})
    upload = uuid.uuid4().hex
    _path(root, repository, upload).touch(mode=0o600, exist_ok=False)
    return upload


def offset(root: Path, repository: str, upload: str) -> int:
    """Return how many bytes have arrived."""
    try:
        return _path(root, repository, upload).stat().st_size
    except FileNotFoundError as error:
        raise _unknown(upload) from error


def cancel(root: Path, repository: str, upload: str) -> None:
    """Forget an upload."""
    try:
        _path(root, repository, upload).unlink()
    except FileNotFoundError as error:
        raise _unknown(upload) from error


def append_to(root: Path, repository: str, upload: str) -> IO[bytes]:
    """Open an upload at its end and hold it until the file is closed; one writer at a time."""
    try:
        fd = os.open(_path(root, repository, upload), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise _unknown(upload) from error
    file = os.fdopen(fd, "ab", buffering=0)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise Fault(429, "TOOMANYREQUESTS", "another request writes to this upload", {"Retry-After": "1"}) from error
    os.utime(fd)
    return file


def room(root: Path, repository: str, upload: str, max_bytes: int) -> int:
    """Return how many bytes this upload may still take: a blob has the limit, all unfinished ones have it twice."""
    others = sum(size for name, size in _open(root, repository).items() if name != upload)
    return min(max_bytes, 2 * max_bytes - others) - offset(root, repository, upload)


def finish(root: Path, repository: str, upload: str, digest: str, *, max_bytes: int) -> int:
    """Turn an upload into the blob ``digest`` and return its size; a wrong digest ends the upload."""
    path = _path(root, repository, upload)
    with append_to(root, repository, upload) as file:
        os.fsync(file.fileno())
        with path.open("rb") as content:
            actual = hashlib.file_digest(content, digest.partition(":")[0]).hexdigest()
        if actual != digest.partition(":")[2]:
            path.unlink(missing_ok=True)
            raise Fault(400, "DIGEST_INVALID", "the content has another digest")
        size = os.fstat(file.fileno()).st_size
        try:
            add_blob(root, repository, digest, path, max_bytes=max_bytes, move=True)
        except FileNotFoundError as error:
            raise _unknown(upload) from error
    return size


def collect(root: Path, cutoff: float, limit: int) -> tuple[int, int]:
    """Remove up to ``limit`` files not written to since ``cutoff`` (Unix seconds); return how many and their bytes."""
    removed = freed = 0
    try:
        found = list(os.scandir(root / layout.UPLOADS))
    except FileNotFoundError:
        return 0, 0
    for entry in found:
        if removed >= limit:
            break
        try:
            stat = entry.stat(follow_symlinks=False)
            if stat.st_mtime > cutoff:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                Path(entry.path).unlink()
        except FileNotFoundError:
            continue
        removed, freed = removed + 1, freed + stat.st_size
    return removed, freed


def _prefix(repository: str) -> str:
    return hashlib.sha256(repository.encode()).hexdigest()[:16]


def _path(root: Path, repository: str, upload: str) -> Path:
    if not _ID.fullmatch(upload):
        raise _unknown(upload)
    return root / layout.UPLOADS / f"{_prefix(repository)}-{upload}"


def _open(root: Path, repository: str) -> dict[str, int]:
    prefix, found = _prefix(repository) + "-", {}
    for entry in os.scandir(root / layout.UPLOADS):
        if entry.name.startswith(prefix):
            try:
                found[entry.name.removeprefix(prefix)] = entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue
    return found


def _unknown(upload: str) -> Fault:
    return Fault(404, "BLOB_UPLOAD_UNKNOWN", f"there is no upload {upload[:64]} in this repository")

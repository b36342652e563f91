"""Blobs on the embedded registry's disk: add, share, read, remove, and how much room is left. All of it blocks.

Every refusal is a ``Fault``.
"""

import os
import shutil
import uuid
from pathlib import Path
from typing import IO

from app.images import layout
from app.images.errors import Fault
from app.images.layout import blob_path, locked

#: How many blobs and manifests a repository may hold, so that a million empty ones are not free.
MAX_FILES = 10_000


def blob_unknown(digest: str) -> Fault:
    """404 for a blob that this repository does not have."""
    return Fault(404, "BLOB_UNKNOWN", f"there is no blob {digest} in this repository")


def stat_blob(root: Path, repository: str, digest: str) -> int:
    """Return a blob's size in bytes and mark it as wanted now, so that a collection lets it be."""
    path = blob_path(root, repository, digest)
    # The lock keeps a collection from removing it between our look and our answer.
    with locked(root, repository, shared=True):
        size = size_of(path)
        if size is None:
            raise blob_unknown(digest)
        os.utime(path, follow_symlinks=False)
    return size


def open_blob(root: Path, repository: str, digest: str) -> IO[bytes]:
    """Open a blob for reading; what is open stays readable whatever happens to its name."""
    try:
        fd = os.open(blob_path(root, repository, digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise blob_unknown(digest) from error
    return os.fdopen(fd, "rb", buffering=0)


def add_blob(root: Path, repository: str, digest: str, file: Path, *, max_bytes: int, move: bool) -> None:
    """Put a whole, checked and synced file into a repository: by rename when ``move``, else by hard link.

    ``max_bytes`` bounds what the repository holds in all. A file that can't be linked (another owner's, or one link too
    many) is copied.
    """
    path = blob_path(root, repository, digest)
    with locked(root, repository):
        if size_of(path) is None:
            check_room(root, repository, file.stat().st_size, max_bytes)
            layout.make_folder(path.parent)
            if move:
                file.replace(path)
            else:
                _link(root, file, path)
            layout.sync_folder(path.parent)
        elif move:
            file.unlink()
        os.utime(path, follow_symlinks=False)


def mount_blob(root: Path, source: str, repository: str, digest: str, *, max_bytes: int) -> bool:
    """Share a blob of another repository with this one; False when the other does not have it."""
    path = blob_path(root, source, digest)
    if size_of(path) is None:
        return False
    try:
        add_blob(root, repository, digest, path, max_bytes=max_bytes, move=False)
    except FileNotFoundError:
        return False
    return True


def delete_blob(root: Path, repository: str, digest: str) -> None:
    """Remove a blob from this repository; other repositories keep theirs."""
    path = blob_path(root, repository, digest)
    with locked(root, repository):
        if size_of(path) is None:
            raise blob_unknown(digest)
        path.unlink()


def delete_repository(root: Path, repository: str) -> None:
    """Remove a repository with all it holds, but not the ones whose names continue its own; absence is fine."""
    folder = layout.repository_path(root, repository)
    trash = root / layout.UPLOADS / f"trash-{uuid.uuid4().hex}"
    with locked(root, repository):
        if not (folder / "blobs").exists():
            return
        layout.make_folder(trash)
        # The index goes first: without it, nothing of the rest is to be had by name.
        for name in ("index.json", "oci-layout", "blobs"):
            if (folder / name).exists():
                (folder / name).rename(trash / name)
        remove_if_empty(folder)
    shutil.rmtree(trash)


def remove_if_empty(folder: Path) -> bool:
    """Remove a folder unless something is in it, such as a repository whose name continues its own."""
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def size_of(path: Path) -> int | None:
    """Return a file's size in bytes; None when there is none."""
    try:
        return path.lstat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def check_room(root: Path, repository: str, more: int, max_bytes: int) -> None:
    """Raise the refusal when ``more`` bytes in one more file are too much for the repository."""
    sizes = [stat.st_size for _, stat in layout.blob_files(root, repository)]
    if sum(sizes) + more > max_bytes:
        raise Fault(413, "DENIED", f"the repository may hold at most {max_bytes} bytes")
    if len(sizes) >= MAX_FILES:
        raise Fault(413, "DENIED", f"the repository may hold at most {MAX_FILES} blobs and manifests")


def _link(root: Path, source: Path, path: Path) -> None:
    try:
        os.link(source, path, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:
        layout.make_folder(root / layout.UPLOADS)
        copy = root / layout.UPLOADS / f"tmp-{uuid.uuid4().hex}"
        try:
            shutil.copyfile(source, copy, follow_symlinks=False)
            with copy.open("rb") as file:
                os.fsync(file.fileno())
            copy.replace(path)
        finally:
            copy.unlink(missing_ok=True)

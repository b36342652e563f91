"""OCI image layouts on disk, one per repository: ``<root>/<repository>/{oci-layout,index.json,blobs/<alg>/<hex>}``.

Beside the repositories, under names that no repository can have, the root holds ``_uploads`` (unfinished files) and
``_locks``. Everything blocks, so callers on an event loop go through a thread.

A file appears under its final name by rename or link once it is whole and on the disk. Who reads an index to write it
back, or takes something away, holds the repository's lock: an ``flock`` on a file opened for the purpose, which shuts
out threads of one process just as it does other processes. Locks are striped over a fixed set of files that stay for
good, since a lock file removed while somebody waits on it shuts out nobody.
"""

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from app.images.errors import ImageInvalid, ReferenceInvalid
from app.images.reference import check_digest, check_repository, is_digest, is_tag

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"
#: Our own annotation on an index entry: what the manifest's ``subject`` is, so that referrers need no other file.
SUBJECT = "dev.slipway.subject"

UPLOADS = "_uploads"
LOCKS = "_locks"

# Components that mean something inside a layout; a repository of that name would lie inside another one's files.
_RESERVED = frozenset({"blobs", "index.json", "oci-layout"})
_STRIPES = 256


@dataclass(frozen=True)
class Entry:
    """One manifest of a repository; ``media_type`` is the Content-Type it was put with, byte for byte."""

    media_type: str
    digest: str
    size: int
    artifact_type: str | None = None
    subject: str | None = None


@dataclass(frozen=True)
class Index:
    """A repository's manifests by digest, and its tags."""

    entries: dict[str, Entry] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def find(self, reference: str) -> Entry | None:
        """Return the manifest that a tag or digest names."""
        return self.entries.get(self.tags.get(reference, reference))

    def put(self, entry: Entry, *tags: str) -> "Index":
        """Return the index with this manifest in it, under these tags too."""
        return Index({**self.entries, entry.digest: entry}, {**self.tags, **dict.fromkeys(tags, entry.digest)})

    def without(self, *digests: str) -> "Index":
        """Return the index without these manifests and their tags."""
        gone = set(digests)
        return Index(
            {d: e for d, e in self.entries.items() if d not in gone},
            {t: d for t, d in self.tags.items() if d not in gone},
        )

    def untagged(self, tag: str) -> "Index":
        """Return the index without this tag; its manifest stays."""
        return replace(self, tags={t: d for t, d in self.tags.items() if t != tag})


def repository_path(root: Path, repository: str) -> Path:
    """Return a repository's folder, which need not exist; raise ReferenceInvalid for a name that can't have one.

    The grammar has no ``..`` and no empty part, so the path can't leave the root by name; a symbolic link in it, which
    only a stranger can have made, is refused.
    """
    parts = check_repository(repository).split("/")
    if not _RESERVED.isdisjoint(parts):
        raise ReferenceInvalid(f"{repository!r} has a part that is reserved: {', '.join(sorted(_RESERVED))}")
    path = root
    for part in parts:
        path /= part
        if path.is_symlink():
            raise ReferenceInvalid(f"{repository!r} is not a repository")
    return path


def blob_path(root: Path, repository: str, digest: str) -> Path:
    """Return where a blob lies; raise ReferenceInvalid for a bad name or digest."""
    algorithm, _, encoded = check_digest(digest).partition(":")
    return repository_path(root, repository) / "blobs" / algorithm / encoded


def blob_files(root: Path, repository: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield digest and stat of every blob file of a repository."""
    for algorithm in ("sha256", "sha512"):
        try:
            found = list(os.scandir(repository_path(root, repository) / "blobs" / algorithm))
        except FileNotFoundError:
            continue
        for entry in found:
            if is_digest(digest := f"{algorithm}:{entry.name}"):
                try:
                    yield digest, entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue


def repositories(root: Path) -> Iterator[str]:
    """Yield the names of all repositories, nested ones included, in order."""
    pending = [""]
    while pending:
        at = pending.pop()
        try:
            found = [e.name for e in os.scandir(root / at) if e.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            continue
        if at and "blobs" in found:
            yield at
        inner = [f"{at}/{name}".lstrip("/") for name in found if name not in _RESERVED and not name.startswith("_")]
        pending.extend(sorted(inner, reverse=True))


@contextmanager
def locked(root: Path, repository: str, *, shared: bool = False) -> Iterator[None]:
    """Hold the repository's lock, alone or with other sharers. Never take a second one inside."""
    stripe = int.from_bytes(hashlib.sha256(repository.encode()).digest()[:4], "big") % _STRIPES
    (root / LOCKS).mkdir(parents=True, exist_ok=True)
    fd = os.open(root / LOCKS / f"{stripe:02x}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """Create a folder with its parents, on the disk, even while a collection removes empty ones beside it."""
    for attempt in range(20):
        missing = [p for p in (path, *path.parents) if not p.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
            for made in missing:
                sync_folder(made.parent)
        except FileNotFoundError:
            if attempt == 19:
                raise
            continue
        return


def sync_folder(path: Path) -> None:
    """Put a folder's entries on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(root: Path, path: Path, data: bytes) -> None:
    """Write a file so that others see all of it or nothing, also after a power cut."""
    make_folder(root / UPLOADS)
    temporary = root / UPLOADS / f"tmp-{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def load_index(root: Path, repository: str) -> Index | None:
    """Return a repository's index; None when there is no such repository."""
    try:
        raw = (repository_path(root, repository) / "index.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return _parse(json.loads(raw)["manifests"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageInvalid(f"the index of {repository!r} can't be read") from error


def save_index(root: Path, repository: str, index: Index) -> None:
    """Write a repository's index; the caller holds its lock."""
    folder = repository_path(root, repository)
    make_folder(folder / "blobs" / "sha256")
    if not (folder / "oci-layout").exists():
        write_file(root, folder / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    body = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": list(_render(index))}
    write_file(root, folder / "index.json", json.dumps(body, separators=(",", ":")).encode())


def _parse(manifests: list[dict[str, Any]]) -> Index:
    entries: dict[str, Entry] = {}
    tags: dict[str, str] = {}
    for m in manifests:
        notes = m.get("annotations") or {}
        entry = Entry(
            m["mediaType"], check_digest(m["digest"]), int(m["size"]), m.get("artifactType"), notes.get(SUBJECT)
        )
        entries[entry.digest] = entry
        if is_tag(tag := notes.get(REF_NAME) or ""):
            tags[tag] = entry.digest
    return Index(entries, tags)


def _render(index: Index) -> Iterator[dict[str, Any]]:
    names: dict[str, list[str | None]] = {}
    for tag, digest in sorted(index.tags.items()):
        names.setdefault(digest, []).append(tag)
    for digest, entry in index.entries.items():
        for name in names.get(digest, [None]):
            out: dict[str, Any] = {"mediaType": entry.media_type, "digest": digest, "size": entry.size}
            if entry.artifact_type:
                out["artifactType"] = entry.artifact_type
            notes = {k: v for k, v in ((REF_NAME, name), (SUBJECT, entry.subject)) if v}
            if notes:
                out["annotations"] = notes
            yield out

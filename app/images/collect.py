"""Garbage collection of the embedded registry. Blocks; goes through a thread from an event loop.

What is kept: the manifests the caller names, all they are made of, their referrers, and whatever is younger than the
grace period with all it is made of. Pushing, mounting and asking for a blob make it young, under the same lock that is
held here, so that a push under way never loses what it was told is there. What can't be read is left alone.
"""

import json
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from app.images import layout, uploads
from app.images.blobs import remove_if_empty
from app.images.errors import ImageInvalid
from app.images.layout import Index, blob_path
from app.images.manifests import MAX_MANIFEST, references


@dataclass(frozen=True)
class Collected:
    """What one pass removed, and of ``skipped`` repositories why nothing was; ``complete`` False: there is more."""

    repositories: int = 0
    manifests: int = 0
    blobs: int = 0
    uploads: int = 0
    bytes: int = 0
    complete: bool = True
    skipped: tuple[str, ...] = ()


@dataclass
class _Tally:
    left: int
    repositories: int = 0
    manifests: int = 0
    blobs: int = 0
    bytes: int = 0


def collect(
    root: Path,
    keep: Collection[tuple[str, str]],
    older_than: timedelta,
    limit: int,
    *,
    clock: Callable[[], float] = time.time,
) -> Collected:
    """Remove up to ``limit`` files that are unreachable and older than ``older_than``.

    ``keep`` holds (repository, digest). Read it from the database before the call; ``older_than`` must be longer than
    from a push to the row that names it.
    """
    wanted: dict[str, set[str]] = {}
    for repository, digest in keep:
        wanted.setdefault(repository, set()).add(digest)
    cutoff = clock() - older_than.total_seconds()
    removed, freed = uploads.collect(root, cutoff, limit)
    tally, skipped = _Tally(limit - removed, bytes=freed), []
    for repository in layout.repositories(root):
        if tally.left <= 0:
            break
        try:
            with layout.locked(root, repository):
                _sweep(root, repository, wanted.get(repository, set()), cutoff, tally)
        except ImageInvalid as error:
            skipped.append(f"{repository}: {error}")
    return Collected(
        repositories=tally.repositories,
        manifests=tally.manifests,
        blobs=tally.blobs,
        uploads=removed,
        bytes=tally.bytes,
        complete=tally.left > 0,
        skipped=tuple(skipped),
    )


def _sweep(root: Path, repository: str, keep: set[str], cutoff: float, tally: _Tally) -> None:
    index = layout.load_index(root, repository) or Index()
    files = dict(layout.blob_files(root, repository))
    young = {digest for digest, stat in files.items() if stat.st_mtime > cutoff}
    needed = _reach(root, repository, index, keep | (young & index.entries.keys()))
    doomed = [digest for digest in index.entries if digest not in needed][: tally.left]
    rest = index.without(*doomed)
    if doomed:
        # Before the files: a manifest that is listed is whole.
        layout.save_index(root, repository, rest)
    needed = _reach(root, repository, rest, keep | rest.entries.keys())
    for digest, stat in files.items():
        if digest in needed or digest in young or tally.left <= 0:
            continue
        blob_path(root, repository, digest).unlink(missing_ok=True)
        tally.left -= 1
        # Other repositories may hold the same bytes by another link.
        tally.bytes += stat.st_size if stat.st_nlink == 1 else 0
        if digest in doomed:
            tally.manifests += 1
        else:
            tally.blobs += 1
    if not rest.entries and not any(True for _ in layout.blob_files(root, repository)):
        tally.repositories += _remove(layout.repository_path(root, repository))


def _reach(root: Path, repository: str, index: Index, roots: Collection[str]) -> set[str]:
    """Return the digests of ``roots``, all they are made of, and what refers to any of these."""
    found: set[str] = set()
    pending = list(roots)
    while pending:
        digest = pending.pop()
        if digest in found:
            continue
        found.add(digest)
        if digest in index.entries or digest in roots:
            pending += _made_of(blob_path(root, repository, digest))
        pending += [e.digest for e in index.entries.values() if e.subject == digest]
    return found


def _made_of(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_MANIFEST:
                return []
            return [d["digest"] for d in references(json.load(file))]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ImageInvalid(f"the manifest {path.name} can't be read") from error


def _remove(folder: Path) -> bool:
    for name in ("sha256", "sha512"):
        remove_if_empty(folder / "blobs" / name)
    if not remove_if_empty(folder / "blobs"):
        return False
    for name in ("index.json", "oci-layout"):
        (folder / name).unlink(missing_ok=True)
    # A repository whose name continues this one's may live inside.
    remove_if_empty(folder)
    return True

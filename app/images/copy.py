"""Carrying an image by digest from one registry to another, byte for byte.

Safe to repeat: blobs that are there already are not sent again, and the manifest goes last, so that a target never
lists an image it does not have whole.
"""

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from app.images.client import Registry
from app.images.errors import ImageInvalid, ImageNotFound
from app.images.manifests import references
from app.images.reference import is_digest
from app.images.source import Manifest, Source

# An index in an index is legal, and so far nobody has needed a third level.
_MAX_DEPTH = 4
_MAX_DESCRIPTORS = 1000


@dataclass(frozen=True)
class Copied:
    """What a copy did: blobs sent with their bytes, blobs shared by mount, blobs that were there."""

    sent: int = 0
    sent_bytes: int = 0
    mounted: int = 0
    present: int = 0

    def __add__(self, other: "Copied") -> "Copied":
        return Copied(
            self.sent + other.sent,
            self.sent_bytes + other.sent_bytes,
            self.mounted + other.mounted,
            self.present + other.present,
        )


async def copy(
    source: Source, repository: str, digest: str, target: Registry, to: str, *, chunk_bytes: int | None = None
) -> Copied:
    """Copy the manifest ``digest`` with its config, layers and, for an index, children into repository ``to``.

    Memory stays bounded whatever the size. The digest is checked at both ends. ``chunk_bytes`` as in ``upload_blob``.
    """
    if not is_digest(digest):
        raise ImageInvalid(f"an image is copied by digest, not by {digest!r}")
    done = await _copy(_Job(source, repository, target, to, chunk_bytes), digest, _MAX_DEPTH)
    await target.get_manifest(to, digest)
    return done


@dataclass(frozen=True)
class _Job:
    source: Source
    repository: str
    target: Registry
    to: str
    chunk_bytes: int | None


async def _copy(job: _Job, digest: str, depth: int) -> Copied:
    if depth == 0:
        raise ImageInvalid(f"{digest} in {job.repository} is an index nested too deep")
    manifest = await job.source.get_manifest(job.repository, digest)
    content = read_manifest(manifest)
    children = {d["digest"] for d in content.get("manifests") or []}
    done = Copied()
    for descriptor in references(content):
        if descriptor["digest"] in children:
            done += await _copy(job, descriptor["digest"], depth - 1)
        else:
            done += await _copy_blob(job, descriptor)
    await job.target.put_manifest(job.to, digest, manifest.media_type, manifest.body)
    return done


async def _copy_blob(job: _Job, descriptor: Mapping[str, Any]) -> Copied:
    digest, size = descriptor["digest"], descriptor["size"]
    if descriptor.get("urls") or "nondistributable" in descriptor.get("mediaType", ""):
        return Copied()
    if await job.target.blob_size(job.to, digest) == size:
        return Copied(present=1)
    same = isinstance(job.source, Registry) and job.source.host == job.target.host
    if same and await job.target.mount_blob(job.to, digest, job.repository):
        return Copied(mounted=1)
    real = await job.source.blob_size(job.repository, digest)
    if real is None:
        raise ImageNotFound(f"the blob {digest} is not in {job.repository}")
    if real != size:
        raise ImageInvalid(f"the blob {digest} in {job.repository} has {real} bytes, its manifest says {size}")

    def read(offset: int) -> AsyncGenerator[bytes, None]:
        return job.source.open_blob(job.repository, digest, offset=offset)

    await job.target.upload_blob(job.to, digest, size, read, chunk_bytes=job.chunk_bytes)
    return Copied(sent=1, sent_bytes=size)


def read_manifest(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest's content; ImageInvalid unless every descriptor in it has a good digest and a size."""
    try:
        content = json.loads(manifest.body)
        found = references(content)
        if len(found) > _MAX_DESCRIPTORS:
            raise ValueError("too many descriptors")
        for descriptor in found:
            if not is_digest(descriptor["digest"]) or type(descriptor["size"]) is not int or descriptor["size"] < 0:
                raise ValueError("a descriptor without a good digest and size")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ImageInvalid(f"the manifest {manifest.digest} can't be read: {error}") from error
    return dict(content)

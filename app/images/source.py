"""Where images are read from: any registry over HTTP, or a layout on this disk. Both are a ``Source``."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from app.images import blobs, manifests
from app.images.errors import Fault, ImageInvalid, ImageNotFound
from app.images.layout import blob_path
from app.images.reference import check_repository, digest_of

_READ = 1024 * 1024


@dataclass(frozen=True)
class Manifest:
    """A manifest as it was stored: ``body`` has ``digest``, and ``media_type`` is its Content-Type."""

    digest: str
    media_type: str
    body: bytes = field(repr=False)


class Source(Protocol):
    """Reads images. Everything raises ImageNotFound for what isn't there and ImageInvalid for a wrong digest."""

    async def get_manifest(self, repository: str, reference: str) -> Manifest:
        """Return a manifest by tag or digest, its digest checked; at most 4 MiB."""
        ...

    async def blob_size(self, repository: str, digest: str) -> int | None:
        """Return a blob's real size in bytes; None when it isn't there."""
        ...

    async def get_blob(self, repository: str, digest: str, *, max_bytes: int) -> bytes:
        """Return a whole small blob, its digest checked; ImageInvalid when it is larger than ``max_bytes``."""
        ...

    def open_blob(self, repository: str, digest: str, *, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield a blob's bytes from ``offset`` on, in pieces; the digest is the reader's to check."""
        ...


class Disk:
    """The embedded registry's own files, read without HTTP; ``root`` is its folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def get_manifest(self, repository: str, reference: str) -> Manifest:
        """See ``Source``."""
        try:
            found = await asyncio.to_thread(manifests.get_manifest, self._root, repository, reference)
        except Fault as fault:
            raise ImageNotFound(f"{repository}: {fault.message}") from fault
        if digest_of(found.body, found.entry.digest) != found.entry.digest:
            raise ImageInvalid(f"{repository}: the manifest {found.entry.digest} is damaged on the disk")
        return Manifest(found.entry.digest, found.entry.media_type, found.body)

    async def blob_size(self, repository: str, digest: str) -> int | None:
        """See ``Source``. On the loop: a thread's turn costs more than this look."""
        return blobs.size_of(blob_path(self._root, check_repository(repository), digest))

    async def get_blob(self, repository: str, digest: str, *, max_bytes: int) -> bytes:
        """See ``Source``."""
        size = await self.blob_size(repository, digest)
        if size is not None and size > max_bytes:
            raise ImageInvalid(f"{repository}: the blob {digest} has {size} bytes, more than {max_bytes}")
        data = await asyncio.to_thread(self._read, repository, digest)
        if digest_of(data, digest) != digest:
            raise ImageInvalid(f"{repository}: the blob {digest} is damaged on the disk")
        return data

    def _read(self, repository: str, digest: str) -> bytes:
        try:
            with blobs.open_blob(self._root, repository, digest) as file:
                return file.read()
        except Fault as fault:
            raise ImageNotFound(f"{repository}: {fault.message}") from fault

    async def open_blob(self, repository: str, digest: str, *, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """See ``Source``."""
        try:
            file = await asyncio.to_thread(blobs.open_blob, self._root, repository, digest)
        except Fault as fault:
            raise ImageNotFound(f"{repository}: {fault.message}") from fault
        with file:
            await asyncio.to_thread(file.seek, offset)
            while data := await asyncio.to_thread(file.read, _READ):
                yield data

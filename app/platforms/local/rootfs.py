"""Images as folders: pulled by digest, every digest checked, unpacked without a way out.

``images/<hex>/rootfs`` and ``images/<hex>/config.json`` appear by one rename; all releases of that image share it.
Sources: OCI image-spec manifest.md, config.md, layer.md (media types, ``rootfs.diff_ids``, white-outs).
"""

import asyncio
import functools
import gzip
import json
import secrets
import ssl
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from app.images.client import Registry
from app.images.errors import ImageInvalid, ImageNotFound, RegistryDenied, RegistryError, RegistryUnavailable
from app.platforms.base import ImageRef, Misconfigured, PlatformError, Rejected, Transient
from app.platforms.local.state import remove_tree
from app.platforms.local.unpack import Unpacking
from app.platforms.locks import Locks
from app.settings import MIB

MANIFESTS = {"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"}
MAX_CONFIG = 1 * MIB


@dataclass(frozen=True)
class Image:
    """An unpacked image and how its program is started."""

    rootfs: Path
    argv: tuple[str, ...]
    env: dict[str, str]
    folder: str


class Images:
    """The unpacked images of one platform folder. ``max_bytes`` bounds an image unpacked."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._locks = Locks()

    def find(self, digest: str) -> Image | None:
        """Return an image that is there already. Blocks for a small file."""
        path = self._folder / digest.replace(":", "-")
        try:
            config = json.loads((path / "config.json").read_text())
        except FileNotFoundError:
            return None
        return Image(path / "rootfs", tuple(config["argv"]), config["env"], config["folder"])

    async def ensure(self, ref: ImageRef) -> Image:
        """Return the image, pulling it when it isn't there. Raises Transient, Misconfigured or Rejected."""
        async with self._locks.of(ref.digest):
            found = await asyncio.to_thread(self.find, ref.digest)
            if found is not None:
                return found
            try:
                return await self._pull(ref)
            except RegistryError as error:
                raise _translated(error) from error
            except (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, KeyError, TypeError, ValueError) as error:
                raise Rejected("local", "deploy", f"the image {ref.digest} can't be unpacked: {error}") from error
            except OSError as error:
                raise Transient("local", "deploy", f"the image {ref.digest} can't be unpacked: {error}") from error

    async def _pull(self, ref: ImageRef) -> Image:
        draft = self._folder / f".draft-{secrets.token_hex(6)}"
        draft.mkdir(mode=0o711)
        try:
            transport = httpx.AsyncHTTPTransport(verify=await asyncio.to_thread(_tls))
            async with Registry(
                ref.registry, username=ref.username, password=ref.password, transport=transport
            ) as registry:
                found = await registry.get_manifest(ref.repository, ref.digest)
                manifest = json.loads(found.body)
                if manifest.get("mediaType", found.media_type) not in MANIFESTS:
                    raise ImageInvalid(f"{ref.digest} is not an image manifest but {found.media_type}")
                raw = await registry.get_blob(ref.repository, manifest["config"]["digest"], max_bytes=MAX_CONFIG)
                config = json.loads(raw)
                unpacking = Unpacking(draft / "rootfs", self._max_bytes)
                for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
                    blob = draft / "layer"
                    if layer["size"] > self._max_bytes:
                        raise ImageInvalid(f"{ref.digest} has a layer of {layer['size']} bytes")
                    await registry.stream_blob(ref.repository, layer["digest"], blob, size=layer["size"])
                    await asyncio.to_thread(unpacking.layer, blob, layer["mediaType"], diff_id)
                    await asyncio.to_thread(blob.unlink)
            await asyncio.to_thread(unpacking.finish)
            start = start_of(config)
            (draft / "config.json").write_text(json.dumps(start))
            await asyncio.to_thread(draft.rename, self._folder / ref.digest.replace(":", "-"))
        finally:
            await asyncio.to_thread(remove_tree, draft)
        image = await asyncio.to_thread(self.find, ref.digest)
        assert image is not None
        return image

    async def collect(self, used: Callable[[], set[str]]) -> None:
        """Remove images whose digest is not in ``used()``, which is asked anew under each image's lock."""
        for path in await asyncio.to_thread(lambda: list(self._folder.iterdir())):
            if path.name.startswith(".draft-"):
                continue
            digest = path.name.replace("-", ":", 1)
            async with self._locks.of(digest):
                if digest not in used():
                    trash = path.with_name(f".draft-{secrets.token_hex(6)}")
                    await asyncio.to_thread(path.rename, trash)
                    await asyncio.to_thread(remove_tree, trash)

    def clean(self) -> None:
        """Remove what a killed predecessor left half made. Blocks."""
        for path in self._folder.glob(".draft-*"):
            remove_tree(path)


@functools.cache
def _tls() -> ssl.SSLContext:
    """Read the CA certificates once: it takes longer than pulling a small image."""
    return httpx.create_ssl_context()


def _translated(error: RegistryError) -> PlatformError:
    if isinstance(error, RegistryUnavailable):
        return Transient("local", "deploy", str(error), retry_after=error.retry_after)
    if isinstance(error, RegistryDenied):
        return Misconfigured("local", "deploy", str(error))
    if isinstance(error, (ImageNotFound, ImageInvalid)):
        return Rejected("local", "deploy", str(error))
    return Rejected("local", "deploy", str(error))


def start_of(config: dict[str, Any]) -> dict[str, Any]:
    """Take from an image's config how to start it."""
    inner = config.get("config") or {}
    argv = [*(inner.get("Entrypoint") or []), *(inner.get("Cmd") or [])]
    if not argv or not str(argv[0]).startswith("/"):
        raise ImageInvalid("the image has no entrypoint with an absolute path")
    env = dict(word.split("=", 1) for word in inner.get("Env") or [] if "=" in word)
    return {"argv": argv, "env": env, "folder": inner.get("WorkingDir") or "/"}

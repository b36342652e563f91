"""Images as folders: pulled by digest, every digest checked, unpacked without a way out.

``images/<hex>/rootfs`` and ``images/<hex>/config.json`` appear by one rename; all releases of that image share it.
Sources: OCI image-spec manifest.md, config.md, layer.md (media types, ``rootfs.diff_ids``, white-outs).
"""

import asyncio
import functools
import gzip
import hashlib
import json
import os
import secrets
import ssl
import stat
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import httpx

from app.images.client import Registry
from app.images.errors import ImageInvalid, ImageNotFound, RegistryDenied, RegistryError, RegistryUnavailable
from app.platforms.base import ImageRef, Misconfigured, PlatformError, Rejected, Transient
from app.platforms.local.state import remove_tree
from app.settings import MIB

MANIFESTS = {"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"}
MAX_CONFIG = 1 * MIB
MAX_FILES = 200_000
MOUNT_POINTS = ("proc", "dev", "tmp", "etc")
MOUNT_FILES = ("etc/resolv.conf", "etc/hosts")


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
        self._locks: dict[str, asyncio.Lock] = {}

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
        async with self._locks.setdefault(ref.digest, asyncio.Lock()):
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
            async with self._locks.setdefault(digest, asyncio.Lock()):
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


class _Counted:
    """Reads a stream, hashing it and refusing to give more than ``limit`` bytes."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file = file
        self._left = limit
        self.hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(min(size, MIB) if size >= 0 else MIB)
        self._left -= len(data)
        if self._left < 0:
            raise ImageInvalid("the image is too large unpacked")
        self.hash.update(data)
        return data


class Unpacking:
    """Layers put over each other in a folder. Blocks; every refusal is ImageInvalid."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._left = max_bytes
        self._files = 0
        root.mkdir(mode=0o755)

    def layer(self, blob: Path, media_type: str, diff_id: str) -> None:
        """Unpack one layer and check the digest of its tar."""
        with blob.open("rb") as raw:
            packed = media_type.endswith(("gzip", ".tar.gzip"))
            if not packed and not media_type.endswith(".tar"):
                raise ImageInvalid(f"layers of type {media_type} are not supported")
            counted = _Counted(gzip.GzipFile(fileobj=raw) if packed else raw, self._left + 64 * MIB)  # type: ignore[arg-type]
            with tarfile.open(fileobj=counted, mode="r|") as archive:  # type: ignore[call-overload]
                for member in archive:
                    self._member(archive, member)
            while counted.read():  # the padding belongs to the digest too
                pass
        if f"sha256:{counted.hash.hexdigest()}" != diff_id:
            raise ImageInvalid("a layer unpacks to something else than its config says")

    def _member(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        self._files += 1
        if self._files > MAX_FILES:
            raise ImageInvalid(f"the image has more than {MAX_FILES} files")
        parts = self._parts(member.name)
        if not parts:
            return
        target = self._below(parts)
        if parts[-1].startswith(".wh."):
            hidden = target.parent.iterdir() if parts[-1] == ".wh..wh..opq" else [target.with_name(parts[-1][4:])]
            for path in list(hidden):
                remove_tree(path)
        elif member.isdir():
            self._clear(target, keep_folder=True)
            target.mkdir(exist_ok=True)
            target.chmod(0o755)
        else:
            self._put(archive, member, target)

    def _put(self, archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
        self._clear(target, keep_folder=False)
        if member.issym():
            target.symlink_to(member.linkname)
        elif member.islnk():
            source = self._below(self._parts(member.linkname))
            if not stat.S_ISREG(source.lstat().st_mode):
                raise ImageInvalid(f"{member.name} links to something that isn't a file")
            os.link(source, target, follow_symlinks=False)
        elif member.isreg():
            self._write(archive, member, target)
        else:
            raise ImageInvalid(f"{member.name} is a device or a pipe")

    def _write(self, archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
        self._left -= member.size
        if self._left < 0:
            raise ImageInvalid("the image is too large unpacked")
        source = archive.extractfile(member)
        assert source is not None
        # World-readable, whatever the image says: the dropped account owns nothing here. No setuid, no setgid.
        mode = 0o755 if member.mode & 0o111 else 0o644
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            while data := source.read(MIB):
                file.write(data)

    def _parts(self, name: str) -> tuple[str, ...]:
        parts = tuple(p for p in PurePosixPath(name).parts if p not in {"/", "."})
        if ".." in parts or name.startswith("/") or "\0" in name:
            raise ImageInvalid(f"{name!r} leads out of the image")
        return parts

    def _below(self, parts: tuple[str, ...]) -> Path:
        """Return the path of an entry whose folders, made as needed, are folders and no links."""
        here = self._root
        for part in parts[:-1]:
            here = here / part
            if here.is_symlink() or (here.exists() and not here.is_dir()):
                raise ImageInvalid(f"{'/'.join(parts)} lies below something that isn't a folder")
            here.mkdir(mode=0o755, exist_ok=True)
        return here / parts[-1]

    def _clear(self, target: Path, *, keep_folder: bool) -> None:
        if target.is_symlink() or target.exists():
            if keep_folder and target.is_dir() and not target.is_symlink():
                return
            remove_tree(target)

    def finish(self) -> None:
        """Make the places that the sandbox mounts things on; they can't be made once the image is read-only."""
        for name in MOUNT_POINTS:
            self._clear(self._root / name, keep_folder=True)
            (self._root / name).mkdir(mode=0o755, exist_ok=True)
        for name in MOUNT_FILES:
            self._clear(self._root / name, keep_folder=False)
            (self._root / name).write_bytes(b"")

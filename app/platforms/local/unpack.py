"""Layers unpacked over each other, without a way out of the folder. Source: OCI image-spec layer.md."""

import gzip
import hashlib
import os
import stat
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO

from app.images.errors import ImageInvalid
from app.platforms.local.state import remove_tree
from app.settings import MIB

MAX_FILES = 200_000
MOUNT_POINTS = ("proc", "dev", "tmp", "etc")
MOUNT_FILES = ("etc/resolv.conf", "etc/hosts")


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

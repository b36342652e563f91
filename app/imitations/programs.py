"""What an imitation really runs: programs of images that it pulled, as plain child processes without a sandbox.

That is fit for a developer's own machine and for tests, never for strangers' code.
"""

import asyncio
import contextlib
import gzip
import hashlib
import json
import os
import signal
import tarfile
from asyncio.subprocess import PIPE, STDOUT
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from app import children
from app.images.client import Registry
from app.images.errors import ImageInvalid

LINES = 500
NOTE = ".started"
"""A file beside each started program, with its process id and when that process began."""
_MAX_CONFIG = 1024 * 1024


@dataclass(frozen=True)
class Program:
    """A pulled image: its command, and the environment it brings."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


async def pull(registry: Registry, repository: str, digest: str, folder: Path) -> Program:
    """Pull an image by digest with the registry's credential and unpack its program; every digest is checked.

    Raises the errors of ``app.images.errors``: RegistryDenied for a wrong credential, ImageNotFound, ImageInvalid.
    """
    manifest = json.loads((await registry.get_manifest(repository, digest)).body)
    config = json.loads(await registry.get_blob(repository, manifest["config"]["digest"], max_bytes=_MAX_CONFIG))
    argv = [*(config["config"].get("Entrypoint") or ()), *(config["config"].get("Cmd") or ())]
    root = folder / digest.replace(":", "-")
    for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        packed = folder / f"{layer['digest'].replace(':', '-')}.{os.urandom(4).hex()}"
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        await registry.stream_blob(repository, layer["digest"], packed, size=layer["size"])
        await asyncio.to_thread(_unpack, packed, root, argv[0].lstrip("/"), diff_id)
    env = dict(word.split("=", 1) for word in config["config"].get("Env") or ())
    return Program((str(root / argv[0].lstrip("/")), *argv[1:]), env)


def _unpack(packed: Path, root: Path, wanted: str, diff_id: str) -> None:
    data = gzip.decompress(packed.read_bytes())
    packed.unlink()
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != diff_id:
        raise ImageInvalid(f"a layer is not {diff_id} when unpacked")
    layer = root.with_name(f"{root.name}.{os.urandom(4).hex()}.tar")
    layer.write_bytes(data)
    try:
        with tarfile.open(layer) as archive:
            for member in archive:
                if member.name.lstrip("./") == wanted and member.isfile() and (source := archive.extractfile(member)):
                    target = root / wanted
                    target.parent.mkdir(parents=True, exist_ok=True)
                    # Written beside and renamed: the same program may be running already.
                    part = target.with_name(f".{target.name}.{os.urandom(4).hex()}")
                    part.write_bytes(source.read())
                    part.chmod(0o755)
                    part.replace(target)
    finally:
        layer.unlink()


@dataclass(frozen=True)
class Line:
    """One line that a program wrote."""

    at: datetime
    text: str


@dataclass
class Running:
    """A started program; ``ended`` is set once it is over and all it wrote is in ``lines``."""

    process: asyncio.subprocess.Process
    lines: deque[Line]
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _reader: "asyncio.Task[None] | None" = None

    @property
    def pid(self) -> int:
        """The process id, which is also its group's."""
        return self.process.pid

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self.process.returncode

    async def stop(self, number: int = signal.SIGTERM, grace: float = 5.0) -> None:
        """Send a signal, then SIGKILL after ``grace`` seconds; returns when it is over."""
        self._kill(number)
        try:
            async with asyncio.timeout(grace):
                await self.ended.wait()
        except TimeoutError:
            self._kill(signal.SIGKILL)
            await self.ended.wait()

    def _kill(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def follow(self) -> None:
        """Read what it writes until it is over, and then see to it that its children are, too."""
        assert self.process.stdout is not None
        try:
            while raw := await self.process.stdout.readline():
                self.lines.append(Line(datetime.now(UTC), raw.decode("utf-8", "replace").rstrip("\n")))
        except ValueError:  # a line without an end: what is lost is only log
            self._kill(signal.SIGKILL)
        await self.process.wait()
        self._kill(signal.SIGKILL)
        self.ended.set()


async def start(argv: Sequence[str], env: Mapping[str, str], cwd: Path, lines: deque[Line] | None = None) -> Running:
    """Start a program in a process group of its own, with just this environment; ``lines`` are added to those given."""
    process = await children.start(*argv, env=dict(env), cwd=cwd, stdout=PIPE, stderr=STDOUT)
    _note(process.pid, cwd)
    running = Running(process, deque(maxlen=LINES) if lines is None else lines)
    running._reader = asyncio.create_task(running.follow(), name=f"program {process.pid}")  # noqa: SLF001 - its maker
    return running


def _note(pid: int, cwd: Path) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # it is over already
        (cwd / NOTE).write_text(f"{pid} {psutil.Process(pid).create_time()}")


def end_left_over(folder: Path) -> int:
    """Kill what a process that was itself killed started below ``folder``; returns how many programs that were."""
    ended = 0
    for note in folder.rglob(NOTE):
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            pid, began = note.read_text().split()
            if psutil.Process(int(pid)).create_time() == float(began):  # else the number is somebody else's by now
                os.killpg(int(pid), signal.SIGKILL)
                ended += 1
    return ended

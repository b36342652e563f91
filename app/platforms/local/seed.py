"""The seed: a build cache with the standard library in it, made once per home and never writable by a build.

Each build sees it through an overlay whose writes die with it. Where the kernel allows no overlay in a user namespace a
build gets a private copy instead: hard links would be cheaper, but whoever owns a link can write to the seed through it.

Its folders belong to the account that builds have, since the overlay gives a new file only to the owner of its folder: Go
keeps the index of a fetched module there and fails without. Where builds are not sandboxed they must not get that far, so
the seed's own folder is then closed to all but us.

Entries carry a time far ahead, because Go refreshes entries older than an hour (``cache.used`` in cmd/go), and that would
copy the whole seed into every build's memory.
"""

import asyncio
import fcntl
import os
import secrets
import shutil
import subprocess
from pathlib import Path

from app.platforms.base import Misconfigured, Progress
from app.platforms.local import sandbox
from app.platforms.local.sandbox import Mount
from app.platforms.local.spawner import Spawner
from app.platforms.local.state import remove_tree
from app.platforms.local.toolchain import Toolchain

AHEAD = 4102444800
"""2100-01-01, in Unix seconds."""
MAKE_SECONDS = 900.0
FORMAT = 1
"""Goes up whenever a seed of this code is another than before, so that homes get a new one."""


class Seed:
    """The seed of one Go version; ``ready`` makes it when it isn't there."""

    def __init__(self, folder: Path, tools: Toolchain, spawner: Spawner) -> None:
        self._folder = folder
        self._tools = tools
        self._spawner = spawner
        self._making: asyncio.Task[Path] | None = None

    async def ready(self, progress: Progress | None = None) -> Path:
        """Return the folder of the seed; the first call makes it (some 15 s on two cores), others wait for that."""
        path = self._folder / name(self._tools)
        if path.is_dir():
            await asyncio.to_thread(self._admit, path)
            return path
        if self._making is None or (self._making.done() and not path.is_dir()):
            self._making = asyncio.create_task(self._in_a_thread(path))
        if progress:
            await progress(f"Compiling the standard library of {self._tools.go_version} once, for all builds to come.")
        await asyncio.shield(self._making)
        await asyncio.to_thread(self._admit, path)
        return path

    async def _in_a_thread(self, path: Path) -> Path:
        twin = self._spawner.twin()
        try:
            await twin.open()
            return await twin.run(lambda: self._make(path))
        finally:
            await asyncio.to_thread(twin.close)

    async def close(self) -> None:
        """Wait for a seed in the making: a thread can't be interrupted."""
        if self._making is not None:
            await asyncio.wait([self._making])
            self._making.exception()

    def _make(self, path: Path) -> Path:
        with (self._folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.is_dir():
                return path
            for old in self._folder.glob(".draft-*"):
                remove_tree(old)
            draft = self._folder / f".draft-{secrets.token_hex(4)}"
            draft.mkdir(mode=0o755)
            if self._spawner.account:
                os.chown(draft, self._spawner.account.uid, self._spawner.account.gid)
            self._compile(draft)
            self._close(draft)
            draft.rename(path)
            return path

    def _admit(self, path: Path) -> None:
        """Let builds look into the seed through an overlay, or not at all."""
        account = self._spawner.account
        if account is None:
            return
        owner = (account.uid, account.gid) if self._tools.sandboxed else (os.geteuid(), os.getegid())
        os.chown(path, *owner)
        path.chmod(0o755 if self._tools.sandboxed else 0o700)

    def _close(self, draft: Path) -> None:
        """Take the files over and close them to everybody's writing."""
        account = self._spawner.account
        builds = (account.uid, account.gid) if account else (os.geteuid(), os.getegid())
        for folder, _, names in os.walk(draft, topdown=False):
            for name in names:
                path = Path(folder, name)
                os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)
                path.chmod(0o444)
                os.utime(path, (AHEAD, AHEAD))
            os.chown(folder, *builds)
            Path(folder).chmod(0o755)

    def _compile(self, draft: Path) -> None:
        go_root = self._tools.need_go("seed")
        bwrap = self._tools.need_sandbox("seed")
        env = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOTELEMETRY": "off", "GOENV": "off", "GOWORK": "off"}
        env |= {"GOPROXY": "off", "GOFLAGS": "", "PATH": "/usr/bin:/bin"}
        if bwrap:
            env |= {"GOCACHE": sandbox.GOCACHE, "HOME": "/tmp", "GOPATH": "/tmp/go"}  # noqa: S108 - inside
            argv = [
                *sandbox.base(bwrap, "seed", network=False),
                "--die-with-parent",
                *sandbox.system(),
                *sandbox.mounts([Mount(go_root, sandbox.GO), Mount(draft, sandbox.GOCACHE, writable=True)]),
                *sandbox.private(1 << 30),
                *("--chdir", "/", "--", f"{sandbox.GO}/bin/go"),
            ]
        else:
            env |= {"GOCACHE": str(draft), "HOME": str(draft), "GOPATH": str(draft / "go")}
            argv = [str(go_root / "bin/go")]
        try:
            done = subprocess.run(
                [*argv, "build", "-trimpath", "std"],
                env=env,
                cwd=None if bwrap else "/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=MAKE_SECONDS,
                check=False,
                **self._spawner.drop(),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Misconfigured("local", "seed", f"the standard library can't be compiled: {error}") from error
        if done.returncode != 0:
            words = done.stderr.decode(errors="replace").strip()[-500:]
            raise Misconfigured("local", "seed", f"the standard library can't be compiled: {words}")


def name(tools: Toolchain) -> str:
    """Return the name of the seed's folder, below ``local/seed`` of a home."""
    return f"seed-{FORMAT}-{tools.go_version}"


def copy(seed: Path, target: Path, owner: tuple[int, int] | None) -> None:
    """Make a private copy for one build, where there is no overlay. Blocks, for a second or two."""
    shutil.copytree(seed, target, copy_function=shutil.copy2)
    for folder, _, names in os.walk(target):
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            path.chmod(0o755 if path.is_dir() else 0o644)
            if owner:
                os.chown(path, *owner)

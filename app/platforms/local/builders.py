"""Builders: the builder program as a sandboxed process, one per run."""

import asyncio
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from app.platforms.base import BuilderSpec, Found, Inspection, Launched, Listing, LogLine, Phase, Ref, Size
from app.platforms.local import limits, sandbox, seed
from app.platforms.local.process import Command, Process, tail
from app.platforms.local.processes import Processes
from app.platforms.local.sandbox import Mount
from app.platforms.local.spawner import Spawner
from app.platforms.local.state import remove_tree
from app.platforms.local.toolchain import Toolchain, package_folder, site_folder
from app.platforms.locks import Locks
from app.settings import MIB

KEEP_ENDED = 3600.0
"""Seconds for which an ended builder is remembered, so that its exit code can still be seen."""
PROGRAM = ("-B", "-P", "-m", "builder")


class LocalBuilders:
    """Fulfils ``Builders``. ``program`` are the words after the Python interpreter."""

    def __init__(
        self,
        *,
        runs: Path,
        tools: Toolchain,
        spawner: Spawner,
        processes: Processes,
        cache: seed.Seed,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self._runs = runs
        self._tools = tools
        self._spawner = spawner
        self._processes = processes
        self._cache = cache
        self._program = tuple(program)
        self._locks = Locks()
        self.overlay = True

    async def open(self) -> None:
        """Remove folders of runs that no process has any more."""
        for path in await asyncio.to_thread(lambda: list(self._runs.iterdir())):
            if self._get(path.name) is None:
                await asyncio.to_thread(remove_tree, path)

    def fit(self, size: Size) -> Size:
        """As asked, up to what the machine has."""
        return limits.fit(size)

    def _get(self, name: str) -> Process | None:
        process = self._processes.live.get(name)
        return process if process is not None and process.record.kind == "builder" else None

    async def launch(self, spec: BuilderSpec) -> Launched:
        """Start it, or find it. The first launch of all makes the seed."""
        size = self.fit(spec.size)
        self._tools.need_sandbox("launch")
        self._tools.need_go("launch")
        async with self._locks.of(spec.name):
            if self._get(spec.name) is None:
                cache = await self._cache.ready(spec.progress)
                command = await asyncio.to_thread(self._command, spec, size, cache)
                await self._processes.start(command)
        return Launched(handle=spec.name, region=None, effective=size)

    def _command(self, spec: BuilderSpec, size: Size, cache: Path) -> Command:
        bwrap = self._tools.need_sandbox("launch")
        run = self._runs / spec.name
        remove_tree(run)
        work = run / "work"
        work.mkdir(parents=True)
        run.chmod(0o711)
        account = self._spawner.account
        if account:
            os.chown(work, account.uid, account.gid)
        marker = self._processes.marker()
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **limits.hints(size), **spec.env}
        env |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1"}
        words: list[str] = []
        if bwrap:
            words = self._sandbox(bwrap, marker, run, cache, size)
            env |= {"SLIPWAY_GO": f"{sandbox.GO}/bin/go", "SLIPWAY_GOCACHE": sandbox.GOCACHE}
            env |= {"SLIPWAY_WORK": sandbox.WORK, "HOME": sandbox.WORK, "TMPDIR": "/tmp"}  # noqa: S108 - inside
            env["PYTHONPATH"] = f"{sandbox.CODE}:{sandbox.SITE}"
        else:
            private = self._private_copy(cache, run)
            env |= {"SLIPWAY_GO": str(self._tools.need_go("launch") / "bin/go"), "SLIPWAY_GOCACHE": str(private)}
            env |= {"SLIPWAY_WORK": str(work), "HOME": str(work)}
            env["PYTHONPATH"] = f"{package_folder('builder').parent}:{site_folder()}"
        return Command(
            name=spec.name,
            kind="builder",
            marker=marker,
            sandbox=tuple(words),
            argv=(str(self._tools.python), *self._program),
            env=env,
            memory_bytes=size.memory_mb * MIB,
            limits=limits.of(size.memory_mb, slack_mb=512, file_mb=4096, processes=1024, sandboxed=bool(bwrap)),
            deadline=spec.deadline.timestamp(),
            tmpfs=("/tmp", sandbox.GOCACHE) if bwrap else (),  # noqa: S108 - inside
            cwd=None if bwrap else str(work),
        )

    def _sandbox(self, bwrap: Path, marker: str, run: Path, cache: Path, size: Size) -> list[str]:
        shared = [
            Mount(self._tools.need_go("launch"), sandbox.GO),
            Mount(site_folder(), sandbox.SITE),
            Mount(package_folder("builder"), f"{sandbox.CODE}/builder"),
        ]
        home = self._tools.python_home
        if not home.is_relative_to("/usr"):
            shared.append(Mount(home, str(home)))
        if self.overlay:
            words = sandbox.overlay(cache)
        else:
            words = sandbox.mounts([Mount(self._private_copy(cache, run), sandbox.GOCACHE, writable=True)])
        return sandbox.builder(bwrap, marker, shared, words, run / "work", size.memory_mb * MIB)

    def _private_copy(self, cache: Path, run: Path) -> Path:
        account = self._spawner.account
        seed.copy(cache, run / "gocache", (account.uid, account.gid) if account else None)
        return run / "gocache"

    async def inspect(self, ref: Ref) -> Inspection:
        """Look at it; an ended builder is seen for an hour."""
        process = self._get(ref.name)
        return Inspection(phase=Phase.GONE) if process is None else look(process)

    async def stop(self, ref: Ref) -> None:
        """End it at once and remove its folder."""
        async with self._locks.of(ref.name):
            process = self._get(ref.name)
            if process is not None:
                process.record.stopped = True
                await self._processes.kill(process)
                await self._processes.forget(ref.name)
            await asyncio.to_thread(remove_tree, self._runs / ref.name)

    async def list_ours(self, installation: str) -> Listing:
        """List builders, ended ones too."""
        found = [p for p in self._processes.live.values() if p.record.kind == "builder"]
        return Listing(items=tuple(found_of(p) for p in found if is_ours(p.record.name, installation)), complete=True)

    async def logs(self, ref: Ref, *, limit: int = 200) -> list[LogLine]:
        """Return the last lines of its standard output and error."""
        return await asyncio.to_thread(read_log, self._processes.log_path(ref.name), limit)

    async def tidy(self, now: float) -> None:
        """Remove folders of ended builders, and forget those that ended long ago."""
        for process in [p for p in self._processes.live.values() if p.record.kind == "builder" and not p.alive]:
            await asyncio.to_thread(remove_tree, self._runs / process.record.name)
            if now - (process.record.ended or now) > KEEP_ENDED:
                await self.stop(Ref(name=process.record.name))


def is_ours(name: str, installation: str) -> bool:
    """Tell whether a name belongs to the installation."""
    return name.startswith(f"slp-{installation}-")


def look(process: Process) -> Inspection:
    """Say where a process is; a builder that reported exits 0."""
    record = process.record
    if process.alive:
        return Inspection(phase=Phase.RUNNING, handle=record.name)
    return Inspection(
        phase=Phase.EXITED if record.exit_code == 0 else Phase.FAILED,
        handle=record.name,
        exit_code=record.exit_code,
        out_of_memory=record.out_of_memory,
        message=record.message,
    )


def found_of(process: Process) -> Found:
    """Describe a process for a listing."""
    record = process.record
    created = datetime.fromtimestamp(record.created, UTC)
    return Found(ref=Ref(name=record.name, handle=record.name), created_at=created, phase=look(process).phase)


def read_log(path: Path, limit: int) -> list[LogLine]:
    """Return the last lines of a log; the file keeps no times, so each carries that of the last write."""
    try:
        at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except FileNotFoundError:
        return []
    return [LogLine(at=at, text=text) for text in tail(path, limit, 1 * MIB)]

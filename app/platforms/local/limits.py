"""Bounds on what runs here, without control groups: resource limits per process and a watch over each tree.

RLIMIT_DATA, not RLIMIT_AS: Go reserves address space that it never uses. It bounds one process between two looks of the
watch; the watch sums anonymous memory and memory files of the whole tree and ends it past its size.
"""

import asyncio
import itertools
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from resource import RLIMIT_CORE, RLIMIT_DATA, RLIMIT_FSIZE, RLIMIT_NOFILE, RLIMIT_NPROC

from app.platforms.base import Size, Unsupported
from app.platforms.local import procfs
from app.platforms.local.process import Process
from app.platforms.local.processes import Processes
from app.settings import MIB

WATCH_SECONDS = 0.2
DEADLINE_GRACE = 10.0
LOG_BYTES, LOG_KEPT = 4 * MIB, 1 * MIB
MIN_MEMORY_MB = 32


def machine() -> Size:
    """Return what this machine has."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Size(cpus=float(len(os.sched_getaffinity(0))), memory_mb=memory // MIB)


def fit(size: Size) -> Size:
    """Return the size as asked; raise Unsupported when this machine has less, or when nothing could run in it."""
    have = machine()
    if size.cpus > have.cpus or size.memory_mb > have.memory_mb:
        raise Unsupported(
            "local",
            "fit",
            f"this machine has {have.cpus:g} cpus and {have.memory_mb} MiB; "
            f"{size.cpus:g} cpus and {size.memory_mb} MiB were asked for",
        )
    if size.cpus <= 0 or size.memory_mb < MIN_MEMORY_MB:
        raise Unsupported("local", "fit", f"at least {MIN_MEMORY_MB} MiB and more than 0 cpus are needed")
    return Size(cpus=size.cpus, memory_mb=size.memory_mb)


def of(memory_mb: int, *, slack_mb: int, file_mb: int, processes: int, sandboxed: bool) -> dict[int, int]:
    """Return the resource limits of one process tree; processes are counted per sandbox (Linux 5.14)."""
    limits = {RLIMIT_DATA: (memory_mb + slack_mb) * MIB, RLIMIT_FSIZE: file_mb * MIB, RLIMIT_NOFILE: 65536}
    limits[RLIMIT_CORE] = 0
    if sandboxed:
        limits[RLIMIT_NPROC] = processes
    return limits


def hints(size: Size) -> dict[str, str]:
    """Return what tells a Go program of its size: nine tenths of the memory, whole cores."""
    return {"GOMEMLIMIT": f"{size.memory_mb * 9 // 10}MiB", "GOMAXPROCS": str(max(1, math.ceil(size.cpus)))}


_turn = itertools.count()


def cores(cpus: float) -> frozenset[int]:
    """Return the cores for a program of that size, taking turns; empty when it may have all."""
    all_cores = sorted(os.sched_getaffinity(0))
    wanted = max(1, math.ceil(cpus))
    if wanted >= len(all_cores):
        return frozenset()
    first = next(_turn)
    return frozenset(all_cores[(first + i) % len(all_cores)] for i in range(wanted))


class Watch:
    """Looks at everything that runs, several times a second: memory, deadlines, logs, and whatever ended."""

    def __init__(self, processes: Processes, clock: Callable[[], float] = time.time) -> None:
        self._processes = processes
        self._clock = clock

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(WATCH_SECONDS)

    async def look(self) -> None:
        """Look once."""
        alive = [p for p in self._processes.live.values() if p.alive]
        if not alive:
            return
        used = await asyncio.to_thread(self._measure, alive)
        for process in alive:
            record = process.record
            if not process.alive:
                continue
            if used[record.name] > record.memory_bytes:
                record.out_of_memory = True
                record.message = f"used more than {record.memory_bytes // MIB} MiB of memory"
            elif record.deadline is not None and self._clock() > record.deadline + DEADLINE_GRACE:
                record.message = "ended at its deadline"
            else:
                continue
            self._processes.save(process)
            await self._processes.kill(process)

    def _measure(self, alive: list[Process]) -> dict[str, int]:
        snapshot, used = procfs.snapshot(), {}
        for process in alive:
            record = process.record
            tree = process.tree(snapshot)
            inner = record.inner or 0
            used[record.name] = procfs.memory(tree) + (procfs.files(inner, record.tmpfs) if tree else 0)
            with suppress(OSError):
                bound_log(self._processes.log_path(record.name))
        return used


def bound_log(path: Path) -> None:
    """Cut a log that has grown past ``LOG_BYTES`` down to its end. Its writer appends, so it goes on unharmed."""
    if path.stat().st_size <= LOG_BYTES:
        return
    with path.open("r+b") as file:
        file.seek(-LOG_KEPT, os.SEEK_END)
        kept = file.read()
        file.truncate(0)
    with path.open("ab") as file:
        file.write(kept[kept.find(b"\n") + 1 :])

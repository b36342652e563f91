"""Processes that outlive a killed control plane, and are adopted or ended by the next.

The order of a start, so that a kill at any moment leaves nothing unknown:

1. the intent is on disk: name and marker;
2. bubblewrap is started. Its command line carries the marker, and its program waits at a gate (``--block-fd`` on a FIFO
   that bubblewrap itself holds open, so that our death never opens it);
3. process ids and start times are on disk, limits are set;
4. the gate is opened.

So a sandbox that nobody recorded has never run its program: the next start ends it, and a repeat of the start makes a
new one. bubblewrap writes the exit code to a file by itself, hence it is known even when nobody was there to see it.
Without a sandbox (``SLIPWAY_SANDBOX=none``) there is no gate; the marker in the environment finds those again.
"""

import asyncio
import os
import re
import secrets
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from app.platforms.base import Transient
from app.platforms.local import procfs
from app.platforms.local.process import Command, Process, Record, Records, is_same, note_starts, open_same, send, tail
from app.platforms.local.spawner import Spawner
from app.platforms.local.starting import Starter
from app.platforms.local.state import read_all, read_json, write_json

START_SECONDS = 10.0
KILL_SECONDS = 10.0
_OUT_OF_MEMORY = re.compile(
    r"^fatal error: .*(out of memory|cannot allocate|cannot map pages|failed to (reserve|allocate))|^MemoryError$",
    re.MULTILINE,
)


class Processes:
    """All processes of one platform folder. ``fault`` is called at named points, for crash tests."""

    def __init__(self, folder: Path, logs: Path, spawner: Spawner, fault: Callable[[str], None]) -> None:
        self.folder = folder
        self.prefix = f"sli-{secrets.token_hex(6)}"
        self.live: dict[str, Process] = {}
        self.ended = asyncio.Event()
        """Set whenever a service ended that nobody stopped."""
        self._records = Records(folder, logs)
        self._spawner = spawner
        self._starter = Starter(self._records, spawner, fault)

    def log_path(self, name: str) -> Path:
        """Return the file with what a process wrote."""
        return self._records.log(name)

    def marker(self) -> str:
        """Return a fresh name for one start; ours begin alike, so that leftovers can be found."""
        return f"{self.prefix}-{secrets.token_hex(8)}"

    # ------------------------------------------------------------------------------------------------ start

    async def start(self, command: Command) -> Process:
        """Start a process; its program runs only once its record is on disk. Raises Misconfigured or Transient."""
        work = asyncio.ensure_future(self._spawner.run(lambda: self._starter.start(command)))
        try:
            record = await asyncio.shield(work)
        except asyncio.CancelledError:
            record = await work  # a thread can't be interrupted, and what it started must be watched
            self._watch(Process(record, own=True))
            raise
        process = Process(record, own=True)
        self._watch(process)
        return process

    # ------------------------------------------------------------------------------------------------ adopt

    async def adopt(self) -> None:
        """Take over what a killed predecessor left: record the ended, watch the running, end the unknown."""
        for value in await asyncio.to_thread(read_all, self.folder):
            record = Record(**value)
            if record.ended is not None:
                self.live[record.name] = Process(record, own=False)
            elif record.boot == procfs.boot_id() and await asyncio.to_thread(self._is_running, record):
                self._watch(Process(record, own=False))
            else:
                await asyncio.to_thread(self._sweep, record.marker, set())
                await self._lost(record)
        keep = {
            p for process in self.live.values() if process.alive for p in (process.record.pid, process.record.inner)
        }
        await asyncio.to_thread(self._sweep, f"{self.prefix}-", keep)

    async def _lost(self, record: Record) -> None:
        if record.pid is None or (record.exit_code is None and not self._records.read_exit(record)):
            # Nothing tells that its program ever ran, or how it ended: as if it had never been started.
            await asyncio.to_thread(self._records.remove, record.name, log=False)
            return
        record.ended = time.time()
        self._records.save(record)
        self.live[record.name] = Process(record, own=False)

    def _is_running(self, record: Record) -> bool:
        if record.inner is None and not record.sandboxed:
            found = sorted(procfs.marked(record.marker))
            record.pid = record.inner = found[0] if found else None
            if record.pid is not None:
                note_starts(record)
                self._records.save(record)
        if record.inner is None or not is_same(record.inner, record.inner_start):
            return False
        # The first process of a sandbox has a child as soon as the gate was opened.
        return not record.sandboxed or len(procfs.descendants(record.inner, procfs.snapshot())) > 1

    def _sweep(self, marker: str, keep: set[int | None]) -> None:
        """End every process that carries the marker and isn't kept, nor lives below one that is."""
        end = time.monotonic() + KILL_SECONDS
        while True:
            processes = procfs.snapshot()
            kept = {pid for root in keep if root for pid in procfs.descendants(root, processes)}
            left = {pid for pid in procfs.marked(marker) - kept if pid in processes and processes[pid].state != "Z"}
            if not left or time.monotonic() > end:
                return
            for pid in left:
                with suppress(OSError):
                    descriptor = os.pidfd_open(pid)
                    try:
                        if pid in procfs.marked(marker):
                            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                        select.select([descriptor], [], [], 1.0)
                    finally:
                        os.close(descriptor)

    # ------------------------------------------------------------------------------------------------ watch

    def _watch(self, process: Process) -> None:
        record = process.record
        self.live[record.name] = process
        process.inner_fd = open_same(record.inner, record.inner_start)
        process.outer_fd = open_same(record.pid, record.start) if record.pid != record.inner else -1
        if process.inner_fd < 0 and process.outer_fd < 0:
            self._finish(process)
            return
        loop = asyncio.get_running_loop()
        for descriptor in (process.inner_fd, process.outer_fd):
            if descriptor >= 0:
                loop.add_reader(descriptor, self._gone, process, descriptor)

    def _gone(self, process: Process, descriptor: int) -> None:
        """One of the two has ended; the other must follow, since a sandbox without its keeper is nobody's."""
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        if descriptor == process.outer_fd:
            process.outer_fd = -1
            send(process.inner_fd, signal.SIGKILL)
        else:
            process.inner_fd = -1
        if process.inner_fd < 0 and process.outer_fd < 0:
            self._finish(process)

    def _finish(self, process: Process) -> None:
        record = process.record
        if not record.sandboxed and record.pid is not None:
            with suppress(OSError):  # of its group, which outlives it: a sandbox takes all that is in it along
                os.killpg(record.pid, signal.SIGKILL)
        if process.own and record.pid is not None:
            with suppress(ChildProcessError):
                _, code = os.waitpid(record.pid, 0)  # it has ended: this does not wait
                record.exit_code = os.waitstatus_to_exitcode(code)
        self._records.read_exit(record)
        # Go says it first and prints every goroutine after it.
        text = "\n".join(tail(self.log_path(record.name), 1000))
        if record.exit_code and not record.stopped and _OUT_OF_MEMORY.search(text):
            record.out_of_memory = True
        record.ended = time.time()
        if self._records.path(record.name).exists():
            self._records.save(record)
        process.ended.set()
        if record.kind == "service" and not record.stopped:
            self.ended.set()

    # ------------------------------------------------------------------------------------------------ end

    async def stop(self, process: Process, grace: float) -> None:
        """SIGTERM to its programs, after ``grace`` seconds SIGKILL to all of it; returns when nothing is left."""
        process.record.stopped = True
        if process.alive and grace > 0:
            for pid in await asyncio.to_thread(process.tree):
                with suppress(OSError):
                    os.kill(pid, signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await process.ended.wait()
        await self.kill(process)

    async def kill(self, process: Process) -> None:
        """SIGKILL to all of it; raises Transient when the kernel does not let it die."""
        if not process.alive:
            return
        if not process.record.sandboxed:  # all below it, while that can be seen, and what has let go of it
            for pid in await asyncio.to_thread(process.tree):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(self._sweep, process.record.marker, set())
        if not send(process.inner_fd, signal.SIGKILL):
            send(process.outer_fd, signal.SIGKILL)
        try:
            async with asyncio.timeout(KILL_SECONDS):
                await process.ended.wait()
        except TimeoutError:
            raise Transient("local", "stop", f"{process.record.name} does not die", retry_after=5.0) from None

    async def forget(self, name: str) -> None:
        """Remove what is on disk of an ended process, its log included."""
        self.live.pop(name, None)
        await asyncio.to_thread(self._records.remove, name, log=True)

    def release(self) -> None:
        """Stop watching, as a kill would: the processes go on."""
        loop = asyncio.get_running_loop()
        for process in self.live.values():
            for descriptor in (process.inner_fd, process.outer_fd):
                if descriptor >= 0:
                    loop.remove_reader(descriptor)
                    os.close(descriptor)
            process.inner_fd = process.outer_fd = -1
        self.live.clear()

    def save(self, process: Process) -> None:
        """Put what we know of it on disk."""
        self._records.save(process.record)

    def load_prefix(self) -> None:
        """Take the prefix of our markers from disk, so that each start looks for the same leftovers."""
        path = self.folder / "prefix"
        known = read_json(path)
        if known is None:
            write_json(path, {"prefix": self.prefix})
        else:
            self.prefix = known["prefix"]

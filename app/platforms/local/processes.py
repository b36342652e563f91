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
import json
import os
import re
import secrets
import select
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from app.platforms.base import Misconfigured, Transient
from app.platforms.local import procfs
from app.platforms.local.spawner import Spawner
from app.platforms.local.state import read_all, read_json, write_json

START_SECONDS = 10.0
KILL_SECONDS = 10.0
_OUT_OF_MEMORY = re.compile(r"fatal error: runtime: (cannot allocate memory|out of memory)|^MemoryError$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to start. ``sandbox`` are bubblewrap's words up to the program's own, empty without one.

    ``memory_bytes`` and ``limits`` (resource number → value) bound it; ``deadline`` is Unix time; ``tmpfs`` are
    the memory file systems inside that count as its memory.
    """

    name: str
    kind: Literal["builder", "service"]
    marker: str
    sandbox: tuple[str, ...]
    argv: tuple[str, ...]
    env: dict[str, str] = field(repr=False)
    memory_bytes: int
    limits: dict[int, int]
    cores: frozenset[int] = frozenset()
    deadline: float | None = None
    tmpfs: tuple[str, ...] = ()
    cwd: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Record:
    """What is on disk about one start. ``pid`` is the outer process, ``inner`` the first of the sandbox."""

    name: str
    kind: str
    marker: str
    boot: str
    created: float
    sandboxed: bool
    memory_bytes: int
    deadline: float | None
    tmpfs: list[str]
    extra: dict[str, Any]
    pid: int | None = None
    start: int | None = None
    inner: int | None = None
    inner_start: int | None = None
    ended: float | None = None
    exit_code: int | None = None
    out_of_memory: bool = False
    stopped: bool = False
    message: str | None = None


class Process:
    """One start that is running or has ended. ``own`` tells whether it is a child of this very process."""

    def __init__(self, record: Record, *, own: bool) -> None:
        self.record = record
        self.own = own
        self.outer_fd = -1
        self.inner_fd = -1
        self.ended = asyncio.Event()
        if record.ended is not None:
            self.ended.set()

    @property
    def alive(self) -> bool:
        """Tell whether anything of it may still run."""
        return not self.ended.is_set()

    def tree(self, processes: dict[int, procfs.Stat] | None = None) -> list[int]:
        """Return the ids of its processes, the sandbox's own first process excluded."""
        if self.record.inner is None:
            return []
        tree = procfs.descendants(self.record.inner, processes or procfs.snapshot())
        return tree[1:] if self.record.sandboxed else tree


class Processes:
    """All processes of one platform folder. ``fault`` is called at named points, for crash tests."""

    def __init__(self, folder: Path, logs: Path, spawner: Spawner, fault: Callable[[str], None]) -> None:
        self.folder = folder
        self.logs = logs
        self.prefix = f"sli-{secrets.token_hex(6)}"
        self.live: dict[str, Process] = {}
        self._spawner = spawner
        self._fault = fault

    def log_path(self, name: str) -> Path:
        """Return the file with what a process wrote."""
        return self.logs / f"{name}.log"

    def marker(self) -> str:
        """Return a fresh name for one start; ours begin alike, so that leftovers can be found."""
        return f"{self.prefix}-{secrets.token_hex(8)}"

    # ------------------------------------------------------------------------------------------------ start

    async def start(self, command: Command) -> Process:
        """Start a process; its program runs only once its record is on disk. Raises Misconfigured or Transient."""
        work = asyncio.ensure_future(self._spawner.run(lambda: self._start(command)))
        try:
            record = await asyncio.shield(work)
        except asyncio.CancelledError:
            record = await work  # a thread can't be interrupted, and what it started must be watched
            self._watch(Process(record, own=True))
            raise
        process = Process(record, own=True)
        self._watch(process)
        return process

    def _start(self, command: Command) -> Record:
        record = Record(
            name=command.name,
            kind=command.kind,
            marker=command.marker,
            boot=procfs.boot_id(),
            created=time.time(),
            sandboxed=bool(command.sandbox),
            memory_bytes=command.memory_bytes,
            deadline=command.deadline,
            tmpfs=list(command.tmpfs),
            extra=command.extra,
        )
        self._fault("local.intent")
        self._save(record)
        self._fault("local.spawn")
        log = os.open(self.log_path(command.name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if command.sandbox:
                self._start_sandbox(command, record, log)
            else:
                self._start_plain(command, record, log)
        except OSError as error:
            self._path(record.name).unlink(missing_ok=True)
            raise Transient("local", "start", f"the process could not be started: {error}") from error
        except (Misconfigured, Transient):
            self._path(record.name).unlink(missing_ok=True)
            raise
        finally:
            os.close(log)
        return record

    def _start_sandbox(self, command: Command, record: Record, log: int) -> None:
        fifo = self.folder / f".gate-{command.marker}"
        os.mkfifo(fifo, 0o600)
        gate = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)
        fifo.unlink()
        self._status(record.name).unlink(missing_ok=True)
        status = os.open(self._status(record.name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        info, info_end = os.pipe()
        variables = variables_file(command.env)
        try:
            words = [*command.sandbox, "--args", str(variables), "--json-status-fd", str(status)]
            argv = [*words, "--info-fd", str(info_end), "--block-fd", str(gate), "--", *command.argv]
            record.pid = self._spawner.popen(argv, {}, (variables, status, info_end, gate), log, None)
            os.close(info_end)
            info_end = -1
            self._fault("local.record")
            record.inner = self._read_info(info, record)
            self._note_starts(record)
            self._save(record)
            self._bound(command, record)
            self._fault("local.gate")
            os.write(gate, b"1")
            self._fault("local.running")
        finally:
            for descriptor in (gate, status, info, variables, *([info_end] if info_end >= 0 else [])):
                os.close(descriptor)

    def _start_plain(self, command: Command, record: Record, log: int) -> None:
        env = {**command.env, "SLIPWAY_MARKER": command.marker}
        record.pid = record.inner = self._spawner.popen(command.argv, env, (), log, command.cwd)
        self._fault("local.record")
        self._note_starts(record)
        self._save(record)
        self._bound(command, record)
        self._fault("local.gate")
        self._fault("local.running")

    def _read_info(self, info: int, record: Record) -> int:
        """Read the id of the sandbox's first process; no answer means that the sandbox could not be made."""
        data, end = b"", time.monotonic() + START_SECONDS
        while b"}" not in data:
            if not select.select([info], [], [], max(0.0, end - time.monotonic()))[0]:
                self._abandon(record)
                raise Transient("local", "start", f"the sandbox did not come up within {START_SECONDS:.0f} s")
            chunk = os.read(info, 4096)
            if not chunk:
                self._abandon(record)
                last = tail(self.log_path(record.name), 5)
                raise Misconfigured("local", "start", f"the sandbox could not be made: {'; '.join(last)[-300:]}")
            data += chunk
        return int(json.loads(data)["child-pid"])

    def _abandon(self, record: Record) -> None:
        assert record.pid is not None
        with suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGKILL)  # our own child that nobody has reaped: the id is still its
        os.waitpid(record.pid, 0)

    def _note_starts(self, record: Record) -> None:
        for name in ("pid", "inner"):
            found = procfs.stat(getattr(record, name))
            setattr(record, "start" if name == "pid" else "inner_start", found.start if found else None)

    def _bound(self, command: Command, record: Record) -> None:
        assert record.inner is not None
        self._spawner.limit(record.inner, command.limits)
        if command.cores:
            with suppress(OSError):  # a hint: the program may undo it, and a container's root may not set it
                os.sched_setaffinity(record.inner, command.cores)

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
        if record.pid is None or (record.exit_code is None and not self._read_exit(record)):
            # Nothing tells that its program ever ran, or how it ended: as if it had never been started.
            await asyncio.to_thread(self._path(record.name).unlink, missing_ok=True)
            await asyncio.to_thread(self._status(record.name).unlink, missing_ok=True)
            return
        record.ended = time.time()
        self._save(record)
        self.live[record.name] = Process(record, own=False)

    def _is_running(self, record: Record) -> bool:
        if record.inner is None and not record.sandboxed:
            found = sorted(procfs.marked(record.marker))
            record.pid = record.inner = found[0] if found else None
            if record.pid is not None:
                self._note_starts(record)
                self._save(record)
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
        if process.own and record.pid is not None:
            with suppress(ChildProcessError):
                _, code = os.waitpid(record.pid, 0)  # it has ended: this does not wait
                record.exit_code = os.waitstatus_to_exitcode(code)
        self._read_exit(record)
        text = "\n".join(tail(self.log_path(record.name), 50))
        if record.exit_code and not record.stopped and _OUT_OF_MEMORY.search(text):
            record.out_of_memory = True
        record.ended = time.time()
        if self._path(record.name).exists():
            self._save(record)
        process.ended.set()

    def _read_exit(self, record: Record) -> bool:
        """Take the exit code that bubblewrap wrote; tells whether there was one."""
        with suppress(OSError):
            found = re.search(r'"exit-code": (\d+)', self._status(record.name).read_text())
            if found:
                record.exit_code = int(found[1])
        return record.exit_code is not None

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
        if not process.record.sandboxed:
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
        for path in (self._path(name), self._status(name), self.log_path(name)):
            await asyncio.to_thread(path.unlink, missing_ok=True)

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
        self._save(process.record)

    def _save(self, record: Record) -> None:
        write_json(self._path(record.name), asdict(record))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _status(self, name: str) -> Path:
        return self.folder / f"{name}.status"

    def load_prefix(self) -> None:
        """Take the prefix of our markers from disk, so that each start looks for the same leftovers."""
        path = self.folder / "prefix"
        known = read_json(path)
        if known is None:
            write_json(path, {"prefix": self.prefix})
        else:
            self.prefix = known["prefix"]


def variables_file(env: Mapping[str, str]) -> int:
    """Return an open file that tells bubblewrap the program's environment.

    Its own environment and command line stay empty of it: the sandbox's first process shows those to all in the sandbox.
    """
    descriptor = os.memfd_create("slipway")
    words = [word for name, value in env.items() for word in ("--setenv", name, value)]
    os.write(descriptor, b"".join(os.fsencode(word) + b"\0" for word in words))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def is_same(pid: int | None, start: int | None) -> bool:
    """Tell whether the process of that start time still runs under that id."""
    found = procfs.stat(pid) if pid is not None else None
    return found is not None and found.start == start and found.state != "Z"


def open_same(pid: int | None, start: int | None) -> int:
    """Open a pidfd of that very process; -1 when it is gone or its id is another's now."""
    if pid is None:
        return -1
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return -1
    found = procfs.stat(pid)
    if found is None or found.start != start:
        os.close(descriptor)
        return -1
    return descriptor


def send(descriptor: int, number: signal.Signals) -> bool:
    """Send a signal by pidfd; False when there is nobody to send it to."""
    if descriptor < 0:
        return False
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    return True


def tail(path: Path, lines: int, size: int = 65536) -> list[str]:
    """Return the last lines of a file; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []

"""One start of a program: what is asked for, what is on disk about it, and what is known while it runs."""

import asyncio
import os
import re
import signal
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from app.platforms.local import procfs
from app.platforms.local.state import write_json


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


@dataclass(frozen=True)
class Records:
    """Where records, exit codes and logs of processes lie. Everything blocks, for a small file's time."""

    folder: Path
    logs: Path

    def path(self, name: str) -> Path:
        """Return the file of a record."""
        return self.folder / f"{name}.json"

    def status(self, name: str) -> Path:
        """Return the file into which bubblewrap writes the exit code."""
        return self.folder / f"{name}.status"

    def log(self, name: str) -> Path:
        """Return the file with what a process wrote."""
        return self.logs / f"{name}.log"

    def save(self, record: Record) -> None:
        """Write a record whole."""
        write_json(self.path(record.name), asdict(record))

    def read_exit(self, record: Record) -> bool:
        """Take over the exit code that bubblewrap wrote; tells whether there was one."""
        with suppress(OSError):
            found = re.search(r'"exit-code": (\d+)', self.status(record.name).read_text())
            if found:
                record.exit_code = int(found[1])
        return record.exit_code is not None

    def remove(self, name: str, *, log: bool) -> None:
        """Remove all that is known of a process."""
        for path in (self.path(name), self.status(name), *([self.log(name)] if log else [])):
            path.unlink(missing_ok=True)


def note_starts(record: Record) -> None:
    """Note the start times of a record's processes."""
    for name in ("pid", "inner"):
        found = procfs.stat(getattr(record, name))
        setattr(record, "start" if name == "pid" else "inner_start", found.start if found else None)


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

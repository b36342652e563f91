"""What /proc tells of processes: who descends from whom, how much memory they hold, which socket is theirs.

Everything takes process ids as this process sees them and treats a process that is gone as empty. Source: proc(5).
"""

import itertools
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LISTEN = "0A"
_ANON = re.compile(rb"^Rss(?:Anon|Shmem):\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True)
class Stat:
    """One line of /proc/<pid>/stat: ``start`` in clock ticks since boot, so (pid, start) names a process for good."""

    pid: int
    ppid: int
    start: int
    state: str


def stat(pid: int) -> Stat | None:
    """Look at one process; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(pid, int(fields[1]), int(fields[19]), fields[0])


def pids() -> Iterator[int]:
    """Yield the id of every process."""
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdecimal():
                yield int(entry.name)


def snapshot(since: int = 0) -> dict[int, Stat]:
    """Look at every process whose id is ``since`` or higher: young ones, as long as the ids have not wrapped around."""
    return {pid: found for pid in pids() if pid >= since and (found := stat(pid))}


def descendants(root: int, processes: dict[int, Stat]) -> list[int]:
    """Return ``root`` and all below it, parents first."""
    children: dict[int, list[int]] = {}
    for found in processes.values():
        children.setdefault(found.ppid, []).append(found.pid)
    tree = [root] if root in processes else []
    for pid in tree:
        tree.extend(sorted(children.get(pid, ()), key=lambda child: processes[child].start))
    return tree


def boot_id() -> str:
    """Name this boot of the machine: start times of different boots can't be compared."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def memory(tree: Iterable[int]) -> int:
    """Return the bytes of memory that belong to these processes alone (anonymous and shared, not mapped files)."""
    total = 0
    for pid in tree:
        with suppress(OSError):
            total += sum(int(kb) for kb in _ANON.findall(Path(f"/proc/{pid}/status").read_bytes()))
    return total * 1024


def files(pid: int, folders: Iterable[str]) -> int:
    """Return the bytes that files hold in the memory file systems ``folders`` of the process's own view."""
    total = 0
    for folder in folders:
        with suppress(OSError):
            found = os.statvfs(f"/proc/{pid}/root{folder}")
            total += (found.f_blocks - found.f_bfree) * found.f_frsize
    return total


def marked(marker: str) -> set[int]:
    """Find our processes whose marker begins so: bubblewrap's host name, or a variable where there is no sandbox."""
    return {pid for pid in pids() if pid != os.getpid() and _carries(pid, marker.encode())}


def _carries(pid: int, wanted: bytes) -> bool:
    # A whole word in its very place: a person who greps for a marker must not be taken for one of ours.
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if any(a == b"--hostname" and b.startswith(wanted) for a, b in itertools.pairwise(words)):
            return True
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return any(word.startswith(b"SLIPWAY_MARKER=" + wanted) for word in environment)
    return False


def listening(tree: Iterable[int], ports: Iterable[int]) -> tuple[str, int] | None:
    """Return host and port of a TCP socket on one of ``ports``, in order, that one of these processes listens on.

    Goes by the socket's inode among the open files of the process, so a stranger on the port is never taken for it.
    """
    held: set[str] = set()
    first: int | None = None
    for pid in tree:
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - polled each millisecond
                with suppress(OSError):
                    link = os.readlink(f"/proc/{pid}/fd/{name}")  # noqa: PTH115
                    if link.startswith("socket:["):
                        held.add(link[8:-1])
                        first = pid if first is None else first
    if first is None:
        return None
    found: dict[int, str] = {}
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/{first}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTEN and fields[9] in held:
                    address, port = fields[1].split(":")
                    host = reach(address)
                    if host is not None:
                        found.setdefault(int(port, 16), host)
    return next(((found[port], port) for port in ports if port in found), None)


def reach(address: str) -> str | None:
    """Return how this machine reaches a socket bound to a /proc/net address: None unless by loopback."""
    words = [struct.pack("=I", int(address[i : i + 8], 16)) for i in range(0, len(address), 8)]
    raw = b"".join(words)
    text = socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)
    if text in {"0.0.0.0", "::"} or text.startswith(("127.", "::ffff:127.")):  # noqa: S104 - compared, not bound
        return text.removeprefix("::ffff:") if "127." in text else "127.0.0.1"
    return "[::1]" if text == "::1" else None

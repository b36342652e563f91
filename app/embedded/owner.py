"""One owner per home: a file lock that dies with its holder, and a note in the file of who that is.

The lock is flock(2): the kernel lets go of it when the holder ends, however it ends. The file stays behind on purpose,
with the holder's note in it; removing it would let two owners lock two different files of one name.
"""

import asyncio
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from app.embedded.errors import HomeInUseError

POLL_SECONDS = 0.01


class HomeLock:
    """The lock ``<home>/<name>``. ``previous`` is the note of the last holder, alive or not, once we have the lock."""

    def __init__(self, home: Path, name: str) -> None:
        self.home, self.path = home, home / name
        self.previous: dict[str, Any] = {}
        self._fd: int | None = None

    async def acquire(self, wait: float = 2.0) -> None:
        """Take the lock; after ``wait`` seconds raise HomeInUseError.

        The wait is for a holder killed a moment ago, whose files the kernel has not closed yet.
        """
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        deadline = asyncio.get_running_loop().time() + wait
        try:
            while not _try_lock(fd):
                if asyncio.get_running_loop().time() >= deadline:
                    pid = _read(fd).get("pid")
                    raise HomeInUseError(self.home, pid if isinstance(pid, int) else None)
                await asyncio.sleep(POLL_SECONDS)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self.previous = fd, _read(fd)
        self.note(self.previous)  # what the last one left, until we have cleared it away

    def note(self, values: dict[str, Any]) -> None:
        """Write our pid and ``values`` into the file, for whoever is refused and for our successor."""
        if self._fd is None:
            raise RuntimeError("note() without the lock")
        text = json.dumps({**values, "pid": os.getpid()}).encode()
        os.pwrite(self._fd, text, 0)
        os.ftruncate(self._fd, len(text))

    def release(self) -> None:
        """Let go of the lock; does nothing without it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(fd: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(fd, 4096, 0))
    except ValueError:  # empty, or half written by someone killed
        return {}
    return found if isinstance(found, dict) else {}

"""Real child processes for tests: wait for a line, kill -9, and see that nothing is left."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.waiting import eventually_sync

REPOSITORY = Path(__file__).parents[2]


class Child:
    """A running program. Its output (both streams) is read as it comes, so that a full pipe never stops it."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        self.output: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            command,
            env=None if env is None else dict(env),
            cwd=cwd or REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self, start: str = "", timeout: float = 30.0) -> str:
        """Return the next line that begins with ``start``; AssertionError when the output ends or nothing comes."""
        while True:
            try:
                line = self._lines.get(timeout=timeout)
            except queue.Empty:
                line = None
            assert line is not None, f"no line {start!r} in {timeout} s; output so far:\n{''.join(self.output)}"
            if line.startswith(start):
                return line

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait for the end of this one process (not of its children)."""
        self.process.kill()
        self.process.wait(10)

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for the end and return the exit code."""
        code = self.process.wait(timeout)
        self._reader.join(timeout)
        return code

    def close(self) -> None:
        """Leave nothing behind, whatever state it is in."""
        if self.process.poll() is None:
            self.kill()
        self._reader.join(10)
        if not self._reader.is_alive() and self.process.stdout:
            self.process.stdout.close()


@contextmanager
def spawned(*command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Iterator[Child]:
    """Run a program for the length of a ``with`` block; killed at its end if it still runs."""
    child = Child([os.fspath(word) for word in command], env, cwd)
    try:
        yield child
    finally:
        child.close()


def python(code: str, *args: str | Path) -> list[str | Path]:
    """Return the command that runs ``code`` with this interpreter, the repository importable from anywhere."""
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{code}", *args]


def descendants(pid: int) -> list[psutil.Process]:
    """Return the living processes below ``pid``, as handles that a reused pid doesn't fool."""
    return psutil.Process(pid).children(recursive=True)


def running(process: psutil.Process) -> bool:
    """Tell whether it still does anything; a zombie doesn't."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_gone(processes: Sequence[psutil.Process], timeout: float = 10.0) -> None:
    """Wait until all of them have ended."""

    def none_left() -> bool:
        left = [p for p in processes if running(p)]
        assert not left, f"still running: {left}"
        return True

    eventually_sync(none_left, timeout)


def interrupt(child: Child, timeout: float = 30.0) -> int:
    """Send SIGINT, as Ctrl-C does, and return the exit code."""
    child.signal(signal.SIGINT)
    return child.wait(timeout)

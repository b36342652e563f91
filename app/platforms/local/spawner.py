"""Starts processes as another account from one thread that sees the file system as that account may.

A control plane that is root drops what it starts to ``ACCOUNT``. What such a process needs may lie below folders that
only root can enter, so the thread has a mount namespace of its own in which just the kept paths can be reached (see
``app.embedded.launcher``). That costs nothing per start, where a launcher process would cost 15 ms of a wake.
"""

import asyncio
import ctypes
import errno
import os
import platform
import resource
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypedDict, TypeVar

from app.embedded import launcher
from app.embedded.reach import Account
from app.platforms.base import Misconfigured

T = TypeVar("T")

ACCOUNT = Account("slipway", 65532, 65532)
"""A number of our own: neither PostgreSQL's account nor anybody's on this machine."""


class _Calls(NamedTuple):
    """System call numbers (asm/unistd.h); the C library's functions would change the ids of all threads."""

    setresuid: int
    setresgid: int
    setgroups: int


_CALLS = {"x86_64": _Calls(117, 119, 116), "aarch64": _Calls(147, 149, 159)}.get(platform.machine(), _Calls(0, 0, 0))


class Drop(TypedDict, total=False):
    """What ``subprocess`` takes to become another account."""

    user: int
    group: int
    extra_groups: list[int]


class Spawner:
    """One thread that forks. ``account`` is None for an ordinary user, who drops nothing."""

    def __init__(self, keep: Sequence[Path]) -> None:
        self.account = ACCOUNT if os.geteuid() == 0 else None
        self._keep = tuple(keep)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="slipway-spawn")
        self._libc = ctypes.CDLL(None, use_errno=True)

    async def open(self) -> None:
        """Make the thread and its view; raises Misconfigured when the kept paths can't be made reachable."""
        try:
            await self.run(self._uncover)
        except (launcher.LaunchError, OSError) as error:
            raise Misconfigured(
                "local",
                "start",
                f"uid {ACCOUNT.uid} can't reach what it needs: {error}; move SLIPWAY_HOME and the Python environment "
                "to folders that everybody may enter, or run as an ordinary user",
            ) from error

    def _uncover(self) -> None:
        if self.account is not None:
            if _CALLS.setresuid == 0:
                raise OSError(f"running as root is not supported on {platform.machine()}")
            keep = [str(path) for path in self._keep if path.exists()]
            launcher.uncover(self._libc, keep, self.account.uid, self.account.gid)
            self._syscall(_CALLS.setgroups, 0, 0)

    async def run(self, work: Callable[[], T]) -> T:
        """Run blocking work in the thread; once begun it is not interrupted by cancellation."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def twin(self) -> "Spawner":
        """Return another with the same view, for work that would keep this thread for long."""
        return Spawner(self._keep)

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown()

    def drop(self) -> Drop:
        """Return the arguments that make ``subprocess`` drop to the account."""
        return {"user": self.account.uid, "group": self.account.gid, "extra_groups": []} if self.account else {}

    def popen(
        self, argv: Sequence[str], env: dict[str, str], pass_fds: Sequence[int], output: int, cwd: str | None
    ) -> int:
        """Fork and exec inside the thread; returns the process id, which the caller has to reap.

        The child takes the thread's credentials. Letting ``subprocess`` change them would rule out vfork, and to copy
        the page tables of a whole control plane costs milliseconds of every wake.
        """
        with self._as_account():
            process = subprocess.Popen(
                argv,
                env=env,
                pass_fds=pass_fds,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=cwd,
                start_new_session=True,
            )
        process.returncode = 0  # the watcher reaps it by pidfd; Popen must neither wait for it nor warn
        return process.pid

    def limit(self, pid: int, limits: dict[int, int]) -> None:
        """Lower resource limits of a process of ours inside the thread.

        prlimit(2) asks for equal real ids or CAP_SYS_RESOURCE, which a container's root lacks.
        """
        with self._as_account(), suppress(ProcessLookupError):
            for name, value in limits.items():
                _, hard = resource.prlimit(pid, name)
                bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
                resource.prlimit(pid, name, (bound, bound))

    @contextmanager
    def _as_account(self) -> Iterator[None]:
        """Let the thread, and it alone, be the account for a moment; the saved ids stay root's until an exec."""
        if self.account is None:
            yield
            return
        self._set_ids(self.account.uid, self.account.gid)
        try:
            yield
        finally:
            self._set_ids(0, 0)

    def _set_ids(self, uid: int, gid: int) -> None:
        # Towards root the user id goes first, away from it last: only root may choose its group.
        calls = ((_CALLS.setresuid, uid), (_CALLS.setresgid, gid))
        for number, value in calls if uid == 0 else reversed(calls):
            self._syscall(number, value, value, -1)

    def _syscall(self, number: int, *values: int) -> None:
        if self._libc.syscall(ctypes.c_long(number), *(ctypes.c_long(v) for v in values)) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{errno.errorcode.get(code)} while changing the thread's credentials")

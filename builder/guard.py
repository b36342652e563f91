"""Ends a run early and remembers why: canceled, deadline, taken by another instance, token refused."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeVar, cast

from builder.outcome import Stopped

T = TypeVar("T")


class Why(Enum):
    """Why a run was ended from outside; the first to come counts."""

    CANCELED = auto()
    TERMINATED = auto()
    DEADLINE = auto()
    TAKEN = auto()
    REFUSED = auto()


#: The last part of a run's time is kept for telling what became of it.
RESERVE_SHARE, RESERVE_LEAST, RESERVE_MOST = 0.1, 0.5, 10.0


@dataclass
class Ended(Exception):
    """The work was ended from outside."""

    why: Why

    def __str__(self) -> str:
        return self.why.name.lower()


class Guard:
    """Watches over one piece of work at a time; ``deadline`` is in Unix seconds and can be moved meanwhile."""

    def __init__(self, deadline: float) -> None:
        self.why: Why | None = None
        self.deadline = deadline
        self._task: asyncio.Future[Any] | None = None
        self._flag = threading.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.move_deadline(deadline)

    async def over(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work; raises Ended when it was stopped, or had been before it began."""
        self._task = asyncio.ensure_future(work)
        if self.why:
            self._task.cancel()
        try:
            return cast("T", await self._task)
        except asyncio.CancelledError:
            if self.why is None:
                raise
            raise Ended(self.why) from None
        finally:
            self._task = None

    def move_deadline(self, deadline: float) -> None:
        """Set the deadline; the work ends a little before it, so that there is time to report."""
        self.deadline = deadline
        left = deadline - time.time()
        reserve = min(RESERVE_MOST, max(RESERVE_LEAST, left * RESERVE_SHARE))
        self.off()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, left - reserve), self.stop, Why.DEADLINE)

    def stop(self, why: Why) -> None:
        """End the work now; the first reason counts."""
        if self.why is None:
            self.why = why
            self._flag.set()
            if self._task:
                self._task.cancel()

    def off(self) -> None:
        """Forget the deadline."""
        if self._timer:
            self._timer.cancel()

    def check(self) -> None:
        """Raise Stopped when the work was ended: the checkpoint of work that goes on in a thread."""
        if self._flag.is_set():
            raise Stopped

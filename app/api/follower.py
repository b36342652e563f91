"""One that waits for news: a stream, or a GET that waits for a build's end."""

import asyncio
from collections import deque
from typing import NamedTuple

from app.events import Position
from app.models import Event


class News(NamedTuple):
    """An event, its place in the order, and how a stream says it: made once for all who are told."""

    event: Event
    position: Position
    block: bytes


class Topic(NamedTuple):
    """What can be followed: the events of a ``project`` or a ``build``, or the ``log`` of a build."""

    kind: str
    id: str


class Follower:
    """One that waits. ``behind``: read the database; ``over``: leave, since the process ends or the key is no good."""

    def __init__(self, key_id: str, bound: int) -> None:
        self.key_id, self._bound = key_id, bound
        self.behind, self.over = True, False
        self._news: deque[News] = deque()
        self._woken = asyncio.Event()

    def tell(self, news: News) -> None:
        """Hand over an event, or note that it is one too many."""
        if not self.behind and len(self._news) >= self._bound:
            self.behind = True
        if self.behind:
            self._news.clear()
        else:
            self._news.append(news)
        self._woken.set()

    def fall_behind(self) -> None:
        """Make it read the database again."""
        self.behind = True
        self._news.clear()
        self._woken.set()

    def wake(self) -> None:
        """Let it look for itself."""
        self._woken.set()

    def leave(self) -> None:
        """Tell it to go."""
        self.over = True
        self._woken.set()

    def collect(self) -> None:
        """Begin anew: what is told from now on is kept; what was before, the follower now reads from the database."""
        self.behind = False
        self._news.clear()

    def take(self) -> list[News]:
        """Return what was told since."""
        news = list(self._news)
        self._news.clear()
        return news

    async def wait(self, seconds: float) -> bool:
        """Wait until there is something to look at; False when nothing came in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return False
        self._woken.clear()
        return True

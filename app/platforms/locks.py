"""Locks by name, for this process: they save requests; what keeps two processes apart are unique names on the platform."""

import asyncio
from weakref import WeakValueDictionary


class Locks:
    """Locks that last as long as somebody holds or waits for them."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, name: str) -> asyncio.Lock:
        """Return the lock of a name."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

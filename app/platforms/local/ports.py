"""Free loopback ports for services, outside the range that outgoing connections take theirs from."""

import secrets
import socket
from collections.abc import Collection

from app.platforms.base import NoCapacity

FIRST, LAST = 20000, 32767
"""Below Linux's default ip_local_port_range, so that no connection grabs the port before the program binds it."""


def free(exclude: Collection[int] = ()) -> int:
    """Return a port on which nothing listens and that is not in ``exclude``."""
    for _ in range(200):
        port = FIRST + secrets.randbelow(LAST - FIRST + 1)
        if port not in exclude and _can_bind(port):
            return port
    raise NoCapacity("local", "start", f"no free loopback port between {FIRST} and {LAST}")


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104 - bound for a moment, never listening
        except OSError:
            return False
    return True

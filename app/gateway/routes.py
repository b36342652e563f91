"""What the gateway's server asks of the world behind it: which service a host is, and where it takes requests."""

from dataclasses import dataclass
from typing import Protocol

from app.platforms.base import Address


@dataclass(frozen=True)
class Route:
    """A service that can be asked for; ``host`` is the left part of its name, before the gateway's domain."""

    service_id: str
    host: str
    wakes_itself: bool = False
    """Its platform puts it to sleep and wakes it."""


class Routes(Protocol):
    """The seam between the server, which knows HTTP, and the rows.

    Order of calls for one request: ``find``, ``entered``, ``ready`` (again after each ``failed``), and ``left``
    exactly once, whatever happened in between. What ``ready`` returned is good for a request that starts right away,
    because ``entered`` came before it: nobody puts a service to sleep that has a request in flight.
    """

    async def find(self, host: str) -> Route | None:
        """Return the service of a full host name (lower case, no port), None when there is none."""
        ...

    async def ready(self, route: Route) -> Address:
        """Return where the service takes requests, after waking it if it sleeps.

        Many callers at once cause one start. Raises Refusal: 503 with Retry-After when it doesn't come up or can't be
        asked now, 404 when it is gone.
        """
        ...

    def entered(self, route: Route) -> None:
        """Count one request more in flight."""
        ...

    def left(self, route: Route) -> None:
        """Count one request less in flight."""
        ...

    async def failed(self, route: Route, address: Address) -> None:
        """Report that nothing takes requests at ``address`` any more, so that the next ``ready`` looks again."""
        ...

"""Connections to upstreams, kept for the next request to the same instance."""

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11

from app.gateway.head import MAX_HEAD_BYTES
from app.gateway.limits import Limits
from app.gateway.wire import Wire
from app.platforms.address import connect_to, own_name
from app.platforms.base import Address
from app.platforms.http import trust


@dataclass(eq=False)
class Upstream:
    """One connection to one instance. ``used`` is when it last answered, None when it never did.

    ``host`` is the name that it has to be asked by, None where it is the one that the client asked for.
    """

    wire: Wire
    parser: h11.Connection
    address: Address
    host: bytes | None = None
    used: float | None = None
    timer: asyncio.TimerHandle | None = None


class Pool:
    """Idle connections by instance: a restarted service has another ``instance_id`` and so another pool.

    Only idle ones are counted here; those in use are bounded by the number of clients.
    """

    def __init__(self, limits: Limits, *, tls: ssl.SSLContext | None = None) -> None:
        self._limits = limits
        self._tls = tls
        self._idle: dict[Address, deque[Upstream]] = {}

    def take(self, address: Address, *, repeatable: bool) -> Upstream | None:
        """Return the connection used last, None when there is none that will do.

        An upstream may close an idle connection at the moment we write to it. A request that can be repeated is, any
        other takes only a connection too fresh for that.
        """
        idle = self._idle.get(address)
        if not idle:
            return None
        upstream = idle[-1]
        assert upstream.used is not None
        if not repeatable and asyncio.get_running_loop().time() - upstream.used > self._limits.pooled_unsafe:
            return None
        self._remove(upstream)
        return upstream

    def give(self, upstream: Upstream) -> None:
        """Keep a connection whose answer was read to its end, or close it when it can't be used again."""
        parser, wire = upstream.parser, upstream.wire
        reusable = parser.our_state is h11.DONE and parser.their_state is h11.DONE
        # Bytes past the answer belong to no request of ours: never let the next one see them.
        if not reusable or wire.ended or wire.lost or wire.buffered or parser.trailing_data[0]:
            wire.abort()
            return
        idle = self._idle.setdefault(upstream.address, deque())
        if len(idle) >= self._limits.pooled:
            wire.abort()
            return
        parser.start_next_cycle()
        loop = asyncio.get_running_loop()
        upstream.used = loop.time()
        upstream.timer = loop.call_later(self._limits.pooled_idle, self._drop, upstream)
        wire.on_end = wire.on_lost = lambda: self._drop(upstream)
        idle.append(upstream)

    async def connect(self, address: Address) -> Upstream:
        """Open a fresh connection; OSError (TimeoutError too) when nobody takes it."""
        parts = urlsplit(address.url)
        if parts.scheme not in {"http", "https"} or parts.hostname is None:
            raise OSError(f"the gateway can't speak to {parts.scheme!r} addresses")
        loop, host, port = asyncio.get_running_loop(), connect_to(address.url), parts.port
        async with asyncio.timeout(self._limits.connect):
            if parts.scheme == "https":
                tls = self._tls or trust()
                _, wire = await loop.create_connection(Wire, host, port or 443, ssl=tls, server_hostname=parts.hostname)
            else:
                _, wire = await loop.create_connection(Wire, host, port or 80)
        name = own_name(address.url)
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        return Upstream(wire, parser, address, name.encode("ascii") if name else None)

    def forget(self, address: Address) -> None:
        """Close what is idle of an instance that is gone."""
        for upstream in list(self._idle.get(address, ())):
            self._drop(upstream)

    def close(self) -> None:
        """Close all that is idle."""
        for address in list(self._idle):
            self.forget(address)

    def _drop(self, upstream: Upstream) -> None:
        self._remove(upstream)
        upstream.wire.abort()

    def _remove(self, upstream: Upstream) -> None:
        upstream.wire.on_end = upstream.wire.on_lost = None
        if upstream.timer is not None:
            upstream.timer.cancel()
            upstream.timer = None
        idle = self._idle[upstream.address]
        idle.remove(upstream)
        if not idle:
            del self._idle[upstream.address]

"""One request on its way: find the service, have it woken, pass the request on and the answer back."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_address

import h11
import structlog

from app.errors import Refusal, unavailable
from app.gateway.head import Incoming, client_headers, trailers, upstream_request
from app.gateway.limits import Limits
from app.gateway.pool import Pool, Upstream
from app.gateway.routes import Route, Routes
from app.gateway.tunnel import tunnel
from app.gateway.upload import Upload
from app.gateway.wire import Wire
from app.platforms.base import Address
from app.settings import Networks

# RFC 9110 section 9.2.2
_IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})


@dataclass
class Proxy:
    """What all requests of a gateway share."""

    routes: Routes
    limits: Limits
    pool: Pool
    trusted: Networks = ()
    waiting: Counter[str] = field(default_factory=Counter)
    draining: bool = False
    """No request follows on any connection; answers say so."""

    def trusts(self, peer: str) -> bool:
        """Tell whether the client is a proxy of the operator's."""
        if not self.trusted or not peer:
            return False
        address = ip_address(peer.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None) or address
        return any(mapped in network for network in self.trusted)


class UpstreamFailedError(Exception):
    """The upstream broke off or spoke nonsense; ``untouched`` tells that no byte of an answer had come."""

    def __init__(self, message: str, *, untouched: bool = False) -> None:
        super().__init__(message)
        self.untouched = untouched


def _bad_gateway(failure: str) -> Refusal:
    return Refusal(502, "upstream_failed", f"The service did not answer: {failure}.")


class Exchange:
    """One request of one client and its answer. After ``run`` the client's parser tells whether it may go on."""

    def __init__(self, proxy: Proxy, client: Wire, incoming: Incoming) -> None:
        self.proxy = proxy
        self.limits = proxy.limits
        self.client = client
        self.incoming = incoming
        self.parser = incoming.parser
        self.status = 0
        self._failure = ""
        self._expects_continue = self.parser.they_are_waiting_for_100_continue
        self._upload = Upload(client, incoming.parser, proxy.limits)

    async def run(self) -> None:
        """Raise Refusal for an answer of our own; UpstreamFailedError when an answer had begun and can't be ended."""
        routes = self.proxy.routes
        route = await routes.find(self.incoming.host)
        if route is None:
            raise Refusal(404, "unknown_host", f"No service is served as {self.incoming.host}.")
        structlog.contextvars.bind_contextvars(service_id=route.service_id)
        routes.entered(route)
        try:
            await self._deliver(route)
        finally:
            routes.left(route)

    async def _deliver(self, route: Route) -> None:
        """Try a pooled connection, which may be stale, then fresh ones; where nobody listens, look again once."""
        pool, routes = self.proxy.pool, self.proxy.routes
        address = await self._ready(route)
        upstream = pool.take(address, repeatable=self._repeatable())
        if upstream is not None and await self._tried(upstream):
            return
        refusals = breaks = 0
        while max(refusals, breaks) < 2:
            try:
                upstream = await pool.connect(address)
            except OSError:
                refusals += 1
                self._failure = "its address takes no connections"
                pool.forget(address)
                await routes.failed(route, address)
                address = await self._ready(route)
                continue
            if await self._tried(upstream):
                return
            breaks += 1
        raise _bad_gateway(self._failure)

    async def _tried(self, upstream: Upstream) -> bool:
        """Try once; False when it failed in a way that allows to repeat the request, Refusal when it doesn't."""
        try:
            await self._once(upstream)
        except UpstreamFailedError as error:
            if self.status:
                raise
            self._failure = str(error)
            if not (error.untouched and self._repeatable()):
                raise _bad_gateway(self._failure) from error
            return False
        return True

    def _repeatable(self) -> bool:
        return not self._upload.taken and self.incoming.method in _IDEMPOTENT

    async def _ready(self, route: Route) -> Address:
        waiting = self.proxy.waiting
        if waiting[route.service_id] >= self.limits.waiting:
            raise unavailable("Too many requests wait for this service to wake.", reason="too_many_waiting")
        waiting[route.service_id] += 1
        try:
            return await self.proxy.routes.ready(route)
        finally:
            waiting[route.service_id] -= 1
            if not waiting[route.service_id]:
                del waiting[route.service_id]

    # ------------------------------------------------------------------------------------------ the request

    async def _once(self, upstream: Upstream) -> None:
        done = False
        try:
            request = upstream_request(
                self.incoming, self.client.peer, upstream.host, trusted=self.proxy.trusts(self.client.peer)
            )
            upstream.wire.write(upstream.parser.send(request))
            self._upload.begin(upstream)
            done = await self._relay(upstream)
        finally:
            await self._upload.stop()
            if done:
                self.proxy.pool.give(upstream)
            else:
                upstream.wire.abort()

    # ------------------------------------------------------------------------------------------- the answer

    async def _relay(self, upstream: Upstream) -> bool:
        """Pass the answer on; True when both sides may be used again as far as the answer goes."""
        out: list[bytes] = []
        touched = False
        try:
            while True:
                event = upstream.parser.next_event()
                if event is h11.NEED_DATA:
                    await self._flush(out)
                    data = await self._read(upstream)
                    touched = touched or bool(data)
                    upstream.parser.receive_data(data)
                elif isinstance(event, h11.Data):
                    out.append(self.parser.send(h11.Data(data=event.data)))
                elif isinstance(event, h11.Response):
                    self.status = event.status_code
                    out.append(self.parser.send(self._response(event)))
                elif isinstance(event, h11.EndOfMessage):
                    out.append(self.parser.send(h11.EndOfMessage(headers=trailers(event.headers))))
                    await self._flush(out)
                    return True
                elif isinstance(event, h11.InformationalResponse):
                    if event.status_code == 101:
                        await self._switch(upstream, event)
                        return False
                    self._inform(event, out)
                else:
                    raise UpstreamFailedError("it closed the connection without an answer", untouched=not touched)
        except h11.RemoteProtocolError as error:
            self._raise_client_fault()
            self.client.write(b"".join(out))
            raise UpstreamFailedError("its answer can't be parsed", untouched=not touched) from error
        except ConnectionResetError as error:
            self._raise_client_fault()
            raise UpstreamFailedError("it broke off", untouched=not touched) from error

    def _raise_client_fault(self) -> None:
        if self._upload.fault is not None and not self.status:
            raise self._upload.fault

    async def _read(self, upstream: Upstream) -> bytes:
        if self.status:
            return await upstream.wire.read()
        while True:
            try:
                async with asyncio.timeout(self.limits.answer):
                    return await upstream.wire.read()
            except TimeoutError:
                if not self._upload.going:
                    raise Refusal(504, "upstream_timeout", "The service did not answer in time.") from None

    async def _flush(self, out: list[bytes]) -> None:
        if out:
            self.client.write(b"".join(out))
            out.clear()
            await self.client.drain(self.limits.stall)

    def _response(self, event: h11.Response) -> h11.Response:
        headers = client_headers(event.headers)
        if self.proxy.draining:
            headers.append((b"connection", b"close"))
        return h11.Response(status_code=event.status_code, reason=event.reason, headers=headers)

    def _inform(self, event: h11.InformationalResponse, out: list[bytes]) -> None:
        # RFC 9110 section 15.2: never to HTTP/1.0; and a 100 only to who asked for one.
        wanted = event.status_code != 100 or self._expects_continue
        if wanted and self.parser.their_http_version == b"1.1":
            out.append(
                self.parser.send(
                    h11.InformationalResponse(
                        status_code=event.status_code, reason=event.reason, headers=client_headers(event.headers)
                    )
                )
            )

    async def _switch(self, upstream: Upstream, event: h11.InformationalResponse) -> None:
        self.status = 101
        head = h11.InformationalResponse(
            status_code=101, reason=event.reason, headers=client_headers(event.headers, switching=True)
        )
        self.client.write(self.parser.send(head))
        self.client.put_back(self.parser.trailing_data[0])
        upstream.wire.put_back(upstream.parser.trailing_data[0])
        await tunnel(self.client, upstream.wire, self.limits)

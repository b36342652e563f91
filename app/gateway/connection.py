"""One client's connection: reads one request head after another and sees each to its end."""

import asyncio
import logging

import h11
import structlog

from app import metrics
from app.errors import Refusal, unavailable
from app.gateway.head import Incoming, bad_request, parse, read_head
from app.gateway.problems import problem
from app.gateway.proxy import Exchange, Proxy, UpstreamFailedError
from app.gateway.wire import Wire
from app.ids import new_id

log = logging.getLogger(__name__)
access = logging.getLogger("app.gateway.access")


class Connection:
    """One client's connection and its requests, one after another."""

    def __init__(self, proxy: Proxy, wire: Wire, *, too_many: bool, access_log: bool) -> None:
        self.proxy = proxy
        self.limits = proxy.limits
        self._too_many = too_many
        self._access_log = access_log
        self.wire = wire
        self.exchange: Exchange | None = None
        self.busy = False
        self._half_closed: asyncio.TimerHandle | None = None
        self._sent_before = 0
        self.task = asyncio.get_running_loop().create_task(self._run())
        # Nobody waits for the answer of a client that left, so whatever is being done for it is cut short.
        wire.on_lost = self._lost
        wire.on_end = self._watch_half_closed

    def _lost(self) -> None:
        self.task.cancel()

    async def _run(self) -> None:
        try:
            if self._too_many:
                await self._turn_away(unavailable("Too many connections.", reason="too_many_connections"))
                return
            while await self._one():
                pass
        except (ConnectionError, TimeoutError):
            self.wire.abort()
        except asyncio.CancelledError:
            self.wire.abort()
            raise
        except Exception:
            log.exception("a connection of the gateway failed")
            self.wire.abort()
        finally:
            self._cancel_watch()
            self.wire.close(self.limits.stall)

    async def _one(self) -> bool:
        """Serve one request; True when another may follow on this connection."""
        try:
            incoming = await self._next()
        except Refusal as refusal:
            await self._turn_away(refusal)
            return False
        if incoming is None:
            return False
        started = asyncio.get_running_loop().time()
        exchange = self.exchange = Exchange(self.proxy, self.wire, incoming)
        structlog.contextvars.bind_contextvars(request_id=incoming.id)
        try:
            await exchange.run()
        except Refusal as refusal:
            self._refuse(incoming, refusal)
        except UpstreamFailedError as error:
            # The answer can't be completed, and the client must not take it for complete: no last chunk, or a reset
            # where the end of the connection is the end of the answer.
            log.info("request %s: the service failed inside its answer: %s", incoming.id, error)
            if incoming.parser.their_http_version == b"1.0":
                self.wire.reset()
            return False
        except OSError:
            raise
        except Exception:
            log.exception("request %s failed", incoming.id)
            if exchange.status:
                raise
            self._refuse(incoming, Refusal(500, "internal_error", "The gateway itself failed; its log has the error."))
        finally:
            self._cancel_watch()
            took = asyncio.get_running_loop().time() - started
            metrics.gateway_request(exchange.status, took)
            if self._access_log:
                self._log(exchange, took)
            structlog.contextvars.clear_contextvars()
            self.exchange, self.busy = None, False
        return await self._keep(incoming.parser)

    async def _next(self) -> Incoming | None:
        """Wait for the next request and parse its head; None when the client is done or was idle for too long."""
        if not self.wire.buffered:
            try:
                async with asyncio.timeout(self.limits.idle):
                    first = await self.wire.read()
            except TimeoutError:
                return None
            if not first:
                return None
            self.wire.put_back(first)
        self.busy = True
        try:
            async with asyncio.timeout(self.limits.head):
                head = await read_head(self.wire)
        except TimeoutError:
            raise bad_request("The request head did not come in time.", status=408, reason="head_timeout") from None
        if self.wire.ended:
            self._watch_half_closed()
        return None if head is None else parse(head)

    # -------------------------------------------------------------------------------------------- endings

    async def _keep(self, parser: h11.Connection) -> bool:
        if parser.our_state is h11.DONE and parser.their_state is h11.DONE:
            self.wire.put_back(parser.trailing_data[0])
            return not self.proxy.draining
        if parser.our_state is not h11.SWITCHED_PROTOCOL:
            await self._linger()
        return False

    def _refuse(self, incoming: Incoming, refusal: Refusal) -> None:
        """Answer with a problem document; the connection may go on if all of the request is here already."""
        assert self.exchange is not None
        self.exchange.status = refusal.status
        parser = incoming.parser
        try:
            if self.wire.buffered and parser.their_state is h11.SEND_BODY:
                parser.receive_data(self.wire.take())
            while parser.their_state is h11.SEND_BODY and parser.next_event() is not h11.NEED_DATA:
                pass
        except h11.RemoteProtocolError:
            log.debug("request %s: refused, and its body can't be parsed", incoming.id)
        close = self.proxy.draining or parser.their_state in {h11.SEND_BODY, h11.ERROR}
        bodiless = incoming.method == b"HEAD"
        self.wire.write(problem(parser, refusal, incoming.id, close=close, bodiless=bodiless))

    async def _turn_away(self, refusal: Refusal) -> None:
        """Answer what could not be read as a request, and end the connection."""
        self.wire.write(problem(h11.Connection(h11.SERVER), refusal, new_id("req"), close=True))
        await self._linger()

    async def _linger(self) -> None:
        """Read on for a moment: closing with unread bytes would reset the connection and take the answer with it."""
        self.wire.end()
        try:
            async with asyncio.timeout(self.limits.linger):
                while await self.wire.read():
                    pass
        except (TimeoutError, ConnectionError):
            return

    # ------------------------------------------------------------------------------- clients that half-closed

    def _watch_half_closed(self) -> None:
        """Give up on a client that sends no more once nothing was sent to it for a while.

        A FIN is all that a client shows that left, and also one that only has nothing more to say. The first write to
        the former brings a reset; so only silence is bounded.
        """
        if self.busy and self._half_closed is None:
            self._sent_before = self.wire.sent
            loop = asyncio.get_running_loop()
            self._half_closed = loop.call_later(self.limits.half_closed, self._check_half_closed)

    def _check_half_closed(self) -> None:
        self._half_closed = None
        if self.exchange is not None and self.exchange.status == 101:
            return  # the tunnel has its own bound
        if self.wire.sent == self._sent_before:
            self.task.cancel()
        else:
            self._watch_half_closed()

    def _cancel_watch(self) -> None:
        if self._half_closed is not None:
            self._half_closed.cancel()
            self._half_closed = None

    def _log(self, exchange: Exchange, seconds: float) -> None:
        incoming = exchange.incoming
        access.info(
            "%s %s %s %s %d %.1f ms %s",
            self.wire.peer,
            incoming.method.decode("ascii"),
            incoming.host,
            incoming.target.partition(b"?")[0].decode("ascii"),
            exchange.status,
            seconds * 1000,
            incoming.id,
        )

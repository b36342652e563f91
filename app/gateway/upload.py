"""A request's body on its way to the upstream, while the answer may already be coming back."""

import asyncio

import h11

from app.errors import Refusal
from app.gateway.head import bad_request, trailers
from app.gateway.limits import Limits
from app.gateway.pool import Upstream
from app.gateway.wire import Wire


class Upload:
    """The body of one request: ``taken`` once any of it was read, ``fault`` when the client can't or won't finish it."""

    def __init__(self, client: Wire, parser: h11.Connection, limits: Limits) -> None:
        self.taken = False
        self.fault: Refusal | None = None
        self._client = client
        self._parser = parser
        self._limits = limits
        self._end: h11.EndOfMessage | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def going(self) -> bool:
        """Whether there is more to come."""
        return self._task is not None and not self._task.done()

    def begin(self, upstream: Upstream) -> None:
        """Send what is here, and the rest in the background. Raises Refusal when what is here can't be parsed."""
        if not self._send(upstream):
            self._task = asyncio.create_task(self._pump(upstream))

    async def stop(self) -> None:
        """Send no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def _send(self, upstream: Upstream) -> bool:
        out = []
        while self._end is None:
            try:
                event = self._parser.next_event()
            except h11.RemoteProtocolError as error:
                raise bad_request(f"The request body can't be parsed: {error}.") from error
            if event is h11.NEED_DATA:
                if not self._client.buffered:
                    break
                self._parser.receive_data(self._client.take())
            elif isinstance(event, h11.Data):
                self.taken = True
                out.append(upstream.parser.send(h11.Data(data=event.data)))
            elif isinstance(event, h11.EndOfMessage):
                self._end = event
        if self._end is not None:
            out.append(upstream.parser.send(h11.EndOfMessage(headers=trailers(self._end.headers))))
        upstream.wire.write(b"".join(out))
        return self._end is not None

    async def _pump(self, upstream: Upstream) -> None:
        """Send the body as it comes. A fault of the client ends the upstream's connection, which the answer's side sees."""
        try:
            sent = False
            while not sent:
                await upstream.wire.drain(self._limits.stall)
                async with asyncio.timeout(self._limits.body):
                    self._parser.receive_data(await self._client.read())
                sent = self._send(upstream)
        except Refusal as refusal:
            self.fault = refusal
        except TimeoutError:
            # Either the client is silent or the upstream takes nothing.
            if upstream.wire.lost or upstream.wire.transport.get_write_buffer_size():
                self.fault = Refusal(504, "upstream_timeout", "The service does not read the request.")
            else:
                self.fault = bad_request("The request body did not come.", status=408, reason="body_timeout")
        except (ConnectionError, h11.LocalProtocolError):
            return  # the upstream may have answered before it closed, so the answer has the last word
        if self.fault is not None:
            upstream.wire.abort()

"""One TCP connection with bounded buffers both ways; the same for the client's side and the upstream's.

A plain ``asyncio.Protocol`` rather than streams, because a proxy needs to hear of the other side's end while it waits
for something else, and should pay one callback for it and not one task.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import cast

#: Reading pauses while so many bytes wait to be taken, writing while so many wait for the other side's window.
WATERMARK = 64 * 1024
#: Seconds of silence after which the kernel starts to probe a peer that may have vanished without a word.
PROBE_AFTER_SECONDS = 60


class Wire(asyncio.Protocol):
    """Bytes in, bytes out, and the facts about the connection's end.

    ``ended``: the other side will send no more (it may still read). ``lost``: there is no connection any more. ``sent``
    counts the bytes written.
    ``on_end`` and ``on_lost`` are called at those moments; whoever uses the wire sets them.
    """

    def __init__(self, on_open: Callable[["Wire"], None] | None = None) -> None:
        self.transport: asyncio.Transport
        self.peer = ""
        self.ended = False
        self.lost = False
        self.sent = 0
        self.on_end: Callable[[], None] | None = None
        self.on_lost: Callable[[], None] | None = None
        self._on_open = on_open
        self._chunks: list[bytes] = []
        self._size = 0
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._reading_paused = False
        self._writing_paused = False

    # ------------------------------------------------------------------------------------ called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport and set the socket's options."""
        # uvloop's transports have the methods and not the type.
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=WATERMARK)
        address = transport.get_extra_info("peername")
        self.peer = address[0] if isinstance(address, tuple) else ""
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER_SECONDS)
        if self._on_open is not None:
            self._on_open(self)

    def data_received(self, data: bytes) -> None:
        """Keep the bytes; pause reading once enough of them wait."""
        self._chunks.append(data)
        self._size += len(data)
        if self._size >= WATERMARK and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()
        self._wake_reader()

    def eof_received(self) -> bool:
        """Keep our half open: a client may close its half and still want the answer. TLS has no halves."""
        self.ended = True
        self._wake_reader()
        if self.on_end is not None:
            self.on_end()
        return self.transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake whoever waits; they find the wire lost."""
        self.lost = True
        self._wake_reader()
        self.resume_writing()
        if self.on_lost is not None:
            self.on_lost()

    def pause_writing(self) -> None:
        """The other side reads slower than we write."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """There is room again."""
        self._writing_paused = False
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # ------------------------------------------------------------------------------------------- reading

    @property
    def buffered(self) -> int:
        """Bytes that wait to be taken."""
        return self._size

    def take(self) -> bytes:
        """Return all bytes that are here now, and read on."""
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        if self._reading_paused and not self.lost:
            self._reading_paused = False
            self.transport.resume_reading()
        return data

    def put_back(self, data: bytes) -> None:
        """Return bytes that belong to the next message."""
        if data:
            self._chunks.insert(0, data)
            self._size += len(data)

    async def read(self) -> bytes:
        """Return the next bytes, ``b""`` at the other side's end; raise ConnectionResetError when the wire is lost."""
        while not self._chunks:
            if self.ended:
                return b""
            if self.lost:
                raise ConnectionResetError("the connection is gone")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self.take()

    # ------------------------------------------------------------------------------------------- writing

    def write(self, data: bytes) -> None:
        """Send; follow with ``drain`` wherever more is to come."""
        if not self.lost:
            self.sent += len(data)
            self.transport.write(data)

    async def drain(self, stall_seconds: float) -> None:
        """Wait until the other side has taken enough; TimeoutError when it takes nothing for so long."""
        if self.lost:
            raise ConnectionResetError("the connection is gone")
        if not self._writing_paused:
            return
        # Anything taken counts as progress, so that a slow reader of a big answer isn't taken for a dead one.
        loop = asyncio.get_running_loop()
        left = self.transport.get_write_buffer_size()
        while self._writing_paused:
            self._writer = loop.create_future()
            try:
                async with asyncio.timeout(stall_seconds):
                    await self._writer
            except TimeoutError:
                now_left = self.transport.get_write_buffer_size()
                if now_left >= left:
                    raise
                left = now_left
            finally:
                self._writer = None
        if self.lost:
            raise ConnectionResetError("the connection is gone")

    def end(self) -> None:
        """Close our half; the other side may go on sending, unless it is TLS, which ends as a whole."""
        if not self.transport.is_closing():
            if not self.transport.can_write_eof():
                self.transport.close()
                return
            with suppress(OSError):  # a reset that the loop has not told us of yet
                self.transport.write_eof()

    def close(self, stall_seconds: float) -> None:
        """Close once what was written is out, which the other side may delay for so long."""
        if not self.transport.is_closing():
            self.transport.close()
            if self.transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(stall_seconds, self.transport.abort)

    def abort(self) -> None:
        """Close now and throw away what is not out yet."""
        self.transport.abort()

    def reset(self) -> None:
        """Close so that the other side can't take it for a regular end."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and not self.lost:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

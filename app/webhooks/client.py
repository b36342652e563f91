"""The one way out to endpoints: POST to an address that was checked, no redirects, everything bounded."""

import asyncio
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

import httpcore

from app import address
from app.address import AddressError, Resolve
from app.platforms.failures import retry_after
from app.platforms.http import trust

TIMEOUT_SECONDS = 15.0
MAX_ANSWER = 64 * 1024
CONNECTIONS = 100


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one attempt; ``retry_after`` in seconds, if the receiver asked for it."""

    ms: int
    status_code: int | None = None
    error: str | None = None
    retry_after: float | None = None

    @property
    def delivered(self) -> bool:
        """Tell whether the receiver took it: any 2xx."""
        return self.status_code is not None and 200 <= self.status_code < 300


class Client:
    """Connections to endpoints, kept for the next message; an async context manager. ``allow`` as ``app.address`` has it."""

    def __init__(
        self,
        allow: Sequence[str],
        *,
        timeout: float = TIMEOUT_SECONDS,
        tls: ssl.SSLContext | None = None,
        resolve: Resolve = address.resolve,
    ) -> None:
        self._timeout = timeout
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or trust(),
            max_connections=CONNECTIONS,
            max_keepalive_connections=CONNECTIONS // 2,
            keepalive_expiry=30.0,
            network_backend=_Checked(allow, resolve),
        )

    async def __aenter__(self) -> "Client":
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(kind, error, trace)

    async def post(self, url: str, headers: Mapping[str, str], body: str) -> Outcome:
        """Send one message and return what came of it; never raises for what the receiver, its name or the network does.

        Nothing of the answer is kept but its status and Retry-After, and no more of it is read than ``MAX_ANSWER`` bytes.
        """
        begun = time.monotonic()
        status, asked = None, None
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._pool.stream("POST", url, headers=[*headers.items()], content=body.encode()) as answer,
            ):
                status, asked = answer.status, _retry_after(answer.headers)
                size = 0
                async for piece in answer.aiter_stream():
                    size += len(piece)
                    if size > MAX_ANSWER:
                        break
            error = None if 200 <= status < 300 else f"answered {status}"
        except AddressError as e:
            error = str(e)
        except (TimeoutError, httpcore.TimeoutException):
            status, error = None, f"no whole answer in {self._timeout:g} s"
        except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError, OSError) as e:
            status, error = None, f"{_WORDS.get(type(e), 'the connection broke')}: {e}"[:300]
        ms = round((time.monotonic() - begun) * 1000)
        return Outcome(ms=ms, status_code=status, error=error, retry_after=asked)


_WORDS: dict[type[Exception], str] = {
    httpcore.ConnectError: "no connection",
    httpcore.RemoteProtocolError: "the answer is no HTTP",
}


def _retry_after(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    plain = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
    try:
        return retry_after(plain, time.time())
    except (ValueError, OverflowError):  # a date that is none
        return None


class _Checked(httpcore.AsyncNetworkBackend):
    """Connects to the very addresses that were checked; TLS is still about the name in the URL."""

    def __init__(self, allow: Sequence[str], resolve: Resolve) -> None:
        self._allow, self._resolve = allow, resolve
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        error: Exception = AddressError(f"the host {host} has no address")
        for found in await address.look_up(host, port, self._allow, self._resolve):
            try:
                return await self._inner.connect_tcp(str(found), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as e:
                error = e
        raise error

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)

"""The thin client under every remote platform: one way to send a JSON request, to count it, to retry it and to name its failure.

A platform's ``client.py`` holds a ``JsonApi`` and gives it what differs: how requests are signed, and ``classify``, which turns
a refused answer (``Failure``) into an error of ``platforms.base``. It asks with ``call`` and reads with ``Answer.read``::

    self._api = JsonApi("koyeb", settings.api_url, headers={"Authorization": f"Bearer {token}"}, classify=classify)
    answer = await self._api.call("create service", "POST", "/v1/services", json=body)
    return answer.read(ServiceReply).service

Retry rule, the same for all: what may be repeated without harm (GET, HEAD, DELETE, and whatever the caller says may
``repeat``) is tried ``ATTEMPTS`` times while the failure is Transient. A POST is never repeated blindly: only when it surely
did not take effect (no connection was made, or RateLimited). A Retry-After wins over our own back-off; one that is longer
than ``MAX_WAIT`` is not waited for here but given to the caller, whose job comes again later.
"""
# Over 250 lines: the way of one request, from its budget to its answer.

import asyncio
import functools
import json as jsonlib
import random
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from app import __version__, metrics, tracing
from app.platforms.base import RateLimited, Transient
from app.platforms.budget import Budget, Kind, Unlimited
from app.platforms.failures import Classify, Failure, NotSent, Text, by_status, retry_after, short
from app.settings import MIB, is_loopback

ATTEMPTS = 4
BASE_WAIT = 0.25
MAX_WAIT = 15.0
MAX_ANSWER = 16 * MIB
TIMEOUT = httpx.Timeout(30, connect=10)
SAFE = frozenset({"GET", "HEAD", "DELETE"})
USER_AGENT = f"slipway/{__version__}"

T = TypeVar("T")
Params = Mapping[str, str | int | bool | Sequence[str]]


class Wire(BaseModel):
    """Base of all answers: unknown fields are ignored. Make optional what one may do without, and enums plain ``str``."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A 2xx answer. ``content`` is its parsed JSON, None when it had no body."""

    platform: str
    operation: str
    status: int
    headers: httpx.Headers = field(repr=False)
    content: Any = field(repr=False)
    request_id: str | None

    def read(self, model: type[T]) -> T:
        """Return the content as a model; Transient when it is something else, since a platform is not always itself."""
        try:
            found: T = TypeAdapter(model).validate_python(self.content)
        except ValidationError as e:
            where = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in e.errors(include_input=False)[:3])
            raise Transient(
                self.platform, self.operation, f"the answer can't be read: {where}", self.request_id
            ) from None
        return found


@functools.cache
def trust() -> ssl.SSLContext:
    """Return the certificates all clients share: to read them takes longer than most calls."""
    return httpx.create_ssl_context()


class JsonApi:
    """One account of one platform: connection pool, signature, budget, counters. Close it with ``aclose``.

    ``requests`` counts what was sent per operation, retries included. ``request_id`` names the answer's header that the
    platform's support asks for. ``refused`` tells of a 2xx answer's content that it is a refusal all the same (GraphQL).
    """

    def __init__(
        self,
        platform: str,
        base_url: str,
        *,
        headers: Mapping[str, str],
        classify: Classify = by_status,
        refused: Callable[[Any], bool] = lambda content: False,
        budget: Budget | None = None,
        request_id: str = "x-request-id",
        timeout: httpx.Timeout = TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.platform = platform
        self.requests: Counter[str] = Counter()
        self.budget: Budget = budget or Unlimited()
        self._classify = classify
        self._refused = refused
        self._request_id = request_id
        self._timeout = timeout
        self._sleep = sleep
        self._clock = clock
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers={"User-Agent": USER_AGENT, "Accept": "application/json", **headers},
            verify=trust(),
            trust_env=not is_loopback(base_url),
            transport=transport,
            follow_redirects=False,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def call(
        self,
        operation: str,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        repeat: bool | None = None,
        kind: Kind = "call",
        key: str = "",
        timeout: float | None = None,
    ) -> Answer:
        """Send one request and return its 2xx answer.

        ``operation`` names it in errors and counters. ``repeat`` says that sending it twice does no harm (default: by method).
        ``kind`` and ``key`` are for the budget: what sort of request it is, and about which object. ``timeout`` in seconds, for
        calls that wait at the platform's side. Raises what ``classify`` makes of a refusal, and Transient when nobody answered.
        """
        repeat = method in SAFE if repeat is None else repeat
        failures = 0
        while True:
            await self.budget.acquire(kind, operation=operation, key=key)
            try:
                about = {"platform": self.platform, "operation": operation, "http.request.method": method}
                with (
                    metrics.platform_call(self.platform, operation),
                    tracing.span(f"{self.platform} {operation}", kind="client", **about),
                ):
                    return await self._once(operation, method, path, params, json, headers, timeout, key)
            except Transient as e:
                failures += 1
                unsent = isinstance(e, RateLimited | NotSent)
                if failures >= ATTEMPTS or not (repeat or unsent) or (e.retry_after or 0) > MAX_WAIT:
                    raise
                await self._sleep(back_off(failures) if e.retry_after is None else e.retry_after)

    async def _once(
        self,
        operation: str,
        method: str,
        path: str,
        params: Params | None,
        json: Any,
        headers: Mapping[str, str] | None,
        timeout: float | None,
        key: str,
    ) -> Answer:
        self.requests[operation] += 1
        waits = self._timeout if timeout is None else httpx.Timeout(timeout, connect=self._timeout.connect)
        request = self._http.build_request(
            method, path, params=_plain(params), json=json, headers=headers, timeout=waits
        )
        try:
            response = await self._http.send(request, stream=True)
            try:
                raw = await self._body(operation, response)
            finally:
                await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as e:
            raise NotSent(self.platform, operation, f"could not be reached ({type(e).__name__})") from e
        except httpx.HTTPError as e:
            raise Transient(self.platform, operation, f"no answer ({type(e).__name__})") from e
        return await self._judge(operation, response, raw, key)

    async def _judge(self, operation: str, response: httpx.Response, raw: bytes, key: str) -> Answer:
        request_id = response.headers.get(self._request_id)
        content = _parse(raw)
        if response.is_success and isinstance(content, Text):
            raise Transient(self.platform, operation, f"the answer is no JSON: {short(content)}", request_id)
        if response.is_success and not self._refused(content):
            await self.budget.feed(response.headers, operation=operation, key=key)
            return Answer(
                platform=self.platform,
                operation=operation,
                status=response.status_code,
                headers=response.headers,
                content=content,
                request_id=request_id,
            )
        failure = Failure(
            platform=self.platform,
            operation=operation,
            status=response.status_code,
            body=content,
            headers=response.headers,
            request_id=request_id,
            retry_after=retry_after(response.headers, self._clock()),
        )
        error = self._classify(failure)
        throttled = (error.retry_after or 0.0) if isinstance(error, RateLimited) else None
        await self.budget.feed(response.headers, throttled=throttled, operation=operation, key=key)
        raise error

    async def _body(self, operation: str, response: httpx.Response) -> bytes:
        data = bytearray()
        async for piece in response.aiter_bytes():
            data += piece
            if len(data) > MAX_ANSWER:
                raise Transient(self.platform, operation, f"the answer has more than {MAX_ANSWER} bytes")
        return bytes(data)


def back_off(failures: int) -> float:
    """Return how long to wait before the next try, in seconds; half of it at random, so that many don't come back together."""
    return min(8.0, BASE_WAIT * 2.0 ** (failures - 1)) * (0.5 + random.random() / 2)  # noqa: S311


def _parse(raw: bytes) -> Any:
    if not raw:
        return None
    try:
        return jsonlib.loads(raw)
    except ValueError:
        return Text(raw[:2000].decode("utf-8", "replace"))


def _plain(params: Params | None) -> httpx.QueryParams | None:
    """Spell a query: booleans in lower case, lists as repeated names."""
    if params is None:
        return None
    flat: list[tuple[str, str | int | float | bool | None]] = []
    for name, value in params.items():
        values = [value] if isinstance(value, str | int) else value
        flat += [(name, str(v).lower() if isinstance(v, bool) else str(v)) for v in values]
    return httpx.QueryParams(flat)

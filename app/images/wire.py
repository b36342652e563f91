"""HTTP to a registry: authentication, retries, redirects. ``client.Registry`` has the verbs.

Retry rule: whatever can be repeated without harm (GET and HEAD, opening an upload, putting or deleting by name) is
tried up to five times on transport errors, 429 and 5xx, with exponential back-off or the Retry-After of the answer.
A streamed body is sent once; ``upload`` knows how to go on.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import httpx

from app.images.answers import read_bounded, refusal, same_origin, unavailable
from app.images.bearer import Challenge, Credential, TokenCache, TokenRequest, parse_challenges, read_token
from app.images.errors import RegistryDenied, RegistryError, RegistryUnavailable
from app.images.tokens import Token

Body = bytes | AsyncIterator[bytes] | None
T = TypeVar("T")

ATTEMPTS = 5
TIMEOUT = httpx.Timeout(60, connect=10)
_MAX_WAIT = 60.0
_MAX_TOKEN_ANSWER = 256 * 1024
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True)
class Answer:
    """A successful answer with its whole body."""

    status: int
    url: httpx.URL
    headers: httpx.Headers
    body: bytes


class Wire:
    """One registry's connection pool, credential and clocks; ``base`` is ``scheme://host[:port]``."""

    def __init__(
        self,
        base: str,
        credential: Credential,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        timeout: httpx.Timeout = TIMEOUT,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.base = base.rstrip("/")
        self.clock = clock
        self._sleep = sleep
        self._credential = credential
        self._tokens = TokenCache()
        self._challenge: Challenge | None = None
        self._http = httpx.AsyncClient(
            transport=transport, timeout=timeout, follow_redirects=False, headers={"Accept-Encoding": "identity"}
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def back_off(self, failures: int, retry_after: float | None = None) -> None:
        """Wait before the next try; ``failures`` counts from 1."""
        # Half of it at random, so that many clients don't come back together.
        delay = min(8.0, 0.2 * 2 ** (failures - 1)) * (0.5 + random.random() / 2)  # noqa: S311
        await self._sleep(delay if retry_after is None else retry_after)

    async def retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Run ``attempt`` until it comes through, at most five times, while what it meets is transient."""
        failures = 0
        while True:
            try:
                return await attempt()
            except httpx.TransportError as error:
                problem = unavailable(self.base, error)
            except RegistryUnavailable as error:
                problem = error
            failures += 1
            if failures >= ATTEMPTS or (problem.retry_after or 0) > _MAX_WAIT:
                raise problem
            await self.back_off(failures, problem.retry_after)

    async def call(
        self,
        method: str,
        url: str,
        scope: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        max_bytes: int = 64 * 1024,
    ) -> Answer:
        """Send a request that may be repeated and return the 2xx answer with its body of at most ``max_bytes``.

        ``url`` may be a path; ``scope`` is the token scope it needs. Redirects of GET and HEAD are followed.
        """

        async def attempt() -> Answer:
            response = await self._good(method, url, scope, headers or {}, content)
            try:
                # Read to its end even where there is nothing: only then the connection is used again.
                body = await read_bounded(response, max_bytes)
            finally:
                await response.aclose()
            return Answer(response.status_code, response.url, response.headers, body)

        return await self.retried(attempt)

    @asynccontextmanager
    async def stream(self, url: str, scope: str, headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        """GET ``url`` and yield the 2xx answer with its body unread; only what comes before the body is retried."""
        response = await self.retried(lambda: self._good("GET", url, scope, headers, None))
        try:
            yield response
        finally:
            await response.aclose()

    async def send(
        self, method: str, url: str, scope: str, *, headers: Mapping[str, str], content: Body
    ) -> tuple[httpx.Response, RegistryError | None]:
        """Send once, redirects not followed; return the answer, closed, and what is wrong with it."""
        response = await self._once(method, self.absolute(url), scope, headers, content)
        try:
            problem = await refusal(response)
            return response, None if response.is_success else problem
        finally:
            await response.aclose()

    async def renew(self, response: httpx.Response, scope: str) -> bool:
        """Get a credential that answers a 401, in one try; False when there is none better than what was refused."""
        if self._credential.bearer:
            return False
        offered = {c.kind: c for c in parse_challenges(response.headers.get_list("www-authenticate"))}
        if "bearer" in offered:
            self._challenge = offered["bearer"]
            self._tokens.drop(scope)
            await self._fetch_token(self._challenge, scope)
            return True
        if "basic" in offered and self._credential.basic and "authorization" not in response.request.headers:
            self._challenge = offered["basic"]
            return True
        return False

    async def challenge(self) -> Challenge | None:
        """Return how the registry wants to be authenticated to; None when it does not care."""
        if self._challenge is None:
            response = await self.retried(self._probe)
            offered = {c.kind: c for c in parse_challenges(response.headers.get_list("www-authenticate"))}
            if response.status_code == 401:
                self._challenge = offered.get("bearer") or offered.get("basic")
                if self._challenge is None:
                    raise RegistryDenied(f"{self.base} wants an authentication that we don't know")
        return self._challenge

    async def token(self, scope: str) -> Token:
        """Fetch a new token for ``scope`` from the registry's token service."""
        challenge = await self.challenge()
        if challenge is None or challenge.kind != "bearer":
            raise RegistryDenied(f"{self.base} has no token service")
        return await self.retried(lambda: self._fetch_token(challenge, scope))

    def absolute(self, location: str) -> str:
        """Resolve a path or Location; the registry's own host keeps its scheme, another one may not be plainer."""
        url = httpx.URL(self.base).join(location)
        own = httpx.URL(self.base)
        if own.scheme == "https" and url.scheme == "http":
            # Registries behind a proxy that ends TLS often name themselves by http.
            if url.host != own.host:
                raise RegistryDenied(f"{self.base} sends us to plain http on {url.host}, which is refused")
            url = url.copy_with(scheme="https", port=own.port)
        return str(url)

    async def _good(
        self, method: str, url: str, scope: str, headers: Mapping[str, str], content: bytes | None
    ) -> httpx.Response:
        response = await self._follow(method, url, scope, headers, content)
        try:
            if response.status_code == 401 and await self.renew(response, scope):
                await refusal(response)
                await response.aclose()
                response = await self._follow(method, url, scope, headers, content)
            if not response.is_success:
                raise await refusal(response)
        except BaseException:
            await response.aclose()
            raise
        return response

    async def _fetch_token(self, challenge: Challenge, scope: str) -> Token:
        ask = TokenRequest.of(challenge, self.base, scope)
        basic = self._credential.basic
        async with self._http.stream("GET", ask.url, auth=basic) as response:
            if not response.is_success:
                problem = await refusal(response)
                if isinstance(problem, RegistryUnavailable):
                    raise problem
                raise RegistryDenied(f"the token service refused us: {problem}")
            token = read_token(response, await read_bounded(response, _MAX_TOKEN_ANSWER), self.clock())
        self._tokens.put(scope, token, self.clock())
        return token

    async def _follow(
        self, method: str, url: str, scope: str, headers: Mapping[str, str], content: bytes | None
    ) -> httpx.Response:
        at = self.absolute(url)
        for _ in range(_MAX_REDIRECTS + 1):
            response = await self._once(method, at, scope, headers, content)
            if response.status_code not in _REDIRECTS or method not in {"GET", "HEAD"}:
                return response
            await refusal(response)
            await response.aclose()
            at = self.absolute(str(httpx.URL(at).join(response.headers.get("location", ""))))
        raise RegistryUnavailable(f"{self.base} redirects in circles")

    async def _once(
        self, method: str, url: str, scope: str, headers: Mapping[str, str], content: Body
    ) -> httpx.Response:
        request = self._http.build_request(method, url, headers=dict(headers), content=content)
        if same_origin(request.url, httpx.URL(self.base)) and (value := self._authorization(scope)):
            request.headers["Authorization"] = value
        return await self._http.send(request, stream=True, auth=None)

    def _authorization(self, scope: str) -> str | None:
        if self._credential.bearer:
            return f"Bearer {self._credential.bearer}"
        if self._challenge and self._challenge.kind == "basic" and (basic := self._credential.basic):
            return str(next(basic.auth_flow(httpx.Request("GET", self.base))).headers["Authorization"])
        token = self._tokens.get(scope, self.clock())
        return f"Bearer {token}" if token else None

    async def _probe(self) -> httpx.Response:
        response = await self._http.get(f"{self.base}/v2/", auth=None)
        if response.is_success or response.status_code == 401:
            return response
        raise RegistryUnavailable(f"{self.base} answers /v2/ with {response.status_code}")

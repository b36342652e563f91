"""The calls to the control plane: who we are, what is to be done, how it goes, what came of it.

Every call is repeated with back-off until it is answered or the run's deadline has passed; each is safe to repeat.
"""

import base64
import hashlib
import hmac
import json
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import certifi
import httpx

from builder import __version__
from builder.orders import Environment, Orders, read_orders
from builder.pace import Pace

#: Answers that no repetition will change.
FINAL = frozenset({400, 401, 403, 409, 410, 413, 422})


@dataclass
class Refused(Exception):
    """The control plane said no for good: ``status`` is one of FINAL."""

    status: int
    detail: str

    def __str__(self) -> str:
        return f"{self.status}: {self.detail}"


class Unreachable(Exception):
    """No answer before the deadline."""


@dataclass(frozen=True, kw_only=True)
class Grant:
    """Leave to push to one repository of one registry, for minutes."""

    registry: str
    repository: str
    token: str


class Control:
    """One client for one run; use it as an async context manager."""

    def __init__(self, environment: Environment, pace: Pace) -> None:
        self.deadline = environment.deadline
        self._token = environment.token
        self._instance = environment.instance
        self._pace = pace
        self._webhook_id = f"msg_{secrets.token_hex(16)}"
        self._http = httpx.AsyncClient(
            base_url=f"{environment.url}/v1/runs/{environment.run_id}",
            headers={
                "authorization": f"Bearer {self._token}",
                "user-agent": f"slipway-builder/{__version__}",
                **({"traceparent": environment.traceparent} if environment.traceparent else {}),
            },
            timeout=pace.timeout,
            verify=trust(environment, environment.url),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def claim(self) -> Orders:
        """Take the run for this instance; Refused with 409 when another has it, 410 when it is over."""
        return read_orders(await self._post("/claim", {"instance": self._instance}))

    async def log(self, seq: int, lines: list[dict[str, object]]) -> None:
        """Hand over lines; ``seq`` is the number of the first one, so that a repetition adds nothing."""
        await self._post("/logs", {"instance": self._instance, "seq": seq, "lines": lines})

    async def heartbeat(self, stage: str) -> tuple[bool, float]:
        """Say that we are alive; returns (canceled, deadline in Unix seconds)."""
        answer = await self._post("/heartbeat", {"instance": self._instance, "stage": stage})
        return bool(answer.get("cancel")), float(answer.get("deadline") or self.deadline)

    async def grant(self) -> Grant:
        """Ask for leave to push. The token must not be kept longer than the push takes."""
        answer = await self._post("/push-grant", {"instance": self._instance})
        return Grant(registry=answer["registry"], repository=answer["repository"], token=answer["token"])

    @asynccontextmanager
    async def source(self) -> AsyncIterator[httpx.Response]:
        """Open the source archive as a stream, whatever the status: one attempt."""
        async with self._http.stream("GET", "/source") as response:
            yield response

    async def complete(self, body: bytes) -> bool:
        """Report the end, signed; returns whether it counted. A repetition keeps the id and signs anew."""
        answer = await self._post("/complete", body, sign=True)
        return bool(answer.get("accepted", True))

    async def _post(self, path: str, body: Mapping[str, object] | bytes, *, sign: bool = False) -> dict[str, Any]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        attempt = 0
        while True:
            headers = {"content-type": "application/json", **(self._signature(content) if sign else {})}
            asked, problem = None, ""
            try:
                response = await self._http.post(path, content=content, headers=headers)
                if response.is_success:
                    return _answer(response)
                if response.status_code in FINAL:
                    raise Refused(response.status_code, _detail(response))
                asked, problem = response.headers.get("retry-after"), f"status {response.status_code}"
            except (httpx.TransportError, httpx.DecodingError, ValueError) as error:
                problem = type(error).__name__
            if time.time() >= self.deadline:
                raise Unreachable(f"POST {path}: {problem}")
            await self._pace.wait(attempt, asked)
            attempt += 1

    def _signature(self, body: bytes) -> dict[str, str]:
        """Return the three headers of https://www.standardwebhooks.com, keyed with the run token."""
        stamp = str(int(time.time()))
        signed = f"{self._webhook_id}.{stamp}.".encode() + body
        mac = hmac.new(self._token.encode(), signed, hashlib.sha256).digest()
        return {
            "webhook-id": self._webhook_id,
            "webhook-timestamp": stamp,
            "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
        }


def trust(environment: Environment, url: str) -> ssl.SSLContext | bool:
    """Return what a client checks certificates with; loading the roots costs 30 ms, so not for plain http."""
    if url.startswith("http://"):
        return False
    return ssl.create_default_context(cafile=str(environment.ca_file or certifi.where()))


def _answer(response: httpx.Response) -> dict[str, Any]:
    if response.status_code == 204 or not response.content:
        return {}
    answer = response.json()
    if not isinstance(answer, dict):
        raise httpx.DecodingError("the answer is not an object")
    return answer


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json().get("detail", ""))[:500]
    except (ValueError, AttributeError):
        return response.text[:200]

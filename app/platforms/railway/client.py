"""The wire: one GraphQL endpoint, what its answers hold, and what its refusals mean.

Facts that this file stands on: each URL has a query string, since requests without one fall under an edge rule that bans for
hours; most errors come as HTTP 200, and their codes say little, so the message decides; the edge's own refusals are no JSON.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import Field

from app.platforms.base import Misconfigured, PlatformError, RateLimited, Rejected, Transient
from app.platforms.budget import Budget
from app.platforms.failures import Failure, Missing, Text, by_status, short
from app.platforms.http import Answer, JsonApi, Wire
from app.platforms.railway.documents import Document

NAME = "railway"
SOURCE = "slipway"
TIMEOUT_SECONDS = 90.0
"""Railway's own CLI had to raise its limit to this."""
THROTTLE_SECONDS = 35.0
EDGE_SECONDS = 60.0

T = TypeVar("T")


@dataclass
class PlanLimit(Misconfigured):
    """The workspace's plan does not allow it."""


# --------------------------------------------------------------------------------------------------- answers


class Page(Wire):
    """Where a listing goes on."""

    has_next: bool = Field(alias="hasNextPage")
    end: str | None = Field(None, alias="endCursor")


class Instance(Wire):
    """One container of a deployment."""

    id: str
    status: str


class Deployment(Wire):
    """One attempt to run a configuration; ``status`` is an open enum."""

    id: str
    status: str
    stopped: bool = Field(alias="deploymentStopped")
    created_at: datetime = Field(alias="createdAt")
    meta: dict[str, Any] | None = None
    can_rollback: bool = Field(False, alias="canRollback")
    instances: tuple[Instance, ...] = ()

    @property
    def image(self) -> str | None:
        """The image that this deployment really runs."""
        image = (self.meta or {}).get("image")
        return image if isinstance(image, str) else None


class Service(Wire):
    """A service, whatever runs of it."""

    id: str
    name: str
    created_at: datetime | None = Field(None, alias="createdAt")


class Source(Wire):
    """What a service is configured to run."""

    image: str | None = None


class Domain(Wire):
    """A public host name."""

    id: str
    domain: str


class Domains(Wire):
    """The public host names of a service."""

    own: tuple[Domain, ...] = Field((), alias="serviceDomains")


class ServiceInstance(Wire):
    """A service in one environment."""

    source: Source | None = None
    latest: Deployment | None = Field(None, alias="latestDeployment")
    active: tuple[Deployment, ...] = Field((), alias="activeDeployments")
    domains: Domains = Domains()

    @property
    def domain(self) -> str | None:
        """The first public host name."""
        return self.domains.own[0].domain if self.domains.own else None


class Line(Wire):
    """A log line; ``timestamp`` has nanoseconds."""

    timestamp: str
    message: str
    severity: str | None = None


class EventPayload(Wire):
    """What went wrong in a step."""

    error: str | None = None
    reason: str | None = None
    detail: str | None = None


class Event(Wire):
    """A step of a deployment."""

    step: str
    payload: EventPayload | None = None


# --------------------------------------------------------------------------------------------------- refusals

_AUTH = ("not authorized", "project token not found", "unauthenticated")
_THROTTLED = ("too quickly", "rate limit", "too many requests")
_PLAN = ("plan", "limit", "upgrade", "limited access")


def classify(failure: Failure) -> PlatformError:
    """Name a refusal by status and, as codes say little, by message; the order matters."""
    if failure.status in {403, 429} and isinstance(failure.body, Text):
        message = f"{failure.status} refused at the edge: {short(failure.body)}"
        return failure.error(RateLimited, message, retry_after=failure.retry_after or EDGE_SECONDS)
    errors = _errors(failure.body)
    if not errors or failure.status == 429 or failure.status >= 500:
        return by_status(failure)
    trace = errors[0].get("traceId")
    failure = replace(failure, request_id=str(trace)) if trace else failure
    message = short(errors[0].get("message"))
    return _by_message(failure, message, (errors[0].get("extensions") or {}).get("code"))


def _by_message(failure: Failure, message: str, code: str | None) -> PlatformError:
    words = message.lower()
    if code == "UNAUTHENTICATED" or any(w in words for w in _AUTH) or failure.status == 401:
        return failure.error(Misconfigured, message)
    if any(w in words for w in _THROTTLED) or ("allows" in words and " per " in words):
        return failure.error(RateLimited, message, retry_after=failure.retry_after or THROTTLE_SECONDS)
    if "two factor authentication required" in words:
        return failure.error(Misconfigured, f"{message}: the workspace enforces it for what deletes")
    if "not found" in words:
        return failure.error(Missing, message)
    if "problem processing request" in words:
        return failure.error(Transient, message, retry_after=failure.retry_after)
    if any(w in words for w in _PLAN) and code not in {"GRAPHQL_VALIDATION_FAILED", "GRAPHQL_PARSE_FAILED"}:
        return failure.error(PlanLimit, message)
    return failure.error(Transient if code == "INTERNAL_SERVER_ERROR" else Rejected, message)


def refused(content: Any) -> bool:
    """Tell whether an answer with status 200 is a refusal, or no GraphQL answer at all."""
    return bool(_errors(content)) or not (isinstance(content, dict) and isinstance(content.get("data"), dict))


def _errors(content: Any) -> list[dict[str, Any]]:
    found = content.get("errors") if isinstance(content, dict) else None
    return [e for e in found if isinstance(e, dict)] if isinstance(found, list) else []


# --------------------------------------------------------------------------------------------------- client


class RailwayApi:
    """One account. ``api_url`` is the whole endpoint; ``sleep`` is also what those wait with who use this."""

    def __init__(
        self,
        api_url: str,
        token: str,
        *,
        budget: Budget | None = None,
        timeout: float = TIMEOUT_SECONDS,
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        parts = urlsplit(api_url)
        self._path = parts.path or "/"
        self.sleep = sleep
        self._api = JsonApi(
            NAME,
            f"{parts.scheme}://{parts.netloc}",
            headers={"Authorization": f"Bearer {token}"},
            classify=classify,
            refused=refused,
            budget=budget,
            request_id="x-railway-request-id",
            timeout=httpx.Timeout(timeout, connect=10),
            sleep=sleep,
        )

    @property
    def requests(self) -> Counter[str]:
        """Requests sent, by operation."""
        return self._api.requests

    async def aclose(self) -> None:
        """Close all connections."""
        await self._api.aclose()

    async def ask(self, document: Document, model: type[T], field: str, /, **variables: Any) -> T:
        """Send a document and read ``field`` of its data; errors inside a 200 are raised like any other."""
        answer = await self._send(document, variables)
        data = answer.read(dict[str, Any])["data"]
        if data.get(field) is None:
            raise Transient(NAME, document.name, f"the answer has no {field}", answer.request_id)
        return replace(answer, content=data[field]).read(model)

    async def ask_all(self, document: Document, model: type[T], /, **variables: Any) -> T:
        """Send a document and read all of its data."""
        answer = await self._send(document, variables)
        return replace(answer, content=answer.read(dict[str, Any])["data"]).read(model)

    async def _send(self, document: Document, variables: Mapping[str, Any]) -> Answer:
        return await self._api.call(
            document.name,
            "POST",
            self._path,
            params={"source": SOURCE, "query": document.name},
            json={"query": document.text, "variables": variables, "operationName": document.name},
            repeat=document.repeat,
            kind=document.kind,
        )

"""What a refused request can mean. ``by_status`` is the common reading; each platform has one of its own before it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from app.platforms.base import Misconfigured, PlatformError, RateLimited, Rejected, Transient


@dataclass
class Missing(Rejected):
    """404: it isn't there, or not yet."""


@dataclass
class Conflict(Rejected):
    """409: somebody else was faster, or the name is taken."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A refused answer, for ``classify``; ``body`` is parsed JSON, else ``Text``."""

    platform: str
    operation: str
    status: int
    body: Any
    headers: httpx.Headers = field(repr=False)
    request_id: str | None
    retry_after: float | None

    def error(self, kind: type[PlatformError], message: str, **more: Any) -> PlatformError:
        """Return an error of this class about this answer."""
        return kind(self.platform, self.operation, message, self.request_id, **more)


Classify = Callable[[Failure], PlatformError]


def by_status(failure: Failure, message: str | None = None) -> PlatformError:
    """Classify by HTTP status alone; a platform's own ``classify`` ends with it."""
    text = f"{failure.status} {message or short(failure.body)}".strip()
    if failure.status == 429:
        return failure.error(RateLimited, text, retry_after=failure.retry_after)
    if failure.status in {408, 425} or failure.status >= 500:
        return failure.error(Transient, text, retry_after=failure.retry_after)
    kinds: dict[int, type[PlatformError]] = {401: Misconfigured, 403: Misconfigured, 404: Missing, 409: Conflict}
    return failure.error(kinds.get(failure.status, Rejected), text)


@dataclass
class NotSent(Transient):
    """Nobody was there to take the request, so it surely had no effect."""


class Text(str):
    """A body that is not JSON."""

    __slots__ = ()


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that a Retry-After header asks for, in either of its forms (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except ValueError:
            return None
    return max(0.0, seconds)


def short(body: Any) -> str:
    """Return a body as one short line."""
    text = body if isinstance(body, str) else json.dumps(body) if body is not None else ""
    return " ".join(text.split())[:300]

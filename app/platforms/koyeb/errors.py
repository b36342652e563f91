"""What Koyeb's refusals mean."""

from collections.abc import Mapping
from typing import Any

from app.platforms.base import NoCapacity, PlatformError, RateLimited, Rejected
from app.platforms.failures import Conflict, Failure, by_status, short
from app.platforms.koyeb.answers import Wire


class _Body(Wire):
    code: str | None = None
    message: str | None = None
    fields: tuple[Mapping[str, Any], ...] = ()


def classify(failure: Failure) -> PlatformError:
    """Read an error body ``{status, code, message, fields?}``; a duplicate name is a 400 that says so in ``fields``."""
    if failure.status == 429:
        return failure.error(RateLimited, "429 too many requests", retry_after=_reset(failure))
    try:
        body = _Body.model_validate(failure.body)
    except ValueError:
        return by_status(failure)
    fields = [(str(f.get("field")), str(f.get("description"))) for f in body.fields]
    text = " ".join(filter(None, [body.code, body.message, *(f"{n}: {d}" for n, d in fields)]))
    text = short(text) or str(failure.status)
    if failure.status == 400:
        if any(n == "name" and "already exists" in d.lower() for n, d in fields):
            return failure.error(Conflict, text)
        if body.code == "failed_precondition" and any(w in text.lower() for w in ("quota", "limit", "capacity")):
            return failure.error(NoCapacity, text)
        return failure.error(Rejected, text)
    return by_status(failure, text)


def _reset(failure: Failure) -> float | None:
    """Return how long to wait: Koyeb sends no Retry-After but the seconds until its window is over."""
    if failure.retry_after is not None:
        return failure.retry_after
    try:
        return float(failure.headers.get("x-ratelimit-reset", ""))
    except ValueError:
        return None

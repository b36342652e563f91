"""What a refusal of Northflank means. Its ``error`` is an object; the failing field is only in its ``details``."""

import random
from dataclasses import dataclass
from typing import Any

from app.platforms.base import Misconfigured, PlatformError, RateLimited, Rejected
from app.platforms.failures import Conflict, Failure, by_status, short

#: What a window without a word about its end is waited for, in seconds; a window is an hour.
_UNKNOWN_RESET = 60.0
#: Operations whose bodies hold secrets, so that nothing of their details may be told on.
_SECRETIVE = ("secret", "credential", "job", "put service")


@dataclass
class Unpullable(Rejected):
    """The image can't be pulled: path, digest or credential."""


def classify(failure: Failure) -> PlatformError:
    """Return the error that a refused answer stands for."""
    error = failure.body.get("error") if isinstance(failure.body, dict) else None
    body: dict[str, Any] = error if isinstance(error, dict) else {}
    details, said = body.get("details"), str(body.get("message") or short(failure.body))
    message = f"{failure.status} {said[:300]}" + _fields(failure.operation, details)
    if failure.status == 401:
        needed = details.get("requiredPermission") if isinstance(details, dict) else None
        why = f"the token's role lacks the permission {needed}" if needed else "the token is not taken"
        return failure.error(Misconfigured, f"{why} ({failure.status})")
    if failure.status == 402 or "deployments are disabled" in said.lower():
        return failure.error(Misconfigured, f"billing: {message}")
    if failure.status == 400 and "already exists" in said.lower():
        return failure.error(Conflict, message)
    if failure.status == 400 and "unable to verify external image" in said.lower():
        return failure.error(Unpullable, f"{message}: its path, digest or credential is wrong")
    if failure.status == 429:
        return failure.error(RateLimited, message, retry_after=_wait(failure))
    return by_status(failure, message.removeprefix(f"{failure.status} "))


def _fields(operation: str, details: Any) -> str:
    """Spell the failing fields; only their names where a value could be a secret."""
    if not isinstance(details, dict) or not details:
        return ""
    if any(word in operation for word in _SECRETIVE):
        return f" (in {', '.join(map(str, details))[:200]})"
    return f" ({short(details)})"


def _wait(failure: Failure) -> float:
    """Return when the window ends; with jitter, so that all who wait don't come back together."""
    if failure.retry_after is not None:
        return failure.retry_after
    try:
        reset = float(failure.headers["x-ratelimit-reset"])
    except (KeyError, ValueError):
        reset = _UNKNOWN_RESET
    return max(0.0, reset) + random.uniform(0, 1)  # noqa: S311 - no secret

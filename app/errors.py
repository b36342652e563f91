"""Refusals of our own API: each becomes one RFC 9457 problem document.

A refusal says what happened (``detail``), under a stable ``reason``, and which part of the request it is about
(``field``). Nothing here knows HTTP beyond the status number.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class FieldError:
    """One wrong part of a request: ``field`` is a dotted path such as ``service.env.K``."""

    field: str
    message: str


@dataclass
class Refusal(Exception):
    """A request that we don't carry out. ``status`` is the HTTP status, ``reason`` a stable word for programs."""

    status: int
    reason: str
    detail: str
    errors: tuple[FieldError, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def invalid(field_name: str, message: str, *, reason: str = "invalid_request") -> Refusal:
    """422: one field can't be accepted."""
    return Refusal(422, reason, f"{field_name}: {message}", (FieldError(field_name, message),))


def not_found(what: str, name: str) -> Refusal:
    """404: there is no such thing, or it isn't the caller's."""
    return Refusal(404, f"{what}_not_found", f"There is no {what} {name!r}.")


def conflict(reason: str, detail: str) -> Refusal:
    """409: the thing exists, but not in a state that allows this."""
    return Refusal(409, reason, detail)


def too_large(detail: str, *, reason: str = "too_large") -> Refusal:
    """413: a body went over a documented limit."""
    return Refusal(413, reason, detail)


def unauthorized(detail: str = "Send a valid key as `Authorization: Bearer …`.") -> Refusal:
    """401: no credential, or one that is not good."""
    return Refusal(401, "unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})


def forbidden(detail: str, *, reason: str = "forbidden") -> Refusal:
    """403: the credential is good, but not for this."""
    return Refusal(403, reason, detail)


def unavailable(detail: str, *, reason: str = "unavailable", retry_after: int = 5) -> Refusal:
    """503: try again in ``retry_after`` seconds."""
    return Refusal(503, reason, detail, headers={"Retry-After": str(retry_after)})

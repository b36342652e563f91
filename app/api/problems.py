"""Every error as one RFC 9457 problem document, unknown routes, wrong methods and crashes included."""

from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match, Route

from app.api.deps import identify
from app.api.reasons import MEDIA_TYPE
from app.db import DATABASE_AWAY, is_away
from app.errors import FieldError, Refusal, unavailable

log = structlog.get_logger()

TYPE = "https://slipway.dev/problems/"

_HTTP_REASONS = {
    400: "malformed_json",
    404: "route_not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    413: "too_large",
    415: "unsupported_media_type",
}


def document(
    status: int, reason: str, detail: str, *, instance: str | None = None, errors: tuple[FieldError, ...] = ()
) -> dict[str, Any]:
    """Return the body of a problem. No NUL is in it: some are kept, and PostgreSQL's JSON has none."""
    return {
        "type": TYPE + reason.replace("_", "-"),
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": _without_nul(detail),
        "reason": reason,
        "instance": instance,
        "errors": [{"field": _without_nul(e.field), "message": e.message} for e in errors],
    }


def _without_nul(text: str) -> str:
    return text.replace("\x00", "\ufffd")


def respond(request: Request, refusal: Refusal) -> JSONResponse:
    """Answer a request with a refusal."""
    body = document(
        refusal.status, refusal.reason, refusal.detail, instance=request.url.path[:512], errors=refusal.errors
    )
    return JSONResponse(body, refusal.status, headers=dict(refusal.headers), media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make the app answer every error with a problem."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> JSONResponse:
        return respond(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        refusal = from_validation(error.errors())
        if refusal.status == 400:  # the body was read before anybody asked for a key
            try:
                await identify(request)
            except Refusal as unknown:
                refusal = unknown
        return respond(request, refusal)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        reason = _HTTP_REASONS.get(error.status_code, "http_error")
        detail = str(error.detail)
        if error.status_code == 404:
            detail = f"There is no route {request.method} {request.url.path[:256]}."
        headers = dict(error.headers or {})
        if error.status_code == 405:
            detail = f"{request.method} is not allowed on {request.url.path[:256]}."
            headers["Allow"] = ", ".join(_allowed(request))
        return respond(request, Refusal(error.status_code, reason, detail, headers=headers))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, _error: Exception) -> JSONResponse:
        # Who is done drops what was being sent, a builder for one: nobody waits for an answer, and nothing crashed.
        return respond(request, Refusal(400, "cut_short", "The body was cut short."))

    @app.exception_handler(Exception)
    async def crashed(request: Request, error: Exception) -> JSONResponse:
        log.error("request crashed", method=request.method, path=request.url.path, exc_info=error)
        detail = "Slipway failed on this request; nothing of it was kept. It is safe to try again."
        return respond(request, Refusal(500, "internal_error", detail))

    _database_away(app)


def _allowed(request: Request) -> list[str]:
    """Return the methods of an address; Starlette names those of the first of its routes only (RFC 9110, section 10.2.1)."""
    here = (route for route in _plain(request.app.routes) if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in here for method in route.methods or ()})


def _plain(routes: Iterable[BaseRoute]) -> Iterator[Route]:
    """Yield the routes themselves; FastAPI keeps those of a router that was included inside of one that stands for it."""
    for route in routes:
        if isinstance(route, Route):
            yield route
        elif (inner := getattr(route, "original_router", None)) is not None:
            yield from _plain(inner.routes)


def _database_away(app: FastAPI) -> None:
    """Answer 503 while the database can't be asked: nobody's request is at fault, and it is worth trying again."""

    async def away(request: Request, error: Exception) -> JSONResponse:
        if not is_away(error):
            raise error
        log.error("the database does not answer", path=request.url.path, error=f"{type(error).__name__}: {error}"[:300])
        return respond(request, unavailable("The database does not answer; try again.", reason="database_unavailable"))

    for kind in (*DATABASE_AWAY, DBAPIError):
        app.exception_handler(kind)(away)


def from_validation(errors: Any) -> Refusal:
    """Turn pydantic's errors into one 422 (400 for what isn't JSON) that names each field. Never repeats the input."""
    fields = []
    for error in errors:
        where = [str(p) for p in error["loc"] if p not in {"body", "query", "path", "header"}]
        if error["type"] == "json_invalid":
            return Refusal(400, "malformed_json", f"The body is not JSON: {error.get('ctx', {}).get('error', '')}.")
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            message = "there is no such field"
        elif error["type"] == "missing":
            message = "is required"
        elif error["type"] in {"model_attributes_type", "model_type"} and error["loc"] == ("body",):
            message = "must be a JSON object, sent with Content-Type: application/json"  # which curl -d doesn't say
        fields.append(FieldError(".".join(_fields(where)) or "body", message))
    first = fields[0] if fields else FieldError("body", "is not valid")
    more = f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""
    return Refusal(422, "invalid_request", f"{first.field}: {first.message}{more}", tuple(fields[:50]))


def _fields(where: list[str]) -> list[str]:
    """Drop what pydantic adds for unions and keys, so that the path is the one the caller wrote."""
    kinds = {"files", "upload", "git"}
    if len(where) > 1 and where[0] == "source" and where[1] in kinds:
        where = [where[0], *where[2:]]
    return [w[:100] for w in where if w != "[key]"]

"""Pages of other origins may call the API where the operator says so (the Fetch standard, "CORS protocol").

A key travels in a header and never in a cookie, so credentials in the standard's sense are not allowed.
"""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

SENT = ("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer", "traceparent")
READ = (
    "Idempotency-Replayed",
    "Link",
    "Location",
    "Preference-Applied",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
)
PREFLIGHT_SECONDS = 7200
"""How long a browser need not ask again; no browser keeps it for longer than some hours."""


def install(app: FastAPI, origins: tuple[str, ...]) -> None:
    """Allow these origins. Outside of everything else, so that a page can read even a crash's problem document."""
    if not origins:
        return
    inner = app.build_middleware_stack

    def stack() -> ASGIApp:
        return CORSMiddleware(
            inner(),
            allow_origins=origins,
            allow_methods=("GET", "POST", "PATCH", "DELETE"),
            allow_headers=SENT,
            expose_headers=READ,
            max_age=PREFLIGHT_SECONDS,
        )

    app.build_middleware_stack = stack  # type: ignore[method-assign]

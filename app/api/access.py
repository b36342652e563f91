"""Every request to the API is counted and, once it is answered, said in one line; those of load balancers are only counted.

What is bound here and further in (who calls, for what) is on every line that is logged while the request is worked on.
"""

import contextlib
import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import metrics, traces, tracing

log = structlog.get_logger()

QUIET = frozenset({"/healthz", "/readyz", "/metrics"})


class Access:
    """Middleware; outside of everything that may refuse."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and note what came of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        header = next((value for name, value in scope["headers"] if name == b"traceparent"), b"").decode("latin-1")
        quiet = scope["path"] in QUIET
        with contextlib.nullcontext(tracing.Span()) if quiet else tracing.request(header) as span:
            await self._noted(scope, receive, send, span, traces.begin(span.traceparent or header))

    async def _noted(self, scope: Scope, receive: Receive, send: Send, span: tracing.Span, traceparent: str) -> None:
        begun, status = time.perf_counter(), 500  # what a crash becomes, further out

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        before = structlog.contextvars.get_contextvars()
        structlog.contextvars.bind_contextvars(trace_id=traces.trace_id(traceparent))
        try:
            await self._app(scope, receive, noted)
        finally:
            seconds, route = time.perf_counter() - begun, _route(scope)
            metrics.request(scope["method"], route, status, seconds)
            span.answered(scope["method"], route, status)
            if route not in QUIET:
                log.info("request", method=scope["method"], route=route, status=status, ms=round(seconds * 1000, 1))
            structlog.contextvars.clear_contextvars()
            structlog.contextvars.bind_contextvars(**before)


def _route(scope: Scope) -> str:
    """Return the route as it is written in code: the path itself has ids, and whatever callers make up."""
    if (route := scope.get("route")) is not None:
        return str(route.path)
    return "/v2" if scope["path"].startswith("/v2/") else "none"

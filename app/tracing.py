"""Spans for an OpenTelemetry collector, when there is one: one trace from the POST to what is live.

Without ``OTEL_EXPORTER_OTLP_ENDPOINT`` nothing of OpenTelemetry is loaded here, and a span costs a call that does nothing. A
span's parent is what the build's row keeps, so that API, workers and builder need no other way to tell each other. What no build
or request stands behind, such as a sweep, has no span. Attributes are ids and names from code, and never what an error says,
since platforms may repeat what they were sent.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import structlog

from app import __version__, logs, traces
from app.lifecycle import Reason

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.context import Context

log = structlog.get_logger()

Kind = Literal["internal", "client", "server"]
_tracer: "trace.Tracer | None" = None


class Span:
    """What a block may say of itself while it runs; nobody listens unless there is an exporter."""

    traceparent: str | None = None

    def note(self, **attributes: object) -> None:
        """Add attributes."""

    def answered(self, method: str, route: str, status: int) -> None:
        """Say which request this was, once that is known."""


class _Recorded(Span):
    def __init__(self, inner: "trace.Span") -> None:
        self._inner, at = inner, inner.get_span_context()
        self.traceparent = f"00-{at.trace_id:032x}-{at.span_id:016x}-{at.trace_flags:02x}"

    def note(self, **attributes: object) -> None:
        self._inner.set_attributes(_attributes(attributes))

    def answered(self, method: str, route: str, status: int) -> None:
        """Follow OpenTelemetry's semantic conventions for HTTP, section HTTP server."""
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 - loaded with an exporter only

        self._inner.update_name(f"{method} {route}")
        self.note(**{"http.request.method": method, "http.route": route, "http.response.status_code": status})
        if status >= 500:
            self._inner.set_status(StatusCode.ERROR)


_NOTHING = contextlib.nullcontext(Span())


def span(
    name: str, parent: Any = None, *rows: Any, kind: Kind = "internal", **attributes: object
) -> AbstractContextManager[Span]:
    """Record what the block does as a span.

    ``parent`` is a ``traceparent`` or a row that has one; None: the span that is open here, without which there is none at all.
    ``rows`` are what it is about. A name without a dot gets the prefix ``slipway.``. An error ends it by its type and ``reason``.
    """
    if _tracer is None:
        return _NOTHING
    return _within(_tracer, name, _parent(parent), kind, logs.ids(parent, *rows) | attributes)


def request(header: str) -> AbstractContextManager[Span]:
    """Record a request to the API: it goes on with its caller's trace, or begins one."""
    if _tracer is None:
        return _NOTHING
    from opentelemetry.context import Context  # noqa: PLC0415 - loaded with an exporter only

    return _within(_tracer, "request", _parent(traces.parse(header)) or Context(), "server", {})


def run(build: Any, ended: Any) -> None:
    """Record a run that has ended, however it did, from its row, and below it the builder's stages if it reported any.

    Their seconds are in the order they had. The builder doesn't say when they began: they are put one after the other from its
    claim on.
    """
    if _tracer is None or (parent := _parent(build.traceparent)) is None or ended.finished_at is None:
        return
    from opentelemetry import trace  # noqa: PLC0415 - loaded with an exporter only

    about = _attributes(logs.ids(build, ended) | {"platform": ended.platform, "status": ended.status})
    whole = _tracer.start_span("run", parent, attributes=about, start_time=_ns(ended.created_at))
    if ended.reason:
        whole.set_attributes(_attributes({"reason": ended.reason}))
        whole.set_status(trace.StatusCode.ERROR)
    within, at = trace.set_span_in_context(whole), ended.claimed_at or ended.created_at
    for stage, seconds in ended.timings.items():
        until = min(at + timedelta(seconds=min(max(seconds, 0.0), 86400.0)), ended.finished_at)
        _tracer.start_span(f"builder {stage}", within, start_time=_ns(at)).end(_ns(until))
        at = until
    whole.end(_ns(ended.finished_at))


@contextlib.asynccontextmanager
async def exporting(endpoint: str | None) -> AsyncIterator[None]:
    """Send spans to a collector (OTLP over HTTP) while the block runs, what is left at its end; nowhere without ``endpoint``.

    Everything else is read from the variables of the OpenTelemetry specification, by its own library. A collector that does
    not answer costs spans and no more.
    """
    global _tracer  # noqa: PLW0603 - one exporter per process, as with metrics
    if endpoint is None:
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        log.warning("no traces are exported: install slipway[otel], or unset OTEL_EXPORTER_OTLP_ENDPOINT")
        yield
        return
    named = Resource({"service.name": "slipway", "service.version": __version__}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=Resource.create(named.attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")))
    before, _tracer = _tracer, provider.get_tracer("slipway", __version__)
    try:
        yield
    finally:
        _tracer = before
        await asyncio.to_thread(provider.shutdown)


@contextlib.contextmanager
def _within(
    tracer: "trace.Tracer", name: str, parent: "Context | None", kind: Kind, attributes: Mapping[str, object]
) -> Iterator[Span]:
    from opentelemetry import trace  # noqa: PLC0415 - loaded with an exporter only

    if parent is None and not trace.get_current_span().get_span_context().is_valid:
        yield Span()
        return
    begun = tracer.start_span(name, parent, trace.SpanKind[kind.upper()], _attributes(attributes))
    with trace.use_span(begun, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield _Recorded(begun)
        except BaseException as e:
            reason = getattr(e, "reason", None)
            failed = {"error.type": type(e).__name__, "reason": reason if isinstance(reason, Reason) else None}
            begun.set_attributes(_attributes(failed))
            begun.set_status(trace.StatusCode.ERROR)
            raise


def _parent(parent: Any) -> "Context | None":
    from opentelemetry import trace  # noqa: PLC0415 - loaded with an exporter only
    from opentelemetry.context import Context  # noqa: PLC0415

    told = parent if isinstance(parent, str | None) else parent.traceparent
    if told is None:
        return None
    _, trace_id, span_id, flags = told.split("-")
    at = trace.SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=trace.TraceFlags(int(flags, 16))
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(at), Context())


def _attributes(values: Mapping[str, object]) -> dict[str, str | int | float]:
    return {
        name if "." in name else f"slipway.{name}": value if isinstance(value, int | float) else str(value)
        for name, value in values.items()
        if value is not None
    }


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1e9)

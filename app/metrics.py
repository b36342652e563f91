"""What is counted, for Prometheus. ``docs/observability.md`` has the table of it; ``python -m app.metrics`` writes that anew.

Counters and histograms are this process's own and are told where things happen; sum them over processes. The gauges of
``SHARED`` come from the database (``app.gauges``): every process shows the same, so take their maximum. No label holds an
id or anything else that callers choose. Names and units follow https://prometheus.io/docs/practices/naming/.
"""

import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase

disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

LONG = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
"""Bounds in seconds for what takes as long as a build may."""
SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Bounds in seconds for one call."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BUILDER_STAGES = ("fetch", "modules", "compile", "image", "push")


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(name, text, labels, registry=REGISTRY)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(name, text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = SHORT) -> Histogram:
    return Histogram(name, text, labels, buckets=buckets, registry=REGISTRY)


# ------------------------------------------------------------------------------------------------------- of this process

BUILDS = _counter("slipway_builds", "Builds that ended.", "status", "reason", "platform")
RUNS = _counter("slipway_runs", "Builders that ended.", "status", "reason", "platform")
RELEASES = _counter("slipway_releases", "Releases that went live or failed.", "status", "reason", "platform")
STAGES = _histogram("slipway_build_stage_seconds", "How long builds were in a status.", "stage", buckets=LONG)
BUILD_SECONDS = _histogram("slipway_build_seconds", "From submission to the end.", "status", buckets=LONG)
BUILDER_STAGE_SECONDS = _histogram(
    "slipway_builder_stage_seconds", "Stages of the builder, as it reports them.", "stage", buckets=LONG
)
PLATFORM_CALLS = _counter(
    "slipway_platform_requests", "Requests to platforms, each try.", "platform", "operation", "outcome"
)
PLATFORM_SECONDS = _histogram(
    "slipway_platform_request_seconds", "How long platforms took to answer.", "platform", "operation"
)
WAKE_SECONDS = _histogram("slipway_wake_seconds", "From the wake of a service to its address.", "platform", "outcome")
WEBHOOK_ATTEMPTS = _counter("slipway_webhook_attempts", "Attempts to deliver a webhook.", "outcome")
WEBHOOK_SECONDS = _histogram("slipway_webhook_attempt_seconds", "How long receivers took to answer.")
WEBHOOK_LAG = _histogram("slipway_webhook_lag_seconds", "From an event to its first attempt.", buckets=LONG)
JOB_SECONDS = _histogram("slipway_job_seconds", "How long jobs ran.", "job", "outcome", buckets=LONG)
HTTP_REQUESTS = _counter("slipway_http_requests", "Requests to the API.", "method", "route", "status")
HTTP_SECONDS = _histogram(
    "slipway_http_request_seconds", "From a request's head to its answer's end.", "method", "route"
)
STREAMS = _gauge("slipway_streams", "Open streams and waiting GETs.")
GATEWAY_REQUESTS = _counter("slipway_gateway_requests", "Requests to services through the gateway.", "status")
GATEWAY_SECONDS = _histogram("slipway_gateway_request_seconds", "The same, with the wake where there was one.")
GATEWAY_CONNECTIONS = _gauge("slipway_gateway_connections", "Open connections of clients.")
DATABASE_CONNECTIONS = _gauge("slipway_database_connections", "Connections to the database.", "pool", "state")
DATABASE_UP = _gauge("slipway_database_up", "Whether the database answered: 1 or 0.")

# ------------------------------------------------------------------------------------------------------- of the database

BUILDS_OPEN = _gauge("slipway_builds_open", "Builds that have not ended.", "status", "platform")
BUILDS_OLDEST = _gauge("slipway_builds_oldest_seconds", "Age of the oldest of them.", "status", "platform")
SERVICES = _gauge("slipway_services", "Services that are there.", "status", "platform")
EVENTS_HELD = _gauge(
    "slipway_events_held_back_seconds", "Age of the oldest event that can't be read yet: a transaction is open."
)
QUEUE_JOBS = _gauge("slipway_queue_jobs", "Jobs on the queue.", "job", "state")
QUEUE_OLDEST = _gauge("slipway_queue_oldest_seconds", "For how long the oldest due job has waited.", "job")
WEBHOOKS_DUE = _gauge("slipway_webhook_due", "Deliveries that are due and not under way.")
WEBHOOKS_OLDEST = _gauge("slipway_webhook_due_oldest_seconds", "For how long the oldest of them has been due.")
BUDGET_LEFT = _gauge("slipway_platform_budget_left", "Requests that an account may still send now.", "platform")
BUDGET_CLOSED = _gauge("slipway_platform_budget_closed_seconds", "How long it wants to hear nothing.", "platform")
BREAKERS = _gauge(
    "slipway_breakers",
    "Targets that failed of late; regions not known are `other`.",
    "platform",
    "region",
    "operation",
    "state",
)
SHARED = (
    BUILDS_OPEN, BUILDS_OLDEST, SERVICES, EVENTS_HELD, QUEUE_JOBS, QUEUE_OLDEST, WEBHOOKS_DUE, WEBHOOKS_OLDEST, BUDGET_LEFT,
    BUDGET_CLOSED, BREAKERS,
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------- what happens


@contextmanager
def platform_call(platform: str, operation: str) -> Iterator[None]:
    """Count and time one request to a platform; the outcome is ``ok`` or the name of what was raised."""
    begun, outcome = time.perf_counter(), "ok"
    try:
        yield
    except BaseException as e:
        outcome = snake(type(e).__name__)
        raise
    finally:
        PLATFORM_CALLS.labels(platform, operation, outcome).inc()
        PLATFORM_SECONDS.labels(platform, operation).observe(time.perf_counter() - begun)


def request(method: str, route: str, status: int, seconds: float) -> None:
    """Count a request to the API; callers may make up methods, so those that no route has are one."""
    method = method if method in METHODS else "other"
    HTTP_REQUESTS.labels(method, route, status).inc()
    HTTP_SECONDS.labels(method, route).observe(seconds)


def gateway_request(status: int, seconds: float) -> None:
    """Count a request through the gateway; status 0: its client left before there was an answer."""
    GATEWAY_REQUESTS.labels(f"{status // 100}xx" if status else "none").inc()
    GATEWAY_SECONDS.observe(seconds)


def builder_stages(timings: Mapping[str, float]) -> None:
    """Take the seconds per stage of a builder's report; stages that it should not know are left out."""
    for stage in BUILDER_STAGES:
        if (seconds := timings.get(stage)) is not None and seconds >= 0:
            BUILDER_STAGE_SECONDS.labels(stage).observe(seconds)


def snake(name: str) -> str:
    """Return a class's name as a label: ``RateLimited`` → ``rate_limited``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


# ------------------------------------------------------------------------------------------------------- the page's table

BEGIN, END = "<!-- metrics: made by python -m app.metrics docs/observability.md -->", "<!-- end of metrics -->"


def names() -> list[tuple[str, MetricWrapperBase]]:
    """Return every metric of ours by the name that a scrape shows."""
    found = [m for m in globals().values() if isinstance(m, MetricWrapperBase)]
    return [(next(iter(m.describe())).name + ("_total" if isinstance(m, Counter) else ""), m) for m in found]


def table() -> str:
    """Return the table as Markdown."""
    lines = ["| metric | kind | labels | over processes | meaning |", "|---|---|---|---|---|"]
    for name, metric in names():
        told = next(iter(metric.describe()))
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)  # noqa: SLF001 - there is no other way to ask
        lines.append(
            f"| `{name}` | {told.type} | {labels} | {'max' if metric in SHARED else 'sum'} | {told.documentation} |"
        )
    return "\n".join(lines)


def page(text: str) -> str:
    """Return a page with the table between its marks made anew; ValueError when it has no marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError("the page has no place for the table")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(page(file.read_text()))

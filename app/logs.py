"""How this process logs: JSON for machines, coloured lines for a terminal; the standard library's loggers go the same way."""

import logging
import sys
from typing import Any

import structlog
from structlog.tracebacks import ExceptionDictTransformer

from app.traces import trace_id


def configure(level: str = "info", style: str = "auto") -> None:
    """Set up structlog and the standard library's logging. ``style``: ``json``, ``text`` or ``auto`` (text on a terminal)."""
    as_text = style == "text" or (style == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[Any]
    if as_text:
        render = [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    else:
        # Without the frames' locals: they hold what a log must never hold.
        plain = ExceptionDictTransformer(show_locals=False)
        render = [structlog.processors.ExceptionRenderer(plain), structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "uvicorn.access", "alembic", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


_KINDS = {"bld": "build_id", "run": "run_id", "rel": "release_id", "svc": "service_id"}
_REFERENCES = ("project_id", "build_id", "service_id", "release_id")


def about(*rows: Any) -> None:
    """Put what rows are about on every line that this request or job logs from here on: their ids, project and trace.

    None among them is left out. Whoever begins a request or job takes it all off again at its end.
    """
    bound = ids(*rows)
    for row in rows:
        if traceparent := getattr(row, "traceparent", None):
            bound["trace_id"] = trace_id(traceparent)
    structlog.contextvars.bind_contextvars(**bound)


def ids(*rows: Any) -> dict[str, str]:
    """Return the ids of rows and of what they belong to, by name; what is no row has none."""
    found: dict[str, str] = {}
    for row in rows:
        if hasattr(row, "__tablename__"):
            found |= {name: value for name in _REFERENCES if (value := getattr(row, name, None))}
            found[f"{row.__tablename__}_id"] = row.id
    return found


def about_id(row_id: str) -> None:
    """Do so with an id alone, before its row was read."""
    if kind := _KINDS.get(row_id[:3]):
        structlog.contextvars.bind_contextvars(**{kind: row_id})

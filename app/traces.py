"""Which trace something belongs to, after W3C Trace Context (https://www.w3.org/TR/trace-context/, section 3.2).

Every request has one: its caller's ``traceparent``, or a new one. A build keeps that of the request that made it, and hands it on
to its builder and to the webhooks that tell of it; so logs, builder and receivers can be put together by one trace id.
"""

import re
import secrets
from contextvars import ContextVar

_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_current: ContextVar[str | None] = ContextVar("traceparent", default=None)


def parse(header: str | None) -> str | None:
    """Return a ``traceparent`` that can be handed on; None for nonsense, which counts as none."""
    # Of a version that we don't know only the first four parts are understood.
    match = _FORM.match(header or "")
    if match is None or (header != match[0] and (match[0].startswith("00") or header[len(match[0])] != "-")):  # type: ignore[index]
        return None
    return f"00{match[0][2:]}"


def new() -> str:
    """Return the ``traceparent`` of a trace that begins here; nobody records it unless told to (flags 00)."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"


def trace_id(traceparent: str) -> str:
    """Return the trace's id, 32 hexadecimal digits."""
    return traceparent[3:35]


def begin(header: str | None) -> str:
    """Go on with the trace of a request, or begin one; returns its ``traceparent``."""
    current = parse(header) or new()
    _current.set(current)
    return current


def here() -> str:
    """Return the ``traceparent`` of what is being worked on."""
    return _current.get() or new()

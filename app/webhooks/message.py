"""What is sent, after Standard Webhooks: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md"""

import base64
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from standardwebhooks import Webhook as Signer

from app.events import position
from app.models import Event, WebhookDelivery
from app.platforms.http import USER_AGENT

TEST = "webhook.test"
SECRET_BYTES = 32


def new_secret() -> str:
    """Return a fresh signing secret: ``whsec_`` and 32 random bytes in base64 (spec: Signature scheme)."""
    return f"whsec_{base64.b64encode(os.urandom(SECRET_BYTES)).decode()}"


def shown(event: Event) -> dict[str, Any]:
    """Return an event in the form that the API gives it too."""
    names = ("kind", "build_id", "run_id", "service_id", "release_id", "data")
    return {"id": str(position(event)), **{name: getattr(event, name) for name in names}, "at": _stamp(event.at)}


def identity(delivery: WebhookDelivery, installation: str) -> str:
    """Return the ``webhook-id``: the event's, so that it is the same for every attempt; unique over installations."""
    return delivery.id if delivery.event_id is None else f"evt_{installation}_{delivery.event_id}"


def body(delivery: WebhookDelivery, event: Event | None) -> str:
    """Return the payload: ``{"type", "timestamp", "data"}``; a test has its endpoint's id for data."""
    at, data = (event.at, shown(event)) if event else (delivery.created_at, {"webhook_id": delivery.webhook_id})
    payload = {"type": delivery.kind, "timestamp": _stamp(at), "data": data}
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":"))


def headers(
    message_id: str, payload: str, secrets: Sequence[str], at: datetime, traceparent: str | None = None
) -> Mapping[str, str]:
    """Return the headers of one attempt, signed with every secret that is valid now; ``at`` is the attempt's time, UTC.

    ``traceparent`` is that of the build the event is about, so that what a receiver does belongs to the same trace.
    """
    signatures = (Signer(secret).sign(message_id, at, payload) for secret in secrets)
    return {
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
        **({"traceparent": traceparent} if traceparent else {}),
    }


def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")

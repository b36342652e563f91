"""What the API answers about webhooks, and what is sent to them."""

from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field

from app.api.schemas import Answer, EventOut
from app.models import Webhook, WebhookDelivery

DeliveryStatus = Literal["pending", "delivered", "failed"]

_EVENT: dict[str, Any] = {
    "id": "7421-4711",
    "kind": "build.failed",
    "build_id": "bld_06f1q3s8v5t7p2c4k9m0a1b2d3",
    "run_id": None,
    "service_id": None,
    "release_id": None,
    "data": {"reason": "compile_error", "message": "The source does not compile: ./main.go:6:14: undefined: y."},
    "at": "2026-05-04T10:20:30.123456Z",
}
_WEBHOOK: dict[str, Any] = {
    "id": "whk_06f1q3s8v5t7p2c4k9m0a1b2c3",
    "url": "https://hooks.example.com/slipway",
    "description": "The dashboard",
    "events": ["build.*", "service.failed"],
    "status": "enabled",
    "reason": None,
    "old_secret_until": None,
    "last_delivered_at": None,
    "created_at": "2026-05-04T10:20:30.123456Z",
    "updated_at": "2026-05-04T10:20:30.123456Z",
    "disabled_at": None,
}


class WebhookOut(Answer):
    """An endpoint. `reason` says why it is disabled: `by_request`, `gone` (it answered 410) or `failing`."""

    model_config = ConfigDict(json_schema_extra={"examples": [_WEBHOOK]})

    id: str
    url: str
    description: str
    events: list[str]
    status: Literal["enabled", "disabled"]
    reason: Literal["by_request", "gone", "failing"] | None
    old_secret_until: datetime | None = Field(description="Until when the secret before the current one signs too.")
    last_delivered_at: datetime | None
    created_at: datetime
    updated_at: datetime
    disabled_at: datetime | None


class WebhookCreated(WebhookOut):
    """An endpoint with its new signing secret, which is shown this once."""

    model_config = ConfigDict(json_schema_extra={"examples": [_WEBHOOK | {"secret": "whsec_…"}]})

    secret: str = Field(description="`whsec_` and 32 bytes in base64: what Standard Webhooks libraries take.")

    @classmethod
    def of(cls, webhook: Webhook, secret: str) -> "WebhookCreated":
        """Return an endpoint and its secret."""
        return cls(**WebhookOut.model_validate(webhook).model_dump(), secret=secret)


class DeliveryOut(Answer):
    """One event for one endpoint. `status_code`, `ms` and `error` are of the last attempt."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "dlv_06f1q3s8v5t7p2c4k9m0a1b2d4",
                    "webhook_id": _WEBHOOK["id"],
                    "event_id": 4711,
                    "kind": _EVENT["kind"],
                    "status": "pending",
                    "attempts": 1,
                    "status_code": 503,
                    "ms": 87,
                    "error": "answered 503",
                    "next_attempt_at": "2026-05-04T10:20:36Z",
                    "last_attempt_at": "2026-05-04T10:20:31Z",
                    "created_at": "2026-05-04T10:20:31Z",
                    "ended_at": None,
                }
            ]
        }
    )

    id: str
    webhook_id: str
    event_id: int | None = Field(description="The event's id from its hyphen on; null for a test.")
    kind: str
    status: DeliveryStatus
    attempts: int
    status_code: int | None
    ms: int | None
    error: str | None
    next_attempt_at: datetime | None = Field(
        description="Null when it has ended, is under way, or waits for an earlier one of its build."
    )
    last_attempt_at: datetime | None
    created_at: datetime
    ended_at: datetime | None

    @classmethod
    def of(cls, delivery: WebhookDelivery) -> "DeliveryOut":
        """Return a delivery; of one under way the row's time is when its claim ends, which is nobody's business."""
        fields = {name: getattr(delivery, name) for name in cls.model_fields}
        return cls(**fields | ({"next_attempt_at": None} if delivery.sender else {}))


class WebhookTest(Answer):
    """The data of a `webhook.test`."""

    webhook_id: str


class WebhookMessage(Answer):
    """What is sent: `type` is the event's kind, `timestamp` when it happened, `data` the event itself."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"type": _EVENT["kind"], "timestamp": _EVENT["at"], "data": _EVENT}]}
    )

    type: str
    timestamp: datetime
    data: EventOut | WebhookTest

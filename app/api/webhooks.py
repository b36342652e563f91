"""Webhooks: endpoints that are told of events, and what became of each delivery.

All of it needs the scope ``admin``: who makes an endpoint learns of everything in the project.
"""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from sqlalchemy import select

from app.api.deps import Admin, Ctx, Cursor, Db, Limit, decode_cursor, encode_cursor
from app.api.lists import NextPage
from app.api.once import Once, OnceOnly, OnceRoute
from app.api.reasons import responses
from app.api.schemas import Page
from app.api.webhook_schemas import DeliveryOut, DeliveryStatus, WebhookCreated, WebhookMessage, WebhookOut
from app.models import Webhook, WebhookDelivery
from app.requests import RotateRequest, WebhookPatch, WebhookRequest
from app.webhooks import endpoints

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=OnceRoute)
sent = APIRouter(tags=["webhooks"])


@router.post("", status_code=201, responses=responses(too_many_webhooks=409))
async def create_webhook(
    body: WebhookRequest, context: Ctx, caller: Admin, once: OnceOnly, session: Db, response: Response
) -> WebhookCreated:
    """Make an endpoint. Its signing `secret` is shown here and at a rotation, and never again."""
    webhook, secret = await endpoints.create(context, session, caller.project, body)
    response.headers["Location"] = f"/v1/webhooks/{webhook.id}"
    return _shown(webhook, secret, response, once)


@router.get("", responses=responses())
async def list_webhooks(
    caller: Admin, session: Db, next_page: NextPage, limit: Limit = 50, cursor: Cursor = None
) -> Page[WebhookOut]:
    """List endpoints, newest first."""
    statement = select(Webhook).where(Webhook.project_id == caller.project.id)
    if cursor is not None:
        statement = statement.where(Webhook.id < decode_cursor(cursor, str)[0])
    rows = (await session.execute(statement.order_by(Webhook.id.desc()).limit(limit + 1))).scalars().all()
    items = [WebhookOut.model_validate(w) for w in rows[:limit]]
    return Page(items=items, next_cursor=next_page(encode_cursor(rows[limit - 1].id) if len(rows) > limit else None))


@router.get("/{webhook_id}", responses=responses(webhook_not_found=404))
async def get_webhook(webhook_id: str, caller: Admin, session: Db) -> WebhookOut:
    """Look at an endpoint."""
    return WebhookOut.model_validate(await endpoints.find(session, caller.project, webhook_id))


@router.patch("/{webhook_id}", responses=responses(webhook_not_found=404))
async def update_webhook(
    webhook_id: str, body: WebhookPatch, context: Ctx, caller: Admin, session: Db
) -> WebhookOut:  # fmt: skip
    """Change an endpoint, disable it, or enable it again."""
    webhook = await endpoints.find(session, caller.project, webhook_id, lock=True)
    return WebhookOut.model_validate(await endpoints.change(context, session, webhook, body))


@router.delete("/{webhook_id}", status_code=204, responses=responses(webhook_not_found=404))
async def delete_webhook(webhook_id: str, caller: Admin, session: Db) -> Response:
    """Remove an endpoint with its deliveries and secrets."""
    await session.delete(await endpoints.find(session, caller.project, webhook_id, lock=True))
    return Response(status_code=204)


@router.post("/{webhook_id}/rotate", responses=responses(webhook_not_found=404))
async def rotate_webhook_secret(
    webhook_id: str,
    context: Ctx,
    caller: Admin,
    once: OnceOnly,
    session: Db,
    response: Response,
    body: RotateRequest | None = None,
) -> WebhookCreated:
    """Make a new signing secret. Until `old_secret_until` the one before it signs too: two signatures in one header."""
    webhook = await endpoints.find(session, caller.project, webhook_id, lock=True)
    webhook, secret = await endpoints.rotate(context, session, webhook, body or RotateRequest())
    return _shown(webhook, secret, response, once)


@router.post("/{webhook_id}/test", status_code=202, responses=responses(webhook_not_found=404, webhook_disabled=409))
async def test_webhook(webhook_id: str, caller: Admin, once: OnceOnly, session: Db) -> DeliveryOut:
    """Send a `webhook.test` to an endpoint; look at the delivery to see what became of it."""
    webhook = await endpoints.find(session, caller.project, webhook_id, lock=True)
    return DeliveryOut.of(await endpoints.test(session, webhook))


@router.get("/{webhook_id}/deliveries", responses=responses(webhook_not_found=404))
async def list_webhook_deliveries(
    webhook_id: str,
    caller: Admin,
    session: Db,
    next_page: NextPage,
    limit: Limit = 50,
    cursor: Cursor = None,
    status: Annotated[DeliveryStatus | None, Query()] = None,
) -> Page[DeliveryOut]:
    """List an endpoint's deliveries, newest first."""
    webhook = await endpoints.find(session, caller.project, webhook_id)
    statement = select(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook.id)
    if status is not None:
        statement = statement.where(WebhookDelivery.status == status)
    if cursor is not None:
        statement = statement.where(WebhookDelivery.number < decode_cursor(cursor, int)[0])
    rows = (await session.execute(statement.order_by(WebhookDelivery.number.desc()).limit(limit + 1))).scalars().all()
    items = [DeliveryOut.of(d) for d in rows[:limit]]
    return Page(
        items=items, next_cursor=next_page(encode_cursor(rows[limit - 1].number) if len(rows) > limit else None)
    )


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/redeliver",
    status_code=202,
    responses=responses(webhook_not_found=404, delivery_not_found=404, webhook_disabled=409, event_gone=410),
)
async def redeliver_webhook(
    webhook_id: str, delivery_id: str, caller: Admin, once: OnceOnly, session: Db
) -> DeliveryOut:
    """Send a delivery again, under the same `webhook-id`; one that waits for its next attempt is tried now."""
    webhook = await endpoints.find(session, caller.project, webhook_id, lock=True)
    return DeliveryOut.of(await endpoints.redeliver(session, webhook, delivery_id))


@sent.post(
    "event",
    status_code=200,
    name="webhook_event",
    responses={410: {"description": "Disables the endpoint."}, "default": {"description": "Is tried again."}},
)
async def webhook_event(body: WebhookMessage) -> None:
    """Sent to each endpoint for each event it wants, with `webhook-id`, `webhook-timestamp` and `webhook-signature`.

    Any 2xx within 15 seconds counts as delivered, 410 disables the endpoint, anything else is tried again for some three days.
    The same message may come twice: its `webhook-id` stays the same.
    """


def _shown(webhook: Webhook, secret: str, response: Response, once: Once | None) -> WebhookCreated:
    if once is not None:
        once.hides = ("secret",)
    response.headers["Cache-Control"] = "no-store"
    return WebhookCreated.of(webhook, secret)

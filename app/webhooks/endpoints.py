"""A project's endpoints, as its owner sees them: each function works inside the caller's transaction."""

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.address import AddressError, check_url
from app.context import Context
from app.errors import Refusal, conflict, invalid, not_found
from app.events import horizon, xid8
from app.ids import new_id
from app.models import Event, Json, Project, SecretVersion, Webhook, WebhookDelivery
from app.requests import RotateRequest, WebhookPatch, WebhookRequest
from app.webhooks import message

MAX_ENDPOINTS = 50
"""Of one project: each event is sent to each of them."""


async def create(
    context: Context, session: AsyncSession, project: Project, request: WebhookRequest
) -> tuple[Webhook, str]:
    """Make an endpoint; returns it with its secret. It is told of what happens from now on."""
    _check(context, request.url)
    await session.execute(select(Project.id).where(Project.id == project.id).with_for_update(key_share=True))
    count = select(func.count()).select_from(Webhook).where(Webhook.project_id == project.id)
    if (await session.execute(count)).scalar_one() >= MAX_ENDPOINTS:
        raise conflict("too_many_webhooks", f"A project has at most {MAX_ENDPOINTS} webhooks; remove one first.")
    webhook_id, secret_id = new_id("whk"), new_id("sec")
    here = await horizon(session)
    values: Json = {"id": webhook_id, "project_id": project.id, "secret_id": secret_id, "url": request.url}
    values |= {"description": request.description, "events": list(request.events), "xid": xid8(here.xid)}
    webhook = (await session.execute(insert(Webhook).values(**values).returning(Webhook))).scalar_one()
    return webhook, await _new_secret(context, session, webhook, secret_id)


async def find(session: AsyncSession, project: Project, webhook_id: str, *, lock: bool = False) -> Webhook:
    """Return an endpoint of the project, locked if asked; Refusal (404) when it isn't there or isn't theirs."""
    statement = select(Webhook).where(Webhook.id == webhook_id, Webhook.project_id == project.id)
    if lock:
        statement = statement.with_for_update(key_share=True)
    webhook = (await session.execute(statement)).scalar_one_or_none()
    if webhook is None:
        raise not_found("webhook", webhook_id)
    return webhook


async def change(context: Context, session: AsyncSession, webhook: Webhook, patch: WebhookPatch) -> Webhook:
    """Change a locked endpoint. Enabling one that was disabled begins with what happens from now on."""
    values: Json = patch.model_dump(exclude_none=True, mode="json")
    if patch.url is not None:
        _check(context, patch.url)
    if values.get("status") == webhook.status:
        del values["status"]
    elif patch.status == "disabled":
        values |= {"reason": "by_request", "disabled_at": func.now()}
    elif patch.status == "enabled":
        here = await horizon(session)
        values |= {"reason": None, "disabled_at": None, "xid": xid8(here.xid), "event_id": here.id}
    return await _update(session, webhook, **values)


async def rotate(
    context: Context, session: AsyncSession, webhook: Webhook, request: RotateRequest
) -> tuple[Webhook, str]:
    """Give a locked endpoint a new secret; the one before it stays valid for a while, older ones are forgotten."""
    secret_id = new_id("sec")
    older = delete(SecretVersion).where(SecretVersion.webhook_id == webhook.id, SecretVersion.id != webhook.secret_id)
    await session.execute(older)
    secret = await _new_secret(context, session, webhook, secret_id)
    until = func.now() + timedelta(seconds=request.overlap_seconds)
    return await _update(
        session, webhook, secret_id=secret_id, old_secret_id=webhook.secret_id, old_secret_until=until
    ), secret


async def test(session: AsyncSession, webhook: Webhook) -> WebhookDelivery:
    """Send a test to a locked endpoint, whatever events it wants; it waits for nothing and nothing waits for it."""
    _enabled(webhook)
    values = {"id": new_id("dlv"), "project_id": webhook.project_id, "webhook_id": webhook.id, "kind": message.TEST}
    statement = insert(WebhookDelivery).values(**values, next_attempt_at=func.now()).returning(WebhookDelivery)
    return (await session.execute(statement)).scalar_one()


async def delivery(session: AsyncSession, webhook: Webhook, delivery_id: str) -> WebhookDelivery:
    """Return a delivery of an endpoint; Refusal (404) otherwise."""
    key = (WebhookDelivery.id == delivery_id, WebhookDelivery.webhook_id == webhook.id)
    row = (await session.execute(select(WebhookDelivery).where(*key))).scalar_one_or_none()
    if row is None:
        raise not_found("delivery", delivery_id)
    return row


async def redeliver(session: AsyncSession, webhook: Webhook, delivery_id: str) -> WebhookDelivery:
    """Send a delivery again, out of its order, with all attempts before it; a locked endpoint.

    One that is pending is tried now instead of later; one that is under way, or waits for an earlier one, stays as it is.
    """
    _enabled(webhook)
    row = await delivery(session, webhook, delivery_id)
    if row.event_id is not None and await session.get(Event, row.event_id) is None:
        raise Refusal(410, "event_gone", f"The event of delivery {row.id} is past its keeping.")
    again = update(WebhookDelivery).where(WebhookDelivery.id == row.id, WebhookDelivery.status == row.status)
    if row.status == "pending":
        again = again.where(WebhookDelivery.sender.is_(None), WebhookDelivery.next_attempt_at.is_not(None))
        again = again.values(next_attempt_at=func.now())
    else:
        again = again.values(
            status="pending", next_attempt_at=func.now(), attempts=0, first_attempt_at=None, ended_at=None, lane=None
        )
    await session.execute(again)
    await session.refresh(row)
    return row


def _check(context: Context, url: str) -> None:
    try:
        check_url(url, context.settings.webhook_allow_hosts)
    except AddressError as e:
        raise invalid("url", str(e)) from None


def _enabled(webhook: Webhook) -> None:
    if webhook.status != "enabled":
        raise conflict("webhook_disabled", f"Webhook {webhook.id} is disabled ({webhook.reason}); enable it first.")


async def _update(session: AsyncSession, webhook: Webhook, **values: Any) -> Webhook:
    statement = update(Webhook).where(Webhook.id == webhook.id).values(**values, updated_at=func.now())
    refreshed = statement.returning(Webhook).execution_options(populate_existing=True)
    return (await session.execute(refreshed)).scalar_one()


async def _new_secret(context: Context, session: AsyncSession, webhook: Webhook, secret_id: str) -> str:
    secret = message.new_secret()
    sealed = context.keyring.seal(secret, about=secret_id)
    values: Json = {"id": secret_id, "project_id": webhook.project_id, "webhook_id": webhook.id, "name": "signing"}
    values |= {"key_id": sealed.key_id, "nonce": sealed.nonce, "ciphertext": sealed.ciphertext}
    await session.execute(insert(SecretVersion).values(**values))
    return secret

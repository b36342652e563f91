"""One attempt: claim what is due, POST it, record what came of it."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import func, literal, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import faults, metrics, tracing
from app.context import Context
from app.models import Build, Event, Release, SecretVersion, Webhook, WebhookDelivery
from app.outbox import add_event, mark
from app.secrets import KeysError, Sealed
from app.webhooks import message
from app.webhooks.client import TIMEOUT_SECONDS, Client, Outcome
from app.webhooks.plan import locked

log = structlog.get_logger()

RETRY_SECONDS = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
"""Pauses between attempts, some three days in all (spec: Deliverability and reliability)."""
MAX_RETRY_AFTER = 86400.0
LEASE_SECONDS = TIMEOUT_SECONDS + 45.0
"""After so long an attempt without a record counts as cut short, and is made again."""


def _jitter() -> float:
    return random.uniform(0.85, 1.15)  # noqa: S311 - so that not all come back at once


@dataclass(frozen=True, kw_only=True)
class Policy:
    """When to try again, and how much at a time."""

    retry_seconds: Sequence[float] = RETRY_SECONDS
    jitter: Callable[[], float] = _jitter
    concurrency: int = 100
    per_endpoint: int = 10


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A claimed attempt, with all that it takes. ``body`` is None when its event is past its keeping.

    Without ``secrets`` it can't be made now: a secret key was taken away too early, and may come back.
    """

    delivery_id: str
    webhook_id: str
    message_id: str
    attempt: int
    url: str
    body: str | None
    at: datetime
    """When its event happened."""
    traceparent: str | None
    secrets: tuple[str, ...] = field(repr=False)


_CLAIM = text("""
    with due as (
        select d.id from webhook w cross join lateral (
            select id, next_attempt_at from webhook_delivery
            where webhook_id = w.id and status = 'pending' and next_attempt_at <= now()
            order by next_attempt_at, number limit :each for update skip locked
        ) d
        where w.status = 'enabled' and w.id <> all(:busy)
        order by d.next_attempt_at limit :most
    )
    update webhook_delivery d set
        next_attempt_at = now() + make_interval(secs => :lease), sender = :sender, attempts = attempts + 1,
        first_attempt_at = coalesce(first_attempt_at, now()), last_attempt_at = now()
    from due where d.id = due.id
    returning d.id
""")


async def claim(context: Context, sender: str, most: int, each: int, busy: Sequence[str] = ()) -> list[Parcel]:
    """Take up to ``most`` deliveries that are due, of an endpoint up to ``each``, of ``busy`` endpoints none."""
    values = {"sender": sender, "most": most, "each": each, "busy": list(busy), "lease": LEASE_SECONDS}
    async with context.sessions.begin() as session:
        mark(session, "webhook.claimed")
        ids = (await session.execute(_CLAIM, values)).scalars().all()
        if not ids:
            return []
        old_signs = func.coalesce(Webhook.old_secret_until > func.now(), literal(False))
        statement = (
            select(WebhookDelivery, Webhook, Event, old_signs, func.coalesce(Build.traceparent, Release.traceparent))
            .join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
            .outerjoin(Event, Event.id == WebhookDelivery.event_id)
            .outerjoin(Build, Build.id == Event.build_id)
            .outerjoin(Release, Release.id == Event.release_id)
            .where(WebhookDelivery.id.in_(ids))
            .order_by(WebhookDelivery.number)
        )
        rows = (await session.execute(statement)).all()
        owners = {webhook.id for _, webhook, *_ in rows}
        sealed = select(SecretVersion).where(SecretVersion.webhook_id.in_(owners))
        secrets = (await session.execute(sealed)).scalars().all()
    opened = {secret.id: plain for secret in secrets if (plain := _open(context, secret))}
    parcels = []
    for delivery, webhook, event, old, traceparent in rows:
        wanted = [webhook.secret_id, *([webhook.old_secret_id] if old and webhook.old_secret_id else [])]
        gone = event is None and delivery.event_id is not None
        parcels.append(
            Parcel(
                delivery_id=delivery.id,
                webhook_id=webhook.id,
                message_id=message.identity(delivery, context.installation),
                attempt=delivery.attempts,
                url=webhook.url,
                body=None if gone else message.body(delivery, event),
                at=delivery.created_at if gone or delivery.event_id is None else event.at,
                traceparent=traceparent,
                secrets=tuple(opened[w] for w in wanted if w in opened),
            )
        )
    return parcels


def _open(context: Context, secret: SecretVersion) -> str | None:
    """Return a signing secret; None when it can't be read, which is one endpoint's trouble and not that of all."""
    try:
        return context.keyring.open(Sealed(secret.key_id, secret.nonce, secret.ciphertext), about=secret.id)
    except KeysError as e:
        log.error("a webhook can't be signed", webhook_id=secret.webhook_id, error=str(e))
        return None


async def send(context: Context, client: Client, parcel: Parcel, policy: Policy, sender: str) -> Outcome:
    """Make one attempt and record it."""
    if parcel.body is None or not parcel.secrets:
        why = "the event is past its keeping" if parcel.body is None else "the endpoint's secret can't be read"
        outcome = Outcome(ms=0, error=why)
        await record(context, parcel, outcome, policy, sender)
        return outcome
    signed = message.headers(parcel.message_id, parcel.body, parcel.secrets, datetime.now(UTC), parcel.traceparent)
    if parcel.attempt == 1:
        metrics.WEBHOOK_LAG.observe(max(0.0, (datetime.now(UTC) - parcel.at).total_seconds()))
    ids = {"webhook_id": parcel.webhook_id, "delivery_id": parcel.delivery_id, "attempt": parcel.attempt}
    with tracing.span("webhook", parcel.traceparent, kind="client", **ids) as span:
        outcome = await client.post(parcel.url, signed, parcel.body)
        span.note(**{"http.response.status_code": outcome.status_code}, delivered=outcome.delivered)
    answered = "refused" if outcome.status_code is not None else "unreachable"
    metrics.WEBHOOK_ATTEMPTS.labels("delivered" if outcome.delivered else answered).inc()
    metrics.WEBHOOK_SECONDS.observe(outcome.ms / 1000)
    faults.at("webhook.sent")
    await record(context, parcel, outcome, policy, sender)
    return outcome


async def record(context: Context, parcel: Parcel, outcome: Outcome, policy: Policy, sender: str) -> None:
    """Write down what came of an attempt, unless somebody else has taken it up meanwhile."""
    gone = outcome.status_code == 410
    final = outcome.delivered or gone or parcel.body is None or parcel.attempt > len(policy.retry_seconds)
    async with context.sessions.begin() as session:
        mark(session, "webhook.recorded")
        values = {"status_code": outcome.status_code, "ms": outcome.ms, "error": outcome.error, "sender": None}
        mine = update(WebhookDelivery).where(
            WebhookDelivery.id == parcel.delivery_id,
            WebhookDelivery.status == "pending",
            WebhookDelivery.sender == sender,
            WebhookDelivery.attempts == parcel.attempt,
        )
        if not final:
            pause = timedelta(seconds=_pause(policy, parcel.attempt, outcome.retry_after))
            await session.execute(mine.values(**values, next_attempt_at=func.now() + pause))
            return
        webhook = await locked(session, parcel.webhook_id)
        status = "delivered" if outcome.delivered else "failed"
        ended = mine.values(**values, status=status, next_attempt_at=None, ended_at=func.now())
        delivery = (await session.execute(ended.returning(WebhookDelivery))).scalar_one_or_none()
        if webhook is None or delivery is None:
            return
        await _call_next(session, delivery)
        if outcome.delivered:
            delivered = update(Webhook).where(Webhook.id == webhook.id).values(last_delivered_at=func.now())
            await session.execute(delivered)
        elif gone:
            await disable(session, webhook, "gone")
        elif parcel.body is not None and not _since(webhook.last_delivered_at, delivery.first_attempt_at):
            # Not one message got through in all the time that this one was tried.
            await disable(session, webhook, "failing")


def _since(delivered: datetime | None, first: datetime | None) -> bool:
    return delivered is not None and first is not None and delivered >= first


def _pause(policy: Policy, attempt: int, asked: float | None) -> float:
    """Return the seconds until the next attempt: our own pause, or the longer one that the receiver asks for, in bounds."""
    own = policy.retry_seconds[attempt - 1] * policy.jitter()
    return min(max(own, asked or 0.0), max(own, MAX_RETRY_AFTER))


async def _call_next(session: AsyncSession, ended: WebhookDelivery) -> None:
    """Make the next one of a lane due. Its endpoint is locked, so that none is being planned behind ``ended`` just now."""
    if ended.lane is None:
        return
    waiting = select(WebhookDelivery.id).where(
        WebhookDelivery.webhook_id == ended.webhook_id,
        WebhookDelivery.lane == ended.lane,
        WebhookDelivery.status == "pending",
    )
    first = waiting.order_by(WebhookDelivery.number).limit(1).scalar_subquery()
    await session.execute(update(WebhookDelivery).where(WebhookDelivery.id == first).values(next_attempt_at=func.now()))


async def disable(session: AsyncSession, webhook: Webhook, reason: str) -> None:
    """Stop sending to an endpoint and say so in an event; one that is disabled already stays as it is."""
    if webhook.status == "disabled":
        return
    values = {"status": "disabled", "reason": reason, "disabled_at": func.now(), "updated_at": func.now()}
    await session.execute(update(Webhook).where(Webhook.id == webhook.id).values(**values))
    add_event(session, webhook.project_id, "webhook.disabled", {"webhook_id": webhook.id, "reason": reason})
    log.warning("webhook disabled", webhook_id=webhook.id, reason=reason)

"""Events become deliveries: for each endpoint those past its position that it wants, in the order of events."""

from collections.abc import Sequence

from sqlalchemy import insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.context import Context
from app.events import Position, position, read, xid8
from app.ids import new_id
from app.models import Event, Webhook, WebhookDelivery
from app.outbox import mark

BATCH = 500
ENDPOINTS = 100

FRESH = """
    select w.id from webhook w cross join lateral (
        select 1 from event
        where event.project_id = w.project_id and (event.xid, event.id) > (w.xid, w.event_id)
          and event.xid < pg_snapshot_xmin(pg_current_snapshot())
        order by event.xid, event.id limit 1
    ) e where w.status = 'enabled'
"""
"""Endpoints with events to plan: for each one look into the index, however many events there are."""


def wants(patterns: Sequence[str], kind: str) -> bool:
    """Tell whether an endpoint with these patterns wants events of this kind."""
    return any(p in ("*", kind) or (p.endswith(".*") and kind.startswith(p[:-1])) for p in patterns)


async def plan(context: Context) -> int:
    """Plan what endpoints have not seen yet, a batch for each; returns how many events were gone through."""
    async with context.sessions() as session:
        fresh = (await session.execute(text(f"{FRESH} limit :most"), {"most": ENDPOINTS})).scalars().all()
    return sum([await _plan(context, webhook_id) for webhook_id in fresh])


async def _plan(context: Context, webhook_id: str) -> int:
    async with context.sessions.begin() as session:
        mark(session, "webhook.planned")
        # The lock makes two workers take turns here, and holds off the end of a delivery that a new one may wait for.
        webhook = await locked(session, webhook_id)
        if webhook is None or webhook.status != "enabled":
            return 0
        events = await read(
            session, Position(webhook.xid, webhook.event_id), BATCH, Event.project_id == webhook.project_id
        )
        if not events:
            return 0
        await _write(session, webhook, [e for e in events if wants(webhook.events, e.kind)])
        last = position(events[-1])
        moved = update(Webhook).where(Webhook.id == webhook.id).values(xid=xid8(last.xid), event_id=last.id)
        await session.execute(moved)
    return len(events)


async def locked(session: AsyncSession, webhook_id: str) -> Webhook | None:
    """Return an endpoint, locked against all that plans for it or ends its deliveries; None when it is gone."""
    statement = select(Webhook).where(Webhook.id == webhook_id).with_for_update(key_share=True)
    return (await session.execute(statement.execution_options(populate_existing=True))).scalar_one_or_none()


async def _write(session: AsyncSession, webhook: Webhook, events: list[Event]) -> None:
    """Write the deliveries; the first of a lane is due at once, those behind one that is pending are not."""
    if not events:
        return
    lanes = {lane for e in events if (lane := e.build_id or e.service_id)}
    pending = select(WebhookDelivery.lane).where(
        WebhookDelivery.webhook_id == webhook.id, WebhookDelivery.status == "pending", WebhookDelivery.lane.in_(lanes)
    )
    taken = set((await session.execute(pending.distinct())).scalars())
    now = (await session.execute(text("select now()"))).scalar_one()
    rows = []
    for event in events:
        lane = event.build_id or event.service_id
        rows.append(
            {
                "id": new_id("dlv"),
                "project_id": webhook.project_id,
                "webhook_id": webhook.id,
                "event_id": event.id,
                "kind": event.kind,
                "lane": lane,
                "next_attempt_at": None if lane in taken else now,
            }
        )
        if lane:
            taken.add(lane)
    await session.execute(insert(WebhookDelivery).inline(), rows)

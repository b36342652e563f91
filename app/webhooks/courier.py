"""The loop of a worker that plans and sends. Any number may run: rows are locked, and claims are somebody's."""

import asyncio
from collections import Counter
from typing import NamedTuple

import structlog
from sqlalchemy import func, select, text, update

from app import leases
from app.context import Context
from app.db import alone, is_away
from app.models import WebhookDelivery
from app.webhooks.client import Client
from app.webhooks.plan import BATCH, FRESH, plan
from app.webhooks.send import Parcel, Policy, claim, send

log = structlog.get_logger()

POLL_SECONDS = 0.5
"""One statement so often while there is an endpoint; half of it is what an event waits on average."""
IDLE_SECONDS = 2.0
"""The same while there is none."""

_LOOK = text(f"""
    select exists (select from webhook where status = 'enabled') as any_endpoint,
        exists ({FRESH}) as fresh,
        exists (
            select from webhook w join webhook_delivery d on d.webhook_id = w.id
            where w.status = 'enabled' and w.id <> all(:busy) and d.status = 'pending' and d.next_attempt_at <= now()
        ) as due
""")  # noqa: S608 - our own text


class Turn(NamedTuple):
    """What one turn found: whether there is an endpoint at all, and whether to look again at once."""

    any_endpoint: bool
    more: bool


class Courier:
    """Plans and sends; ``turn`` by ``turn``, or for ever with ``run``."""

    def __init__(self, context: Context, client: Client, policy: Policy | None = None) -> None:
        self._context, self._client, self._policy = context, client, policy or Policy()
        self._me = leases.me()
        self._tasks: dict[asyncio.Task[None], str] = {}

    async def run(self) -> None:
        """Go on until canceled; raises when the database goes away. What is under way then is made again."""
        await self._resume()
        try:
            while True:
                turn = await self.turn()
                if not turn.more:
                    await self._pause(POLL_SECONDS if turn.any_endpoint or self._tasks else IDLE_SECONDS)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def turn(self) -> Turn:
        """Plan what has happened and begin the attempts that are due, as far as there is room."""
        under_way = Counter(self._tasks.values())
        busy = [webhook for webhook, count in under_way.items() if count >= self._policy.per_endpoint]
        room = self._policy.concurrency - len(self._tasks)
        async with alone(self._context.sessions) as session:
            look = (await session.execute(_LOOK, {"busy": busy})).one()
        planned = await plan(self._context) if look.fresh else 0
        parcels: list[Parcel] = []
        if room and (look.due or planned):
            parcels = await claim(self._context, self._me, room, self._policy.per_endpoint, busy)
        for parcel in parcels:
            task = asyncio.create_task(self._send(parcel), name=f"webhook {parcel.delivery_id}")
            self._tasks[task] = parcel.webhook_id
        return Turn(look.any_endpoint, planned >= BATCH or bool(parcels))

    async def settle(self) -> None:
        """Wait for the attempts that are under way."""
        while self._tasks:
            await self._pause(None)

    async def _pause(self, seconds: float | None) -> None:
        """Wait until an attempt has ended, at most so long; raises what an attempt could not deal with."""
        if not self._tasks:
            await asyncio.sleep(seconds or 0)
            return
        done, _ = await asyncio.wait(self._tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            del self._tasks[task]
            task.result()

    async def _send(self, parcel: Parcel) -> None:
        try:
            await send(self._context, self._client, parcel, self._policy, self._me)
        except Exception as e:
            if is_away(e):
                raise
            log.exception("an attempt failed; it is made again", delivery_id=parcel.delivery_id)

    async def _resume(self) -> None:
        """Make due what a dead process of this host was at, or a courier before us in this one."""
        async with self._context.sessions.begin() as session:
            pending = WebhookDelivery.status == "pending"
            senders = await session.execute(select(WebhookDelivery.sender).where(pending).distinct())
            dead = [s for s in senders.scalars() if s is not None and (s == self._me or leases.is_dead(s))]
            cut_short = update(WebhookDelivery).where(pending, WebhookDelivery.sender.in_(dead))
            await session.execute(cut_short.values(sender=None, next_attempt_at=func.now()))


async def deliver(context: Context) -> None:
    """Run a courier for a worker until canceled."""
    async with Client(context.settings.webhook_allow_hosts) as client:
        await Courier(context, client).run()

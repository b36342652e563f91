import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog

from app.models import Webhook, WebhookDelivery
from app.outbox import add_event
from app.webhooks.client import Client
from app.webhooks.courier import Courier
from app.webhooks.send import Policy
from tests.support.receiver import Receiver, receiver
from tests.support.waiting import eventually
from tests.support.world import World, world

Json = dict[str, Any]


@pytest.fixture(autouse=True, scope="session")
def _plain_logs() -> None:
    """Without structlog's default tracebacks, which take seconds each."""
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()])


@dataclass
class Hooks:
    """A control plane whose courier makes its turns when the test says so, and a receiver on loopback."""

    here: World
    receiver: Receiver
    client: Client
    courier: Courier = field(init=False)

    def __post_init__(self) -> None:
        self.courier = Courier(self.here.context, self.client)

    def use(self, **policy: Any) -> None:
        """Go on with a courier of another policy."""
        self.courier = Courier(self.here.context, self.client, Policy(**policy))

    async def add(self, url: str | None = None, **body: Any) -> Json:
        """Make an endpoint, by default the receiver; returns it with its secret."""
        answer = await self.here.http.post("/v1/webhooks", json={"url": url or self.receiver.url, **body})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    async def happen(self, *kinds: str, build: str | None = None, **data: Any) -> None:
        """Write events, all in one transaction."""
        (project,) = await self.here.sql("select id from project where name = 'default'")
        async with self.here.context.sessions.begin() as session:
            for kind in kinds:
                add_event(session, project.id, kind, data, build_id=build)

    async def until(self, look: Callable[[], bool]) -> None:
        """Let the courier work until something is so. (How soon events can be read is up to all who use the server.)"""

        async def there() -> bool:
            await self.courier.turn()
            await self.courier.settle()
            return look()

        await eventually(there, 20)

    async def ended(self) -> None:
        """Let the courier work until every event is planned and every delivery has ended."""

        async def over() -> bool:
            await self.courier.turn()
            await self.courier.settle()
            (row,) = await self.here.sql(
                "select count(*) as n from webhook w left join webhook_delivery d on d.webhook_id = w.id "
                "where w.status = 'enabled' and (d.status = 'pending' or exists (select from event e where "
                "e.project_id = w.project_id and (e.xid, e.id) > (w.xid, w.event_id)))"
            )
            return bool(row.n == 0)

        await eventually(over, 20)

    async def later(self) -> None:
        """Let the time of every next attempt have come."""
        await self.here.sql("update webhook_delivery set next_attempt_at = now() where next_attempt_at is not null")

    async def deliveries(self, **values: object) -> list[WebhookDelivery]:
        return sorted(await self.here.rows(WebhookDelivery, **values), key=lambda d: d.number)

    async def webhook(self, hook: Json) -> Webhook:
        return await self.here.one(Webhook, id=hook["id"])


@contextlib.asynccontextmanager
async def hooks_in(database_url: str, home: Path, **settings: Any) -> AsyncIterator[Hooks]:
    settings = {"webhook_allow_hosts": ("127.0.0.1",)} | settings
    async with world(database_url, home, **settings) as here, receiver() as it, Client(("127.0.0.1",)) as client:
        hooks = Hooks(here, it, client)
        yield hooks
        await hooks.courier.settle()


@pytest.fixture
async def hooks(database_url: str, tmp_path: Path) -> AsyncIterator[Hooks]:
    """A control plane, a courier and a receiver of this test alone."""
    async with hooks_in(database_url, tmp_path / "home") as it:
        yield it

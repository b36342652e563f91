"""What a page of another origin may do, in a real browser; the page has the script of docs/api.md."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from app import events
from app.models import Build, Event
from tests.support.browser import Page, page
from tests.support.processes import REPOSITORY
from tests.support.sse import served
from tests.support.waiting import eventually
from tests.support.world import World, world


@pytest.fixture
async def dashboard(tmp_path: Path) -> AsyncIterator[Page]:
    """A page on a port of its own, open in a browser."""
    (script,) = re.findall(r"```js\n(.*?)```", (REPOSITORY / "docs/api.md").read_text(), re.DOTALL)
    body = f"<!doctype html><script>{script}</script>".encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n" + body)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with page(f"http://127.0.0.1:{port}/", tmp_path / "profile") as opened:
            yield opened


@contextlib.asynccontextmanager
async def called(dashboard: Page, database_url: str, home: Path, *origins: str) -> AsyncIterator[World]:
    """A control plane that these origins may call; the page knows its address and a key."""
    async with world(database_url, home, cors_origins=origins) as here, served(here.app, here.key) as api:
        await dashboard.evaluate(f"void Object.assign(globalThis, {json.dumps({'api': api.url, 'key': here.key})})")
        yield here


async def test_a_page_of_another_origin_follows_a_build_to_its_end(
    dashboard: Page, database_url: str, tmp_path: Path
) -> None:
    origin = await dashboard.evaluate("location.origin")
    async with called(dashboard, database_url, tmp_path / "home", origin) as here:
        order = json.dumps(here.order("echo"))
        made = await dashboard.evaluate(
            "fetch(`${api}/v1/builds`, {method: 'POST', body: JSON.stringify(" + order + "), headers: {Authorization: "
            "`Bearer ${key}`, 'Content-Type': 'application/json', 'Idempotency-Key': 'one'}}).then("
            "async (answer) => ({...await answer.json(), location: answer.headers.get('Location')}))"
        )
        assert made["location"] == f"/v1/builds/{made['id']}"
        await dashboard.evaluate(
            "void (globalThis.seen = [], globalThis.over = follow(`${api}/v1/builds/" + made["id"] + "/events`, key, "
            "(event) => seen.push(event.id)))"
        )
        await eventually(lambda: dashboard.evaluate("seen.length"))
        # Cut off, it comes back with the last id it saw: a header that a browser asks about before it sends it.
        for follower in here.app.state.hub.followers:
            follower.leave()
        await here.jobs()
        await (await here.builder(await here.one(Build, id=made["id"]))).finish()
        await here.jobs()
        assert await dashboard.evaluate("over") == {"build_id": made["id"], "status": "succeeded"}
        async with here.context.sessions() as session:
            found = select(Event).where(Event.build_id == made["id"]).order_by(Event.xid, Event.id)
            written = [str(events.position(e)) for e in (await session.execute(found)).scalars()]
        assert await dashboard.evaluate("seen") == written
        refused = "follow(`${api}/v1/builds/bld_none/events`, key, () => 0).catch((error) => error.message)"
        assert await dashboard.evaluate(refused) == "build_not_found"


@pytest.mark.parametrize("origins", [(), ("https://dashboard.example.com",)])
async def test_a_page_of_an_origin_that_is_not_allowed_gets_nothing(
    dashboard: Page, database_url: str, tmp_path: Path, origins: tuple[str, ...]
) -> None:
    async with called(dashboard, database_url, tmp_path / "home", *origins) as here:
        build = await here.submit()
        asked = "follow(`${api}/v1/builds/" + build.id + "/events`, key, () => 0).catch((error) => error.name)"
        assert await dashboard.evaluate(asked) == "TypeError"
        why = [failed["corsErrorStatus"]["corsError"] for failed in dashboard.failed]
        assert why == ["PreflightMissingAllowOriginHeader"]

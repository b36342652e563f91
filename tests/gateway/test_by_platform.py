"""Services that their platform wakes by itself, behind the gateway for a name that stays: an edge's first answers are none."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, text, update
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from app.context import Context
from app.errors import Refusal
from app.gateway import rows as gateway_rows
from app.gateway.leases import Leases
from app.gateway.rows import RowRoutes
from app.gateway.run import serve_gateway
from app.imitations.server import serving
from app.lifecycle import ServiceStatus
from app.models import Release, Service
from app.platforms.catalog import Entry
from benchmarks.noop import TRAITS
from tests.gateway.machines import add_service, manual_context, status_of
from tests.support.waiting import eventually

FAR = "far"


@dataclass
class Edge:
    """A platform's edge, which answers what it is told to, and then the program's own 200."""

    answers: deque[int] = field(default_factory=deque)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        self.asked.append(f"{request.method} {request.url.path}")
        status = self.answers.popleft() if self.answers else 200
        answer: Response = PlainTextResponse(request.headers["host"], status)
        await answer(scope, receive, send)


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    one = Edge()
    async with serving(one) as url:
        one.url = url.replace("127.0.0.1", "echo.localhost")
        yield one


@pytest.fixture
async def context(database_url: str, tmp_path: Path) -> AsyncIterator[Context]:
    async with manual_context(database_url, tmp_path, 1) as it:
        it.catalog.entries[FAR] = Entry(name=FAR, traits=replace(TRAITS, scale_to_zero="automatic"), configured=True)  # type: ignore[index]
        yield it


async def put(context: Context, address: str, config: dict[str, Any]) -> Service:
    """Write a service that lives on the far platform at this address, and serves."""
    service = await add_service(context, "echo", platform_name=FAR)
    values = {
        "status": ServiceStatus.RUNNING,
        "address": address,
        "instance_id": "i",
        "url": "https://echo.far.example",
    }
    async with context.sessions.begin() as session:
        await session.execute(update(Service).where(Service.id == service.id).values(**values))
        release = update(Release).where(Release.service_id == service.id)
        await session.execute(
            release.values(config={"scale": {"min": 0, "idle_seconds": 60}, "health_path": "/up", **config})
        )
    return service


async def ask(port: int, method: str = "POST") -> httpx.Response:
    async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
        return await http.request(method, f"http://127.0.0.1:{port}/work", headers={"Host": "echo.localhost"})


async def test_the_first_request_goes_through_once_the_program_answers(context: Context, edge: Edge) -> None:
    """Railway's edge says 502, then that there is no such application; a POST must be sent once all the same."""
    await put(context, edge.url, {"stable_name": True})
    edge.answers.extend([502, 404, 503])
    async with serve_gateway(context, host="127.0.0.1", port=0) as server:
        answers = await asyncio.gather(*(ask(server.port) for _ in range(5)))
        assert {a.status_code for a in answers} == {200}
        assert answers[0].text == edge.url.removeprefix("http://"), "the edge finds it by its own name"
        assert edge.asked == ["GET /up"] * 4 + ["POST /work"] * 5
        edge.answers.append(404)
        assert (await ask(server.port)).status_code == 404, "awake, so this is the program's own word"
        assert edge.asked.count("GET /up") == 4


async def test_after_a_quiet_time_it_may_sleep_again(
    context: Context, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(context, edge.url, {"stable_name": True})
    monkeypatch.setattr(gateway_rows, "AWAKE_SECONDS", 0.0)
    async with serve_gateway(context, host="127.0.0.1", port=0) as server:

        async def asked_twice() -> bool:
            assert (await ask(server.port)).status_code == 200
            return edge.asked.count("GET /up") == 2

        await eventually(asked_twice)


@pytest.mark.parametrize(("answers", "status"), [([], 503), ([503] * 1000, 200)])
async def test_what_never_wakes_is_told_and_a_sick_program_is_let_speak(
    context: Context, edge: Edge, answers: list[int], status: int
) -> None:
    settings = context.settings.model_copy(update={"wake_timeout_seconds": 0.5})
    service = await put(context, edge.url if answers else "http://echo.localhost:1", {"stable_name": True})
    edge.answers.extend(answers)
    routes = RowRoutes(replace(context, settings=settings), Leases(context.pool, "p"))
    route = await routes.find("echo.localhost")
    assert route is not None
    assert route.wakes_itself
    if status == 200:
        assert (await routes.ready(route)).url == edge.url
    else:
        with pytest.raises(Refusal) as refused:
            await routes.ready(route)
        assert (refused.value.status, "Retry-After" in refused.value.headers) == (503, True)
    address = await Leases(context.pool, "p").claim(service.id)
    assert address is not None
    await routes.failed(route, address)
    assert await status_of(context, service) == "running", "there is nothing that we could wake"


async def test_who_knew_it_here_finds_it_while_the_old_platform_keeps_it(context: Context, edge: Edge) -> None:
    service = await put(context, edge.url, {})
    routes = RowRoutes(context, Leases(context.pool, "p"))
    with pytest.raises(Refusal) as refused:
        await routes.find("echo.localhost")
    assert (refused.value.status, "https://echo.far.example" in refused.value.detail) == (421, True)
    async with context.sessions.begin() as session:
        kept = update(Release).where(Release.service_id == service.id)
        await session.execute(kept.values(keep_until=func.now() + text("interval '1 hour'")))
    routes = RowRoutes(context, Leases(context.pool, "p"))
    assert await routes.find("echo.localhost") is not None

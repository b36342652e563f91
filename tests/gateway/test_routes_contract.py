"""What every ``Routes`` does; the one in memory that the other tests use, and the one over rows."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.errors import Refusal
from app.gateway.leases import Leases
from app.gateway.routes import Route, Routes
from app.gateway.rows import RowRoutes
from tests.gateway.machines import add_service, manual_context, platform
from tests.gateway.support import MemoryRoutes, Sleeper, replying, upstream


@dataclass
class Case:
    """Routes to a sleeping service ``echo``; ``end`` ends its instance behind their back."""

    routes: Routes
    starts: Callable[[], int]
    break_it: Callable[[], None]
    end: Callable[[], Awaitable[None]]


@asynccontextmanager
async def in_memory() -> AsyncIterator[Case]:
    async with upstream(replying()) as first, upstream(replying()) as second:
        service = Sleeper(first.address, awake=False)
        service.may_start.set()

        async def end() -> None:
            service.next_address = second.address

        def break_it() -> None:
            service.broken = True

        yield Case(MemoryRoutes(echo=service), lambda: service.starts, break_it, end)


@asynccontextmanager
async def over_rows(database_url: str, home: Path) -> AsyncIterator[Case]:
    async with platform() as machines, manual_context(database_url, home, machines.port) as context:
        await add_service(context, "echo", idle_seconds=60)

        def break_it() -> None:
            machines.broken = True

        routes = RowRoutes(context, Leases(context.pool, "contract"))
        yield Case(routes, lambda: machines.only.starts, break_it, lambda: machines.kill(machines.only))
        await routes.close()


@pytest.fixture(params=["memory", "rows"])
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Case]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield await stack.enter_async_context(in_memory())
        else:
            url = request.getfixturevalue("database_url")
            yield await stack.enter_async_context(over_rows(url, tmp_path))


async def enter(case: Case) -> Route:
    route = await case.routes.find("echo.localhost")
    assert route is not None
    case.routes.entered(route)
    return route


async def test_hosts(case: Case) -> None:
    assert await case.routes.find("nobody.localhost") is None
    assert await case.routes.find("echo.example.org") is None
    assert (await enter(case)).host == "echo"


async def test_one_start_for_all(case: Case) -> None:
    route = await enter(case)
    addresses = await asyncio.gather(*(case.routes.ready(route) for _ in range(20)))
    assert len(set(addresses)) == 1
    assert await case.routes.ready(route) == addresses[0]
    assert case.starts() == 1


async def test_a_start_that_fails_is_a_503_for_all(case: Case) -> None:
    route = await enter(case)
    case.break_it()
    results = await asyncio.gather(*(case.routes.ready(route) for _ in range(20)), return_exceptions=True)
    for result in results:
        assert isinstance(result, Refusal)
        assert (result.status, result.reason) == (503, "crashed_at_start")
        assert int(result.headers["Retry-After"]) >= 1


async def test_after_a_failure_another_address_is_found(case: Case) -> None:
    route = await enter(case)
    first = await case.routes.ready(route)
    await case.end()
    await case.routes.failed(route, first)
    assert await case.routes.ready(route) != first
    case.routes.left(route)

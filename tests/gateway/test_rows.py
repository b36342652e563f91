"""Routes, leases and idleness over real rows; the platform is a real server (``machines``)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from app import sql
from app.context import Context
from app.db import open_pool
from app.errors import Refusal
from app.gateway.idle import idle_pass
from app.gateway.leases import CLAIM, LEASE_SECONDS, Leases
from app.gateway.routes import Route
from app.gateway.rows import FRESH_SECONDS, RowRoutes
from app.gateway.run import serve_gateway
from app.lifecycle import ServiceStatus
from app.models import GatewayLease, Service
from app.platforms.catalog import Catalog, Entry
from app.services import sleep_wake
from benchmarks.noop import TRAITS
from tests.gateway.machines import NAME, Machines, add_service, manual_context, platform, status_of
from tests.gateway.support import comes_true, connected, problem_of
from tests.support.metrics import scrape
from tests.support.waiting import eventually, free_port

ASLEEP, RUNNING = ServiceStatus.ASLEEP, ServiceStatus.RUNNING


@dataclass
class World:
    context: Context
    machines: Machines

    def gateway(self) -> tuple[RowRoutes, Leases]:
        leases = Leases(self.context.pool, f"process-{id(object())}")
        return RowRoutes(self.context, leases), leases

    async def set(self, service: Service, **values: Any) -> None:
        async with self.context.sessions.begin() as session:
            await session.execute(update(Service).where(Service.id == service.id).values(**values))

    async def long_ago(self, service: Service, seconds: float = 3600) -> None:
        """Let the last sign of life be so old; leases too."""
        then = func.now() - text(f"interval '{seconds} seconds'")
        await self.set(service, last_request_at=then, status_at=then)
        async with self.context.sessions.begin() as session:
            await session.execute(update(GatewayLease).values(last_seen_at=then))


@pytest.fixture
async def world(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    async with platform() as machines, manual_context(database_url, tmp_path, machines.port) as context:
        yield World(context, machines)


async def found(routes: RowRoutes, host: str = "echo.localhost") -> Route:
    route = await routes.find(host)
    assert route is not None
    return route


async def test_a_host_is_the_first_label_under_the_domain(world: World) -> None:
    service = await add_service(world.context, "echo")
    routes, _ = world.gateway()
    assert await routes.find("echo.localhost") == Route(service.id, "echo")
    for host in (
        "echo",
        "localhost",
        ".localhost",
        "echo.example.org",
        "x.echo.localhost",
        "other.localhost",
        "echolocalhost",
    ):
        assert await routes.find(host) is None


async def test_a_service_that_its_platform_serves_is_not_served_here(world: World) -> None:
    await add_service(world.context, "far", platform_name="other")
    routes, _ = world.gateway()
    with pytest.raises(Refusal) as refused:
        await routes.find("far.localhost")
    assert (refused.value.status, refused.value.reason) == (421, "served_elsewhere")


async def test_many_callers_one_start_and_warm_ones_ask_nobody(world: World) -> None:
    await add_service(world.context, "echo", idle_seconds=60)
    routes, _ = world.gateway()
    route = await found(routes)
    for _ in range(100):
        routes.entered(route)
    addresses = await asyncio.gather(*(routes.ready(route) for _ in range(100)))
    assert len(set(addresses)) == 1
    assert world.machines.only.starts == 1
    # Within FRESH_SECONDS the answer is in memory: no await, so it is there after one step.
    warm = asyncio.ensure_future(routes.ready(route))
    await asyncio.sleep(0)
    assert warm.done()


async def test_a_caller_that_leaves_does_not_stop_the_start_others_wait_for(world: World) -> None:
    await add_service(world.context, "echo", idle_seconds=60)
    routes, _ = world.gateway()
    route = await found(routes)
    routes.entered(route)
    world.machines.may_start.clear()
    hasty = asyncio.create_task(routes.ready(route))
    await eventually(lambda: world.machines.machines)  # the platform has been asked
    patient = asyncio.create_task(routes.ready(route))
    hasty.cancel()
    await asyncio.wait([hasty])
    world.machines.may_start.set()
    assert (await patient).instance_id == world.machines.only.instance_id
    assert world.machines.only.starts == 1


async def test_a_rollout_is_seen_once_the_address_is_not_fresh(world: World) -> None:
    service = await add_service(world.context, "echo", idle_seconds=60)
    routes, _ = world.gateway()
    route = await found(routes)
    routes.entered(route)
    await routes.ready(route)
    await world.set(service, address="http://127.0.0.1:1", instance_id="new")

    async def seen() -> bool:
        return (await routes.ready(route)).instance_id == "new"

    started = asyncio.get_running_loop().time()
    await comes_true(seen)
    assert asyncio.get_running_loop().time() - started < FRESH_SECONDS + 1


async def test_a_service_that_was_put_to_sleep_by_hand_is_woken_again(world: World) -> None:
    service = await add_service(world.context, "echo", idle_seconds=60)
    async with serve_gateway(world.context, host="127.0.0.1", port=0) as server:
        for starts in (1, 2):
            async with connected(server.port) as client:
                client.get("echo.localhost")
                assert (await client.answer()).status == 200
            assert world.machines.only.starts == starts
            assert await sleep_wake.sleep(world.context, service.id)


async def test_requests_are_counted_by_the_kind_of_their_answer(world: World) -> None:
    await add_service(world.context, "echo", idle_seconds=60)
    before = await scrape(world.context)
    async with serve_gateway(world.context, host="127.0.0.1", port=0) as server:
        async with connected(server.port) as client:
            for host, status in (("echo.localhost", 200), ("nobody.localhost", 404)):
                client.get(host)
                assert (await client.answer()).status == status
            open_ = await scrape(world.context)
            assert open_("slipway_gateway_connections") == before("slipway_gateway_connections") + 1
        await eventually(lambda: not server.connections)
    after = await scrape(world.context)
    for kind, more in (("2xx", 1), ("4xx", 1), ("none", 0)):
        name = "slipway_gateway_requests_total"
        assert after(name, status=kind) == before(name, status=kind) + more, kind
    assert after("slipway_gateway_request_seconds_count") == before("slipway_gateway_request_seconds_count") + 2, (
        "the one that woke the service counts with its wake"
    )
    assert after("slipway_wake_seconds_count", platform=NAME, outcome="up") == (
        before("slipway_wake_seconds_count", platform=NAME, outcome="up") + 1
    )
    assert after("slipway_gateway_connections") == before("slipway_gateway_connections")


async def test_an_instance_that_died_is_marked_down_and_started_again(world: World) -> None:
    service = await add_service(world.context, "echo", idle_seconds=60)
    async with serve_gateway(world.context, host="127.0.0.1", port=0) as server, connected(server.port) as client:
        client.get("echo.localhost")
        first = await client.answer()
        await world.machines.kill(world.machines.only)
        client.get("echo.localhost", "/", "POST", "Content-Length: 0")
        second = await client.answer("POST")
    assert (first.status, second.status) == (200, 200)
    assert first.body != second.body
    assert world.machines.only.starts == 2
    assert await status_of(world.context, service) == RUNNING


async def test_an_address_that_has_moved_does_not_mark_the_new_one_down(world: World) -> None:
    service = await add_service(world.context, "echo", idle_seconds=60)
    routes, _ = world.gateway()
    route = await found(routes)
    routes.entered(route)
    old = await routes.ready(route)
    await world.set(service, address=f"http://127.0.0.1:{free_port()}")
    await routes.failed(route, old)
    assert await status_of(world.context, service) == RUNNING
    assert (await routes.ready(route)).url != old.url


async def test_a_service_without_a_release_and_a_deleted_one(world: World) -> None:
    service = await add_service(world.context, "echo")
    await world.set(service, status=ServiceStatus.PENDING)
    async with serve_gateway(world.context, host="127.0.0.1", port=0) as server, connected(server.port) as client:
        client.get("echo.localhost")
        answer = await client.answer()
        assert (answer.status, problem_of(answer).reason) == (503, "not_ready")
        assert answer.header("retry-after") == "5"
        await world.set(service, status=ServiceStatus.DELETING)
        client.get("echo.localhost")
        answer = await client.answer()
        assert (answer.status, problem_of(answer).reason) == (404, "unknown_host")


async def test_without_a_database_known_services_are_still_served(world: World) -> None:
    await add_service(world.context, "echo", idle_seconds=60)
    routes, healthy = world.gateway()
    route = await found(routes)
    routes.entered(route)
    address = await routes.ready(route)
    async with open_pool(f"postgresql://nobody@127.0.0.1:{free_port()}/none") as cut_off:
        # The same routes, from now on with a database that does not answer.
        routes._context = replace(world.context, pool=cut_off)
        routes._leases = leases = Leases(cut_off, "cut-off")
        leases.uses, healthy.uses = healthy.uses, {}
        leases.use(route.service_id).right_until = 0
        assert await routes.ready(route) == address
        strange, _ = world.gateway()
        strange._context = routes._context
        with pytest.raises(Refusal) as refused:
            await strange.find("echo.localhost")
        assert (refused.value.status, refused.value.reason) == (503, "database_unavailable")


# ------------------------------------------------------------------------------------------------- falling asleep


async def awake(world: World, **options: Any) -> tuple[Service, RowRoutes, Leases, Route]:
    service = await add_service(world.context, "echo", **options)
    routes, leases = world.gateway()
    route = await found(routes)
    routes.entered(route)
    await routes.ready(route)
    return service, routes, leases, route


async def test_an_idle_service_sleeps_and_one_with_a_recent_request_does_not(world: World) -> None:
    service, routes, leases, route = await awake(world, idle_seconds=60)
    routes.left(route)
    await leases.write(all_of_them=True)
    assert await idle_pass(world.context) == 0
    await world.long_ago(service, 59)
    assert await idle_pass(world.context) == 0
    await world.long_ago(service, 61)
    assert await idle_pass(world.context) == 1
    assert (await status_of(world.context, service), world.machines.only.sleeps) == (ASLEEP, 1)


async def test_a_service_that_just_woke_does_not_sleep_for_its_old_request(world: World) -> None:
    service, routes, leases, route = await awake(world, idle_seconds=60)
    routes.left(route)
    await leases.write(all_of_them=True)
    await world.long_ago(service)
    await world.set(service, status_at=func.now())
    assert await idle_pass(world.context) == 0


async def test_scale_min_one_never_sleeps(world: World) -> None:
    service, routes, leases, route = await awake(world, idle_seconds=1, scale_min=1)
    routes.left(route)
    await leases.write(all_of_them=True)
    await world.long_ago(service)
    assert await idle_pass(world.context) == 0


async def test_services_of_other_platforms_are_not_ours_to_put_to_sleep(world: World) -> None:
    service, routes, leases, route = await awake(world)
    routes.left(route)
    await leases.write(all_of_them=True)
    await world.long_ago(service)
    traits = replace(TRAITS, scale_to_zero="automatic")
    catalog = Catalog(entries={NAME: Entry(name=NAME, traits=traits, configured=True)}, held=world.context.catalog.held)
    assert await idle_pass(replace(world.context, catalog=catalog)) == 0
    assert await idle_pass(world.context) == 1


async def test_a_live_lease_in_flight_keeps_awake_until_its_process_is_dead(world: World) -> None:
    service, _, leases, _ = await awake(world)
    await world.long_ago(service, LEASE_SECONDS - 2)
    assert await idle_pass(world.context) == 0
    await world.long_ago(service, LEASE_SECONDS + 2)
    await leases.write(all_of_them=True)
    assert await idle_pass(world.context) == 0
    await world.long_ago(service, LEASE_SECONDS + 2)
    assert await idle_pass(world.context) == 1


async def test_of_two_services_only_the_idle_one_sleeps(world: World) -> None:
    busy = await awake(world, idle_seconds=1)
    other = await add_service(world.context, "other", idle_seconds=1)
    await sleep_wake.wake(world.context, other.id)
    for service in (busy[0], other):
        await world.long_ago(service)
    await busy[2].write(all_of_them=True)
    assert await idle_pass(world.context) == 1
    assert await status_of(world.context, busy[0]) == RUNNING


@asynccontextmanager
async def claim_under_way(world: World, service: Service) -> AsyncIterator[Any]:
    """A claim whose transaction has not ended yet."""
    async with world.context.sessions() as session:
        assert await sql.fetch_one(session, CLAIM, service.id, "another", 1) is not None
        yield session


async def blocked(world: World) -> bool:
    async with world.context.sessions() as session:
        query = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        return int((await session.execute(text(query))).scalar_one()) > 0


async def test_a_claim_that_comes_first_wins_over_the_sleeper_that_waited_for_it(world: World) -> None:
    service, routes, leases, route = await awake(world)
    routes.left(route)
    await leases.write(all_of_them=True)
    await world.long_ago(service)
    async with claim_under_way(world, service) as session:
        # The sleeper has chosen the service by what it saw before, and waits for the row.
        sleeper = asyncio.create_task(idle_pass(world.context))
        await comes_true(lambda: blocked(world))
        await session.commit()
    assert await sleeper == 0
    assert (await status_of(world.context, service), world.machines.only.sleeps) == (RUNNING, 0)


async def test_a_claim_that_comes_second_finds_the_service_asleep(world: World) -> None:
    service, _routes, leases, route = await awake(world)
    async with world.context.sessions() as session:
        await session.execute(update(Service).where(Service.id == service.id).values(status=ServiceStatus.SLEEPING))
        claim = asyncio.create_task(leases.claim(route.service_id))
        await comes_true(lambda: blocked(world))
        await session.commit()
    assert await claim is None
    assert leases.use(route.service_id).right_until == 0


async def lease_rows(world: World) -> list[tuple[int, float]]:
    async with world.context.sessions() as session:
        age = func.extract("epoch", func.clock_timestamp() - GatewayLease.last_seen_at)
        rows = await session.execute(select(GatewayLease.in_flight, age))
        return [(row[0], float(row[1])) for row in rows.all()]


async def test_leases_are_written_on_change_and_no_more_often_than_their_period(world: World) -> None:
    _service, routes, leases, route = await awake(world, idle_seconds=60)
    assert [rows[0] for rows in await lease_rows(world)] == [1]
    assert await leases.write() == 0  # the claim wrote it a moment ago
    use = leases.use(route.service_id)
    use.written_at -= 1.1
    assert await leases.write() == 1  # renewed, though nothing changed
    routes.left(route)
    assert await leases.write() == 0
    use.written_at -= 1.1
    use.last_traffic -= 100
    assert await leases.write() == 1
    ((in_flight, age),) = await lease_rows(world)
    assert in_flight == 0
    assert age < 50  # the row keeps the later of both times
    use.right_until = 0
    assert await leases.write() == 0
    assert leases.uses == {}  # a service that nobody uses costs nothing


async def test_traffic_within_a_right_is_written_too(world: World) -> None:
    service, routes, leases, route = await awake(world, idle_seconds=60)
    routes.left(route)
    await leases.write(all_of_them=True)
    await world.long_ago(service, 120)
    routes.entered(route)  # a quick one, under a right that is still good
    routes.left(route)
    await leases.write(all_of_them=True)
    assert await idle_pass(world.context) == 0


async def test_a_lease_of_a_service_that_is_gone_stops_nobody(world: World) -> None:
    _service, _, leases, _ = await awake(world)
    leases.entered("svc_gone")
    assert await leases.write(all_of_them=True) == 2
    assert [in_flight for in_flight, _ in await lease_rows(world)] == [1]


async def test_old_leases_are_forgotten(world: World) -> None:
    service, _, leases, _ = await awake(world)
    await leases.forget_the_dead()
    assert len(await lease_rows(world)) == 1
    await world.long_ago(service, 2 * 24 * 3600)
    await leases.forget_the_dead()
    assert await lease_rows(world) == []


async def test_stopping_a_gateway_leaves_no_lease_in_flight(world: World) -> None:
    await add_service(world.context, "echo", idle_seconds=60)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            serve_gateway(world.context, host="127.0.0.1", port=0, grace_seconds=0.1)
        )
        client = await stack.enter_async_context(connected(server.port))
        client.get("echo.localhost", "/events")
        await client.until(b"first")
        assert [in_flight for in_flight, _ in await lease_rows(world)] == [1]
        await server.stop(0.1)
    assert [in_flight for in_flight, _ in await lease_rows(world)] == [0]

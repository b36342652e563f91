"""Two gateway processes over one database: one start, and no sleep under anybody's open request."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.context import Context
from app.lifecycle import ServiceStatus
from tests.gateway.machines import Machines, add_service, manual_context, platform, status_of
from tests.gateway.support import connected, problem_of
from tests.support.waiting import eventually

REPOSITORY = Path(__file__).parents[2]


@asynccontextmanager
async def gateway_process(database_url: str, home: Path, machines: Machines) -> AsyncIterator["Gateway"]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.gateway.process",
        database_url,
        str(home),
        str(machines.port),
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            line = await process.stdout.readline()
        yield Gateway(process, int(line))
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(30):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise


@dataclass
class Gateway:
    process: asyncio.subprocess.Process
    port: int


@dataclass
class World:
    context: Context
    machines: Machines
    one: Gateway
    two: Gateway


@pytest.fixture
async def world(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        machines = await stack.enter_async_context(platform())
        context = await stack.enter_async_context(manual_context(database_url, tmp_path, machines.port))
        gateways = [gateway_process(database_url, tmp_path, machines) for _ in range(2)]
        one, two = await asyncio.gather(*(stack.enter_async_context(it) for it in gateways))
        yield World(context, machines, one, two)


async def ask(port: int, host: str) -> tuple[int, bytes]:
    async with connected(port) as client:
        client.get(host)
        answer = await client.answer()
        return answer.status, answer.body


async def test_fifty_requests_over_both_make_one_start(world: World) -> None:
    service = await add_service(world.context, "echo", idle_seconds=60)
    answers = await asyncio.gather(
        *(ask(world.one.port if n % 2 else world.two.port, "echo.localhost") for n in range(50))
    )
    machine = world.machines.only
    assert answers == [(200, machine.instance_id.encode())] * 50
    assert machine.starts == 1
    assert await status_of(world.context, service) == ServiceStatus.RUNNING


async def test_an_open_stream_on_one_keeps_the_service_awake_for_both(world: World) -> None:
    service = await add_service(world.context, "echo", idle_seconds=1)
    other = await add_service(world.context, "other", idle_seconds=1)
    async with connected(world.one.port) as client:
        client.get("echo.localhost", "/events")
        await client.until(b"first")
        # Both gateways run their idle passes; that the other service, woken later, went to sleep shows that they did.
        assert (await ask(world.two.port, "other.localhost"))[0] == 200

        async def other_sleeps() -> bool:
            return await status_of(world.context, other) == ServiceStatus.ASLEEP

        await eventually(other_sleeps, 20)
        assert await status_of(world.context, service) == ServiceStatus.RUNNING
        assert (await ask(world.two.port, "echo.localhost"))[0] == 200
        world.machines.events.set()
        await client.until(b"last")

    async def sleeps() -> bool:
        return await status_of(world.context, service) == ServiceStatus.ASLEEP

    await eventually(sleeps, 20)
    assert [machine.cut_off for machine in world.machines.machines.values()] == [0, 0]
    status, body = await ask(world.two.port, "echo.localhost")
    assert status == 200
    assert body.endswith(b"-2")


async def test_the_lease_of_a_killed_gateway_ends(world: World) -> None:
    service = await add_service(world.context, "echo", idle_seconds=1)
    async with connected(world.one.port) as client:
        client.get("echo.localhost", "/events")
        await client.until(b"first")
        world.one.process.kill()
        await world.one.process.wait()
        with suppress(ConnectionError):
            await client.rest_of_it()

    async def sleeps() -> bool:
        return await status_of(world.context, service) == ServiceStatus.ASLEEP

    await eventually(sleeps, 30)


async def test_a_failed_start_is_one_start_and_a_503_on_both(world: World) -> None:
    await add_service(world.context, "echo")
    world.machines.broken = True
    for port in (world.one.port, world.two.port):
        async with connected(port) as client:
            client.get("echo.localhost")
            answer = await client.answer()
            assert (answer.status, problem_of(answer).reason) == (503, "crashed_at_start")
            assert int(answer.header("retry-after") or 0) >= 1


async def test_requests_around_every_sleep_are_answered(world: World) -> None:
    service = await add_service(world.context, "echo", idle_seconds=1)
    machine = None
    for round_number in range(3):
        # Ask at the very moment of falling asleep, from both sides.
        async def falls_asleep() -> bool:
            return await status_of(world.context, service) in {ServiceStatus.SLEEPING, ServiceStatus.ASLEEP}

        await eventually(falls_asleep, 20)
        answers = await asyncio.gather(*(ask(it.port, "echo.localhost") for it in (world.one, world.two)))
        machine = world.machines.only
        assert [status for status, _ in answers] == [200, 200]
        assert machine.starts == round_number + 1
    assert machine is not None
    assert machine.cut_off == 0

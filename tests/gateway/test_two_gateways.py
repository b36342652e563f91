"""Two gateway processes over one database: one start, and no sleep under anybody's open request."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.context import Context
from app.lifecycle import ServiceStatus
from tests.gateway.machines import Machines, add_service, manual_context, platform, reaches, status_of
from tests.gateway.support import connected, problem_of

ASLEEP = ServiceStatus.ASLEEP
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


async def test_one_start_and_no_sleep_under_an_open_stream(world: World) -> None:
    service = await add_service(world.context, "echo", idle_seconds=1)
    answers = await asyncio.gather(
        *(ask(world.one.port if n % 2 else world.two.port, "echo.localhost") for n in range(50))
    )
    machine = world.machines.only
    assert answers == [(200, machine.instance_id.encode())] * 50
    assert machine.starts == 1

    other = await add_service(world.context, "other", idle_seconds=1)
    async with connected(world.one.port) as client:
        client.get("echo.localhost", "/events")
        await client.until(b"first")
        starts = machine.starts
        # Both gateways look for idle services: the other one, called later, falls asleep.
        assert (await ask(world.two.port, "other.localhost"))[0] == 200
        await reaches(world.context, other, ASLEEP)
        assert await status_of(world.context, service) == ServiceStatus.RUNNING
        assert (await ask(world.two.port, "echo.localhost"))[0] == 200
        world.machines.events.set()
        await client.until(b"last")
    await reaches(world.context, service, ASLEEP)
    assert machine.starts == starts

    # Ask from both sides at the very moment of falling asleep.
    for _ in range(2):
        starts = machine.starts
        await reaches(world.context, service, ServiceStatus.SLEEPING, ASLEEP)
        answers = await asyncio.gather(*(ask(it.port, "echo.localhost") for it in (world.one, world.two)))
        assert [status for status, _ in answers] == [200, 200]
        assert machine.starts == starts + 1
    assert [it.cut_off for it in world.machines.machines.values()] == [0, 0]


async def test_a_killed_gateway_and_a_failed_start(world: World) -> None:
    service = await add_service(world.context, "echo", idle_seconds=1)
    broken = await add_service(world.context, "broken", idle_seconds=1)
    async with connected(world.one.port) as client:
        client.get("echo.localhost", "/events")
        await client.until(b"first")
        world.machines.broken = True
        for port in (world.one.port, world.two.port):
            async with connected(port) as other:
                other.get("broken.localhost")
                answer = await other.answer()
                assert (answer.status, problem_of(answer).reason) == (503, "crashed_at_start")
                assert int(answer.header("retry-after") or 0) >= 1
        assert await status_of(world.context, broken) == ServiceStatus.FAILED
        world.one.process.kill()
        await world.one.process.wait()
        await client.rest_of_it()
    await reaches(world.context, service, ASLEEP, timeout=30)  # the dead one's lease has ended

"""Requests that find the service asleep: held, bounded, and one start for all of them."""

import asyncio
from contextlib import AsyncExitStack

from app.gateway.limits import Limits
from tests.gateway.support import DEADLINE, Sleeper, connected, gateway, problem_of, replying, upstream
from tests.support.waiting import eventually


async def test_two_hundred_requests_wait_for_one_start() -> None:
    async with upstream(replying()) as a, AsyncExitStack() as stack:
        service = Sleeper(a.address, awake=False)
        server = await stack.enter_async_context(gateway(a=service))
        clients = [await stack.enter_async_context(connected(server.port)) for _ in range(200)]
        for client in clients:
            client.get("a.localhost", "/", "POST", "Content-Length: 3")
            client.send("abc")
        await eventually(lambda: service.in_flight == 200)
        assert a.connections == 0
        service.may_start.set()
        answers = await asyncio.gather(*(client.answer("POST") for client in clients))
        assert [answer.body for answer in answers] == [b"ok"] * 200
        assert (service.starts, len(a.heads)) == (1, 200)


async def test_a_body_is_not_read_until_somebody_takes_it() -> None:
    size = 64 * 1024 * 1024
    async with upstream(replying()) as a:
        service = Sleeper(a.address, awake=False)
        async with gateway(a=service) as server, connected(server.port) as client:
            client.get("a.localhost", "/", "POST", f"Content-Length: {size}")
            client.send(bytes(size))
            await asyncio.wait_for(service.starting.wait(), DEADLINE)
            before = -1

            def stands_still() -> bool:
                nonlocal before
                now = client.writer.transport.get_write_buffer_size()
                still, before = now == before, now
                return still

            await eventually(stands_still)
            assert before > size // 2
            (connection,) = server.connections
            assert connection.wire.buffered < 512 * 1024
            client.reset()
            service.may_start.set()


async def test_a_failed_start_is_a_503_for_all_who_waited() -> None:
    async with upstream(replying()) as a, AsyncExitStack() as stack:
        service = Sleeper(a.address, awake=False, broken=True)
        server = await stack.enter_async_context(gateway(a=service))
        clients = [await stack.enter_async_context(connected(server.port)) for _ in range(5)]
        for client in clients:
            client.get()
        await eventually(lambda: service.in_flight == 5)
        service.may_start.set()
        for client in clients:
            answer = await client.answer()
            assert (answer.status, problem_of(answer).reason) == (503, "crashed_at_start")
            assert answer.header("retry-after") == "7"
        assert service.starts == 1
        service.broken = False
        clients[0].get()
        assert (await clients[0].answer()).body == b"ok"


async def test_no_more_than_the_bound_wait_and_other_services_are_not_held_up() -> None:
    async with upstream(replying()) as a, upstream(replying(b"from b")) as b, AsyncExitStack() as stack:
        service = Sleeper(a.address, awake=False)
        server = await stack.enter_async_context(gateway(Limits(waiting=2), a=service, b=b))
        first, second, third = [await stack.enter_async_context(connected(server.port)) for _ in range(3)]
        first.get()
        second.get()
        await eventually(lambda: service.in_flight == 2)
        third.get()
        answer = await third.answer()
        assert (answer.status, problem_of(answer).reason) == (503, "too_many_waiting")
        assert answer.header("retry-after") == "5"
        third.get("b.localhost")
        assert (await third.answer()).body == b"from b"
        service.may_start.set()
        assert [(await client.answer()).body for client in (first, second)] == [b"ok"] * 2
        third.get()
        assert (await third.answer()).body == b"ok"


async def test_a_client_that_gives_up_waiting_does_not_stop_the_start() -> None:
    async with upstream(replying()) as a:
        service = Sleeper(a.address, awake=False)
        async with gateway(a=service) as server, connected(server.port) as patient:
            async with connected(server.port) as hasty:
                hasty.get()
                await asyncio.wait_for(service.starting.wait(), DEADLINE)
                hasty.reset()
            await eventually(lambda: service.in_flight == 0)
            patient.get()
            await eventually(lambda: service.in_flight == 1)
            service.may_start.set()
            assert (await patient.answer()).body == b"ok"
            assert service.starts == 1

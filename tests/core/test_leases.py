"""One owner at a time: refused while it lives, taken over when it is dead, whatever became of its row."""

import subprocess
import sys

import psutil
import pytest
from sqlalchemy import select

from app import leases
from app.models import Lease
from tests.support.processes import python, spawned
from tests.support.world import World

NAME = "local:test"


async def holder(here: World) -> str | None:
    async with here.context.sessions() as session:
        return (await session.execute(select(Lease.holder).where(Lease.name == NAME))).scalar_one_or_none()


async def give(here: World, name: str, *, seconds: float = 60) -> None:
    await here.sql("delete from lease")
    await here.sql(
        "insert into lease (name, holder, expires_at) values (:n, :h, now() + make_interval(secs => :s))",
        n=NAME, h=name, s=seconds,
    )  # fmt: skip


def name_of(pid: int, created: float) -> str:
    host = leases.me().partition(":")[0]
    return f"{host}:{pid}:{created:.2f}"


async def test_held_for_the_block_and_given_back(here: World) -> None:
    async with leases.held(here.context.sessions, NAME):
        assert await holder(here) == leases.me()
    assert await holder(here) is None


async def test_refused_while_its_holder_lives(here: World) -> None:
    with spawned(*python("print('up', flush=True); import time; time.sleep(60)")) as child:
        child.line("up")
        await give(here, name_of(child.pid, psutil.Process(child.pid).create_time()))
        with pytest.raises(leases.LeaseError, match="only one process"):
            async with leases.held(here.context.sessions, NAME):
                pass
        child.kill()
        async with leases.held(here.context.sessions, NAME):
            assert await holder(here) == leases.me()


async def test_a_pid_that_was_given_again_is_another_holder(here: World) -> None:
    await give(here, name_of(psutil.Process().pid, psutil.Process().create_time() - 1000))
    async with leases.held(here.context.sessions, NAME):
        pass


async def test_another_host_s_lease_is_waited_out(here: World) -> None:
    await give(here, "elsewhere:1:1.00")
    with pytest.raises(leases.LeaseError, match="elsewhere"):
        async with leases.held(here.context.sessions, NAME):
            pass
    await give(here, "elsewhere:1:1.00", seconds=-1)
    async with leases.held(here.context.sessions, NAME):
        pass


async def test_a_lease_that_was_lost_is_not_taken_from_the_new_holder(here: World) -> None:
    async with leases.held(here.context.sessions, NAME):
        await give(here, "elsewhere:1:1.00")
    assert await holder(here) == "elsewhere:1:1.00"


def test_nobody_is_declared_dead_by_guess() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    created = psutil.Process(done.pid).create_time()
    done.wait(10)
    assert leases.is_dead(name_of(done.pid, created))
    assert not leases.is_dead(leases.me())
    for unknown in ("", "elsewhere:1:1.00", leases.me().partition(":")[0] + ":x:1"):
        assert not leases.is_dead(unknown), unknown

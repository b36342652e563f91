"""One request budget for all processes: what one takes, hears or is refused counts for the others."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy import text

from app import budgets, db
from app.budgets import SharedBudget
from app.platforms.base import RateLimited, Transient
from app.platforms.budget import Allowance, Kind, Limit
from tests.support.processes import python, spawned

ACCOUNT = Allowance(platform="far", account="main", limit=lambda _: Limit(limit=100, window=1e6))
APART = Allowance(
    platform="near", account="main", limit=lambda _: Limit(limit=1, window=1e6, burst=3, remaining=""), per_object=True
)

TAKE = """
import asyncio, sys
from sqlalchemy import text
from app import db
from app.budgets import SharedBudget
from app.platforms.base import RateLimited
from tests.core.test_budgets import ACCOUNT

async def take():
    engine = db.create_engine(sys.argv[1], pool_size=3)
    budget, got = SharedBudget(db.create_sessions(engine), ACCOUNT), 0
    async def one():
        nonlocal got
        for _ in range(20):
            await budget.acquire("call")
            got += 1
    async with db.alone(budget._sessions) as session:
        print("ready", flush=True)
        await session.execute(text("select pg_advisory_lock_shared(1)"))  # the test's sign to begin
    await asyncio.gather(*(one() for _ in range(10)), return_exceptions=True)
    print(got, flush=True)
    await engine.dispose()

asyncio.run(take())
"""


@pytest.fixture
async def sessions(database_url: str) -> AsyncIterator[db.Sessions]:
    engine = db.create_engine(database_url, pool_size=5)
    yield db.create_sessions(engine)
    await engine.dispose()


async def sql(sessions: db.Sessions, statement: str) -> None:
    async with sessions.begin() as session:
        await session.execute(text(statement))


async def taken(budget: SharedBudget, kind: Kind, **about: str) -> int:
    """Take until there is none; return how many there were."""
    for count in range(1000):
        try:
            await budget.acquire(kind, **about)
        except RateLimited:
            return count
    raise AssertionError("there is no end to them")


async def test_two_processes_share_one_bucket(database_url: str) -> None:
    connection = await asyncpg.connect(db.plain_dsn(database_url), timeout=10)
    await connection.execute("select pg_advisory_lock(1)")
    with spawned(*python(TAKE, database_url)) as one, spawned(*python(TAKE, database_url)) as two:
        for child in (one, two):
            await asyncio.to_thread(child.line, "ready", 60)
        await connection.execute("select pg_advisory_unlock(1)")
        counts = [int(await asyncio.to_thread(child.line, "", 60)) for child in (one, two)]
    await connection.close()
    assert sum(counts) == 80, "of 100 a fifth is kept for what stops and deletes"


async def test_the_last_ones_are_kept_for_stopping_whoever_asks(sessions: db.Sessions) -> None:
    one, two = SharedBudget(sessions, ACCOUNT), SharedBudget(sessions, ACCOUNT)
    assert await taken(one, "poll") == 60
    assert await taken(two, "poll") == 0
    assert await taken(two, "call") == 20
    assert await taken(one, "stop") == 20
    with pytest.raises(RateLimited) as caught:
        await two.acquire("stop")
    assert caught.value.retry_after == pytest.approx(1e4, rel=0.01)


async def test_a_crowd_asks_once_and_each_gets_one(sessions: db.Sessions) -> None:
    statements = 0
    budget = SharedBudget(sessions, ACCOUNT)
    take = budget._take

    async def counted(name: str, limit: Limit, kind: Kind, want: int) -> tuple[int, float]:
        nonlocal statements
        statements += 1
        return await take(name, limit, kind, want)

    budget._take = counted  # type: ignore[method-assign]
    answers = await asyncio.gather(*(budget.acquire("call") for _ in range(100)), return_exceptions=True)
    assert sum(a is None for a in answers) == 80
    assert sum(isinstance(a, RateLimited) for a in answers) == 20
    assert statements <= 4
    assert budget._pools == {}


async def test_time_refills_it(sessions: db.Sessions) -> None:
    budget = SharedBudget(sessions, ACCOUNT)
    assert await taken(budget, "stop") == 100
    await sql(sessions, "update budget set refilled_at = refilled_at - interval '30000 s'")
    assert await taken(budget, "stop") == 3
    await sql(sessions, "update budget set refilled_at = refilled_at - interval '1 year'")
    assert await taken(budget, "stop") == 100


async def test_a_short_wait_is_waited_for(sessions: db.Sessions) -> None:
    limit = Limit(limit=1000, window=1000, burst=2)
    naps: list[float] = []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)
        await sql(sessions, f"update budget set refilled_at = refilled_at - make_interval(secs => {seconds})")

    quick = Allowance(platform="far", account="quick", limit=lambda _: limit)
    budget = SharedBudget(sessions, quick, sleep=sleep)
    for _ in range(4):
        await budget.acquire("call")
    assert len(naps) == 2
    assert sum(naps) == pytest.approx(2, abs=0.5)


async def test_a_refusal_closes_it_for_everybody(sessions: db.Sessions) -> None:
    one, two = SharedBudget(sessions, ACCOUNT), SharedBudget(sessions, ACCOUNT)
    await one.feed({"x-ratelimit-reset": "900"}, throttled=120.0)
    with pytest.raises(RateLimited) as caught:
        await two.acquire("stop")
    assert caught.value.retry_after == pytest.approx(120, abs=5), "its Retry-After goes before the window's end"
    await one.feed({}, throttled=30.0)
    with pytest.raises(RateLimited) as caught:
        await two.acquire("stop")
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 100, "a shorter one opened it"
    await sql(sessions, "update budget set closed_until = now(), full_at = now()")
    assert await taken(two, "call") == 80, "what it had told us to wait for is over"


@pytest.mark.parametrize(("headers", "wait"), [({"x-ratelimit-reset": "900"}, 900), ({}, budgets.THROTTLE_SECONDS)])
async def test_a_refusal_that_says_no_time(sessions: db.Sessions, headers: dict[str, str], wait: float) -> None:
    await SharedBudget(sessions, ACCOUNT).feed(headers, throttled=0.0)
    async with sessions() as session:
        assert (await budgets.left(session, ACCOUNT)).closed_seconds == pytest.approx(wait, abs=5)


async def test_what_the_platform_says_is_left_is_believed_by_all(sessions: db.Sessions) -> None:
    one, two = SharedBudget(sessions, ACCOUNT), SharedBudget(sessions, ACCOUNT)
    await one.acquire("call")
    await one.feed({"x-ratelimit-remaining": "26", "x-ratelimit-reset": "600"})
    await one.acquire("call")
    assert await taken(two, "call") == 5
    assert await taken(two, "stop") == 20
    # Nothing is refilled before the window's end, and then all is.
    earlier = "update budget set refilled_at = refilled_at - interval '{0} s', full_at = full_at - interval '{0} s'"
    await sql(sessions, earlier.format(500))
    assert await taken(one, "stop") == 0
    await sql(sessions, earlier.format(101))
    assert await taken(one, "stop") == 100


async def test_what_is_left_is_no_more_than_what_we_believe(sessions: db.Sessions) -> None:
    budget = SharedBudget(sessions, ACCOUNT)
    await taken(budget, "call")
    await budget.feed({"x-ratelimit-remaining": "99"})
    assert await taken(budget, "call") == 0


async def test_an_old_word_about_what_is_left_is_forgotten(sessions: db.Sessions) -> None:
    now = 0.0
    budget = SharedBudget(sessions, ACCOUNT, clock=lambda: now)
    await budget.feed({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "30"})
    now = 31.0
    await budget.acquire("call")
    await budget.feed({"x-ratelimit-remaining": "0"})
    now = 31.0 + budgets.TOLD_SECONDS
    await budget.acquire("call")


async def test_objects_are_counted_apart_and_shared(sessions: db.Sessions) -> None:
    one, two = SharedBudget(sessions, APART), SharedBudget(sessions, APART)
    for key in ("a", "b"):
        assert await taken(one, "call", operation="start", key=key) == 3
    assert await taken(two, "call", operation="start", key="a") == 0
    assert await taken(two, "call", operation="stop", key="a") == 3
    await one.feed({}, throttled=60.0, operation="start", key="c")
    with pytest.raises(RateLimited):
        await two.acquire("stop", operation="start", key="c")
    await two.acquire("stop", operation="start", key="d")


async def test_what_is_left_can_be_looked_at(sessions: db.Sessions) -> None:
    budget = SharedBudget(sessions, ACCOUNT)
    async with sessions() as session:
        assert await budgets.left(session, ACCOUNT) == budgets.Left(100, 0)
        assert (await budgets.left(session, APART)).requests == 3
    await budget.acquire("call")
    await budget.feed({}, throttled=50.0)
    await SharedBudget(sessions, APART).acquire("call", operation="start", key="a")
    async with sessions() as session:
        seen = await budgets.left(session, ACCOUNT)
        assert (await budgets.left(session, APART)).requests == pytest.approx(2, abs=0.1)
    assert seen.requests == 0
    assert seen.closed_seconds == pytest.approx(50, abs=5)


async def test_without_a_database_what_stops_goes_on() -> None:
    engine = db.create_engine("postgresql://nobody@127.0.0.1:1/none", pool_size=1)
    budget = SharedBudget(db.create_sessions(engine), ACCOUNT)
    with contextlib.suppress(RateLimited):
        await budget.feed({}, throttled=1.0)
    await budget.acquire("stop")
    with pytest.raises(Transient, match="can't be asked"):
        await budget.acquire("call")
    await engine.dispose()

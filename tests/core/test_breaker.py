"""Circuit breakers: each move between closed, open and half open, seen by all processes."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy import text

from app import breaker, db
from tests.support.processes import python, spawned

FAR = ("far", "iad", breaker.LAUNCH)

PROBE = """
import asyncio, sys
from sqlalchemy import text
from app import breaker, db

async def probe():
    engine = db.create_engine(sys.argv[1], pool_size=2)
    sessions = db.create_sessions(engine)
    async with db.alone(sessions) as session:
        print("ready", flush=True)
        await session.execute(text("select pg_advisory_lock_shared(1)"))  # the test's sign to begin
    async with sessions.begin() as session:
        seen = await breaker.look(session, "far", ["iad"], breaker.LAUNCH)
    print("away" if seen.shut else "probes", flush=True)
    await engine.dispose()

asyncio.run(probe())
"""


@pytest.fixture
async def sessions(database_url: str) -> AsyncIterator[db.Sessions]:
    engine = db.create_engine(database_url, pool_size=5)
    yield db.create_sessions(engine)
    await engine.dispose()


async def fail(sessions: db.Sessions, times: int = 1) -> None:
    for n in range(times):
        await breaker.failed(sessions, *FAR, f"no room {n}")


async def later(sessions: db.Sessions, seconds: float) -> None:
    """Let time pass for all breakers."""
    past = "{0} = {0} - make_interval(secs => :s)"
    sets = ", ".join(past.format(c) for c in ("failed_at", "open_until", "probe_until"))
    async with sessions.begin() as session:
        await session.execute(text(f"update breaker set {sets}"), {"s": seconds})


async def shut(sessions: db.Sessions) -> float | None:
    """Return for how long it is to be left alone; None when the caller may go."""
    async with sessions.begin() as session:
        seen = await breaker.look(session, "far", ["iad", "ord"], breaker.LAUNCH)
    assert "ord" not in seen.shut
    return seen.shut["iad"].seconds if seen.shut else None


async def state(sessions: db.Sessions) -> list[str]:
    async with sessions() as session:
        return [s.state for s in await breaker.states(session)]


async def test_enough_failures_in_a_row_open_it(sessions: db.Sessions) -> None:
    await fail(sessions, breaker.FAILURES - 1)
    assert await shut(sessions) is None
    assert await state(sessions) == ["closed"]
    await fail(sessions)
    assert await shut(sessions) == pytest.approx(breaker.OPEN_SECONDS, abs=5)
    assert await state(sessions) == ["open"]
    async with sessions.begin() as session:
        seen = await breaker.look(session, "far", ["iad"], breaker.DEPLOY)
    assert not seen.shut, "another operation is another target"


async def test_a_success_between_them_forgets_them(sessions: db.Sessions) -> None:
    await fail(sessions, breaker.FAILURES - 1)
    await breaker.succeeded(sessions, *FAR)
    await fail(sessions, breaker.FAILURES - 1)
    assert await shut(sessions) is None


async def test_failures_far_apart_are_not_in_a_row(sessions: db.Sessions) -> None:
    await fail(sessions, breaker.FAILURES - 1)
    await later(sessions, breaker.WINDOW_SECONDS + 1)
    await fail(sessions, breaker.FAILURES - 1)
    assert await shut(sessions) is None


async def test_half_open_lets_one_try_and_a_success_closes_it(sessions: db.Sessions) -> None:
    await fail(sessions, breaker.FAILURES)
    await later(sessions, breaker.OPEN_SECONDS)
    assert await state(sessions) == ["half_open"]
    assert await shut(sessions) is None, "this is the probe"
    assert await shut(sessions) == pytest.approx(breaker.PROBE_SECONDS, abs=5)
    await breaker.succeeded(sessions, *FAR)
    assert await shut(sessions) is None
    assert await state(sessions) == []


async def test_one_region_is_probed_at_a_time_and_none_behind_a_closed_one(sessions: db.Sessions) -> None:
    for region in ("iad", "ord"):
        for _ in range(breaker.FAILURES):
            await breaker.failed(sessions, "far", region, breaker.LAUNCH, "no room")
    await later(sessions, breaker.OPEN_SECONDS)
    async with sessions.begin() as session:
        seen = await breaker.look(session, "far", ["lax", "iad", "ord"], breaker.LAUNCH)
        assert set(seen.shut) == {"iad", "ord"}
        seen = await breaker.look(session, "far", ["ord", "iad"], breaker.LAUNCH)
        assert set(seen.shut) == {"iad"}
        seen = await breaker.look(session, "far", ["ord", "iad"], breaker.LAUNCH)
        assert set(seen.shut) == {"ord"}


async def test_a_failed_probe_opens_it_for_longer(sessions: db.Sessions) -> None:
    await fail(sessions, breaker.FAILURES)
    for trip in range(1, 8):
        await later(sessions, breaker.LONGEST_SECONDS)
        assert await shut(sessions) is None
        await fail(sessions)
        longer = min(breaker.OPEN_SECONDS * 2**trip, breaker.LONGEST_SECONDS)
        assert await shut(sessions) == pytest.approx(longer, abs=5)


async def test_whoever_was_under_way_when_it_opened_does_not_keep_it_open(sessions: db.Sessions) -> None:
    await fail(sessions, breaker.FAILURES)
    await later(sessions, breaker.OPEN_SECONDS - 10)
    await fail(sessions, 3)
    assert await shut(sessions) == pytest.approx(10, abs=5)


async def test_a_probe_without_a_verdict_lets_the_next_one_try(sessions: db.Sessions) -> None:
    await fail(sessions, breaker.FAILURES)
    for verdict in (False, False, True):
        await later(sessions, breaker.OPEN_SECONDS)
        async with sessions.begin() as session:
            seen = await breaker.look(session, "far", ["iad"], breaker.LAUNCH)
        assert not seen.shut
        async with breaker.probing(sessions, seen):
            assert await shut(sessions) == pytest.approx(breaker.PROBE_SECONDS, abs=5)
            if verdict:
                await fail(sessions)
    assert await state(sessions) == ["open"]


async def test_a_probe_that_died_is_taken_over(sessions: db.Sessions) -> None:
    await fail(sessions, breaker.FAILURES)
    await later(sessions, breaker.OPEN_SECONDS)
    assert await shut(sessions) is None
    await later(sessions, breaker.PROBE_SECONDS)
    assert await shut(sessions) is None


async def test_of_two_processes_one_probes(sessions: db.Sessions, database_url: str) -> None:
    await fail(sessions, breaker.FAILURES)
    await later(sessions, breaker.OPEN_SECONDS)
    connection = await asyncpg.connect(db.plain_dsn(database_url), timeout=10)
    await connection.execute("select pg_advisory_lock(1)")
    with spawned(*python(PROBE, database_url)) as one, spawned(*python(PROBE, database_url)) as two:
        for child in (one, two):
            await asyncio.to_thread(child.line, "ready", 60)
        await connection.execute("select pg_advisory_unlock(1)")
        said = [await asyncio.to_thread(child.line, "", 60) for child in (one, two)]
    await connection.close()
    assert sorted(said) == ["away", "probes"]

"""Events become deliveries once each, whatever order they commit in and however many do the planning."""

import asyncio

import pytest
from sqlalchemy import text

from app.events import horizon, parse
from app.webhooks.courier import Courier
from app.webhooks.plan import plan, wants
from tests.webhooks.conftest import Hooks


@pytest.mark.parametrize(
    ("pattern", "kind", "wanted"),
    [
        ("*", "build.failed", True), ("build.*", "build.failed", True), ("build.failed", "build.failed", True),
        ("build.*", "builder.x", False), ("build.*", "build", False), ("build.fail", "build.failed", False),
    ],
)  # fmt: skip
def test_patterns(pattern: str, kind: str, wanted: bool) -> None:
    assert wants(["run.lost", pattern], kind) is wanted


async def test_what_commits_late_is_neither_lost_nor_doubled(hooks: Hooks) -> None:
    await hooks.add()
    (project,) = await hooks.here.sql("select id from project")
    insert = text("insert into event (project_id, kind, build_id) values (:project, :kind, 'bld_a')")
    async with hooks.here.context.sessions() as early, hooks.here.context.sessions() as idle:
        # Begun and numbered first, committed last.
        await early.execute(insert, {"project": project.id, "kind": "build.queued"})
        await hooks.happen("build.building", build="bld_a")
        assert (await horizon(idle)).xid > 0
        await hooks.courier.turn()
        await hooks.courier.settle()
        assert hooks.receiver.got == [], "a later event went ahead of one that is not committed yet"
        await early.commit()
    await hooks.happen("build.failed", build="bld_a")
    await hooks.ended()
    assert hooks.receiver.kinds() == ["build.queued", "build.building", "build.failed"]


async def test_two_that_plan_at_once_plan_each_event_once(hooks: Hooks) -> None:
    await hooks.add()
    await hooks.add(f"{hooks.receiver.url}/b")
    for n in range(5):
        await hooks.happen(*["build.queued", "build.failed"] * 10, build=f"bld_{n}")
    others = [Courier(hooks.here.context, hooks.client) for _ in range(3)]

    async def work(courier: Courier) -> None:
        while (await courier.turn()).more:
            await courier.settle()

    while len(hooks.receiver.got) < 200:
        await asyncio.gather(*(plan(hooks.here.context) for _ in range(4)))
        await asyncio.gather(*(work(c) for c in others))
    await hooks.ended()
    assert len(hooks.receiver.got) == 200
    for path in ("/hook", "/hook/b"):
        ids = [r.id for r in hooks.receiver.got if r.path == path]
        assert len(set(ids)) == 100
        for n in range(5):
            mine = [r for r in hooks.receiver.got if r.path == path and r.message["data"]["build_id"] == f"bld_{n}"]
            places = [parse(r.message["data"]["id"]) for r in mine]
            assert places == sorted(places)


async def test_nothing_is_asked_of_the_database_but_one_statement_while_nothing_happens(hooks: Hooks) -> None:
    await hooks.add()
    await hooks.happen("build.queued")
    await hooks.ended()
    before = await commits(hooks)
    for _ in range(10):
        turn = await hooks.courier.turn()
        assert (turn.any_endpoint, turn.more) == (True, False)
    assert await commits(hooks) - before <= 10 + 2
    await hooks.here.http.delete(f"/v1/webhooks/{(await hooks.here.http.get('/v1/webhooks')).json()['items'][0]['id']}")
    assert (await hooks.courier.turn()).any_endpoint is False


async def commits(hooks: Hooks) -> int:
    """Return the transactions of this database so far, of sessions that have told about them."""
    await hooks.here.context.engine.dispose()  # a backend tells at its end
    (row,) = await hooks.here.sql(
        "select xact_commit as n, pg_stat_clear_snapshot() from pg_stat_database where datname = current_database()"
    )
    return int(row.n)

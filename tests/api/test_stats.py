"""GET /v1/stats: a window of the project's builds, at a bounded cost."""

from datetime import UTC, datetime, timedelta

import pytest

from app.api import stats
from app.ids import first_id
from app.models import Project
from tests.support.platform import NAME
from tests.support.world import World


async def test_it_counts_the_builds_of_a_window_and_what_waits(here: World) -> None:
    await here.deployed("echo")
    failing = await here.submit()
    await here.jobs()
    await (await here.builder(failing)).fail("compile_error")
    waiting = await here.submit()
    await here.sql("update build set created_at = created_at - interval '10 s' where id = :id", id=waiting.id)
    _, other = await here.project("other")
    async with other:
        foreign = (await other.get("/v1/stats")).json()
        assert (foreign["builds"], foreign["counts"], foreign["seconds"]) == (0, [], {})
        assert foreign["queue"] == {"queued": 0, "running": 0, "oldest_seconds": None}
    project = await here.one(Project, name="default")
    await here.sql(
        "insert into build (id, project_id, status, builder_platform, source, spec) "
        "values (:id, :p, 'canceled', 'old', '{}', '{}')",
        id=first_id("bld", datetime.now(UTC) - timedelta(hours=2)),
        p=project.id,
    )

    found = (await here.http.get("/v1/stats")).json()
    assert (found["builds"], found["complete"], found["window_seconds"]) == (3, True, 3600)
    assert {(c["status"], c["reason"], c["platform"]): c["builds"] for c in found["counts"]} == {
        ("succeeded", None, NAME): 1, ("failed", "compile_error", NAME): 1, ("queued", None, NAME): 1,
    }  # fmt: skip
    assert set(found["seconds"]) == set(stats.STAGES)
    assert all(0 <= s["p50"] <= s["p95"] for s in found["seconds"].values())
    assert found["seconds"]["total"]["p50"] < 60
    assert (found["queue"]["queued"], found["queue"]["running"]) == (1, 0)
    assert 10 <= found["queue"]["oldest_seconds"] < 70
    assert (await here.http.get("/v1/stats", params={"window": 8000})).json()["builds"] == 4
    assert (await here.http.get("/v1/stats", params={"window": 1})).status_code == 422


async def test_a_window_costs_no_more_than_its_newest_builds(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    project = await here.one(Project, name="default")
    old = first_id("bld", datetime.now(UTC) - timedelta(days=2))[:15]
    new = first_id("bld", datetime.now(UTC))[:15]
    await here.sql(
        "insert into build (id, project_id, status, builder_platform, source, spec) "
        "select case when n > 2900 then :new else :old end || lpad(n::text, 15, '0'), :p, 'succeeded', 'here', '{}', '{}' "
        "from generate_series(1, 3000) n",
        old=old, new=new, p=project.id,
    )  # fmt: skip
    await here.sql("analyze build")
    values = (project.id, first_id("bld", datetime.now(UTC) - timedelta(hours=1)), stats.MOST_BUILDS)
    plan = "\n".join(row[0] for row in await here.context.pool.fetch(f"explain (analyze) {stats._WINDOW}", *values))
    assert "Index Cond: ((" in plan, plan
    assert "rows=100" in plan, plan
    assert "Seq Scan" not in plan
    monkeypatch.setattr(stats, "MOST_BUILDS", 50)
    found = (await here.http.get("/v1/stats")).json()
    assert (found["builds"], found["complete"]) == (50, False)

"""Metrics: counted where things happen and only once they are committed, read from the database at most every few seconds."""

import asyncio
import re

import httpx
import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from app import breaker, gauges, metrics, store
from app.capabilities import usual
from app.gauges import Page
from app.lifecycle import Reason
from app.platforms import catalog
from app.platforms.base import StartFailed
from app.scrape import serve_metrics
from tests.support.metrics import Value, parsed, reader
from tests.support.platform import NAME
from tests.support.problems import problem
from tests.support.waiting import eventually
from tests.support.world import World


async def scrape(here: World) -> Value:
    """Read the page afresh; returns what gives a sample by its name and labels, 0 when there is none."""
    page: Page = here.app.state.metrics
    page.forget()
    answer = await here.http.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == gauges.CONTENT_TYPE
    return reader(answer.text)


async def test_what_happens_to_a_build_is_counted_once_it_is_committed(here: World) -> None:
    before = await scrape(here)
    await here.deployed("echo")
    refused = await here.submit()
    hour_ago = (
        "update build set created_at = created_at - interval '1 hour', updated_at = updated_at - interval '1 hour'"
    )
    await here.sql(f"{hour_ago} where id = :id", id=refused.id)
    waiting = await scrape(here)
    assert waiting("slipway_builds_open", status="queued", platform=NAME) == 1
    assert waiting("slipway_builds_oldest_seconds", status="queued", platform=NAME) > 0
    assert waiting("slipway_queue_jobs", job="dispatch", state="queued") == 1
    assert waiting("slipway_services", status="running", platform=NAME) == 1
    await here.jobs()
    await (await here.builder(refused)).claim()
    await (await here.builder(refused)).fail("compile_error")
    after = await scrape(here)

    def grown(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    assert grown("slipway_builds_total", status="succeeded", reason="", platform=NAME) == 1
    assert grown("slipway_builds_total", status="failed", reason="compile_error", platform=NAME) == 1
    assert grown("slipway_runs_total", status="succeeded", reason="", platform=NAME) == 1
    assert grown("slipway_releases_total", status="live", reason="", platform=NAME) == 1
    for stage, times in (("queued", 2), ("dispatching", 2), ("building", 2), ("promoting", 1)):
        assert grown("slipway_build_stage_seconds_count", stage=stage) == times, stage
    # No stage is measured from the begin of an earlier one.
    assert 3600 <= grown("slipway_build_stage_seconds_sum", stage="queued") < 3660
    for stage in ("dispatching", "building", "promoting"):
        assert 0 <= grown("slipway_build_stage_seconds_sum", stage=stage) < 60, stage
    assert grown("slipway_build_seconds_sum", status="failed") >= 3600
    assert grown("slipway_builder_stage_seconds_count", stage="compile") == 1
    assert grown("slipway_http_requests_total", method="POST", route="/v1/builds", status="202") == 2
    assert after("slipway_database_connections", pool="plain", state="idle") > 0
    assert after("slipway_database_up") == 1

    build = await here.submit()
    async with here.context.sessions() as session:
        await store.fail(session, build, Reason.TIMEOUT)
        await session.rollback()
        await session.commit()
    assert (await scrape(here))("slipway_builds_total", status="failed", reason="timeout", platform=NAME) == after(
        "slipway_builds_total", status="failed", reason="timeout", platform=NAME
    )


async def test_platforms_are_seen_as_all_processes_know_them(here: World) -> None:
    settings = here.context.settings.model_copy(update={"northflank": usual().northflank, "fly": usual().fly})
    object.__setattr__(here.context, "settings", settings)
    here.context.catalog.entries = catalog.entries(settings)
    for _ in range(breaker.FAILURES):
        for region in ("iad", "atlantis", "el-dorado"):
            await breaker.failed(here.context.sessions, "fly", region, breaker.LAUNCH, "no room")
    value = await scrape(here)
    assert value("slipway_platform_budget_left", platform="northflank") == 1000
    assert value("slipway_breakers", platform="fly", region="iad", operation="launch", state="open") == 1
    # Requests name regions, so what no platform is known to have must not be a label.
    assert value("slipway_breakers", platform="fly", region="other", operation="launch", state="open") == 2
    await breaker.succeeded(here.context.sessions, "fly", "iad", breaker.LAUNCH)
    assert (await scrape(here))("slipway_breakers", platform="fly", region="iad", operation="launch", state="open") == 0


async def test_only_the_operator_reads_them_and_no_label_is_a_caller_s(here: World) -> None:
    _, other = await here.project("other")
    async with other:
        problem(await other.get("/metrics"), 403, "operators_only")
    await here.http.request("BREW", "/v1/builds/bld_hidden-word")
    await here.http.get("/v1/none-such-hidden-word")
    build = await here.submit("echo")
    await here.http.get(f"/v1/builds/{build.id}")
    text = (await here.http.get("/metrics")).text
    assert 'method="other"' in text
    assert 'route="/v1/builds/{build_id}"' in text
    assert not re.search(r"BREW|hidden-word|bld_|prj_|svc_", text)


async def test_the_database_is_asked_seldom_and_its_absence_is_said(here: World) -> None:
    now = [0.0]
    page = Page(here.context, clock=lambda: now[0])

    def queued(text: bytes) -> float | None:
        return parsed(text.decode()).get(("slipway_builds_open", (("platform", NAME), ("status", "queued"))))

    assert queued(await page.render()) is None
    await here.submit()
    assert queued(await page.render()) is None
    now[0] += gauges.FRESH_SECONDS
    assert queued(await page.render()) == 1
    await here.sql("alter table build rename to gone")
    now[0] += gauges.FRESH_SECONDS
    with capture_logs() as lines:
        text = await page.render()
    assert [line["event"] for line in lines] == ["the metrics of the database can't be read"]
    assert queued(text) is None
    assert parsed(text.decode())["slipway_database_up", ()] == 0
    await here.sql("alter table gone rename to build")


async def test_events_that_a_transaction_holds_back(here: World) -> None:
    async with here.context.sessions() as session:
        await session.execute(text("select pg_current_xact_id()"))
        await here.submit()
        await here.sql("update event set at = at - interval '1 hour'")
        held = (await scrape(here))("slipway_events_held_back_seconds")
    assert 3600 <= held < 3660

    async def none_held() -> bool:
        return (await scrape(here))("slipway_events_held_back_seconds") == 0

    await eventually(none_held)


async def test_a_port_of_its_own_needs_no_key(here: World) -> None:
    settings = here.context.settings.model_copy(update={"metrics_port": 0})
    object.__setattr__(here.context, "settings", settings)
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve_metrics(here.context, port=port))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{await port}", trust_env=False) as http:
            assert "slipway_database_up 1.0" in (await http.get("/metrics")).text
            assert (await http.get("/v1/builds")).status_code == 404
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_looking_at_open_builds_reads_no_ended_one(here: World) -> None:
    """The plan goes by an index that has open builds alone."""
    await here.sql(
        "insert into build (id, project_id, status, builder_platform, source, spec) "
        "select 'bld_' || lpad(n::text, 26, '0'), (select id from project limit 1), "
        "case when n % 500 = 0 then 'queued' else 'succeeded' end, 'here', '{}', '{}' from generate_series(1, 3000) n"
    )
    await here.sql("analyze build")
    plan = "\n".join(row[0] for row in await here.sql(f"explain {gauges._BUILDS}"))
    assert "ix_build_open" in plan or "ix_build_next_check_at" in plan, plan
    assert "Seq Scan" not in plan


async def test_requests_to_platforms_and_wakes_have_outcomes(here: World) -> None:
    with pytest.raises(StartFailed), metrics.platform_call("far", "start"):
        raise StartFailed("far", "start", "no")
    with metrics.platform_call("far", "start"):
        pass
    value = await scrape(here)
    assert value("slipway_platform_requests_total", platform="far", operation="start", outcome="start_failed") == 1
    assert value("slipway_platform_requests_total", platform="far", operation="start", outcome="ok") == 1
    assert value("slipway_platform_request_seconds_count", platform="far", operation="start") == 2
    await here.deployed("echo")
    await here.http.post("/v1/services/echo/sleep")
    await here.jobs()
    await here.http.post("/v1/services/echo/wake")
    assert (await scrape(here))("slipway_wake_seconds_count", platform=NAME, outcome="up") == (
        value("slipway_wake_seconds_count", platform=NAME, outcome="up") + 1
    )

"""What the worker makes of jobs, and that those who change the same rows wait for one another in one order."""

import asyncio
import dataclasses
from collections.abc import Awaitable
from datetime import UTC, datetime

import pytest
import structlog
from pgqueuer.models import Job as QueueJob
from pgqueuer.types import JobId, QueueEntrypoint
from sqlalchemy import select, text

from app import jobs
from app.models import Build, Service
from app.queue import Job, Nudge, entrypoint
from tests.support.metrics import scrape
from tests.support.platform import NAME, TRAITS
from tests.support.waiting import eventually
from tests.support.world import World


def job(name: str, payload: bytes) -> QueueJob:
    now = datetime.now(UTC)
    return QueueJob(
        id=JobId(1), priority=0, created=now, updated=now, heartbeat=now, execute_after=now, status="picked",
        entrypoint=QueueEntrypoint(name), payload=payload, queue_manager_id=None, headers=None,
    )  # fmt: skip


async def test_a_job_that_fails_is_logged_and_not_raised(here: World) -> None:
    """The queue would try it again at once; the row and reconcile know better."""
    build = await here.submit()
    here.yard.misbehave("launch", KeyError("a bug of ours"))
    with structlog.testing.capture_logs() as logs:
        await jobs.runners(here.context)["dispatch"](job("dispatch", f"{build.id}:0".encode()))
    assert any(line["log_level"] == "error" and "job failed" in line["event"] for line in logs)
    await here.ago(build, "next_check_at")
    await here.reconcile()
    assert (await here.one(Build, id=build.id)).status == "building"


async def test_jobs_are_timed_by_their_outcome(here: World) -> None:
    run, before = jobs.runners(here.context)["dispatch"], await scrape(here.context)
    here.yard.misbehave("launch", KeyError("a bug of ours"))
    for _ in range(2):
        build = await here.submit()
        await run(job("dispatch", f"{build.id}:0".encode()))
    after = await scrape(here.context)
    for outcome in ("failed", "done"):
        labels = {"job": "dispatch", "outcome": outcome}
        assert after("slipway_job_seconds_count", **labels) == before("slipway_job_seconds_count", **labels) + 1
        assert 0 < after("slipway_job_seconds_sum", **labels) - before("slipway_job_seconds_sum", **labels) < 60


async def test_jobs_for_rows_that_are_gone_do_nothing(here: World) -> None:
    runners = jobs.runners(here.context)
    assert set(runners) == {str(j) for j in Job}
    with structlog.testing.capture_logs() as logs:
        for name, run in runners.items():
            await run(job(name, b"bld_none:7"))
            await run(job(name, b""))
    assert [line for line in logs if line["log_level"] == "error"] == []


def test_a_host_bound_platform_s_jobs_have_a_name_of_their_own() -> None:
    assert (entrypoint(Job.WAKE, None), entrypoint(Job.WAKE, "local")) == ("wake", "wake.local")
    assert Nudge(Job.WAKE, "svc_1", 3, host_bound="local").dedupe_key == "wake.local:svc_1:3"
    assert Nudge(Job.WAKE, "svc_1", once=False).dedupe_key is None


async def test_who_does_not_hold_a_host_bound_platform_takes_none_of_its_jobs(here: World) -> None:
    here.yard.traits = dataclasses.replace(TRAITS, host_bound=True)
    here.context.catalog.entries = {NAME: here.yard.entry()}
    here.context.catalog.held[NAME] = here.yard.platform()
    assert "dispatch.yard" in jobs.runners(here.context)
    del here.context.catalog.held[NAME]
    assert set(jobs.runners(here.context)) == {str(j) for j in Job}
    build = await here.submit()
    assert await here.jobs() == 0
    assert await here.waiting("dispatch.yard") == [build.id]


async def test_the_same_job_waits_once(here: World) -> None:
    build = await here.submit()
    for _ in range(3):
        await here.ago(build, "next_check_at")
        await jobs.reconcile(here.context)
    assert await here.waiting() == [build.id, build.id], "the one of submit, and one of reconcile"


async def test_a_job_that_was_done_leaves_nothing_behind(here: World) -> None:
    """Each would be three rows of a log that nobody reads."""
    await here.submit()
    assert await here.jobs() == 1
    for table in ("pgqueuer", "pgqueuer_log"):
        assert await here.sql(f"select * from pgqueuer.{table}") == []


async def test_one_process_reconciles_at_a_time(here: World) -> None:
    build = await here.submit()
    await here.forget_jobs()
    await here.ago(build, "next_check_at")
    async with here.context.sessions.begin() as session:
        await session.execute(text("select pg_advisory_xact_lock(:key)"), {"key": jobs.RECONCILE_LOCK})
        assert await here.reconcile() == 0
    assert await here.reconcile() == 1


@pytest.mark.parametrize("verb", ["complete", "cancel", "delete"])
async def test_nobody_holds_a_build_while_waiting_for_its_service(here: World, verb: str) -> None:
    """The order is service, build, run, release: two that lock the other way round would wait for each other."""
    build = await here.submit("echo")
    await here.jobs()
    builder = await here.builder(build)
    orders = await builder.claim()
    image = await builder.push()
    async with here.context.sessions.begin() as session:
        await session.execute(select(Service).where(Service.id == build.service_id).with_for_update())
        requests: dict[str, Awaitable[object]] = {
            "complete": builder.complete(builder.success(image, orders)),
            "cancel": here.http.post(f"/v1/builds/{build.id}/cancel"),
            "delete": here.http.delete("/v1/services/echo"),
        }
        asked = asyncio.ensure_future(requests.pop(verb))
        for other in requests.values():
            other.close()  # type: ignore[attr-defined]

        async def waits() -> bool:
            assert not asked.done(), "it changed the service without waiting for it"
            return bool(
                await here.sql(
                    "select 1 from pg_stat_activity where datname = current_database() and wait_event = 'transactionid'"
                )
            )

        await eventually(waits)
        await session.execute(select(Build).where(Build.id == build.id).with_for_update(nowait=True))
    await asked
    assert (await here.one(Build, id=build.id)).status in {"promoting", "canceled"}

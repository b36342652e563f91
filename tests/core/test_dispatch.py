"""From the queue to a running builder, whatever goes wrong on the way."""

import asyncio

import pytest

from app.builds import cleanup, dispatch
from app.models import Build, Run
from app.platforms.base import Misconfigured, NoCapacity, Rejected, Transient, Unsupported
from tests.support.platform import NAME, Lost
from tests.support.waiting import eventually
from tests.support.world import World


async def test_a_launch_cut_short_is_taken_up_under_the_same_name(here: World) -> None:
    """The process died after the launch call and before its outcome was recorded."""
    build = await here.submit()
    gate = here.yard.gate("launch")
    doomed = asyncio.create_task(dispatch.dispatch(here.context, build.id))
    await gate.reached()
    doomed.cancel()
    await asyncio.gather(doomed, return_exceptions=True)
    run = await here.run_of(build)
    assert (run.status, run.handle) == ("launching", None)
    await here.forget_jobs()
    await here.ago(build, "next_check_at")
    await here.reconcile()
    again = await here.run_of(build)
    assert (again.id, again.handle, again.launch_tries) == (run.id, "h1", 2)
    assert here.yard.launched == [run.name]
    assert (await here.one(Build, id=build.id)).status == "building"


async def test_a_launch_that_goes_on_elsewhere_is_left_alone(here: World) -> None:
    """A second job for the build comes while the first one's launch is still on its way."""
    build = await here.submit()
    gate = here.yard.gate("launch")
    async with here.working():
        await gate.reached()
        for _ in range(dispatch.LAUNCH_TRIES + 1):
            await dispatch.dispatch(here.context, build.id)
        gate.go.set()
    run = await here.run_of(build)
    assert (run.status, run.launch_tries, here.yard.count("launch")) == ("launching", 1, 1)


async def test_what_a_launch_makes_first_is_told_while_it_does(here: World) -> None:
    here.yard.preparing = "Compiling what all builds need, once."
    build = await here.submit()
    gate = here.yard.gate("launch")
    async with here.working():
        await gate.reached()
        events = (await here.http.get(f"/v1/builds/{build.id}/events")).json()["items"]
        gate.go.set()
    assert [(e["kind"], e["data"]) for e in events][-1] == ("run.preparing", {"message": here.yard.preparing})
    assert events[-1]["run_id"] == (await here.run_of(build)).id


async def test_a_slow_launch_renews_its_claim(here: World) -> None:
    build = await here.submit()
    gate = here.yard.gate("launch")
    async with here.working():
        await gate.reached()
        await here.ago(build, "next_check_at")

        async def renewed() -> bool:
            return bool((await here.sql("select next_check_at > now() as ok from build"))[0].ok)

        assert not await renewed()
        async with dispatch.claimed(here.context, await here.run_of(build), every=0.01):
            await eventually(renewed)
        gate.go.set()
    assert (await here.one(Build, id=build.id)).status == "building"


async def test_transient_after_success_finds_the_machine(here: World) -> None:
    here.yard.misbehave("launch", Lost(Transient(NAME, "launch", "timed out")))
    build = await here.submit()
    await here.jobs()
    assert (await here.one(Build, id=build.id)).status == "dispatching"
    await here.ago(build, "next_check_at")
    await here.hurry()
    run = await here.run_of(build)
    assert (run.handle, run.launch_tries, run.attempt) == ("h1", 2, 1)
    assert here.yard.launched == [run.name]


async def test_retry_after_is_kept(here: World) -> None:
    here.yard.misbehave("launch", Transient(NAME, "launch", "slow down", retry_after=40))
    await here.submit()
    await here.jobs()
    rows = await here.sql("select execute_after - now() > interval '30 s' as later from pgqueuer.pgqueuer")
    assert [r.later for r in rows] == [True]


async def test_a_launch_that_never_answers_ends(here: World) -> None:
    tries = dispatch.LAUNCH_TRIES
    here.yard.misbehave("launch", *(Transient(NAME, "launch", "no answer") for _ in range(tries * 3)))
    build = await here.submit()
    for _ in range((tries + 1) * 3):
        await here.jobs()
        await here.sql(
            "update build set next_check_at = now(), not_before = null where status in ('queued', 'dispatching')"
        )
        await here.hurry()
    build = await here.one(Build, id=build.id)
    assert (build.status, build.reason) == ("failed", "builder_lost")
    assert f"{tries} times" in (build.message or "")
    runs = await here.rows(Run, build_id=build.id)
    assert [(r.attempt, r.status) for r in runs] == [(1, "failed"), (2, "failed"), (3, "failed")]
    assert here.yard.count("launch") == tries * 3


async def test_no_capacity_uses_up_no_attempts(here: World) -> None:
    tries = here.context.settings.max_run_attempts + 1
    here.yard.misbehave("launch", *(NoCapacity(NAME, "launch", "full") for _ in range(tries)))
    build = await here.submit()
    await here.jobs()
    build = await here.one(Build, id=build.id)
    assert (build.status, len(build.tried)) == ("queued", 1)
    assert await here.sql("select 1 from build where not_before > now()"), "it would be tried again at once"
    assert await here.jobs() == 0
    for _ in range(tries):
        await here.sql("update build set not_before = now()")
        await here.hurry()
    build = await here.one(Build, id=build.id)
    assert (build.status, build.attempt, build.losses) == ("building", tries + 1, 0)
    assert [(t["platform"], t["reason"], t["times"]) for t in build.tried] == [("yard", "no_capacity", tries)]


@pytest.mark.parametrize("error", [Rejected(NAME, "launch", "no such size"), Unsupported(NAME, "launch", "never")])
async def test_what_the_platform_refuses_ends_at_once(here: World, error: Exception) -> None:
    here.yard.misbehave("launch", error)
    build = await here.submit()
    await here.jobs()
    build = await here.one(Build, id=build.id)
    assert (build.status, build.reason, build.attempt) == ("failed", "platform_rejected", 1)
    assert (await here.run_of(build)).status == "failed"


async def test_a_misconfigured_platform_is_waited_for_until_the_build_expires(here: World) -> None:
    build = await here.submit()
    for _ in range(here.context.settings.max_run_attempts + 2):
        here.yard.misbehave("launch", Misconfigured(NAME, "launch", "the token is not valid"))
        await here.sql("update build set not_before = null")
        await here.hurry()
    assert (await here.one(Build, id=build.id)).status == "queued"
    await here.ago(build, "deadline_at")
    await here.reconcile()
    build = await here.one(Build, id=build.id)
    assert (build.status, build.reason) == ("failed", "platform_misconfigured")
    assert "the token is not valid" in (build.message or "")


async def test_a_misconfigured_platform_that_is_mended_builds(here: World) -> None:
    here.yard.misbehave("launch", Misconfigured(NAME, "launch", "no token"))
    build = await here.submit()
    await here.jobs()
    await here.sql("update build set not_before = null")
    await here.hurry()
    assert (await here.one(Build, id=build.id)).status == "building"


async def test_the_completion_may_come_before_the_launch_has_returned(here: World) -> None:
    build = await here.submit("echo")
    gate = here.yard.gate("launch")
    async with here.working():
        await gate.reached()
        builder = await here.builder(build)
        assert (await builder.finish())["build_status"] == "promoting"
        run = await here.run_of(build)
        assert (run.status, run.handle) == ("succeeded", None)
        gate.go.set()
    run = await here.run_of(build)
    assert (run.handle, run.region) == ("h1", "here")
    build = await here.one(Build, id=build.id)
    assert build.status == "succeeded"
    await here.jobs()
    assert run.name not in here.yard.machines, "its machine was not removed once its handle was known"


async def test_a_claim_before_the_launch_has_returned(here: World) -> None:
    build = await here.submit()
    gate = here.yard.gate("launch")
    async with here.working():
        await gate.reached()
        await (await here.builder(build)).claim()
        assert (await here.one(Build, id=build.id)).status == "building"
        gate.go.set()
    assert (await here.run_of(build)).handle == "h1"


async def test_a_launch_that_fails_once_its_builder_is_at_work_ends_nothing(here: World) -> None:
    build = await here.submit()
    gate = here.yard.gate("launch", Rejected(NAME, "launch", "there is one already"))
    async with here.working():
        await gate.reached()
        builder = await here.builder(build)
        await builder.claim()
        gate.go.set()
    assert ((await here.one(Build, id=build.id)).status, (await here.run_of(build)).status) == ("building", "running")
    await builder.finish()
    assert (await here.one(Build, id=build.id)).status == "succeeded"


async def test_canceled_while_launching_leaves_no_machine(here: World) -> None:
    build = await here.submit()
    gate = here.yard.gate("launch")
    async with here.working():
        await gate.reached()
        answer = await here.http.post(f"/v1/builds/{build.id}/cancel")
        assert answer.json()["status"] == "canceled"
        gate.go.set()
    await here.hurry()
    assert here.yard.machines == {}
    assert (await here.run_of(build)).handle == "h1"


async def test_a_machine_that_came_after_its_clean_up_is_removed_in_the_end(here: World) -> None:
    """The run was canceled and cleaned up before its launch had returned, and the clean-up after that fails."""
    build = await here.submit()
    gate = here.yard.gate("launch")
    async with here.working():
        await gate.reached()
        (machine,) = here.yard.machines.items()
        await here.http.post(f"/v1/builds/{build.id}/cancel")
        await cleanup.cleanup(here.context, (await here.run_of(build)).id)
        here.yard.machines.update([machine])
        here.yard.misbehave("stop", *(Transient(NAME, "stop", "no answer") for _ in range(2)))
        gate.go.set()
    run = await here.run_of(build)
    assert list(here.yard.machines) == [run.name]
    await here.ago(run, "next_check_at")
    await here.reconcile()
    assert here.yard.machines == {}
    assert (await here.run_of(build)).cleaned_at is not None


async def test_a_lost_job_comes_back(here: World) -> None:
    build = await here.submit()
    await here.forget_jobs()
    assert await here.reconcile() == 0, "not yet: the job may only be slow"
    await here.ago(build, "next_check_at")
    await here.reconcile()
    assert (await here.one(Build, id=build.id)).status == "building"


async def test_a_platform_that_is_gone_is_said_so(here: World) -> None:
    build = await here.submit()
    del here.context.catalog.held[NAME]
    await here.jobs()
    build = await here.one(Build, id=build.id)
    assert (build.status, build.attempt, build.tried[0]["reason"]) == ("queued", 1, "platform_misconfigured")
    assert await here.sql("select 1 from build where not_before > now()"), "it would be tried again at once"


async def test_orders_hold_no_secret_but_the_run_token(here: World) -> None:
    build = await here.submit("echo", secrets={"KEY": "s3cret-value"})
    await here.jobs()
    machine = here.machine(await here.run_of(build))
    ours = {"SLIPWAY_URL", "SLIPWAY_RUN_ID", "SLIPWAY_RUN_TOKEN", "SLIPWAY_RUN_DEADLINE"}
    assert set(machine.spec.env) == ours | {"TRACEPARENT"}
    orders = await (await here.builder(build)).claim()
    assert "s3cret-value" not in str(orders) + str(machine.spec.env)

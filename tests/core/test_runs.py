"""What ends a run whose builder says nothing, and the removal of what it leaves."""

import pytest

from app.models import Build, Run, RunLog
from app.platforms.base import Phase, Transient
from tests.support.platform import NAME
from tests.support.world import World


async def running(here: World, *, claimed: bool = True) -> tuple[Build, Run]:
    build = await here.submit()
    await here.jobs()
    if claimed:
        await (await here.builder(build)).claim()
    return build, await here.run_of(build)


async def silence(here: World, run: Run, seconds: float = 3600) -> None:
    """Let the builder have been silent for so long."""
    for column in ("heartbeat_at", "launched_at", "claimed_at", "next_check_at"):
        await here.sql(
            f"update run set {column} = now() - make_interval(secs => :s) where id = :i and {column} is not null",
            s=seconds,
            i=run.id,
        )


async def test_a_lost_builder_gets_a_successor_that_succeeds(here: World) -> None:
    build, run = await running(here)
    del here.yard.machines[run.name]
    await silence(here, run)
    await here.reconcile()
    lost = await here.one(Run, id=run.id)
    assert (lost.status, lost.reason) == ("lost", "builder_lost")
    build = await here.one(Build, id=build.id)
    assert (build.status, [t["reason"] for t in build.tried]) == ("queued", ["builder_lost"])
    await here.sql("update build set not_before = now()")
    await here.hurry()
    await (await here.builder(build)).finish()
    build = await here.one(Build, id=build.id)
    assert (build.status, build.attempt, build.message) == ("succeeded", 2, None)


async def test_a_successor_does_not_listen_to_its_predecessor(here: World) -> None:
    """The builder that was given up comes back to life, after its successor began."""
    build, run = await running(here)
    first = await here.builder(build)
    image = await first.push()
    orders = await first.claim()
    del here.yard.machines[run.name]
    await silence(here, run)
    await here.reconcile()
    await here.sql("update build set not_before = now()")
    await here.hurry()
    assert (await first.complete(first.success(image, orders))).json()["accepted"] is False
    assert (await here.one(Build, id=build.id)).status == "building"


async def test_a_silent_builder_that_is_at_work_is_left_alone(here: World) -> None:
    build, run = await running(here)
    await silence(here, run)
    await here.reconcile()
    assert here.yard.count("inspect builder") == 1
    assert (await here.one(Build, id=build.id)).status == "building"
    assert await here.reconcile() == 0, "it was looked at again at once"


async def test_a_builder_that_holds_after_a_report_that_never_came_is_lost(here: World) -> None:
    build, run = await running(here)
    assert (await (await here.builder(build)).post("heartbeat", stage="reported")).status_code == 200
    await silence(here, run)
    await here.reconcile()
    lost = await here.one(Run, id=run.id)
    assert (lost.status, lost.reason) == ("lost", "builder_lost")
    assert "report" in (lost.message or "")


async def test_a_platform_that_gives_no_answer_proves_nothing(here: World) -> None:
    build, run = await running(here)
    here.yard.misbehave("inspect builder", Transient(NAME, "inspect", "down"))
    await silence(here, run)
    await here.reconcile()
    assert (await here.one(Build, id=build.id)).status == "building"


async def test_a_builder_that_ended_without_a_report_leaves_its_last_words(here: World) -> None:
    build, run = await running(here)
    machine = here.machine(run)
    machine.phase, machine.exit_code, machine.words = Phase.EXITED, 30, ["panic: oh", "goodbye"]
    await silence(here, run)
    await here.reconcile()
    ended = await here.one(Run, id=run.id)
    assert (ended.status, ended.exit_code, ended.reason) == ("lost", 30, "builder_lost")
    assert "code 30" in (ended.message or "")
    lines = (await here.http.get(f"/v1/builds/{build.id}/logs")).json()["items"]
    assert [(line["stream"], line["text"]) for line in lines] == [("builder", "panic: oh"), ("builder", "goodbye")]


async def test_the_builder_s_own_words_are_not_written_over(here: World) -> None:
    build, run = await running(here)
    await (await here.builder(build)).log("mine")
    machine = here.machine(run)
    machine.phase, machine.words = Phase.FAILED, ["the platform's"]
    await silence(here, run)
    await here.reconcile()
    async with here.context.sessions() as session:
        log = await session.get(RunLog, (run.id, 0))
        assert log is not None
        assert [line["m"] for line in log.lines] == ["mine"]


async def test_out_of_memory_is_said_and_not_tried_again(here: World) -> None:
    build, run = await running(here)
    machine = here.machine(run)
    machine.phase, machine.exit_code, machine.out_of_memory = Phase.FAILED, 137, True
    await silence(here, run)
    await here.reconcile()
    build = await here.one(Build, id=build.id)
    assert (build.status, build.reason) == ("failed", "out_of_memory")
    assert "2048 MB" in (build.message or "")
    assert (await here.one(Run, id=run.id)).out_of_memory


async def test_a_machine_that_is_gone_before_it_claimed_is_lost(here: World) -> None:
    """Its launch was recorded, so that it isn't there can't mean that it is not there yet."""
    build, run = await running(here, claimed=False)
    del here.yard.machines[run.name]
    await silence(here, run)
    await here.reconcile()
    assert (await here.one(Run, id=run.id)).status == "lost"
    assert (await here.one(Build, id=build.id)).status == "queued"


async def test_a_launch_that_is_not_recorded_is_not_lost_yet(here: World) -> None:
    build = await here.submit()
    here.yard.misbehave("launch", Transient(NAME, "launch", "who knows"))
    await here.jobs()
    run = await here.run_of(build)
    await here.sql("update run set heartbeat_at = now() - interval '1 hour', next_check_at = null")
    await here.reconcile()
    assert (await here.one(Run, id=run.id)).status == "launching"


@pytest.mark.parametrize("gone", [True, False])
async def test_a_deadline_ends_a_run_whatever_it_is_doing(here: World, gone: bool) -> None:
    build, run = await running(here)
    if gone:
        del here.yard.machines[run.name]
    await here.ago(run, "deadline_at", 30)
    await here.ago(run, "next_check_at")
    await here.reconcile()
    build = await here.one(Build, id=build.id)
    assert (build.status, build.reason) == ("failed", "timeout")
    assert "900 seconds" in (build.message or "")
    assert run.name not in here.yard.machines


async def test_the_builder_may_report_its_own_time_out_first(here: World) -> None:
    build, run = await running(here)
    await here.ago(run, "deadline_at", 2)
    assert await here.reconcile() == 0
    await (await here.builder(build)).fail("timeout", "in stage compile")
    assert (await here.one(Build, id=build.id)).message == "in stage compile"


async def test_a_deadline_holds_while_the_platform_is_down(here: World) -> None:
    build, run = await running(here)
    here.yard.misbehave("inspect builder", Transient(NAME, "inspect", "down"))
    await here.ago(run, "deadline_at", 30)
    await here.ago(run, "next_check_at")
    await here.reconcile()
    assert (await here.one(Build, id=build.id)).reason == "timeout"


async def test_a_deadline_holds_with_nobody_left_who_can_call_the_platform(here: World) -> None:
    """Its process is dead, so that no job for it is ever run: reconcile alone ends the run."""
    build, run = await running(here)
    del here.context.catalog.held[NAME]
    await here.ago(run, "deadline_at", 3600)
    await here.ago(run, "next_check_at")
    await here.reconcile()
    await here.forget_jobs()
    build = await here.one(Build, id=build.id)
    assert (build.status, build.reason) == ("failed", "timeout")
    here.context.catalog.held[NAME] = here.yard.platform()
    await here.ago(run, "next_check_at")
    await here.reconcile()
    assert here.yard.machines == {}, "the machine was forgotten with its run"


async def test_a_late_job_for_an_ended_run_changes_nothing(here: World) -> None:
    build, run = await running(here)
    await (await here.builder(build)).finish()
    await here.ago(run, "deadline_at", 30)
    await here.sql("update run set next_check_at = null")
    await here.reconcile()
    assert (await here.one(Run, id=run.id)).status == "succeeded"


async def test_clean_up_is_repeated_until_it_is_done_and_recorded(here: World) -> None:
    build, run = await running(here)
    here.yard.misbehave("stop", Transient(NAME, "stop", "down"), Transient(NAME, "stop", "down"))
    await (await here.builder(build)).finish()
    await here.jobs()
    assert run.name in here.yard.machines
    assert (await here.one(Run, id=run.id)).cleaned_at is None
    assert await here.reconcile() == 0, "not at once"
    for _ in range(2):
        await here.ago(run, "next_check_at")
        await here.reconcile()
    assert here.yard.machines == {}
    ended = await here.one(Run, id=run.id)
    assert ended.cleaned_at is not None
    assert ended.next_check_at is None
    stops = here.yard.count("stop")
    await here.reconcile()
    assert here.yard.count("stop") == stops


async def test_a_build_that_had_a_builder_may_wait_anew(here: World) -> None:
    """Its hour in the queue is over only because a builder worked for so long and was lost."""
    build, run = await running(here)
    await here.ago(build, "deadline_at", 60)
    del here.yard.machines[run.name]
    await silence(here, run)
    await here.reconcile()
    await here.reconcile()
    # Its next try comes a second later: on a slow machine that has begun by now.
    assert (await here.one(Build, id=build.id)).status in {"queued", "dispatching"}


async def test_a_build_that_found_no_builder_in_time_expires(here: World) -> None:
    build = await here.submit()
    await here.forget_jobs()
    await here.ago(build, "deadline_at")
    await here.reconcile()
    build = await here.one(Build, id=build.id)
    assert (build.status, build.reason) == ("failed", "expired")

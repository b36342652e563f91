"""Where there is no room the next region is tried, then the next platform; a target that keeps failing is left alone."""

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app import breaker
from app.builds import dispatch
from app.models import Build, Release, Run
from app.platforms.base import NoCapacity, RateLimited, Rejected, Transient, Unsupported
from app.services import sleep_wake
from tests.support.platform import NAME, TRAITS, Yard
from tests.support.world import Json, World, world

FULL = NoCapacity(NAME, "launch", "full")
REMOTE = dataclasses.replace(TRAITS, remote=True, default_regions=("north", "south"))


@pytest.fixture
async def far(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A control plane whose yard is remote, with two regions; ``dock`` beside it is another platform, with none."""
    values: Json = {"public_url": "https://slipway.test", "builder_image": f"registry.test/b@sha256:{'b' * 64}"}
    async with world(database_url, tmp_path / "home", traits=REMOTE, **values) as it:
        yield it


@pytest.fixture
async def dock(far: World) -> AsyncIterator[Yard]:
    place = Yard(traits=dataclasses.replace(TRAITS, remote=True))
    far.context.catalog.entries = {**far.context.catalog.entries, "dock": place.entry("dock")}
    far.context.catalog.held["dock"] = place.platform("dock")
    yield place
    await place.close()


async def send(here: World, **builder: Any) -> Build:
    return await here.send(here.order() | {"builder": builder})


def places(build: Build) -> list[tuple[str, str | None, str, int]]:
    return [(t["platform"], t["region"], t["reason"], t["times"]) for t in build.tried]


async def now(here: World, build: Build) -> Build:
    return await here.one(Build, id=build.id)


async def test_the_next_region_is_tried_in_the_same_run(far: World) -> None:
    far.yard.misbehave("launch", FULL)
    build = await far.submit()
    await far.jobs()
    build = await now(far, build)
    assert (build.status, build.attempt, places(build)) == ("building", 1, [(NAME, "north", "no_capacity", 1)])
    assert far.machine(await far.run_of(build)).spec.regions == ("south",)
    answer = (await far.http.get(f"/v1/builds/{build.id}")).json()
    assert answer["tried"][0] | {"message": ""} == {
        "attempt": 1, "platform": NAME, "region": "north", "reason": "no_capacity", "message": "", "times": 1,
    }  # fmt: skip


async def test_the_regions_of_the_request_are_tried_in_their_order(far: World) -> None:
    far.yard.misbehave("launch", FULL)
    build = await send(far, regions=["west", "east"])
    await far.jobs()
    assert far.machine(await far.run_of(build)).spec.regions == ("east",)


async def test_the_next_platform_is_tried_and_no_attempt_is_used_up(far: World, dock: Yard) -> None:
    far.yard.misbehave("launch", FULL, FULL)
    build = await send(far, fallback=["dock"], regions=["west", "east"])
    await far.jobs()
    build = await now(far, build)
    assert (build.status, build.builder_platform, build.losses) == ("building", "dock", 0)
    assert places(build) == [(NAME, "west", "no_capacity", 1), (NAME, "east", "no_capacity", 1)]
    runs = await far.rows(Run, build_id=build.id)
    assert [(r.platform, r.status) for r in runs] == [(NAME, "failed"), ("dock", "launching")]
    assert dock.machines[runs[1].name].spec.regions == (), "regions are the first platform's"
    events = await far.sql("select data from event where kind = 'build.queued' order by id")
    assert events[-1].data["builder_platform"] == "dock"


async def test_the_operator_s_list_is_used_when_the_request_has_none(database_url: str, tmp_path: Path) -> None:
    async with world(database_url, tmp_path / "home", builder_fallback=("dock",)) as here:
        other = Yard()
        here.context.catalog.entries = {NAME: here.yard.entry(), "dock": other.entry("dock")}
        here.context.catalog.held["dock"] = other.platform("dock")
        here.yard.misbehave("launch", FULL)
        build = await here.submit()
        alone = await here.send(here.order() | {"builder": {"fallback": []}})
        await here.jobs()
        assert (await now(here, build)).builder_platform == "dock"
        assert (await now(here, alone)).spec["builder"]["fallback"] == []
        await other.close()


async def test_a_fallback_that_is_none_is_refused(far: World) -> None:
    answer = await far.http.post("/v1/builds", json=far.order() | {"builder": {"fallback": ["moon"]}})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "builder.fallback")


async def test_what_can_t_be_used_as_it_is_set_is_refused_and_never_fallen_back_to(far: World, dock: Yard) -> None:
    def problem(part: str) -> None:
        entry = dataclasses.replace(dock.entry("dock"), problems={part: "it can't pull: set SLIPWAY_THIS"})
        far.context.catalog.entries = {**far.context.catalog.entries, "dock": entry}

    problem("builders")
    answer = await far.http.post("/v1/builds", json=far.order() | {"builder": {"platform": "dock"}})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "builder.platform")
    assert "SLIPWAY_THIS" in answer.text
    far.yard.misbehave("launch", FULL, FULL)
    build = await send(far, fallback=["dock"])
    await far.jobs()
    assert (await now(far, build)).tried[-1]["message"] == "skipped: it can't pull: set SLIPWAY_THIS"
    problem("services")
    answer = await far.http.post("/v1/builds", json=far.order("echo") | {"platform": "dock"})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "platform")
    assert "SLIPWAY_THIS" in answer.text


async def test_a_platform_that_can_t_build_it_is_skipped_with_the_reason(far: World, dock: Yard) -> None:
    far.yard.misbehave("launch", FULL, FULL)
    dock.traits = dataclasses.replace(dock.traits, max_runtime_seconds=60)
    far.context.catalog.entries = {**far.context.catalog.entries, "dock": dock.entry("dock")}
    build = await send(far, fallback=["dock"])
    await far.jobs()
    build = await now(far, build)
    assert (build.status, build.builder_platform) == ("queued", NAME)
    assert places(build)[-1] == ("dock", None, "platform_rejected", 1)
    assert build.tried[-1]["message"] == "skipped: its builders run at most 60 seconds"


async def test_a_size_that_it_has_not_is_skipped(far: World, dock: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    far.yard.misbehave("launch", FULL, FULL)
    builders = far.context.catalog.held["dock"].builders

    def small(size: object) -> None:
        raise Unsupported("dock", "fit", "the largest plan has 1 core")

    monkeypatch.setattr(builders, "fit", small)
    build = await send(far, fallback=["dock"])
    await far.jobs()
    assert (await now(far, build)).tried[-1]["message"] == "skipped: the largest plan has 1 core"


async def test_a_job_that_finds_its_build_on_another_process_s_platform_hands_it_on(far: World, dock: Yard) -> None:
    dock.traits = dataclasses.replace(dock.traits, remote=False, host_bound=True)
    far.context.catalog.entries = {**far.context.catalog.entries, "dock": dock.entry("dock")}
    del far.context.catalog.held["dock"]
    far.yard.misbehave("launch", FULL, FULL)
    build = await send(far, fallback=["dock"])
    await far.jobs()
    await far.forget_jobs()
    await dispatch.dispatch(far.context, build.id)
    build = await now(far, build)
    assert (build.status, build.builder_platform, build.attempt, len(build.tried)) == ("queued", "dock", 1, 2)
    assert await far.waiting("dispatch.dock") == [build.id]


async def test_when_all_are_full_it_waits_and_ends_with_all_that_was_tried(far: World, dock: Yard) -> None:
    rounds = far.context.settings.max_run_attempts + 2
    far.yard.misbehave("launch", *([FULL] * 2 * rounds))
    dock.misbehave("launch", *([NoCapacity("dock", "launch", "no dock is free")] * rounds))
    build = await send(far, fallback=["dock"])
    for _ in range(rounds):
        await far.jobs()
        assert (await now(far, build)).status == "queued"
        assert await far.sql("select 1 from build where not_before > now() + interval '10 s'"), "it does not wait"
        await far.sql("update build set not_before = now()")
        await far.sql("delete from breaker")
        await far.sql("update pgqueuer.pgqueuer set execute_after = now() where status = 'queued'")
    await far.ago(build, "deadline_at")
    await far.forget_jobs()
    await far.reconcile()
    build = await now(far, build)
    assert (build.status, build.reason, build.losses) == ("failed", "no_capacity", 0)
    assert places(build) == [
        (NAME, "north", "no_capacity", rounds),
        (NAME, "south", "no_capacity", rounds),
        ("dock", None, "no_capacity", rounds),
    ]
    for words in ("yard north: full", "yard south: full", "dock: no dock is free"):
        assert words in (build.message or "")


async def test_a_budget_that_is_used_up_for_long_is_no_room(far: World, dock: Yard) -> None:
    far.yard.misbehave("launch", RateLimited(NAME, "launch", "used up", retry_after=1800))
    build = await send(far, fallback=["dock"])
    await far.jobs()
    build = await now(far, build)
    assert (build.status, build.builder_platform) == ("building", "dock")
    assert await far.sql("select 1 from breaker") == [], "our own rule is not the target's fault"


async def test_a_retry_begins_with_the_first_platform(far: World, dock: Yard) -> None:
    far.yard.misbehave("launch", FULL, FULL)
    build = await send(far, fallback=["dock"])
    await far.jobs()
    await far.http.post(f"/v1/builds/{build.id}/cancel")
    again = (await far.http.post(f"/v1/builds/{build.id}/retry")).json()
    assert again["builder_platform"] == NAME


# --------------------------------------------------------------------------------------------------- breakers


async def opened(here: World, *regions: str) -> None:
    for region in regions:
        for _ in range(breaker.FAILURES):
            await breaker.failed(here.context.sessions, NAME, region, breaker.LAUNCH, "no room")


async def test_launches_that_find_no_room_or_no_answer_open_it(far: World) -> None:
    for n in range(breaker.FAILURES):
        error = FULL if n % 2 else Transient(NAME, "launch", "no answer")
        far.yard.misbehave("launch", error, *([FULL] if n % 2 else []))
        build = await far.submit()
        await far.jobs()
        await far.http.post(f"/v1/builds/{build.id}/cancel")
        await far.forget_jobs()
    seen = {
        (r.region, r.failures, r.is_open)
        for r in await far.sql("select *, open_until is not null as is_open from breaker")
    }
    assert seen == {("north", breaker.FAILURES, True), ("south", 2, False)}


async def test_an_open_region_is_skipped(far: World) -> None:
    await opened(far, "north")
    build = await far.submit()
    await far.jobs()
    assert far.machine(await far.run_of(build)).spec.regions == ("south",)
    assert far.yard.count("launch") == 1


async def test_an_open_platform_is_passed_over_without_a_run(far: World, dock: Yard) -> None:
    await opened(far, "north", "south")
    build = await send(far, fallback=["dock"])
    await far.jobs()
    build = await now(far, build)
    assert (build.status, build.builder_platform, build.attempt) == ("building", "dock", 1)
    assert [p[:3] for p in places(build)] == [(NAME, "north", "no_capacity"), (NAME, "south", "no_capacity")]
    assert "build.passed_over" in await far.kinds(build_id=build.id)
    assert far.yard.count("launch") == 0


async def test_it_is_waited_for_when_there_is_nothing_else_and_closes_when_it_works_again(far: World) -> None:
    await opened(far, "north")
    _, other = [await send(far, regions=["north"]) for _ in range(2)]
    await far.jobs()
    assert [b.status for b in await far.rows(Build)] == ["queued", "queued"]
    assert await far.rows(Run) == []
    assert await far.sql("select 1 from build where not_before > now() + interval '20 s'")
    await far.sql("update breaker set open_until = now()")
    await far.sql("update build set not_before = now()")
    gate = far.yard.gate("launch")
    await far.sql("update pgqueuer.pgqueuer set execute_after = now() where status = 'queued'")
    async with far.working():
        await gate.reached()
        await dispatch.dispatch(far.context, other.id)
        assert far.yard.count("launch") == 1, "more than the probe was let through"
        gate.go.set()
    # There is room for both, so either may have been the one.
    assert sorted(b.status for b in await far.rows(Build)) == ["building", "queued"]
    assert await far.sql("select 1 from breaker") == []
    await far.sql("update build set not_before = now()")
    await far.hurry()
    assert [b.status for b in await far.rows(Build)] == ["building", "building"]


async def test_a_probe_that_is_refused_keeps_nobody_waiting(far: World) -> None:
    await opened(far, "north")
    await far.sql("update breaker set open_until = now()")
    far.yard.misbehave("launch", Rejected(NAME, "launch", "not like this"))
    refused = await send(far, regions=["north"])
    await far.jobs()
    build = await send(far, regions=["north"])
    await far.jobs()
    assert [(await now(far, b)).status for b in (refused, build)] == ["failed", "building"]


async def test_stopping_asks_no_breaker(far: World) -> None:
    build = await far.submit()
    await far.jobs()
    await opened(far, "north", "south")
    await far.http.post(f"/v1/builds/{build.id}/cancel")
    await far.jobs()
    assert far.yard.machines == {}


async def test_a_machine_of_before_is_found_though_its_region_is_open(far: World) -> None:
    """Its launch was cut short: whether there is a machine is known only to the platform."""
    far.yard.misbehave("launch", Transient(NAME, "launch", "no answer"))
    build = await far.submit()
    await far.jobs()
    await opened(far, "north", "south")
    await far.ago(build, "next_check_at")
    await far.hurry()
    assert (await now(far, build)).status == "building"


async def test_what_runs_on_this_machine_has_no_breaker(here: World) -> None:
    here.yard.misbehave("launch", *([FULL] * breaker.FAILURES))
    build = await here.submit()
    for _ in range(breaker.FAILURES):
        await here.jobs()
        await here.sql("update build set not_before = now()")
        await here.hurry()
    assert (await now(here, build)).status == "building"
    assert await here.sql("select 1 from breaker") == []


# --------------------------------------------------------------------------------------------------- releases


async def test_a_release_waits_while_its_platform_is_left_alone(far: World) -> None:
    build = await far.built("echo")
    for _ in range(breaker.FAILURES):
        await breaker.failed(far.context.sessions, NAME, "north", breaker.DEPLOY, "no room")
    await far.jobs()
    release = await far.one(Release, build_id=build.id)
    assert (release.status, far.yard.count("deploy")) == ("pending", 0)
    assert "no room" in (release.message or "")
    assert await far.sql("select 1 from release where next_check_at > now() + interval '20 s'")
    await far.sql("update breaker set open_until = now()")
    await far.hurry()
    assert (await now(far, build)).status == "succeeded"
    assert await far.sql("select 1 from breaker") == []


async def test_a_refused_release_gives_its_probe_back(far: World) -> None:
    build = await far.built("echo")
    for _ in range(breaker.FAILURES):
        await breaker.failed(far.context.sessions, NAME, "north", breaker.DEPLOY, "no room")
    await far.sql("update breaker set open_until = now()")
    far.yard.misbehave("deploy", Rejected(NAME, "deploy", "not like this"))
    await far.jobs()
    assert (await now(far, build)).reason == "platform_rejected"
    assert await far.sql("select 1 from breaker where probe_until is null")


async def test_a_release_that_has_to_wait_for_another_gives_its_probe_back(far: World) -> None:
    _, service, _ = await far.deployed("echo")
    await far.http.patch("/v1/services/echo", json={"env": {"A": "1"}})
    await far.sql(
        "update release set status = 'deploying', retired_at = null where id = :id", id=service.live_release_id
    )
    for _ in range(breaker.FAILURES):
        await breaker.failed(far.context.sessions, NAME, "north", breaker.DEPLOY, "no room")
    await far.sql("update breaker set open_until = now()")
    await far.jobs()
    assert await far.sql("select 1 from breaker where probe_until is null")
    assert far.yard.count("deploy") == 1


async def test_a_release_does_not_wait_for_ever(far: World) -> None:
    build = await far.built("echo")
    for _ in range(breaker.FAILURES):
        await breaker.failed(far.context.sessions, NAME, "north", breaker.DEPLOY, "no room")
    await far.sql("update release set created_at = now() - interval '2 hours'")
    await far.jobs()
    build = await now(far, build)
    assert (build.status, build.reason, far.yard.count("deploy")) == ("failed", "no_capacity", 0)


async def test_deploys_that_fail_open_it_for_the_next_release(far: World) -> None:
    far.yard.misbehave("deploy", *(Transient(NAME, "deploy", "no answer") for _ in range(breaker.FAILURES)))
    build = await far.built("echo")
    for _ in range(breaker.FAILURES):
        await far.hurry()
    rows = await far.sql("select region, operation, failures, open_until is not null as is_open from breaker")
    assert [tuple(r) for r in rows] == [("north", "deploy", breaker.FAILURES, True)]
    await far.hurry()
    assert (await now(far, build)).status == "succeeded", "a release that was under way goes on"


# --------------------------------------------------------------------------------------------------- time-outs


async def test_time_outs_are_the_platform_s_unless_the_operator_says_otherwise(
    database_url: str, tmp_path: Path
) -> None:
    traits = dataclasses.replace(TRAITS, promote_seconds=77.0, wake_seconds=0.2)
    unset: Json = {"promote_timeout_seconds": None, "wake_timeout_seconds": None}
    async with world(database_url, tmp_path / "home", traits=traits, **unset) as here:
        gate = here.yard.gate("deploy")
        await here.built("echo")
        async with here.working():
            await gate.reached()
            (row,) = await here.sql("select extract(epoch from deadline_at - deploying_at) as left from release")
            assert float(row.left) == pytest.approx(77, abs=0.1)
            gate.go.set()
        service = await here.service("echo")
        await sleep_wake.sleep(here.context, service.id)
        here.yard.gate("wake")
        with pytest.raises(sleep_wake.WakeFailed, match="in time"):
            await sleep_wake.wake(here.context, service.id)
        settings = here.context.settings.model_copy(
            update={"promote_timeout_seconds": 9.0, "wake_timeout_seconds": 8.0}
        )
        told = dataclasses.replace(here.context, settings=settings)
        assert (told.promote_seconds(NAME), told.wake_seconds(NAME)) == (9.0, 8.0)

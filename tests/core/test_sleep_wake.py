"""Down to zero and back: one start for any number of callers, and nothing that stays half-way."""

import asyncio
import dataclasses
from pathlib import Path

import pytest
from sqlalchemy import select

from app import jobs as worker
from app.models import Build, Service
from app.platforms.base import Phase, StartFailed, Transient
from app.services import sleep_wake
from app.services import sweep as services_sweep
from app.sql import Expression
from tests.support.platform import NAME, TRAITS
from tests.support.waiting import eventually
from tests.support.world import World, world


async def asleep(here: World, **config: object) -> Service:
    """Return a service that was deployed and put to sleep."""
    _, service, _ = await here.deployed("echo", **config)
    answer = await here.http.post("/v1/services/echo/sleep")
    assert (answer.status_code, answer.json()["status"]) == (200, "asleep"), answer.text
    return await here.one(Service, id=service.id)


async def test_sleep_and_wake(here: World) -> None:
    service = await asleep(here)
    assert (service.address, service.instance_id, service.starts) == (None, None, 1)
    (unit,) = here.yard.units.values()
    assert unit.phase is Phase.ASLEEP
    answer = await here.http.post("/v1/services/echo/wake")
    assert answer.json()["status"] == "running"
    service = await here.service("echo")
    assert unit.address is not None
    assert (service.address, service.instance_id, service.starts) == (unit.address.url, unit.instance_id, 2)
    assert service.wake_ms is not None
    assert (await here.http.post("/v1/services/echo/wake")).json()["starts"] == 2
    assert (await here.http.post("/v1/services/echo/sleep")).status_code == 200
    assert (await here.http.post("/v1/services/echo/sleep")).status_code == 200
    assert here.yard.count("sleep") == 2


async def test_fifty_callers_make_one_start(here: World) -> None:
    service = await asleep(here)
    gate = here.yard.gate("wake")
    callers = [asyncio.create_task(sleep_wake.wake(here.context, service.id)) for _ in range(50)]
    await gate.reached()
    gate.go.set()
    addresses = set(await asyncio.gather(*callers))
    assert len(addresses) == 1
    assert (here.yard.count("wake"), (await here.service("echo")).starts) == (1, 2)


async def test_a_failed_wake_is_left_alone_for_a_while(here: World) -> None:
    service = await asleep(here)
    here.yard.misbehave("wake", StartFailed(NAME, "wake", "it crashed", reason="crashed_at_start"))
    answer = await here.http.post("/v1/services/echo/wake")
    assert (answer.status_code, answer.json()["reason"]) == (503, "crashed_at_start")
    assert int(answer.headers["retry-after"]) >= 1
    assert (await here.service("echo")).status == "failed"
    assert (await here.http.post("/v1/services/echo/wake")).status_code == 503
    assert here.yard.count("wake") == 1, "every request would start it again"
    await here.ago(service, "status_at", sleep_wake.FAILED_PAUSE_SECONDS + 1)
    assert (await here.http.post("/v1/services/echo/wake")).json()["status"] == "running"
    service = await here.service("echo")
    assert (service.reason, service.message) == (None, None)


async def test_a_platform_that_does_not_start_it_is_no_crash_of_ours(here: World) -> None:
    await asleep(here)
    here.yard.misbehave("wake", Transient(NAME, "wake", "down"))
    answer = await here.http.post("/v1/services/echo/wake")
    assert (answer.status_code, answer.json()["reason"]) == (503, "internal_error")


@pytest.mark.parametrize("status", ["waking", "sleeping"])
async def test_what_was_cut_short_is_taken_up(here: World, status: str) -> None:
    service = await asleep(here) if status == "waking" else (await here.deployed("echo"))[1]
    await here.sql("update service set status = :s, next_check_at = now() - interval '1 s'", s=status)
    await here.reconcile()
    service = await here.one(Service, id=service.id)
    assert service.status == ("running" if status == "waking" else "asleep")
    assert service.next_check_at is None


async def test_a_sleep_that_failed_is_tried_again(here: World) -> None:
    _, service, _ = await here.deployed("echo")
    here.yard.misbehave("sleep", Transient(NAME, "sleep", "down"))
    await here.http.post("/v1/services/echo/sleep")
    assert (await here.service("echo")).status == "sleeping"
    await here.ago(service, "next_check_at")
    await here.reconcile()
    assert (await here.service("echo")).status == "asleep"


async def test_sleep_gives_way_to_its_condition(here: World) -> None:
    _, service, _ = await here.deployed("echo")
    never = (Expression("starts > 99"),)
    assert not await sleep_wake.sleep(here.context, service.id, only_if=never)
    assert (await here.service("echo")).status == "running"
    assert here.yard.count("sleep") == 0


async def test_a_switch_while_waking_keeps_the_new_release_s_address(here: World) -> None:
    """The old release's start ends late, when the new one has slept and is waking itself."""
    service = await asleep(here)
    (old,) = here.yard.units.values()
    gate = here.yard.gate("wake")
    waker = asyncio.create_task(sleep_wake.wake(here.context, service.id))
    await gate.reached()
    _, _, release = await here.deployed("echo", env={"V": "2"})
    await here.sql("update service set status = 'waking', address = null, instance_id = null")
    gate.go.set()
    await asyncio.wait([waker], timeout=0.5)
    service = await here.service("echo")
    assert old.address is not None
    assert service.address != old.address.url, "requests would go to the release that was replaced"
    await here.sql("update service set next_check_at = now() - interval '1 s'")
    await here.reconcile()
    address = await waker
    new = here.unit(release).address
    assert new is not None
    assert address.url == new.url


async def test_an_instance_that_died_is_noted_once(here: World) -> None:
    _, service, _ = await here.deployed("echo")
    assert service.instance_id is not None
    assert not await sleep_wake.mark_down(here.context, service.id, "another-instance")
    marks = [sleep_wake.mark_down(here.context, service.id, service.instance_id) for _ in range(5)]
    assert (await asyncio.gather(*marks)).count(True) == 1
    assert (await here.service("echo")).status == "asleep"


async def test_look_after_finds_who_died(here: World) -> None:
    _, _, release = await here.deployed("echo")
    unit = here.unit(release)
    await unit.stop(Phase.EXITED)
    unit.exit_code = 9
    await services_sweep.look_after(here.context)
    service = await here.service("echo")
    assert service.status == "asleep"
    assert "code 9" in (service.message or "")


async def test_who_died_is_found_at_once_when_the_platform_tells(here: World) -> None:
    _, service, release = await here.deployed("echo")
    platform = dataclasses.replace(here.yard.platform(), ended=asyncio.Event())
    assert platform.ended is not None
    here.context.catalog.held[NAME] = platform
    noticing = asyncio.create_task(worker.notice_deaths(here.context))
    try:
        await here.unit(release).stop(Phase.EXITED)
        platform.ended.set()

        async def noticed() -> bool:
            return (await here.one(Service, id=service.id)).status != "running"

        await eventually(noticed)
    finally:
        noticing.cancel()
        await asyncio.gather(noticing, return_exceptions=True)


async def test_look_after_leaves_others_alone(here: World) -> None:
    await here.deployed("echo")
    before = await here.service("echo")
    here.yard.misbehave("inspect", Transient(NAME, "inspect", "down"))
    await services_sweep.look_after(here.context)
    await services_sweep.look_after(here.context)
    after = await here.service("echo")
    assert (after.status, after.address, after.updated_at) == ("running", before.address, before.updated_at)


async def test_look_after_finds_who_moved(here: World) -> None:
    _, _, release = await here.deployed("echo")
    unit = here.unit(release)
    instance = unit.instance_id
    await unit.stop()
    await unit.start()
    unit.instance_id = instance
    await services_sweep.look_after(here.context)
    assert unit.address is not None
    assert (await here.service("echo")).address == unit.address.url


async def test_scale_min_one_is_kept_up(here: World) -> None:
    _, service, release = await here.deployed("echo", scale={"min": 1})
    answer = await here.http.post("/v1/services/echo/sleep")
    assert (answer.status_code, answer.json()["reason"]) == (409, "kept_up")
    await here.unit(release).stop(Phase.EXITED)
    await services_sweep.look_after(here.context)
    await here.reconcile()
    assert (await here.service("echo")).status == "running"
    here.yard.misbehave("wake", StartFailed(NAME, "wake", "it crashed"))
    await here.unit(release).stop(Phase.EXITED)
    await services_sweep.look_after(here.context)
    await here.reconcile()
    assert (await here.service("echo")).status == "failed"
    wakes = here.yard.count("wake")
    await here.reconcile()
    assert here.yard.count("wake") == wakes, "a crash loop must be slow"
    await here.ago(service, "status_at", services_sweep.KEPT_UP_PAUSE_SECONDS + 1)
    await here.reconcile()
    assert (await here.service("echo")).status == "running"


async def test_reconcile_waits_for_nobody(here: World) -> None:
    """Whoever holds a service waits for its release, which reconcile may hold: what is locked is left for the next pass."""
    build, service, release = await here.deployed("echo", scale={"min": 1})
    await here.unit(release).stop(Phase.EXITED)
    await services_sweep.look_after(here.context)
    await here.sql("update build set status = 'promoting' where id = :id", id=build.id)
    await here.ago(release, "live_at", 3600)
    async with here.context.sessions.begin() as holder, asyncio.timeout(10):
        await holder.execute(select(Service).where(Service.id == service.id).with_for_update())
        await holder.execute(select(Build).where(Build.id == build.id).with_for_update())
        await here.reconcile()
        assert (await here.service("echo")).status == "asleep"
    await here.reconcile()
    assert (await here.service("echo")).status == "running"
    assert (await here.one(Build, id=build.id)).status == "succeeded"


async def test_a_sleeping_service_is_not_woken_by_reconcile(here: World) -> None:
    await asleep(here)
    await here.reconcile()
    assert (await here.service("echo")).status == "asleep"


async def test_wake_tells_why_not(here: World) -> None:
    await here.submit("fresh")
    answer = await here.http.post("/v1/services/fresh/wake")
    assert (answer.status_code, answer.json()["reason"]) == (409, "no_live_release")
    service = await asleep(here)
    await here.http.delete("/v1/services/echo")
    with pytest.raises(sleep_wake.WakeFailed, match="deleted") as failed:
        await sleep_wake.wake(here.context, service.id)
    assert failed.value.reason == "deleted"
    with pytest.raises(sleep_wake.WakeFailed, match="no such"):
        await sleep_wake.wake(here.context, "svc_none")


async def test_another_process_wakes_for_one_that_does_not_hold_the_platform(
    here: World, database_url: str, tmp_path: Path
) -> None:
    """The gateway runs apart: it claims and waits for the row, the owner of the platform acts."""
    here.yard.traits = dataclasses.replace(TRAITS, host_bound=True)
    here.context.catalog.entries = {NAME: here.yard.entry()}
    here.context.catalog.held[NAME] = here.yard.platform()
    service = await asleep(here)
    async with world(database_url, tmp_path / "home", yard=here.yard) as gateway:
        del gateway.context.catalog.held[NAME]
        waker = asyncio.create_task(sleep_wake.wake(gateway.context, service.id))
        await eventually(lambda: here.waiting("wake.yard"))
        assert await gateway.jobs() == 0, "it took a job that is not its own"
        assert await here.jobs() == 1
        assert (await waker).instance_id
        assert await sleep_wake.sleep(gateway.context, service.id)
        assert await here.jobs() == 1
    assert (await here.service("echo")).status == "asleep"


async def test_a_platform_that_scales_by_itself_is_left_to_it(here: World) -> None:
    here.yard.traits = dataclasses.replace(TRAITS, scale_to_zero="automatic")
    here.context.catalog.entries = {NAME: here.yard.entry()}
    here.context.catalog.held[NAME] = here.yard.platform()
    await here.deployed("echo")
    for verb in ("sleep", "wake"):
        answer = await here.http.post(f"/v1/services/echo/{verb}")
        assert (answer.status_code, answer.json()["reason"]) == (409, "platform_decides")

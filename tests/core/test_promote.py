"""From an artifact to a live release: the gate, the order of releases, and what stays serving."""

import asyncio

import httpx
import pytest

from app.models import Build, Release, SecretVersion
from app.platforms.base import Misconfigured, NoCapacity, Rejected, StartFailed, Transient
from app.services import promote
from tests.support.machines import Behaviour
from tests.support.platform import NAME, Lost
from tests.support.waiting import eventually
from tests.support.world import World


async def newest(here: World, service: str) -> Release:
    releases = await here.rows(Release, service_id=(await here.service(service)).id)
    return max(releases, key=lambda r: r.number)


async def serving(here: World, service: str) -> str:
    """Return what the service's address answers: the instance's id."""
    address = (await here.service(service)).address
    assert address is not None
    async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
        answer = await http.get(address)
    assert answer.status_code == 200
    return answer.text


async def cut_short(here: World, release: Release) -> None:
    """Let the process die right after it asked for the deploy; its job is lost too."""
    gate = here.yard.gate("deploy")
    doomed = asyncio.create_task(promote.promote(here.context, release.id))
    await gate.reached()
    doomed.cancel()
    await asyncio.gather(doomed, return_exceptions=True)
    await here.forget_jobs()


GATES = [
    (Behaviour.UNHEALTHY, "health_check_failed", "status 500"),
    (Behaviour.SILENT, "not_listening", "port 8080"),
    (Behaviour.CRASHING, "crashed_at_start", "code 3"),
    (Behaviour.HUNGRY, "out_of_memory", "memory"),
]


@pytest.mark.parametrize(("behaviour", "reason", "said"), GATES)
async def test_a_release_that_fails_its_gate_leaves_the_old_one_serving(
    here: World, behaviour: Behaviour, reason: str, said: str
) -> None:
    _, _, old = await here.deployed("echo")
    before = await serving(here, "echo")
    build = await here.built("echo", env={"BEHAVE": behaviour})
    release = await newest(here, "echo")
    await cut_short(here, release)
    await here.ago(release, "deadline_at")
    await here.ago(release, "next_check_at")
    await here.reconcile()
    build = await here.one(Build, id=build.id)
    assert (build.status, build.reason) == ("failed", reason)
    assert said in (build.message or "").lower() or said in (build.message or "")
    release = await here.one(Release, id=release.id)
    assert (release.status, release.reason) == ("failed", reason)
    service = await here.service("echo")
    assert (service.status, service.live_release_id) == ("running", old.id)
    assert await serving(here, "echo") == before
    assert len(here.yard.units) == 1, "what failed was left on the platform"
    assert (await here.one(Release, id=release.id)).retired_at is not None


@pytest.mark.parametrize(("said", "status"), [(True, "succeeded"), (False, "failed")])
async def test_a_platform_s_own_check_is_the_gate(here: World, said: bool, status: str) -> None:
    """Behind a platform's proxy the address leads to the release before, so that our own probe would ask the wrong one."""
    here.yard.healthy = said
    build = await here.built("echo", env={"BEHAVE": Behaviour.UNHEALTHY if said else Behaviour.HEALTHY})
    release = await newest(here, "echo")
    await cut_short(here, release)
    if not said:
        await here.ago(release, "deadline_at")
    await here.ago(release, "next_check_at")
    await here.reconcile()
    assert (await here.one(Build, id=build.id)).status == status


async def test_a_first_release_that_fails_leaves_the_service_pending(here: World) -> None:
    await here.built("echo", env={"BEHAVE": "crashing"})
    await here.jobs()
    service = await here.service("echo")
    assert (service.status, service.live_release_id, service.url) == ("pending", None, None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Rejected(NAME, "deploy", "no"), "platform_rejected"),
        (Misconfigured(NAME, "deploy", "no token"), "platform_misconfigured"),
        (StartFailed(NAME, "deploy", "boom", reason="not_listening"), "not_listening"),
    ],
)
async def test_what_the_platform_says_no_to_ends_the_release(here: World, error: Exception, reason: str) -> None:
    here.yard.misbehave("deploy", error)
    build = await here.built("echo")
    await here.jobs()
    assert (await here.one(Build, id=build.id)).reason == reason


@pytest.mark.parametrize(
    "misdeed",
    [Transient(NAME, "deploy", "down"), Lost(Transient(NAME, "deploy", "lost")), NoCapacity(NAME, "deploy", "full")],
)
async def test_what_may_pass_is_tried_again(here: World, misdeed: Exception) -> None:
    here.yard.misbehave("deploy", misdeed)
    build = await here.built("echo")
    await here.jobs()
    assert (await newest(here, "echo")).status == "deploying"
    await here.hurry()
    assert (await here.one(Build, id=build.id)).status == "succeeded"
    assert len(here.yard.units) == 1
    assert (await newest(here, "echo")).tries > 0


async def test_what_does_not_pass_in_time_ends(here: World) -> None:
    here.yard.misbehave("deploy", *(Transient(NAME, "deploy", "down") for _ in range(3)))
    build = await here.built("echo")
    await here.jobs()
    await here.ago(await newest(here, "echo"), "deadline_at")
    await here.hurry()
    build = await here.one(Build, id=build.id)
    assert (build.status, build.reason) == ("failed", "internal_error")


async def test_a_promotion_cut_short_goes_on_where_it_was(here: World) -> None:
    build = await here.built("echo")
    release = await newest(here, "echo")
    await cut_short(here, release)
    await here.ago(release, "next_check_at")
    await here.reconcile()
    assert (await here.one(Build, id=build.id)).status == "succeeded"
    assert [u.starts for u in here.yard.units.values()] == [1]


async def test_a_slow_promotion_is_nobody_elses(here: World) -> None:
    """A platform takes minutes to bring a release up: one that was taken up again meanwhile would ask it for all of it again."""
    build = await here.built("echo")
    release = await newest(here, "echo")
    gate = here.yard.gate("deploy")
    working = asyncio.create_task(promote.promote(here.context, release.id, renew_seconds=0.01))
    await gate.reached()
    await here.ago(release, "next_check_at")

    async def renewed() -> bool:
        return bool((await here.sql("select next_check_at > clock_timestamp() as ok from release"))[0].ok)

    await eventually(renewed)
    await here.forget_jobs()
    await here.reconcile()
    gate.go.set()
    await working
    assert here.yard.count("deploy") == 1
    assert (await here.one(Build, id=build.id)).status == "succeeded"


async def test_an_unforeseen_error_does_not_keep_a_release_deploying_for_ever(here: World) -> None:
    here.yard.misbehave("deploy", KeyError("a bug of ours"))
    build = await here.built("echo")
    await here.jobs(strict=False)
    assert isinstance(here.crashes[-1], KeyError)
    release = await newest(here, "echo")
    assert release.status == "deploying"
    await here.forget_jobs()
    await here.ago(release, "deadline_at", promote.OVERDUE_SECONDS + 1)
    await here.reconcile()
    build = await here.one(Build, id=build.id)
    assert (build.status, build.reason) == ("failed", "internal_error")
    assert (await here.one(Release, id=release.id)).status == "failed"


async def test_a_release_ends_with_nobody_left_who_can_call_its_platform(here: World) -> None:
    build = await here.built("echo")
    release = await newest(here, "echo")
    await cut_short(here, release)
    del here.context.catalog.held[NAME]
    await here.ago(release, "deadline_at", promote.OVERDUE_SECONDS + 1)
    await here.reconcile()
    assert (await here.one(Build, id=build.id)).status == "failed"


async def test_a_release_that_nobody_takes_up_ends_and_the_old_one_serves(here: World) -> None:
    await here.deployed("echo")
    before = await serving(here, "echo")
    build = await here.built("echo", env={"NEW": "1"})
    await here.forget_jobs()  # as of a host that never comes back
    release = await newest(here, "echo")
    await here.ago(release, "created_at", here.context.settings.max_queued_seconds - 60)
    async with here.context.sessions() as session:
        assert await promote.overdue(here.context, session) == []
    await here.ago(release, "created_at", here.context.settings.max_queued_seconds + 1)
    async with here.context.sessions() as session:
        found = await promote.overdue(here.context, session)
    assert found == [(release.id, "pending")]
    await promote.end_overdue(here.context, found)
    ended, failed = await here.one(Release, id=release.id), await here.one(Build, id=build.id)
    assert (ended.status, ended.reason) == ("failed", "platform_misconfigured")
    assert (failed.status, failed.reason) == ("failed", "platform_misconfigured")
    assert f"runs services on {NAME}" in str(failed.message)
    assert await serving(here, "echo") == before


async def test_secrets_reach_the_deploy_and_only_it(here: World) -> None:
    _, _, release = await here.deployed("echo", secrets={"KEY": "s3cret-value"})
    unit = here.unit(release)
    assert unit.spec.secrets == {"KEY": "s3cret-value"}
    assert "KEY" not in unit.spec.env
    for table in ("build", "run", "release", "service", "event", "pgqueuer.pgqueuer", "run_log"):
        rows = await here.sql(f"select t::text as row from {table} t")
        assert not [r.row for r in rows if "s3cret-value" in r.row], table
    (version,) = await here.rows(SecretVersion)
    assert b"s3cret-value" not in version.ciphertext
    for path in ("/v1/services/echo", "/v1/services/echo/releases", "/v1/builds"):
        text = (await here.http.get(path)).text
        assert "s3cret-value" not in text
    assert (await here.http.get("/v1/services/echo")).json()["live_release"]["secrets"] == ["KEY"]


async def test_a_build_without_secrets_keeps_those_of_the_live_release(here: World) -> None:
    await here.deployed("echo", secrets={"KEY": "one"})
    _, _, release = await here.deployed("echo")
    assert here.unit(release).spec.secrets == {"KEY": "one"}
    _, _, release = await here.deployed("echo", secrets={})
    assert here.unit(release).spec.secrets == {}


async def test_a_secret_that_can_t_be_opened_ends_the_release(here: World) -> None:
    build = await here.built("echo", secrets={"KEY": "one"})
    await here.sql("update secret_version set ciphertext = ciphertext || 'x'::bytea")
    await here.jobs()
    build = await here.one(Build, id=build.id)
    assert (build.status, build.reason) == ("failed", "internal_error")

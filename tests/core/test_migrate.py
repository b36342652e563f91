"""A service goes to another platform: what moves, what stays behind and for how long, and what cuts it short."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest

from app.models import Build, PullCredential, Release, Service
from app.platforms.base import PlatformError, Rejected, Transient
from app.platforms.catalog import Entry
from app.services import leave
from tests.support.platform import NAME, TRAITS, Gate, Lost, Yard
from tests.support.waiting import eventually
from tests.support.world import World

BARN = "barn"
URL = "https://echo.barn.example"
AUTOMATIC = dataclasses.replace(
    TRAITS, scale_to_zero="automatic", min_idle_seconds=60, max_idle_seconds=600, goarch=("amd64", "arm64")
)


def entries(here: World) -> dict[str, Entry]:
    """Return the catalog's entries, to be changed."""
    return cast("dict[str, Entry]", here.context.catalog.entries)


@pytest.fixture
async def barn(here: World) -> AsyncIterator[Yard]:
    """Another platform beside the yard, which puts its services to sleep by itself."""
    place = Yard(traits=AUTOMATIC, url=URL)
    entries(here)[BARN] = place.entry(BARN)
    here.context.catalog.held[BARN] = place.platform(BARN)
    yield place
    await place.close()


async def move(here: World, to: str = BARN, /, *, status: int = 202, **more: Any) -> dict[str, Any]:
    answer = await here.http.post("/v1/services/echo/migrate", json={"platform": to, **more})
    assert answer.status_code == status, answer.text
    return dict(answer.json())


async def moved(here: World, to: str = BARN, /, **more: Any) -> Release:
    """Move the service, and run what follows as far as it goes now."""
    answer = await move(here, to, **more)
    await here.jobs()
    release = await here.one(Release, id=answer["id"])
    assert release.status == "live", release.message
    return release


async def kept_long_enough(here: World, release: Release) -> None:
    """Let the keeping time of what the service left be over, and everything that follows happen."""
    await here.hurry()
    await here.ago(release, "keep_until")
    await here.ago(release, "next_check_at")
    await here.reconcile()


async def asked(here: World, service: Service) -> str:
    assert service.address is not None
    async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
        return (await http.get(service.address)).text


async def test_the_whole_way_there_and_back(here: World, barn: Yard) -> None:
    """The same artifact, config and secret versions run there; here it is kept asleep, then removed; and it may come back."""
    _, before, old = await here.deployed("echo", env={"V": "1"}, secrets={"K": "hush"})
    answer = await move(here, keep_seconds=500)
    assert (answer["status"], answer["kind"], answer["platform"], answer["keep_seconds"]) == (
        "pending",
        "migrate",
        BARN,
        500,
    )
    assert (answer["url_changes"], answer["old_url"], answer["new_url"]) == (True, before.url, None)
    await here.jobs()
    new, service = await here.live("echo"), await here.service("echo")
    assert (new.id, new.artifact_id, new.secret_versions) == (answer["id"], old.artifact_id, old.secret_versions)
    assert new.config == old.config
    assert len(barn.units) == 1
    assert here.unit(old).spec.secrets == next(iter(barn.units.values())).spec.secrets == {"K": "hush"}
    assert (service.platform, service.url, service.status) == (BARN, URL, "running")
    assert "service.moved" in await here.kinds(service_id=service.id)
    await here.hurry()
    old = await here.one(Release, id=old.id)
    assert (here.unit(old).phase, old.status, old.retired_at) == ("asleep", "superseded", None)
    await here.sweep()
    assert list(here.yard.units), "the sweep knows that it is kept"
    await kept_long_enough(here, old)
    assert here.yard.units == {}
    assert (await here.one(Release, id=old.id)).retired_at is not None
    assert await here.waiting() == []
    back = await move(here, NAME)
    assert (back["old_url"], back["new_url"]) == (URL, before.url)
    await here.jobs()
    service = await here.service("echo")
    assert (service.platform, service.url) == (NAME, before.url)
    await here.hurry()
    assert next(iter(barn.units.values())).phase == "running", "callers of its old address still find it there"
    await kept_long_enough(here, new)
    assert barn.units == {}
    assert barn.count("sleep") == 0


async def test_a_stable_name_stays(here: World, barn: Yard) -> None:
    _, before, _ = await here.deployed("echo", stable_name=True)
    answer = await move(here)
    assert (answer["url_changes"], answer["old_url"], answer["new_url"]) == (False, before.url, before.url)
    await here.jobs()
    assert (await here.service("echo")).url == before.url
    assert (await here.http.patch("/v1/services/echo", json={"stable_name": False})).status_code == 202
    await here.jobs()
    assert (await here.service("echo")).url == URL


@pytest.mark.parametrize("error", [Rejected(BARN, "deploy", "no"), Lost(Rejected(BARN, "deploy", "no"))])
async def test_a_migration_that_fails_leaves_the_old_platform_serving_and_the_new_one_empty(
    here: World, barn: Yard, error: Any
) -> None:
    _, before, old = await here.deployed("echo")
    said = await asked(here, before)
    barn.misbehave("deploy", error)
    answer = await move(here)
    await here.jobs()
    failed = await here.one(Release, id=answer["id"])
    assert (failed.status, failed.reason) == ("failed", "platform_rejected")
    assert failed.retired_at is not None
    assert (barn.units, barn.count("delete"), barn.count("retire")) == ({}, 1, 0)
    service = await here.service("echo")
    assert (service.platform, service.live_release_id, service.url) == (NAME, old.id, before.url)
    assert await asked(here, service) == said
    assert (await here.one(Release, id=old.id)).keep_until is None
    await moved(here)


async def test_what_can_t_move_is_refused(here: World, barn: Yard) -> None:
    async def reason(to: str = BARN, status: int = 422, **more: Any) -> str:
        return str((await move(here, to, status=status, **more))["reason"])

    assert await reason(status=404) == "service_not_found"
    await here.submit("echo")
    assert await reason(status=409) == "no_live_release"
    await here.jobs()
    await (await here.builder((await here.rows(Build))[0])).finish()
    await here.jobs()
    assert await reason("moon") == "invalid_request"
    entries(here)["moon"] = dataclasses.replace(barn.entry("moon"), configured=False, missing=("SLIPWAY_MOON",))
    assert "SLIPWAY_MOON" in (await move(here, "moon", status=422))["detail"]
    assert await reason(NAME, 409) == "already_there"
    assert await reason(keep_seconds=-1) == "invalid_request"
    assert await reason(later=True) == "invalid_request"
    barn.traits = dataclasses.replace(AUTOMATIC, goarch=("arm64",))
    entries(here)[BARN] = barn.entry(BARN)
    assert "amd64" in (await move(here, status=422))["detail"]
    barn.traits = dataclasses.replace(AUTOMATIC, max_idle_seconds=100)
    entries(here)[BARN] = barn.entry(BARN)
    assert await reason() == "cannot_honour"
    answer = await move(here, strict=False)
    assert "idle_seconds" in answer["warnings"][0]
    assert await reason(status=409) == "migration_under_way"
    assert await reason(NAME, 409) == "migration_under_way"
    await here.http.delete("/v1/services/echo")
    assert await reason(status=404) == "service_not_found"


async def test_regions_stay_behind(here: World, barn: Yard) -> None:
    await here.deployed("echo", regions=["ams"])
    answer = await move(here)
    assert "ams" in answer["warnings"][0]
    await here.jobs()
    assert next(iter(barn.units.values())).spec.regions == ()
    refused = await here.http.post("/v1/services/echo/rollback")
    assert (refused.status_code, refused.json()["reason"]) == (409, "nothing_to_roll_back_to")
    await moved(here, NAME, regions=["fra"])
    assert here.unit(await here.live("echo")).spec.regions == ("fra",)


async def test_a_rollback_after_it_stays_on_the_new_platform(here: World, barn: Yard) -> None:
    for v in ("1", "2", "3"):
        await here.deployed("echo", env={"V": v}, regions=["ams"])
    await moved(here)
    for v in ("2", "1"):
        assert (await here.http.post("/v1/services/echo/rollback")).status_code == 202
        await here.jobs()
        live = await here.live("echo")
        assert (live.platform, live.config["env"], live.config["regions"]) == (BARN, {"V": v}, [])


@pytest.mark.parametrize("ends", ["deploy", "activate"])
async def test_deleting_it_on_the_way_leaves_nothing_anywhere(here: World, barn: Yard, ends: str) -> None:
    await here.deployed("echo")
    gate = barn.gate(ends)
    await move(here)
    async with here.working():
        await gate.reached()
        assert (await here.http.delete("/v1/services/echo")).status_code == 202
        gate.go.set()
    await here.hurry()
    assert (here.yard.units, barn.units) == ({}, {})
    assert (await here.service("echo")).status == "deleted"
    assert [r.retired_at for r in await here.rows(Release) if r.retired_at is None] == []


async def test_deleting_it_while_the_old_platform_keeps_it_empties_both(here: World, barn: Yard) -> None:
    await here.deployed("echo")
    await moved(here)
    await here.http.delete("/v1/services/echo")
    await here.jobs()
    assert (here.yard.units, barn.units) == ({}, {})


async def test_what_waits_or_goes_live_meanwhile_comes_along(here: World, barn: Yard) -> None:
    """A config change asked for on the way is made there; one that was faster is what moves."""
    await here.deployed("echo", env={"V": "1"})
    await move(here)
    await here.http.patch("/v1/services/echo", json={"env": {"V": "2"}})
    await here.jobs()
    live = await here.live("echo")
    assert (live.platform, live.config["env"]) == (BARN, {"V": "2"})
    gate = here.yard.gate("deploy")
    back = await move(here, NAME)
    async with here.working():
        await gate.reached()
        build = (await here.http.patch("/v1/services/echo", json={"env": {"W": "3"}})).json()
        assert build["platform"] == BARN
        gate.go.set()
    await here.hurry()
    live = await here.live("echo")
    assert (live.id, live.platform, live.config["env"]) == (build["id"], NAME, {"V": "2", "W": "3"})
    assert (await here.one(Release, id=back["id"])).status == "superseded"
    await here.hurry()
    assert [u.spec.release for u in barn.units.values()] == [
        f"slp-{here.context.installation}-{r.id.replace('_', '-')}"
        for r in await here.rows(Release, platform=BARN)
        if r.retired_at is None
    ]


async def test_coming_back_in_time_finds_what_was_kept_and_a_failed_return_does_not_take_it(
    here: World, barn: Yard
) -> None:
    _, _, old = await here.deployed("echo")
    new = await moved(here)
    await here.hurry()
    here.yard.misbehave("deploy", Lost(Rejected(NAME, "deploy", "no")))
    await move(here, NAME)
    await here.hurry()
    assert (await here.service("echo")).platform == BARN
    assert [u.spec.release for u in here.yard.units.values()] == [here.unit(old).spec.release]
    assert here.yard.count("delete") == 0
    await moved(here, NAME)
    assert (await here.one(Release, id=old.id)).keep_until is None
    await here.hurry()
    await kept_long_enough(here, new)
    assert barn.units == {}
    assert len(here.yard.units) == 2, "the live one, and the old one for a rollback"
    assert here.yard.count("delete") == 0


async def test_nothing_begins_on_a_platform_that_is_being_left(here: World, barn: Yard) -> None:
    _, _, old = await here.deployed("echo")
    await moved(here)
    await here.hurry()
    await here.ago(old, "keep_until")
    gate = here.yard.gate("delete")
    leaving = asyncio.create_task(leave.leave(here.context, old))
    await gate.reached()
    back = await move(here, NAME)
    await here.jobs()
    assert (await here.one(Release, id=back["id"])).status == "pending"
    gate.go.set()
    await leaving
    await here.jobs()
    release = await here.one(Release, id=back["id"])
    assert (release.status, release.retired_at) == ("live", None), "it is there again, to be removed in its turn"
    assert len(here.yard.units) == 1


async def test_leaving_waits_for_what_is_on_its_way_back(here: World, barn: Yard) -> None:
    _, _, old = await here.deployed("echo")
    await moved(here)
    await here.hurry()
    gate = here.yard.gate("deploy")
    await move(here, NAME)
    async with here.working():
        await gate.reached()
        await here.ago(old, "keep_until")
        await leave.leave(here.context, old)
        assert here.yard.count("delete") == 0
        gate.go.set()
    assert (await here.service("echo")).platform == NAME
    await here.hurry()
    assert here.yard.count("delete") == 0


@pytest.mark.parametrize("error", [Transient(NAME, "delete", "down"), Lost(Transient(NAME, "delete", "lost"))])
async def test_leaving_is_tried_until_it_is_done(here: World, barn: Yard, error: PlatformError | Lost) -> None:
    _, _, old = await here.deployed("echo")
    await moved(here, keep_seconds=0)
    here.yard.misbehave("delete", error)
    await kept_long_enough(here, old)
    assert (await here.one(Release, id=old.id)).retired_at is None
    await here.ago(old, "next_check_at")
    await here.forget_jobs()
    await here.reconcile()
    assert (await here.one(Release, id=old.id)).retired_at is not None
    assert here.yard.units == {}


async def test_a_removal_that_failed_is_tried_again_soon_and_by_one_release(here: World, barn: Yard) -> None:
    await here.deployed("echo")
    _, _, old = await here.deployed("echo", env={"V": "2"})
    await moved(here, keep_seconds=0)
    here.yard.misbehave("delete", Transient(NAME, "delete", "down"))
    await kept_long_enough(here, old)
    due = "select id from release where next_check_at < clock_timestamp() + make_interval(secs => :seconds)"
    assert [r.id for r in await here.sql(due, seconds=leave.AGAIN_SECONDS)] == [old.id]


class Failing(Gate):
    """The call takes effect, waits, and fails."""

    async def passed(self) -> None:
        await super().passed()
        raise Transient(NAME, "delete", "lost")


async def test_what_waits_to_begin_is_no_part_of_a_removal_that_failed(here: World, barn: Yard) -> None:
    _, _, old = await here.deployed("echo")
    await moved(here)
    await here.hurry()
    await here.ago(old, "keep_until")
    gate = Failing()
    here.yard.misbehave("delete", gate)
    leaving = asyncio.create_task(leave.leave(here.context, old))
    await gate.reached()
    back = await move(here, NAME)
    await here.jobs()
    gate.go.set()
    await leaving
    waits = await here.one(Release, id=back["id"])
    assert (waits.status, waits.leaving_at) == ("pending", None)
    assert waits.next_check_at is not None
    await here.ago(old, "next_check_at")
    await here.reconcile()
    release = await here.one(Release, id=back["id"])
    assert (release.status, release.retired_at) == ("live", None)


async def test_two_who_remove_a_service_at_once_are_one(here: World, barn: Yard) -> None:
    """The slower one would take away what has come back meanwhile."""
    _, _, first = await here.deployed("echo")
    _, _, old = await here.deployed("echo", env={"V": "2"})
    await moved(here)
    await here.hurry()
    await here.ago(old, "keep_until")
    gate = here.yard.gate("delete")
    leaving = asyncio.create_task(leave.leave(here.context, old))
    await gate.reached()
    await leave.leave(here.context, first)
    gate.go.set()
    await leaving
    assert here.yard.count("delete") == 1
    assert {r.platform for r in await here.rows(Release) if r.retired_at is None} == {BARN}


async def test_a_removal_is_its_beginner_s_while_it_lasts_and_anybody_s_once_cut_short(here: World, barn: Yard) -> None:
    _, _, old = await here.deployed("echo")
    await moved(here)
    await here.hurry()
    await here.ago(old, "keep_until")
    gate = here.yard.gate("delete")
    leaving = asyncio.create_task(leave.leave(here.context, old, renew_seconds=0.01))
    await gate.reached()
    await here.ago(old, "leaving_at", leave.CLAIM_SECONDS)

    async def renewed() -> bool:
        return bool((await here.sql("select bool_or(leaving_at > now() - interval '5 s') as ok from release"))[0].ok)

    await eventually(renewed)
    await leave.leave(here.context, old)
    assert here.yard.count("delete") == 1
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await leave.leave(here.context, old)
    assert here.yard.count("delete") == 1, "it may be at work yet"
    await here.ago(old, "leaving_at", leave.CLAIM_SECONDS)
    await leave.leave(here.context, old)
    assert here.yard.count("delete") == 2
    assert (await here.one(Release, id=old.id)).retired_at is not None


async def test_a_migration_cut_short_goes_on_where_it_was(here: World, barn: Yard) -> None:
    await here.deployed("echo")
    answer = await move(here)
    gate = barn.gate("deploy")
    doomed = asyncio.create_task(here.jobs())
    await gate.reached()
    doomed.cancel()
    await asyncio.gather(doomed, return_exceptions=True)
    await here.forget_jobs()
    release = await here.one(Release, id=answer["id"])
    await here.ago(release, "next_check_at")
    await here.reconcile()
    assert (await here.live("echo")).id == release.id
    assert [u.starts for u in barn.units.values()] == [1]


async def test_the_sweep_removes_a_service_from_where_it_does_not_live(here: World, barn: Yard) -> None:
    """Such as what a deploy made that was given up, and that nobody waited for."""
    _, _, old = await here.deployed("echo")
    unit = here.unit(old)
    here.yard.lists_services = True
    await moved(here)
    await here.hurry()
    await here.sweep()
    assert len(here.yard.units) == 1
    await kept_long_enough(here, old)
    here.yard.units["late"] = unit
    await here.sweep()
    assert here.yard.units == {}
    assert len(barn.units) == 1


async def test_a_platform_s_pull_credential_goes_when_it_is_left(here: World, barn: Yard) -> None:
    _, service, old = await here.deployed("echo")
    await moved(here)
    async with here.context.sessions.begin() as session:
        for number, platform in enumerate((NAME, BARN)):
            session.add(
                PullCredential(
                    id=f"pul_{number:026d}",
                    project_id=service.project_id,
                    service_id=service.id,
                    platform=platform,
                    repository="slipway/svc",
                    key_id="k",
                )
            )
    await kept_long_enough(here, old)
    await eventually(lambda: here.yard.units == {})
    assert [c.platform for c in await here.rows(PullCredential)] == [BARN]

"""Steps back, changes of config, releases that are kept or removed, and the end of a service."""

import dataclasses

import pytest

from app.models import Build, Release, SecretVersion, Service
from app.platforms.base import Phase, Transient
from app.services import delete
from tests.support.platform import NAME, TRAITS
from tests.support.world import World


async def deploy(here: World, *versions: str) -> list[Release]:
    """Deploy one release after the other, each with its own program; returns them."""
    releases = []
    for v in versions:
        build = await here.submit("echo", env={"V": v})
        await here.jobs()
        await (await here.builder(build)).finish(layer=f"program {v}".encode())
        await here.jobs()
        releases.append(await here.live("echo"))
    return releases


async def back(here: World, **body: str) -> str:
    """Roll back and return which version is live then."""
    answer = await here.http.post("/v1/services/echo/rollback", json=body)
    assert answer.status_code == 202, answer.text
    await here.jobs()
    live = await here.live("echo")
    assert (live.id, live.kind) == (answer.json()["id"], "rollback")
    return str(live.config["env"]["V"])


async def test_one_step_back(here: World) -> None:
    first, second = await deploy(here, "1", "2")
    assert await back(here) == "1"
    live = await here.live("echo")
    assert (live.number, live.artifact_id, live.build_id) == (3, first.artifact_id, None)
    assert (await here.one(Release, id=second.id)).status == "superseded"


async def test_two_steps_back_are_two_steps(here: World) -> None:
    await deploy(here, "1", "2", "3")
    assert await back(here) == "2"
    assert await back(here) == "1"
    answer = await here.http.post("/v1/services/echo/rollback")
    assert (answer.status_code, answer.json()["reason"]) == (409, "nothing_to_roll_back_to")


async def test_back_forth_and_back(here: World) -> None:
    await deploy(here, "1", "2")
    assert await back(here) == "1"
    await deploy(here, "3")
    assert await back(here) == "1"


async def test_back_to_a_named_release(here: World) -> None:
    first, _, third = await deploy(here, "1", "2", "3")
    assert await back(here, release_id=first.id) == "1"
    live = await here.live("echo")
    answer = await here.http.post("/v1/services/echo/rollback", json={"release_id": live.id})
    assert (answer.status_code, answer.json()["reason"]) == (409, "already_live")
    assert await back(here, release_id=third.id) == "3"
    missing = await here.http.post("/v1/services/echo/rollback", json={"release_id": f"rel_{'0' * 26}"})
    assert missing.status_code == 404


async def test_back_takes_the_secrets_of_then(here: World) -> None:
    _, _, first = await here.deployed("echo", secrets={"KEY": "old"})
    await here.deployed("echo", secrets={"KEY": "new"}, env={"V": "2"})
    await here.http.post("/v1/services/echo/rollback")
    await here.jobs()
    live = await here.live("echo")
    assert live.secret_versions == first.secret_versions
    assert here.unit(live).spec.secrets == {"KEY": "old"}


async def test_a_build_that_was_under_way_at_a_rollback_does_not_undo_it(here: World) -> None:
    await deploy(here, "1", "2")
    slow = await here.submit("echo", env={"V": "slow"})
    await here.jobs()
    assert await back(here) == "1"
    await (await here.builder(slow)).finish()
    await here.jobs()
    assert (await here.one(Build, id=slow.id)).reason == "superseded"
    assert (await here.live("echo")).config["env"] == {"V": "1"}


async def test_promoting_an_artifact_again(here: World) -> None:
    first, _ = await deploy(here, "1", "2")
    answer = await here.http.post("/v1/services/echo/releases", json={"artifact_id": first.artifact_id})
    assert answer.status_code == 202
    await here.jobs()
    live = await here.live("echo")
    assert (live.kind, live.artifact_id, live.config["env"]) == ("promote", first.artifact_id, {"V": "2"})
    missing = await here.http.post("/v1/services/echo/releases", json={"artifact_id": f"art_{'0' * 26}"})
    assert missing.status_code == 404


# --------------------------------------------------------------------------------------------------- what is kept


async def test_the_newest_superseded_releases_are_kept_asleep(here: World) -> None:
    releases = await deploy(here, "1", "2", "3", "4")
    await here.hurry()
    phases = {v: here.yard.units.get(here_name(here, r)) for v, r in zip("1234", releases, strict=True)}
    assert phases["1"] is None, "it was to be removed"
    kept = [phases["2"], phases["3"]]
    assert [u and u.phase for u in kept] == [Phase.ASLEEP, Phase.ASLEEP]
    rows = [await here.one(Release, id=r.id) for r in releases]
    assert [r.retired_at is not None for r in rows] == [True, False, False, False]
    await here.reconcile()
    assert here.yard.count("retire") == 1


async def test_what_a_rollout_has_ended_is_not_put_to_sleep(here: World) -> None:
    """Each look at it would cost requests of the account."""
    replaces = dataclasses.replace(TRAITS, scale_to_zero="automatic", rollout_replaces=True)
    here.context.catalog.held[NAME] = dataclasses.replace(here.context.catalog.held[NAME], traits=replaces)
    releases = await deploy(here, "1", "2", "3", "4")
    await here.hurry()
    assert (here.yard.count("sleep"), here.yard.count("retire")) == (0, 1)
    rows = [await here.one(Release, id=r.id) for r in releases]
    assert [r.retired_at is not None for r in rows] == [True, False, False, False]


def here_name(here: World, release: Release) -> str:
    return f"slp-{here.context.installation}-{release.id.replace('_', '-')}"


async def test_a_superseded_release_may_finish_its_requests(here: World) -> None:
    first, _ = await deploy(here, "1", "2")
    assert here.unit(first).phase is Phase.RUNNING
    assert await here.waiting("retire") == [first.id]


async def test_retiring_is_repeated_until_it_is_done(here: World) -> None:
    here.yard.misbehave("retire", Transient(NAME, "retire", "down"))
    await here.built("echo", env={"BEHAVE": "crashing"})
    await here.jobs()
    (release,) = await here.rows(Release)
    assert (release.status, release.retired_at) == ("failed", None)
    assert len(here.yard.units) == 1
    await here.ago(release, "next_check_at")
    await here.reconcile()
    assert here.yard.units == {}
    assert (await here.one(Release, id=release.id)).retired_at is not None


# --------------------------------------------------------------------------------------------------- change


async def patch(here: World, **body: object) -> Release:
    answer = await here.http.patch("/v1/services/echo", json=body)
    assert answer.status_code == 202, answer.text
    await here.jobs()
    return await here.live("echo")


async def test_a_patch_changes_what_it_names_and_nothing_else(here: World) -> None:
    await here.deployed(
        "echo", env={"A": "1", "B": "1"}, scale={"min": 0, "idle_seconds": 60}, secrets={"K": "x", "L": "y"}
    )
    live = await patch(here, env={"B": None, "C": "3"}, scale={"min": 1}, secrets={"K": "new", "L": None, "M": "z"})
    assert live.config["env"] == {"A": "1", "C": "3"}
    assert live.config["scale"] == {"min": 1, "idle_seconds": 60}
    assert here.unit(live).spec.secrets == {"K": "new", "M": "z"}
    assert here.unit(live).spec.scale_min == 1
    assert "new" not in str(live.patch)
    live = await patch(here, memory_mb=512)
    assert (live.config["memory_mb"], live.config["env"]) == (512, {"A": "1", "C": "3"})
    assert here.unit(live).spec.secrets == {"K": "new", "M": "z"}


async def test_env_null_empties_it(here: World) -> None:
    await here.deployed("echo", env={"A": "1", "B": "1"})
    assert (await patch(here, env=None)).config["env"] == {}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body"), ({"strict": False}, "body"), ({"port": None}, "port"), ({"scale": None}, "scale"),
        ({"env": {"K": "x"}}, "env.K"), ({"secrets": {"A": "x"}}, "env.A"), ({"memory_mb": 262144}, "memory_mb"),
        ({"scale": {"idle_seconds": 7200}}, "scale.idle_seconds"), ({"env": {f"N{n}": "" for n in range(128)}}, "env"),
        ({"secrets": {f"N{n}": "" for n in range(128)}}, "secrets"),
    ],
)  # fmt: skip
async def test_a_patch_that_can_t_be_is_refused(here: World, body: dict[str, object], field: str) -> None:
    await here.deployed("echo", env={"A": "1"}, secrets={"K": "x"})
    answer = await here.http.patch("/v1/services/echo", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field
    assert len(await here.rows(Release)) == 1


async def test_nothing_can_be_changed_before_the_first_release_is_live(here: World) -> None:
    await here.submit("echo")
    for method, path, body in (
        ("PATCH", "", {"port": 1}), ("POST", "/rollback", {}), ("POST", "/releases", {"artifact_id": f"art_{'0' * 26}"}),
    ):  # fmt: skip
        answer = await here.http.request(method, f"/v1/services/echo{path}", json=body)
        assert (answer.status_code, answer.json()["reason"]) == (409, "no_live_release")


# --------------------------------------------------------------------------------------------------- delete


@pytest.mark.parametrize("status", ["pending", "asleep", "waking", "running", "sleeping", "failed"])
async def test_delete_from_every_status(here: World, status: str) -> None:
    if status == "pending":
        await here.submit("echo", secrets={"K": "x"})
    else:
        await here.deployed("echo", secrets={"K": "x"})
        await here.sql("update service set status = :s", s=status)
    service = await here.service("echo")
    assert (await here.http.delete("/v1/services/echo")).status_code == 202
    assert (await here.http.get("/v1/services/echo")).status_code == 404
    assert (await here.http.delete("/v1/services/echo")).status_code == 404
    await here.jobs()
    service = await here.one(Service, id=service.id)
    assert (service.status, service.live_release_id, service.address) == ("deleted", None, None)
    assert here.yard.units == {}
    assert await here.rows(SecretVersion) == []
    assert all(r.retired_at for r in await here.rows(Release))
    assert here.yard.machines == {}, "its builds went on"


async def test_the_name_is_free_at_once_and_the_new_service_is_another(here: World) -> None:
    _, old, _ = await here.deployed("echo", secrets={"K": "x"})
    await here.http.delete("/v1/services/echo")
    build = await here.submit("echo")
    assert build.service_id != old.id
    await here.jobs()
    await (await here.builder(build)).finish()
    await here.jobs()
    assert (await here.one(Build, id=build.id)).status == "succeeded"
    assert len(here.yard.units) == 1
    assert next(iter(here.yard.units.values())).spec.secrets == {}


async def test_deletion_is_repeated_until_it_is_done(here: World) -> None:
    _, service, _ = await here.deployed("echo")
    here.yard.misbehave("delete", Transient(NAME, "delete", "down"))
    await here.http.delete("/v1/services/echo")
    await here.jobs()
    assert (await here.one(Service, id=service.id)).status == "deleting"
    await here.ago(service, "next_check_at")
    await here.reconcile()
    assert (await here.one(Service, id=service.id)).status == "deleted"
    assert here.yard.units == {}


@pytest.mark.parametrize("first", ["cloud", "host"])
async def test_each_part_is_deleted_where_it_can_be_done(here: World, first: str) -> None:
    """A service with releases on a platform that another process owns, and on one that anybody may call."""
    _, service, _ = await here.deployed("echo")
    await patch(here, env={"A": "2"})
    await here.sql("update release set platform = 'owned' where number = 1")
    catalog, bound = here.context.catalog, dataclasses.replace(TRAITS, host_bound=True)
    catalog.entries = {**catalog.entries, "owned": dataclasses.replace(here.yard.entry("owned"), traits=bound)}
    await here.forget_jobs()
    await here.http.delete("/v1/services/echo")
    asked = await here.sql("select entrypoint from pgqueuer.pgqueuer order by 1")
    assert [job.entrypoint for job in asked] == ["delete", "delete.owned"]
    owner = {"owned": here.yard.platform("owned")}
    parts = [catalog.held, owner] if first == "cloud" else [owner, catalog.held]
    for part in parts:
        assert (await here.one(Service, id=service.id)).status == "deleting"
        catalog.held = dict(part)
        await delete.delete(here.context, service.id)
    assert (await here.one(Service, id=service.id)).status == "deleted"
    assert [(r.status, r.retired_at is not None) for r in await here.rows(Release)] == [("superseded", True)] * 2


async def test_a_build_of_a_deleted_service_is_canceled_and_not_retried(here: World) -> None:
    build = await here.submit("echo")
    await here.jobs()
    builder = await here.builder(build)
    await builder.claim()
    await here.http.delete("/v1/services/echo")
    await here.jobs()
    build = await here.one(Build, id=build.id)
    assert (build.status, build.message) == ("canceled", "The service was deleted.")
    assert (await builder.post("heartbeat")).status_code == 410
    answer = await here.http.post(f"/v1/builds/{build.id}/retry")
    assert (answer.status_code, answer.json()["reason"]) == (409, "service_deleted")

"""The same source in the same project is built once: later builds take the artifact, those beside it wait for it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.builds import archives, retention, reuse
from app.images.access import Images
from app.imitations.server import serving
from app.models import Artifact, Build, Event, Release, Run, Service
from tests.support.platform import NAME, Yard
from tests.support.waiting import eventually, free_port
from tests.support.world import FILES, Json, World, world

TOOLCHAIN = "go1.27.3 builder:1"
MODULES = {"go.mod": "module agent\n\ngo 1.25\n\nrequire example.test/m v1.0.0\n", "main.go": FILES["main.go"]}


@pytest.fixture
async def here(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A control plane whose builds may share artifacts."""
    async with opened(database_url, tmp_path) as it:
        yield it


@contextlib.asynccontextmanager
async def opened(database_url: str, folder: Path, **changes: Any) -> AsyncIterator[World]:
    yard = Yard(toolchain=TOOLCHAIN)
    try:
        async with world(database_url, folder / "home", yard=yard, build_cache=True, **changes) as it:
            yield it
    finally:
        await yard.close()


async def seen(here: World, build: Build) -> Json:
    answer = await here.http.get(f"/v1/builds/{build.id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def again(here: World, name: str | None = None, **body: Any) -> Json:
    """Send the source once more and run the jobs; returns the build."""
    build = await here.send(here.order(name) | body)
    await here.jobs()
    return await seen(here, build)


async def ended(here: World, build: Build) -> Build:
    return await here.one(Build, id=build.id)


# --------------------------------------------------------------------------------------------------- a hit


async def test_the_second_build_needs_no_builder_and_says_so(here: World) -> None:
    first = await here.built()
    second = await again(here)
    assert (second["status"], second["runs"], len(here.yard.launched)) == ("succeeded", [], 1)
    assert (second["artifact"]["id"], second["artifact"]["reused"]) == (first.artifact_id, True)
    assert not (await seen(here, first))["artifact"]["reused"]
    assert await here.kinds(build_id=second["id"]) == ["build.queued", "build.reused", "build.succeeded"]
    (event,) = await here.rows(Event, kind="build.reused")
    assert event.data == {"artifact_id": first.artifact_id, "waited_for": None}
    assert second["timings"].keys() == {"queued", "total"}


async def test_a_guess_that_is_not_checked_yet_is_not_shown(here: World) -> None:
    await here.built()
    answer = await here.http.post("/v1/builds", json=here.order())
    build = answer.json()
    assert (build["status"], build["artifact_id"], build["artifact"], build["runs"]) == ("queued", None, None, [])
    assert (await here.http.get(f"/v1/builds/{build['id']}")).json()["artifact"] is None


async def test_a_hit_is_promoted_to_a_service_of_its_own(here: World) -> None:
    """Without a service first, then with one, then with another."""
    first = await here.built()
    for name in ("echo", "other"):
        build = await again(here, name)
        assert (build["status"], build["artifact"]["reused"], build["url"] is not None) == ("succeeded", True, True)
        release = await here.live(name)
        assert (release.build_id, release.artifact_id, release.kind) == (build["id"], first.artifact_id, "build")
    assert len(here.yard.launched) == 1


async def test_a_retry_of_a_hit_is_a_hit(here: World) -> None:
    await here.deployed("echo")
    hit = await again(here, "echo")
    retried = (await here.http.post(f"/v1/builds/{hit['id']}/retry")).json()
    await here.jobs()
    build = await here.one(Build, id=retried["id"])
    assert (build.status, build.retry_of) == ("succeeded", hit["id"])
    assert len(here.yard.launched) == 1
    assert (await here.live("echo")).build_id == build.id


@pytest.mark.parametrize("cache", [True, False])
async def test_a_retry_is_a_hit_unless_its_build_was_forced(here: World, cache: bool) -> None:
    first = await here.send(here.order() | {"build": {"cache": cache}})
    await here.jobs()
    await (await here.builder(first)).finish()
    retried = (await here.http.post(f"/v1/builds/{first.id}/retry")).json()["id"]
    await here.jobs()
    build = await seen(here, await here.one(Build, id=retried))
    assert (build["status"], len(build["runs"])) == (("succeeded", 0) if cache else ("building", 1))


async def test_a_git_source_is_known_once_it_was_fetched(here: World) -> None:
    source = {"kind": "git", "url": "https://git.example.com/agent.git"}
    first = await here.send(here.order() | {"source": source})
    await here.jobs()
    builder = await here.builder(first)
    orders = await builder.claim()
    assert orders["source"]["digest"] is None
    digest = (await here.submit()).source_digest  # the same tree, as files
    found = {"digest": digest, "commit": "a" * 40}
    assert (await builder.complete(builder.success(await builder.push(), orders, source=found))).status_code == 200
    as_files = await again(here)
    assert (as_files["artifact_id"], as_files["artifact"]["reused"]) == ((await ended(here, first)).artifact_id, True)
    anew = await here.send(here.order() | {"source": source})
    assert anew.cache_key is None, "its commit may be another one by now"
    retried = (await here.http.post(f"/v1/builds/{first.id}/retry")).json()["id"]
    await here.jobs()
    assert (await here.one(Build, id=retried)).status == "succeeded"


# --------------------------------------------------------------------------------------------------- no hit


@pytest.mark.parametrize(
    "change",
    [
        {"source": {"kind": "files", "files": FILES | {"main.go": "package main\n\nfunc main() { }\n"}}},
        {"source": {"kind": "files", "files": FILES | {"go.sum": "example.test/m v1.0.0 h1:x\n"}}},
        {"build": {"package": "./cmd"}},
        {"build": {"goarch": "arm64"}},
        {"build": {"cache": False}},
        {"service": {"name": "echo", "port": 9090}},
    ],
    ids=["source", "go.sum", "package", "goarch", "cache false", "port"],
)
async def test_whatever_an_image_depends_on_is_in_the_key(here: World, change: Json) -> None:
    await here.built()
    build = await again(here, **change)
    assert (build["status"], len(build["runs"]), len(here.yard.launched)) == ("building", 1, 2)


@pytest.mark.parametrize("toolchain", ["go1.28.0 builder:1", None])
async def test_another_toolchain_or_one_that_is_not_known_is_no_hit(here: World, toolchain: str | None) -> None:
    await here.built()
    here.yard.toolchain = toolchain
    here.context.catalog.held[NAME] = here.yard.platform()
    assert (await again(here))["status"] == "building"
    build = await again(here)
    assert (build["status"], build["waiting_for"] is not None) == (
        ("queued", True) if toolchain else ("building", False)
    )


async def test_a_toolchain_that_changed_while_a_build_was_queued_counts(here: World) -> None:
    """The key of what was built is made of what its builder really had."""
    first = await here.submit()
    here.yard.toolchain = "go1.28.0 builder:1"
    here.context.catalog.held[NAME] = here.yard.platform()
    await here.jobs()
    await (await here.builder(first)).finish()
    assert (await again(here))["artifact_id"] == (await ended(here, first)).artifact_id
    here.yard.toolchain = TOOLCHAIN
    here.context.catalog.held[NAME] = here.yard.platform()
    assert (await again(here))["status"] == "building"


async def test_what_a_builder_has_of_two_toolchains_is_not_known(here: World) -> None:
    """Its launch was cut short, and taken up by a process that has another one."""
    build = await here.submit()
    gate = here.yard.gate("launch")
    doomed = asyncio.create_task(here.jobs())
    await gate.reached()
    doomed.cancel()
    await asyncio.gather(doomed, return_exceptions=True)
    here.yard.toolchain = "go1.28.0 builder:1"
    here.context.catalog.held[NAME] = here.yard.platform()
    await here.forget_jobs()
    await here.ago(build, "next_check_at")
    await here.reconcile()
    await (await here.builder(build)).finish()
    assert (await here.rows(Artifact))[0].cache_key is None


async def test_a_project_sees_nothing_of_another_s(here: World) -> None:
    await here.built()
    await here.submit()
    _, http = await here.project("other")
    async with http:
        theirs = (await http.post("/v1/builds", json=here.order())).json()
        await here.jobs()
        build = (await http.get(f"/v1/builds/{theirs['id']}")).json()
    assert (build["status"], len(build["runs"]), build["waiting_for"]) == ("building", 1, None)


async def test_a_source_that_lacks_go_sum_is_never_taken_for_built(here: World) -> None:
    """The builder refuses it (see tests/builder/test_modules.py), so there is no artifact; it is tried each time anew."""
    for count in (1, 2):
        build = await here.submit(files=MODULES)
        await here.jobs()
        await (await here.builder(build)).fail("source_invalid", "There is no go.sum, but go.mod requires modules.")
        assert len(here.yard.launched) == count


async def test_a_forced_build_s_artifact_is_the_one_that_later_builds_take(here: World) -> None:
    await here.built()
    forced = await here.send(here.order() | {"build": {"cache": False}})
    await here.jobs()
    await (await here.builder(forced)).finish(layer=b"another")
    assert (await again(here))["artifact_id"] == (await ended(here, forced)).artifact_id


# --------------------------------------------------------------------------------------------------- what became of it


async def test_an_image_that_is_gone_is_built_again(database_url: str, tmp_path: Path) -> None:
    async with opened(database_url, tmp_path, port=free_port()) as here:
        first = await here.built()
        artifact = await here.one(Artifact, id=first.artifact_id)
        await here.context.images.delete(artifact.repository)
        second = await here.submit()
        await here.jobs()
        waiting = await ended(here, second)
        assert (waiting.status, waiting.artifact_id) == ("queued", first.artifact_id), (
            "nobody could say whether it is there"
        )
        async with serving(here.app, port=here.context.settings.port):
            await here.ago(waiting, "next_check_at")
            await here.reconcile()
            assert (await ended(here, second)).status == "building"
            await (await here.builder(second)).finish()
            assert (await again(here))["artifact_id"] == (await ended(here, second)).artifact_id


async def test_the_registry_of_another_process_is_asked(database_url: str, tmp_path: Path) -> None:
    """A worker has a disk of its own; the embedded registry is the API's."""
    async with (
        opened(database_url, tmp_path, port=free_port()) as here,
        serving(here.app, port=here.context.settings.port),
    ):
        first = await here.built()
        artifact = await here.one(Artifact, id=first.artifact_id)
        keys = [here.context.keyring.derive("registry-token", k) for k in here.context.keyring.keys]
        away = Images(here.context.settings.model_copy(update={"home": tmp_path / "elsewhere"}), keys)
        assert await away.has(artifact.repository, artifact.digest)
        assert not await away.has(artifact.repository, f"sha256:{'0' * 64}")


async def test_a_hit_and_a_collection_never_both_win(here: World) -> None:
    """The registry has been asked when the artifact is marked: the hit finds it taken, and builds."""
    first = await here.built()
    second = await here.submit()
    await here.sql("update artifact set status = 'deleting'")
    await here.jobs()
    assert (await ended(here, second)).status == "building"
    await (await here.builder(second)).finish()
    third = await here.submit()
    await here.sql("update artifact set last_used_at = now() - interval '400 days'")
    assert (await retention.keep(here.context))["artifact"] == 1, "the marked one; the other is wanted"
    await here.jobs()
    third = await ended(here, third)
    assert (third.status, third.artifact_id) == ("succeeded", (await ended(here, second)).artifact_id)
    assert (await here.sql("select last_used_at > now() - interval '1 minute' as fresh from artifact"))[0].fresh
    assert (await ended(here, first)).artifact_id is None


async def test_an_artifact_that_a_queued_build_has_found_keeps_its_row(here: World) -> None:
    """It was marked between the two looks; its image goes, and the build finds that out by itself."""
    await here.built()
    second = await here.submit()
    await here.sql("update artifact set status = 'deleting', last_used_at = now() - interval '400 days'")
    await retention.keep(here.context)
    assert len(await here.rows(Artifact)) == 1
    await here.jobs()
    assert (await ended(here, second)).status == "building"


async def test_a_hit_counts_as_use(here: World) -> None:
    await here.built()
    await here.sql("update artifact set last_used_at = now() - interval '400 days'")
    await again(here)
    assert (await retention.keep(here.context))["artifact"] == 0


# --------------------------------------------------------------------------------------------------- in flight


async def followers(here: World, count: int, service: str | None = None) -> tuple[Build, list[Build]]:
    """Send a build and, while it is under way, more of the same source."""
    leader = await here.submit(service)
    await here.jobs()
    return leader, [await here.submit(service) for _ in range(count)]


async def test_twenty_at_once_have_one_builder(here: World) -> None:
    answers = await asyncio.gather(*(here.http.post("/v1/builds", json=here.order()) for _ in range(20)))
    assert {a.status_code for a in answers} == {202}
    await here.jobs()
    builds = await here.rows(Build)
    (leader,) = (b for b in builds if b.waiting_for is None)
    assert {b.waiting_for for b in builds} == {None, leader.id}
    assert (len(builds), len(await here.rows(Run)), len(here.yard.launched)) == (20, 1, 1)
    shown = await seen(here, next(b for b in builds if b.waiting_for))
    assert (shown["waiting_for"], shown["status"], shown["runs"]) == (leader.id, "queued", [])
    await (await here.builder(leader)).finish()
    await here.jobs()
    ends = await here.rows(Build)
    assert {(b.status, b.artifact_id, b.waiting_for) for b in ends} == {("succeeded", ends[0].artifact_id, None)}
    assert len(here.yard.launched) == 1


async def test_a_batch_of_one_source_has_one_builder_or_none(here: World) -> None:
    body = {"builds": [here.order("echo" if n else None) for n in range(5)]}
    batch = (await here.http.post("/v1/batches", json=body)).json()
    await here.jobs()
    builds = await here.rows(Build)
    (leader,) = (b for b in builds if b.waiting_for is None)
    assert ([b.waiting_for for b in builds].count(leader.id), len(here.yard.launched)) == (4, 1)
    await (await here.builder(leader)).finish()
    await here.jobs()
    await here.hurry()
    assert (await here.http.post("/v1/batches", json=body)).status_code == 202
    await here.jobs()
    await here.hurry()
    assert len(here.yard.launched) == 1
    first, _ = await here.rows(Event, kind="batch.ended")
    assert first.data["batch_id"] == batch["id"]


async def test_two_batches_at_once_share_their_builders(here: World) -> None:
    """Of the same sources and services in opposite orders, so that each holds a row that the other wants next."""
    orders = []
    for n in range(4):
        _, archive = archives.pack_files(FILES | {"n.txt": str(n)}, here.context.settings)
        digest = (await here.http.post("/v1/sources", content=archive)).json()["digest"]
        upload = {"source": {"kind": "upload", "digest": digest}}
        orders += [here.order() | upload, here.order(f"svc-{n}") | upload]
    first = await here.submit("svc-1")
    await here.http.post(f"/v1/builds/{first.id}/cancel")
    async with here.context.sessions.begin() as session:
        await session.execute(select(Service).where(Service.name == "svc-1").with_for_update())
        both = [
            asyncio.create_task(here.http.post("/v1/batches", json={"builds": builds}))
            for builds in (orders, orders[::-1])
        ]
        await eventually(lambda: _waiting(here, 2))
    answers = [await answer for answer in both]
    assert [(a.status_code, a.json()["accepted"]) for a in answers] == [(202, 8), (202, 8)]
    await here.jobs()
    leaders = [b for b in await here.rows(Build) if b.batch_id and b.waiting_for is None]
    assert len(leaders) == len(here.yard.launched) == 4
    for leader in leaders:
        await (await here.builder(leader)).finish()
    await here.jobs()
    await here.hurry()
    came_to = {(b.status, b.reason) for b in await here.rows(Build) if b.batch_id}
    assert came_to <= {("succeeded", None), ("failed", "superseded")}, (
        "of two builds of a service the later one may be first"
    )
    ends = [e.data["batch_id"] for e in await here.rows(Event, kind="batch.ended")]
    assert sorted(ends) == sorted(a.json()["id"] for a in answers)


async def _waiting(here: World, count: int) -> bool:
    rows = await here.sql("select count(distinct pid) as n from pg_locks where not granted")
    return bool(rows[0].n >= count)


async def test_who_waits_goes_live_in_order(here: World) -> None:
    leader, (one, two) = await followers(here, 2, "echo")
    await (await here.builder(leader)).finish()
    await here.jobs()
    await here.hurry()
    assert (await here.live("echo")).build_id == two.id
    assert {(await ended(here, b)).reason for b in (leader, one)} <= {None, "superseded"}
    assert {r.status for r in await here.rows(Release)} <= {"live", "superseded", "failed"}


async def test_who_waits_takes_no_slot_and_does_not_expire(here: World) -> None:
    leader, (follower,) = await followers(here, 1)
    await here.ago(leader, "created_at", 10_000)
    assert (await here.reconcile(), (await ended(here, follower)).deadline_at) == (0, None)
    other = await here.submit(files=FILES | {"a.go": "package main\n"})
    await here.jobs()
    assert (await ended(here, other)).status == "building"
    assert (await ended(here, follower)).status == "queued"


@pytest.mark.parametrize("how", ["lost", "canceled", "expired", "out_of_memory"])
async def test_the_next_one_leads_when_the_source_is_not_to_blame(here: World, how: str) -> None:
    if how == "expired":
        await here.sql("update project set max_concurrent_builds = 0")
    leader, (one, two) = await followers(here, 2)
    if how == "lost":
        here.yard.machines.clear()
        await here.sql("update build set losses = 99 where id = :id", id=leader.id)
        await here.sql("update run set launched_at = now() - interval '1 hour', next_check_at = null")
        await here.reconcile()
    elif how == "canceled":
        await here.http.post(f"/v1/builds/{leader.id}/cancel")
    elif how == "expired":
        await here.sql("update project set max_concurrent_builds = null")
        await here.ago(leader, "deadline_at")
        await here.reconcile()
    else:
        await (await here.builder(leader)).fail("out_of_memory")
    await here.jobs()
    assert (await ended(here, leader)).status in {"failed", "canceled"}
    left = [await ended(here, b) for b in (one, two)]
    assert sorted(b.status for b in left) == ["building", "queued"]
    now = next(b for b in left if b.status == "building")
    assert {b.waiting_for for b in left} == {None, now.id}
    await (await here.builder(now)).finish()
    await here.jobs()
    assert {(await ended(here, b)).status for b in (one, two)} == {"succeeded"}


async def test_a_fault_of_the_source_is_everybody_s(here: World) -> None:
    leader, (one, two) = await followers(here, 2, "echo")
    fault = {"file": "main.go", "line": 3, "column": 1, "message": "undefined: x"}
    await (await here.builder(leader)).fail("compile_error", "The source does not compile.", diagnostics=[fault])
    await here.jobs()
    for build in (one, two):
        shown = await seen(here, build)
        assert (shown["status"], shown["reason"], shown["runs"]) == ("failed", "compile_error", [])
        assert shown["diagnostics"] == [fault]
        assert leader.id in shown["message"]
    assert (await again(here))["status"] == "building", "a failure is shared by those that waited, not kept"


async def test_a_leader_that_builds_elsewhere_makes_another_image(here: World) -> None:
    """Its platform had no room, and the next one's builders have another toolchain."""
    leader, (follower,) = await followers(here, 1)
    await here.sql("update run set toolchain = 'go1.28.0 builder:1'")
    await (await here.builder(leader)).finish()
    await here.jobs()
    assert (await ended(here, follower)).status == "building"


async def test_canceling_one_that_waits_touches_nobody_else(here: World) -> None:
    leader, (one, two) = await followers(here, 2)
    assert (await here.http.post(f"/v1/builds/{one.id}/cancel")).json()["status"] == "canceled"
    await (await here.builder(leader)).finish()
    await here.jobs()
    assert [(await ended(here, b)).status for b in (leader, one, two)] == ["succeeded", "canceled", "succeeded"]


@pytest.mark.parametrize("vanished", [False, True])
async def test_whose_leader_is_gone_without_a_word_is_found(here: World, vanished: bool) -> None:
    leader, (follower,) = await followers(here, 1)
    await (await here.builder(leader)).finish()
    await here.forget_jobs()
    if vanished:
        await here.sql("delete from build where id = :id", id=leader.id)
    await here.reconcile()
    assert (await ended(here, follower)).status == ("building" if vanished else "succeeded")


async def test_a_guess_whose_job_was_lost_is_found(here: World) -> None:
    await here.built()
    second = await here.submit()
    await here.forget_jobs()
    assert await here.reconcile() == 0
    await here.ago(second, "next_check_at")
    await here.reconcile()
    assert (await ended(here, second)).status == "succeeded"


async def test_who_comes_while_the_leader_ends_is_not_forgotten(here: World) -> None:
    """The leader's row is locked by whoever ends it: the newcomer waits for that, and leads itself."""
    leader, _ = await followers(here, 0)
    async with here.context.sessions.begin() as session:
        row = await session.get(Build, leader.id, with_for_update=True)
        assert row is not None
        coming = asyncio.create_task(here.submit())
        await eventually(lambda: blocked(here))
        await session.execute(Build.__table__.update().where(Build.id == leader.id).values(status="canceled"))  # type: ignore[attr-defined]
    assert (await coming).waiting_for is None


async def blocked(here: World) -> bool:
    waiting = (
        "select count(*) as n from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    )
    return bool((await here.sql(waiting))[0].n)


async def test_two_jobs_of_one_hit_make_one_release(here: World) -> None:
    await here.built()
    build = await here.submit("echo")
    await asyncio.gather(*(reuse.reuse(here.context, build.id) for _ in range(4)))
    await here.jobs()
    assert len(await here.rows(Release)) == 1
    assert (await here.kinds(build_id=build.id)).count("build.reused") == 1

"""What is past its keeping goes, in batches; what a release or an open build may need stays."""

import asyncio

from sqlalchemy import delete

from app.builds import retention, sources
from app.db import transaction
from app.images.errors import RegistryError
from app.jobs import keep
from app.models import Artifact, Build, Event, Release, SecretVersion, Source
from tests.support.waiting import eventually
from tests.support.world import World


async def old(here: World, *columns: str, days: int = 400) -> None:
    for column in columns:
        table, _, name = column.partition(".")
        await here.sql(f"update {table} set {name} = now() - make_interval(days => :d)", d=days)


async def test_logs_and_events_go_in_batches(here: World) -> None:
    build = await here.submit()
    await here.jobs()
    builder = await here.builder(build)
    await builder.claim()
    await builder.log("old")
    await here.sql(
        "insert into event (project_id, kind, at) select project_id, 'old', now() - interval '100 days' "
        "from build, generate_series(1, :n)",
        n=retention.BATCH + 10,
    )
    await old(here, "run_log.created_at", days=15)
    await builder.log("new", seq=1)
    removed = await retention.keep(here.context)
    assert (removed["run_log"], removed["event"]) == (1, retention.BATCH)
    assert (await retention.keep(here.context))["event"] == 10
    assert [r.n for r in await here.sql("select count(*) as n from run_log")] == [1]
    assert "old" not in {e.kind for e in await here.rows(Event)}


async def test_old_builds_go_with_their_runs_but_not_a_live_one(here: World) -> None:
    live, _, _ = await here.deployed("echo")
    ended = await here.submit()
    await here.jobs()
    await (await here.builder(ended)).fail("compile_error")
    retried = (await here.http.post(f"/v1/builds/{ended.id}/retry")).json()["id"]
    await old(here, "build.finished_at")
    assert (await retention.keep(here.context))["build"] == 1
    assert {b.id for b in await here.rows(Build)} == {live.id, retried}
    assert (await here.one(Build, id=retried)).retry_of is None
    assert len(await here.sql("select 1 from run")) == 1


async def test_sources_stay_while_an_open_build_needs_them(here: World) -> None:
    await here.submit()
    await old(here, "source.last_used_at")
    assert (await retention.keep(here.context))["source"] == 0
    await here.jobs()
    (build,) = await here.rows(Build)
    await (await here.builder(build)).fail("compile_error")
    assert (await retention.keep(here.context))["source"] == 1
    assert await here.sql("select 1 from source") == []
    assert await here.sql("select 1 from source_chunk") == []
    answer = await here.http.post(f"/v1/builds/{build.id}/retry")
    assert (answer.status_code, answer.json()["reason"]) == (410, "source_gone")


async def test_sending_a_source_again_renews_it(here: World) -> None:
    await here.submit()
    await old(here, "source.last_used_at")
    await here.submit()
    rows = await here.sql("select last_used_at > now() - interval '1 hour' as fresh from source")
    assert [r.fresh for r in rows] == [True]


async def test_a_source_that_retention_has_just_taken_is_not_there(here: World) -> None:
    await here.submit()
    await old(here, "source.last_used_at")
    (source,) = await here.sql("select project_id, digest from source")
    async with here.context.sessions.begin() as session:
        await session.execute(delete(Source))

        async def touched() -> set[str]:
            async with transaction(here.context.pool) as plain:
                return await sources.touch(plain, source.project_id, [source.digest])

        touching = asyncio.create_task(touched())
        await eventually(lambda: here.sql("select 1 from pg_locks where not granted"))
    assert await touching == set()


async def deploy(here: World, *versions: str) -> list[Artifact]:
    artifacts = []
    for v in versions:
        build = await here.submit("echo", env={"V": v}, secrets={"K": v})
        await here.jobs()
        await (await here.builder(build)).finish(layer=v.encode())
        await here.hurry()
        artifacts.append(await here.one(Artifact, id=(await here.one(Build, id=build.id)).artifact_id))
    return artifacts


async def pullable(here: World, artifact: Artifact) -> bool:
    try:
        await here.context.images.inspect(artifact.repository, artifact.digest)
    except RegistryError:
        return False
    return True


async def test_artifacts_stay_while_a_release_may_need_them(here: World) -> None:
    artifacts = await deploy(here, "1", "2", "3", "4", "5")
    await old(here, "artifact.last_used_at")
    removed = await retention.keep(here.context)
    assert removed["artifact"] == 2, "live, and the two kept for a rollback"
    assert [await pullable(here, a) for a in artifacts] == [False, False, True, True, True]
    await keep(here.context)
    assert [await pullable(here, a) for a in artifacts] == [False, False, True, True, True]
    await here.http.post("/v1/services/echo/rollback")
    await here.jobs()
    assert (await here.live("echo")).config["env"] == {"V": "4"}
    first = (await here.rows(Release))[0]
    answer = await here.http.post("/v1/services/echo/rollback", json={"release_id": first.id})
    assert (answer.status_code, answer.json()["reason"]) == (409, "artifact_gone")


async def test_what_a_release_s_history_names_is_not_removed_over_and_over(here: World) -> None:
    await deploy(here, "1", "2", "3", "4", "5")
    await old(here, "artifact.last_used_at")
    assert (await retention.keep(here.context))["artifact"] == 2
    assert (await retention.keep(here.context))["artifact"] == 0, "others would wait behind them for ever"


async def test_an_artifact_nobody_wants_goes_with_its_row(here: World) -> None:
    build = await here.built()
    artifact = await here.one(Artifact, id=build.artifact_id)
    await old(here, "artifact.last_used_at", days=6)
    assert (await retention.keep(here.context))["artifact"] == 0
    await old(here, "artifact.last_used_at", days=8)
    assert (await retention.keep(here.context))["artifact"] == 1
    assert not await pullable(here, artifact)
    assert await here.rows(Artifact) == []
    assert (await here.one(Build, id=build.id)).artifact_id is None


async def test_a_deleted_service_s_artifacts_go(here: World) -> None:
    (artifact,) = await deploy(here, "1")
    await here.http.delete("/v1/services/echo")
    await here.jobs()
    await old(here, "artifact.last_used_at")
    assert (await retention.keep(here.context))["artifact"] == 1
    assert not await pullable(here, artifact)


async def test_secret_versions_go_when_nothing_names_them(here: World) -> None:
    await deploy(here, "1", "2")
    await here.http.patch("/v1/services/echo", json={"secrets": {"K": "patched", "L": "x"}})
    await here.jobs()
    versions = {v.id for v in await here.rows(SecretVersion)}
    assert len(versions) == 4
    await old(here, "secret_version.created_at", days=2)
    assert (await retention.keep(here.context))["secret_version"] == 0
    first = (await here.rows(Release))[0]
    await here.sql("update build set secret_versions = null where release_id = :r", r=first.id)
    await here.sql("update release set secret_versions = '{}' where id = :r", r=first.id)
    assert (await retention.keep(here.context))["secret_version"] == 1

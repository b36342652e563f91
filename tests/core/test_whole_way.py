"""The whole way of a build, step by step, as the other tests rely on it."""

from app.models import Artifact, Release
from tests.support.world import FILES, World, files_digest


async def test_a_build_goes_all_the_way(here: World) -> None:
    build = await here.submit("echo", env={"A": "1"})
    assert (build.status, build.attempt) == ("queued", 0)
    assert await here.jobs() == 1
    run = await here.run_of(build)
    assert (run.status, run.handle, run.launch_tries) == ("launching", "h1", 1)
    builder = await here.builder(build)
    orders = await builder.claim()
    assert orders["source"] == {"kind": "archive", "digest": files_digest(FILES)}
    await builder.log("hello")
    answer = await builder.complete(builder.success(await builder.push(), orders))
    assert answer.json() == {"accepted": True, "build_id": build.id, "build_status": "promoting"}
    await here.jobs()
    detail = (await here.http.get(f"/v1/builds/{build.id}")).json()
    assert detail["status"] == "succeeded", detail
    artifact = await here.one(Artifact, id=detail["artifact_id"])
    assert artifact.source_digest == files_digest(FILES)
    release = await here.one(Release, id=detail["release_id"])
    assert (release.status, release.number, release.config["env"]) == ("live", 1, {"A": "1"})
    service = await here.service("echo")
    assert (service.status, service.live_release_id, service.starts) == ("running", release.id, 1)
    unit = here.unit(release)
    assert unit.address is not None
    assert (service.address, service.instance_id) == (unit.address.url, unit.instance_id)
    assert here.yard.machines == {}, "the builder's machine was left behind"
    assert await here.kinds(build_id=build.id) == [
        "build.queued", "build.dispatching", "run.launching", "build.building", "run.running", "run.succeeded",
        "build.promoting", "release.pending", "release.deploying", "release.live", "build.succeeded",
    ]  # fmt: skip
    assert await here.waiting() == []


async def test_a_build_without_a_service_ends_with_its_artifact(here: World) -> None:
    build = await here.built()
    assert (build.status, build.release_id) == ("succeeded", None)
    assert (await here.one(Artifact, id=build.artifact_id)).run_id == (await here.run_of(build)).id

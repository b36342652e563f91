"""The builder's last word: signed, once, and checked against the registry."""

import asyncio
import json
import time

import pytest

from app.models import Artifact, Build, Release
from tests.support.builder import Builder, digest
from tests.support.world import World

SUCCEEDED = "succeeded"


async def ready(here: World, service: str | None = None) -> tuple[Build, Builder]:
    """Return a build whose builder was launched and has said nothing yet."""
    build = await here.submit(service)
    await here.jobs()
    return build, await here.builder(build)


async def claimed(here: World, service: str | None = None) -> tuple[Build, Builder]:
    build, builder = await ready(here, service)
    await builder.claim()
    return build, builder


async def test_a_completion_must_be_signed_and_fresh(here: World) -> None:
    build, builder = await claimed(here)
    body = {"status": "failed", "reason": "compile_error"}
    for how in (
        {"signature": "v1,AAAA"}, {"signature": "nonsense"}, {"timestamp": int(time.time()) - 301},
        {"timestamp": int(time.time()) + 330}, {"timestamp": "soon"},
    ):  # fmt: skip
        assert (await builder.complete(body, **how)).status_code == 401, how
    assert (await here.one(Build, id=build.id)).status == "building"


async def test_one_of_several_signatures_is_enough(here: World) -> None:
    """Standard Webhooks: several, separated by spaces, while a secret is being changed."""
    _, builder = await claimed(here)
    good = builder.sign(b'{"instance": "machine-1", "status": "failed", "reason": "timeout"}', int(time.time()))
    answer = await builder.complete({"status": "failed", "reason": "timeout"}, signature=f"v1,bad {good} v2,other")
    assert answer.json()["accepted"]


async def test_the_same_completion_again_gets_the_same_answer(here: World) -> None:
    build, builder = await ready(here, "echo")
    orders = await builder.claim()
    body = builder.success(await builder.push(), orders)
    first = await builder.complete(body)
    await here.jobs()
    assert (await builder.complete(body, timestamp=int(time.time()) - 5)).json() == first.json()
    late = await builder.other(webhook_id="msg_another").complete(body)
    assert late.json() == {"accepted": False, "build_id": build.id, "build_status": None}
    assert len(await here.rows(Artifact)) == len(await here.rows(Release)) == 1


async def test_completions_at_once_have_one_effect(here: World) -> None:
    _, builder = await ready(here, "echo")
    orders = await builder.claim()
    body = builder.success(await builder.push(), orders)
    doubled = [builder.complete(body) for _ in range(4)]
    others = [builder.other(webhook_id=f"msg_{n}").complete(body) for n in range(4)]
    answers = [a.json() for a in await asyncio.gather(*doubled, *others)]
    assert len(await here.rows(Artifact)) == len(await here.rows(Release)) == 1
    accepted = [a["accepted"] for a in answers]
    assert accepted.count(True) in {1, 4}, "one message id was accepted, and all who sent it were told so"
    kinds = await here.kinds(run_id=builder.run_id)
    assert kinds.count("run.succeeded") == 1


async def test_a_canceled_build_s_completion_is_not_taken(here: World) -> None:
    build, builder = await ready(here, "echo")
    orders = await builder.claim()
    image = await builder.push()
    await here.http.post(f"/v1/builds/{build.id}/cancel")
    answer = await builder.complete(builder.success(image, orders))
    assert (answer.status_code, answer.json()["accepted"]) == (200, False)
    assert await here.rows(Artifact) == []


LIES: dict[str, tuple[dict[str, dict[str, object]], str]] = {
    "another repository": ({"image": {"repository": "slipway/other"}}, "own repository"),
    "an image that is not there": ({"image": {"digest": digest(b"nothing")}}, "not what was reported"),
    "another source": ({"source": {"digest": digest(b"other")}}, "was ordered"),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_builder_s_word_is_not_enough(here: World, lie: str) -> None:
    build, builder = await ready(here)
    orders = await builder.claim()
    image = await builder.push()
    changes, said = LIES[lie]
    body = builder.success(image, orders)
    for part, change in changes.items():
        body[part] = body[part] | change
    answer = await builder.complete(body)
    assert answer.json()["accepted"]
    build = await here.one(Build, id=build.id)
    assert (build.status, build.reason) == ("failed", "push_failed")
    assert said in (build.message or "")


@pytest.mark.parametrize(
    "image",
    [
        {"architecture": "arm64"}, {"os": "windows"}, {"config": {"User": "root"}}, {"config": {"User": ""}},
        {"config": {"Entrypoint": []}},
    ],
)  # fmt: skip
async def test_an_image_that_we_would_not_run_is_refused(here: World, image: dict[str, object]) -> None:
    build, builder = await ready(here)
    await builder.finish(**image)
    build = await here.one(Build, id=build.id)
    assert (build.status, build.reason) == ("failed", "push_failed")


async def test_an_unavailable_registry_is_waited_for(here: World) -> None:
    build, builder = await ready(here)
    orders = await builder.claim()
    image = await builder.push()
    root = here.context.settings.home / "registry"
    layout = next(p for p in root.rglob("index.json"))
    layout.rename(layout.with_suffix(".away"))
    layout.mkdir()
    body = builder.success(image, orders)
    answer = await builder.complete(body)
    assert (answer.status_code, answer.json()["reason"]) == (503, "registry_unavailable")
    assert "retry-after" in answer.headers
    assert (await here.one(Build, id=build.id)).status == "building"
    layout.rmdir()
    layout.with_suffix(".away").rename(layout)
    assert (await builder.complete(body)).json()["accepted"]


async def test_words_that_no_database_holds_are_mended_or_refused(here: World) -> None:
    """What a compiler prints may hold anything; it must not make the completion fail for ever."""
    build, builder = await claimed(here)
    body = {
        "status": "failed", "reason": "compile_error", "message": "bad\x00",
        "diagnostics": [{"file": "a.go", "line": 1, "column": 1, "message": "nul \x00 here"}],
        "toolchain": {"go": "x\x00"}, "modules": [{"path": "p\x00"}],
    }  # fmt: skip
    assert (await builder.complete(body)).status_code == 200
    build = await here.one(Build, id=build.id)
    assert (build.message, build.diagnostics[0]["message"]) == ("bad�", "nul � here")


WRONG = [
    b'{"instance": "machine-1", "status": "failed", "timings": {"a": NaN}}',
    b'{"instance": "machine-1", "status": "failed", "timings": {"a": Infinity}}',
    b'{"instance": "machine-1", "status": "failed", "exit_code": 99999999999999999999}',
    b'{"instance": "machine-1", "status": "failed", "diagnostics": [{"message": "x", "line": 99999999999999999999}]}',
    b'{"instance": "machine-1", "status": "succeeded"}',
    b'{"instance": "machine-1", "status": "perhaps"}',
    b'{"instance": "machine-1"}',
]


async def test_a_completion_out_of_bounds_is_refused_for_good(here: World) -> None:
    _, builder = await claimed(here)
    for wrong in WRONG:
        answer = await builder.complete(raw=wrong)
        assert answer.status_code == 422, (wrong, answer.text)


async def test_a_completion_that_is_not_json_or_too_large(here: World) -> None:
    _, builder = await claimed(here)
    assert (await builder.complete(raw=b"{")).status_code == 400
    huge = json.dumps({"instance": "machine-1", "status": "failed", "message": "x" * 300_000}).encode()
    assert (await builder.complete(raw=huge)).status_code == 413


async def test_a_failure_keeps_its_reason_and_diagnostics(here: World) -> None:
    build, builder = await claimed(here)
    found = [{"file": "main.go", "line": 7, "column": 2, "message": "undefined: x"}]
    await builder.fail("compile_error", "it does not compile", diagnostics=found, exit_code=10)
    detail = (await here.http.get(f"/v1/builds/{build.id}")).json()
    assert detail["failure"]["reason"] == "compile_error"
    assert detail["failure"]["owner"] == "caller"
    assert detail["diagnostics"] == found
    assert detail["runs"][0]["exit_code"] == 10
    await here.jobs()
    assert here.yard.machines == {}


@pytest.mark.parametrize("said", [None, "nonsense", "superseded", "canceled_by_user"])
async def test_a_builder_can_t_choose_reasons_that_are_ours(here: World, said: str | None) -> None:
    build, builder = await claimed(here)
    await builder.complete({"status": "failed", "reason": said})
    build = await here.one(Build, id=build.id)
    assert (build.status, build.tried[0]["reason"]) == ("queued", "internal_error")


async def test_what_another_builder_may_not_meet_is_tried_again(here: World) -> None:
    build, builder = await claimed(here)
    await builder.fail("registry_unavailable")
    for _ in range(2):
        await here.sql("update build set not_before = now()")
        await here.hurry()
        builder = await here.builder(build)
        await builder.fail("registry_unavailable")
    build = await here.one(Build, id=build.id)
    assert (build.status, build.reason, build.attempt) == ("failed", "registry_unavailable", 3)


async def test_a_git_build_s_commit_is_fixed_by_its_first_run(here: World) -> None:
    body = here.order() | {"source": {"kind": "git", "url": "https://example.com/a.git", "ref": "main"}}
    build = await here.send(body)
    await here.jobs()
    builder = await here.builder(build)
    orders = await builder.claim()
    assert orders["source"]["commit"] is None
    answer = await here.http.get(
        f"/v1/runs/{builder.run_id}/source", headers={"Authorization": f"Bearer {builder.token}"}
    )
    assert answer.status_code == 409
    source = {"digest": digest(b"tree"), "commit": "a" * 40}
    await builder.complete(builder.success(await builder.push(), orders, source=source))
    build = await here.one(Build, id=build.id)
    assert (build.status, build.source["commit"], build.source_digest) == (SUCCEEDED, "a" * 40, digest(b"tree"))
    again = (await here.http.post(f"/v1/builds/{build.id}/retry")).json()
    assert again["source"]["commit"] == "a" * 40
    await here.jobs()
    builder = await here.builder(await here.one(Build, id=again["id"]))
    orders = await builder.claim()
    assert orders["source"]["commit"] == "a" * 40
    wrong = source | {"commit": "b" * 40}
    await builder.complete(builder.success(await builder.push(), orders, source=wrong))
    assert "fixed by the first run" in ((await here.one(Build, id=again["id"])).message or "")


async def test_a_run_s_grant_opens_its_own_repository_alone(here: World) -> None:
    _, builder = await claimed(here)
    grant = (await builder.post("push-grant")).json()
    headers = {"Authorization": f"Bearer {grant['token']}"}
    mine = await here.http.post(f"/v2/{grant['repository']}/blobs/uploads/", headers=headers)
    assert mine.status_code == 202
    assert (await here.http.post("/v2/slipway/run-other/blobs/uploads/", headers=headers)).status_code in {401, 403}


async def test_what_was_built_is_written_down(here: World) -> None:
    build, builder = await ready(here)
    orders = await builder.claim()
    modules = [{"path": "example.com/m", "version": "v1.2.3", "sum": "h1:x"}]
    await builder.complete(builder.success(await builder.push(), orders, modules=modules))
    artifact = (await here.http.get(f"/v1/builds/{build.id}")).json()["artifact"]
    assert artifact["toolchain"]["go"] == "go1.25.3"
    names = {(c["name"], c["version"]) for c in artifact["sbom"]["components"]}
    assert names == {("example.com/m", "v1.2.3"), ("std", "go1.25.3")}

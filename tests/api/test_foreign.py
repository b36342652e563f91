"""Projects see nothing of each other: every route, also those to come, is asked for what another project has."""

import re

from app.models import Build, Project
from tests.api.test_keys import caller, operations
from tests.support.problems import problem
from tests.support.world import World

NOT_OF_ROWS = {"/v1/platforms", "/v1/stats"}
"""Lists of what is no project's own, and figures, which tests/api/test_stats.py tells apart."""


async def one_of_each(here: World) -> dict[str, str]:
    """Make one thing of each kind in the default project; returns their ids by the name that paths have for them."""
    build, service, _ = await here.deployed("echo")
    key = (await here.http.get("/v1/keys")).json()["items"][0]
    hook = (await here.http.post("/v1/webhooks", json={"url": "https://hooks.example.com/"})).json()
    sent = (await here.http.post(f"/v1/webhooks/{hook['id']}/test")).json()
    batch = (await here.http.post("/v1/batches", json={"builds": [here.order()]})).json()
    await here.http.post("/v1/projects", json={"name": "acme"})
    await here.settled()
    return {
        "build_id": build.id, "name": service.name, "key_id": key["id"], "project": "default",
        "webhook_id": hook["id"], "delivery_id": sent["id"], "batch_id": batch["id"],
    }  # fmt: skip


async def test_what_another_project_has_is_not_there_on_any_route(here: World) -> None:
    theirs = await one_of_each(here)
    artifact = (await here.one(Build, id=theirs["build_id"])).artifact_id
    missing = {"build_id": "bld_none", "name": "none", "key_id": "key_none", "project": "none"}
    missing |= {"webhook_id": "whk_none", "delivery_id": "dlv_none", "batch_id": "bat_none"}
    bodies: dict[str, object] = {
        "/v1/services/{name}/releases": {"artifact_id": artifact},
        "/v1/services/{name}/migrate": {"platform": "elsewhere"},
        "/v1/services/{name}": {"port": 1},
        "/v1/webhooks/{webhook_id}": {},
    }
    async with caller(here, project="acme") as other:
        for method, path, _ in operations(here):
            names = re.findall(r"{(\w+)}", path)
            if not names:
                continue
            answers = []
            for ids in (theirs, missing):
                filled = path.format(**{n: ids[n] for n in names})  # a new kind of id has to be added above
                answers.append(await other.request(method, filled, json=bodies.get(path)))
            if path == "/v1/projects/{project}" and method == "PATCH":
                problem(answers[0], 403, "operators_only")
                continue
            problem(answers[0], 404)
            # Not even the words may tell that it is there.
            said = [a.text for a in answers]
            for n in names:
                said = [text.replace(i[n], "*") for text, i in zip(said, (theirs, missing), strict=True)]
            assert said[0] == said[1], path
        problem(await other.post("/v1/projects", json={"name": "more"}), 403, "operators_only")
        for answer in (
            await other.get("/v1/keys?project=default"),
            await other.post("/v1/keys", json={"name": "x", "project": "default"}),
        ):
            problem(answer, 403, "operators_only")


async def test_no_list_shows_what_another_project_has(here: World) -> None:
    theirs = await one_of_each(here)
    words = {*theirs.values(), (await here.service("echo")).id, (await here.one(Project, name="default")).id}
    words -= {"echo", "default"}  # names that anybody may use
    async with caller(here, project="acme") as other:
        mine = (await other.post("/v1/builds", json=here.order())).json()["id"]
        for method, path, _ in operations(here):
            if method != "GET" or "{" in path or path == "/metrics":
                continue
            answer = await other.get(path)
            assert (answer.status_code, [w for w in words if w in answer.text]) == (200, []), path
            shown = (await here.http.get(path)).text
            assert any(w in shown for w in words) or path in NOT_OF_ROWS, f"{path}: there was nothing to be seen"
        assert [b["id"] for b in (await other.get("/v1/builds")).json()["items"]] == [mine]
        assert (await other.get("/v1/builds?service=echo")).json()["items"] == []
        assert theirs["key_id"] not in (await other.get("/v1/keys?ended=true")).text
        for build in (theirs["build_id"], "bld_none"):
            problem(await other.get(f"/v1/events?build={build}"), 404, "build_not_found")


async def test_another_project_s_artifact_is_not_there(here: World) -> None:
    build, _, _ = await here.deployed("echo")
    _, other = await here.project("acme")
    async with other:
        sent = await other.post("/v1/builds", json=here.order("echo"))
        mine = await here.one(Build, id=sent.json()["id"])
        await here.jobs()
        await (await here.builder(mine)).finish()
        await here.jobs()
        answer = await other.post("/v1/services/echo/releases", json={"artifact_id": build.artifact_id})
        problem(answer, 404, "artifact_not_found")

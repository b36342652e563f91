"""What the verbs do, when the answer leaves, and what is told when something is away or broken."""

import asyncio
import json
import re
from typing import Any

import asyncpg
from fastapi.routing import APIRoute
from starlette.types import Message

from app.models import Build
from tests.support.databases import SharedServer
from tests.support.platform import NAME
from tests.support.problems import problem
from tests.support.world import World


async def test_cancel_again_is_fine_and_after_the_end_is_not(here: World) -> None:
    build = await here.submit()
    for _ in range(2):
        answer = await here.http.post(f"/v1/builds/{build.id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    assert (await here.kinds(build_id=build.id)).count("build.canceled") == 1
    await here.jobs()
    assert here.yard.launched == [], "a canceled build got a builder"
    ended = await here.built()
    problem(await here.http.post(f"/v1/builds/{ended.id}/cancel"), 409, "build_ended")


async def test_retry_is_a_new_build_like_the_old(here: World) -> None:
    old = await here.submit("echo", env={"A": "1"}, secrets={"K": "x"})
    problem(await here.http.post(f"/v1/builds/{old.id}/retry"), 409, "build_not_ended")
    await here.http.post(f"/v1/builds/{old.id}/cancel")
    answer = await here.http.post(f"/v1/builds/{old.id}/retry")
    assert answer.status_code == 202
    fresh = await here.one(Build, id=answer.json()["id"])
    assert answer.headers["location"] == f"/v1/builds/{fresh.id}"
    assert (fresh.retry_of, fresh.status, fresh.source) == (old.id, "queued", old.source)
    assert (fresh.config, fresh.secret_versions) == (old.config, old.secret_versions)
    assert old.sequence is not None
    assert fresh.sequence == old.sequence + 1
    await here.jobs()
    await (await here.builder(fresh)).finish()
    await here.jobs()
    assert (await here.one(Build, id=fresh.id)).status == "succeeded"


async def test_a_build_s_answer_points_to_it(here: World) -> None:
    answer = await here.http.post("/v1/builds", json=here.order("echo"))
    assert answer.status_code == 202
    where = answer.headers["location"]
    assert where == f"/v1/builds/{answer.json()['id']}"
    detail = (await here.http.get(where)).json()
    assert (detail["status"], detail["service"], detail["platform"]) == ("queued", "echo", NAME)
    assert detail["runs"] == []


async def test_platforms_are_listed_with_what_they_can(here: World) -> None:
    (item,) = (await here.http.get("/v1/platforms")).json()["items"]
    assert (item["name"], item["configured"], item["builders"], item["services"]) == (NAME, True, True, True)
    assert item["traits"]["scale_to_zero"] == "manual"
    assert item["traits"]["max_builders"] == here.yard.traits.max_builders


async def ask(app: Any, method: str, path: str, key: str, on_start: Any, body: bytes | None = b"") -> int:
    """Send a request over bare ASGI; ``on_start`` is awaited when the answer's head leaves. Returns the status.

    Without a ``body`` the caller leaves where it should begin.
    """
    sent: list[Message] = []

    async def receive() -> Message:
        if body is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            await on_start()
        sent.append(message)

    headers = [(b"authorization", f"Bearer {key}".encode()), (b"content-type", b"application/json"), (b"host", b"x")]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "query_string": b"", "headers": headers, "scheme": "http", "server": ("x", 80),
        "client": ("127.0.0.1", 1), "root_path": "",
    }  # fmt: skip
    await app(scope, receive, send)
    return int(sent[0]["status"])


async def test_who_leaves_in_the_middle_of_a_body_crashes_nothing(here: World) -> None:
    async def nothing() -> None: ...

    assert await ask(here.app, "POST", "/v1/sources", here.key, nothing, None) == 400


async def test_the_commit_is_done_before_the_answer_leaves(here: World) -> None:
    """Whoever is told "202" finds the row, asking over another connection at that very moment."""
    await here.deployed("echo")
    seen: list[int] = []
    connection = await asyncpg.connect(here.database_url)

    def look(query: str) -> Any:
        async def at_start() -> None:
            seen.append(await connection.fetchval(query))

        return at_start

    try:
        for method, path, body, query in (
            ("POST", "/v1/builds", json.dumps(here.order()).encode(), "select count(*) from build"),
            ("PATCH", "/v1/services/echo", b'{"port": 81}', "select count(*) from release where kind = 'config'"),
            ("DELETE", "/v1/services/echo", b"", "select count(*) + 1 from service where status = 'deleting'"),
        ):
            assert await ask(here.app, method, path, here.key, look(query), body) == 202
    finally:
        await connection.close()
    assert seen == [2, 1, 2]


async def test_a_commit_that_fails_is_not_told_as_success(here: World) -> None:
    await here.deployed("echo")
    await here.sql("create function refuse() returns trigger language plpgsql as 'begin raise exception ''no''; end'")
    await here.sql(
        "create constraint trigger late after insert on release deferrable initially deferred "
        "for each row execute function refuse()"
    )
    problem(await here.http.patch("/v1/services/echo", json={"port": 81}), 500, "internal_error")
    assert len((await here.http.get("/v1/services/echo/releases")).json()["items"]) == 1


async def test_a_crash_is_a_problem_that_tells_nothing(here: World) -> None:
    @here.app.get("/crash")
    async def crash() -> None:
        raise RuntimeError("a secret of ours")

    body = problem(await here.http.get("/crash"), 500, "internal_error")
    assert "secret" not in str(body)


async def test_readyz_tells_an_old_schema(here: World) -> None:
    assert (await here.http.get("/readyz")).json()["status"] == "ready"
    await here.sql("update alembic_version set version_num = '0001'")
    problem(await here.http.get("/readyz"), 503, "schema_outdated")
    await here.sql("drop table alembic_version")
    problem(await here.http.get("/readyz"), 503, "schema_outdated")
    assert (await here.http.get("/healthz")).status_code == 200


async def test_a_database_that_is_away_is_503(here: World, postgres: SharedServer) -> None:
    name = here.database_url.rpartition("/")[2].partition("?")[0]
    admin = await asyncpg.connect(postgres.url)
    try:
        await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name)
        await admin.execute(f"alter database {name} rename to {name}_away")
        for _ in range(30):  # every pooled connection is dead once, and none can be made
            answers = await asyncio.gather(*(here.http.get(p) for p in ("/readyz", "/v1/builds", "/v1/services/x")))
            for answer in answers:
                problem(answer, 503, "database_unavailable")
                assert int(answer.headers["retry-after"]) > 0
        assert (await here.http.get("/healthz")).status_code == 200
        await admin.execute(f"alter database {name}_away rename to {name}")
        assert (await here.http.get("/readyz")).status_code == 200
        assert (await here.http.get("/v1/builds")).status_code == 200
    finally:
        await admin.close()


# --------------------------------------------------------------------------------------------------- description


async def test_the_description_holds_together(here: World) -> None:
    document = (await here.http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1.")
    operations = [(p, m, o) for p, ops in document["paths"].items() for m, o in ops.items()]
    ids = [o["operationId"] for _, _, o in operations]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", i) for i in ids), "they make good names of methods"
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert names <= set(document["components"]["schemas"])
    for path, method, operation in operations:
        assert operation["summary"], (method, path)
        assert operation["description"], (method, path)
        assert operation["tags"], (method, path)
        for status, answer in operation["responses"].items():
            if int(status) >= 400:
                schema = answer["content"]["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}, (method, path, status)
                assert set(answer["content"]) == {"application/problem+json"}, (method, path, status)
        assert {"500", "503"} <= set(operation["responses"]), (method, path)
    declared = {(m.upper(), p) for p, m, _ in operations}
    served = {
        (method, route.path)
        for route in here.app.routes
        if isinstance(route, APIRoute)
        for method in (route.methods or ())
    }
    assert served <= declared

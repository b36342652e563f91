"""Every route: who may come in, what is not there, what lists give, and when the answer leaves."""

import asyncio
import base64
import json
import re
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.types import Message

from app.api.deps import encode_cursor
from app.models import Build
from tests.support.databases import SharedServer
from tests.support.platform import NAME
from tests.support.world import World, client

MISSING = {"build_id": "bld_none", "name": "none", "run_id": "run_none"}
PUBLIC = {"/healthz", "/readyz"}


def routes(here: World) -> list[tuple[str, str]]:
    """Return (method, path) of every operation in the API's own description."""
    paths = here.app.openapi()["paths"]
    return [(method.upper(), path) for path, operations in paths.items() for method in operations]


def filled(path: str) -> str:
    return re.sub(r"{(\w+)}", lambda m: MISSING[m[1]], path)


def problem(answer: httpx.Response, status: int, reason: str) -> dict[str, Any]:
    """Check that an answer is a whole problem document and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["reason"] == reason
    assert body["status"] == status
    assert body["type"] == f"https://slipway.dev/problems/{reason.replace('_', '-')}"
    assert body["title"]
    assert body["detail"]
    return body


async def test_nobody_comes_in_without_a_key(here: World) -> None:
    for key in (None, "nonsense", "slp_" + "x" * 43, "slr.x.y"):
        async with client(here.app, key) as stranger:
            for method, path in routes(here):
                if path in PUBLIC:
                    continue
                # The body is wrong too: who has no key is told nothing about it.
                answer = await stranger.request(method, filled(path), content=b"{")
                problem(answer, 401, "unauthorized")
                assert answer.headers["www-authenticate"] == "Bearer"


async def test_public_routes_need_none(here: World) -> None:
    async with client(here.app, None) as stranger:
        for path in PUBLIC:
            assert (await stranger.get(path)).status_code == 200


async def test_what_is_not_there_is_404_and_says_what(here: World) -> None:
    for method, path in routes(here):
        if "{name}" not in path and "{build_id}" not in path:
            continue
        body = {"artifact_id": f"art_{'0' * 26}"} if path.endswith("/releases") and method == "POST" else {}
        answer = await here.http.request(method, filled(path), json=body or None)
        if method == "PATCH":
            answer = await here.http.patch(filled(path), json={"port": 1})
        problem(answer, 404, "service_not_found" if "{name}" in path else "build_not_found")


async def test_another_project_s_things_are_not_there(here: World) -> None:
    build, _, _ = await here.deployed("echo")
    _, other = await here.project("acme")
    async with other:
        for path in (f"/v1/builds/{build.id}", f"/v1/builds/{build.id}/logs", f"/v1/builds/{build.id}/events"):
            problem(await other.get(path), 404, "build_not_found")
        for verb in ("cancel", "retry"):
            problem(await other.post(f"/v1/builds/{build.id}/{verb}"), 404, "build_not_found")
        problem(await other.get("/v1/services/echo"), 404, "service_not_found")
        problem(await other.delete("/v1/services/echo"), 404, "service_not_found")
        assert (await other.get("/v1/services")).json() == {"items": [], "next_cursor": None}
        digest = build.source["digest"]
        body = {"source": {"kind": "upload", "digest": digest}, "platform": NAME}
        assert (await other.post("/v1/builds", json=body)).status_code == 422, "a digest opened another's source"


async def test_unknown_routes_and_methods(here: World) -> None:
    problem(await here.http.get("/v1/nothing"), 404, "route_not_found")
    problem(await here.http.put("/v1/builds"), 405, "method_not_allowed")
    problem(await here.http.delete("/healthz"), 405, "method_not_allowed")


@pytest.mark.parametrize(
    "path", ["/v1/builds/%00", "/v1/services/a%00b", "/v1/builds?service=%00", "/v1/runs/%00/source"]
)
async def test_a_nul_in_an_address_is_nobody_s_name(here: World, path: str) -> None:
    problem(await here.http.get(path), 404, "route_not_found")


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=x", "status=done", "service=" + "a" * 41, "&".join(["label=a"] * 9)]
)
async def test_queries_have_bounds(here: World, query: str) -> None:
    body = problem(await here.http.get(f"/v1/builds?{query}"), 422, "invalid_request")
    assert body["errors"][0]["field"].partition(".")[0] == query.partition("=")[0]


CURSORS = [
    "x", "!!!", "ä", "a" * 512, encode_cursor(1, 2, 3), encode_cursor(None), encode_cursor({}), encode_cursor("\x00"),
    encode_cursor(10**30), encode_cursor(True), encode_cursor(1.5), base64.urlsafe_b64encode(b"[" * 300).decode(),
]  # fmt: skip


@pytest.mark.parametrize("cursor", CURSORS)
async def test_a_cursor_of_somebody_else(here: World, cursor: str) -> None:
    build, _, _ = await here.deployed("echo")
    strings = ("/v1/builds", "/v1/services")
    numbers = ("/v1/services/echo/releases", f"/v1/builds/{build.id}/events", f"/v1/builds/{build.id}/logs")
    for path in (*strings, *numbers):
        problem(await here.http.get(path, params={"cursor": cursor}), 422, "invalid_cursor")


async def pages(http: httpx.AsyncClient, path: str, **query: Any) -> list[list[dict[str, Any]]]:
    found, cursor = [], None
    while True:
        answer = await http.get(path, params=query | ({"cursor": cursor} if cursor else {}))
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found.append(page["items"])
        cursor = page["next_cursor"]
        if cursor is None:
            return found


async def test_pages_hold_everything_once_while_more_comes(here: World) -> None:
    first = [(await here.submit(f"svc-{n}")).id for n in range(5)]
    answer = (await here.http.get("/v1/builds", params={"limit": 2})).json()
    await here.submit("late")
    rest = (await here.http.get("/v1/builds", params={"limit": 200, "cursor": answer["next_cursor"]})).json()
    seen = [b["id"] for b in [*answer["items"], *rest["items"]]]
    assert seen == first[::-1]
    assert rest["next_cursor"] is None
    assert [len(p) for p in await pages(here.http, "/v1/services", limit=2)] == [2, 2, 2]
    assert [len(p) for p in await pages(here.http, "/v1/services", limit=3)] == [3, 3]


async def test_lists_can_be_narrowed(here: World) -> None:
    body = here.order("echo") | {"labels": {"team": "a", "x": "1"}}
    mine = (await here.http.post("/v1/builds", json=body)).json()["id"]
    other = (await here.submit()).id
    await here.http.post(f"/v1/builds/{other}/cancel")
    for query, found in (
        ({"label": "team=a"}, [mine]), ({"label": ["team=a", "x=1"]}, [mine]), ({"label": ["team=a", "x=2"]}, []),
        ({"service": "echo"}, [mine]), ({"status": "canceled"}, [other]), ({"status": "queued"}, [mine]),
        ({"label": "nothing"}, []),
    ):  # fmt: skip
        items = (await here.http.get("/v1/builds", params=query)).json()["items"]
        assert [b["id"] for b in items] == found, query
    assert len((await here.http.get("/v1/services?status=pending")).json()["items"]) == 1
    assert (await here.http.get("/v1/services?status=running")).json()["items"] == []


async def test_releases_and_events_come_page_by_page(here: World) -> None:
    build, _, _ = await here.deployed("echo")
    for n in range(3):
        await here.http.patch("/v1/services/echo", json={"env": {"V": str(n)}})
        await here.jobs()
    releases = await pages(here.http, "/v1/services/echo/releases", limit=2)
    assert [[r["number"] for r in p] for p in releases] == [[4, 3], [2, 1]]
    assert {r["digest"] for p in releases for r in p} == {releases[0][0]["digest"]}
    events = await pages(here.http, f"/v1/builds/{build.id}/events", limit=3)
    kinds = [e["kind"] for p in events for e in p]
    assert kinds == await here.kinds(build_id=build.id)
    assert kinds[0] == "build.queued"


async def test_logs_as_lines_and_as_text(here: World) -> None:
    build = await here.submit()
    await here.jobs()
    builder = await here.builder(build)
    await builder.claim()
    for n in range(5):
        await builder.log(f"line {2 * n}", f"line {2 * n + 1}", seq=2 * n)
    path = f"/v1/builds/{build.id}/logs"
    found = await pages(here.http, path, limit=3)
    assert [len(p) for p in found] == [3, 3, 3, 1]
    texts = [line["text"] for p in found for line in p]
    assert texts == [f"line {n}" for n in range(10)]
    plain = await here.http.get(path, headers={"Accept": "text/plain"})
    assert plain.headers["content-type"].startswith("text/plain")
    assert plain.text == "".join(f"{t}\n" for t in texts)


async def test_a_service_s_own_log(here: World) -> None:
    await here.deployed("echo")
    items = (await here.http.get("/v1/services/echo/logs")).json()["items"]
    assert [line["text"] for line in items] == ["start 1"]
    await here.submit("fresh")
    assert (await here.http.get("/v1/services/fresh/logs")).json()["items"] == []
    del here.context.catalog.held[NAME]
    problem(await here.http.get("/v1/services/echo/logs"), 409, "logs_elsewhere")


# --------------------------------------------------------------------------------------------------- verbs


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


# --------------------------------------------------------------------------------------------------- the answer


async def ask(app: Any, method: str, path: str, key: str, on_start: Any, body: bytes = b"") -> int:
    """Send a request over bare ASGI; ``on_start`` is awaited when the answer's head leaves. Returns the status."""
    sent: list[Message] = []

    async def receive() -> Message:
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
        assert {"422", "500", "503"} <= set(operation["responses"]), (method, path)
    declared = {(m.upper(), p) for p, m, _ in operations}
    served = {
        (method, route.path)
        for route in here.app.routes
        if isinstance(route, APIRoute)
        for method in (route.methods or ())
    }
    assert served <= declared

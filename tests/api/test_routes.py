"""Every route: who may come in, what is not there, what lists give, and when the answer leaves."""

import base64
import itertools
import re
from typing import Any

import httpx
import pytest

from app.api.deps import encode_cursor
from tests.support.platform import NAME
from tests.support.problems import problem
from tests.support.world import World, client

KINDS = {"build_id": "build", "batch_id": "batch", "name": "service", "webhook_id": "webhook"}
PUBLIC = {"/healthz", "/readyz"}


def routes(here: World) -> list[tuple[str, str]]:
    """Return (method, path) of every operation in the API's own description."""
    paths = here.app.openapi()["paths"]
    return [(method.upper(), path) for path, operations in paths.items() for method in operations]


def filled(path: str) -> str:
    return re.sub(r"{\w+}", "none", path)


async def test_nobody_comes_in_without_a_key(here: World) -> None:
    for key in (None, "nonsense", "slp_" + "x" * 43, "slr.x.y"):
        async with client(here.app, key) as stranger:
            for method, path in routes(here):
                if path in PUBLIC:
                    continue
                # The body is wrong too: who has no key is told nothing about it.
                wrong = {"Content-Type": "application/json"}
                answer = await stranger.request(method, filled(path), content=b"{", headers=wrong)
                problem(answer, 401, "unauthorized")
                assert answer.headers["www-authenticate"] == "Bearer"


async def test_public_routes_need_none(here: World) -> None:
    async with client(here.app, None) as stranger:
        for path in PUBLIC:
            assert (await stranger.get(path)).status_code == 200


async def test_what_is_not_there_is_404_and_says_what(here: World) -> None:
    for method, path in routes(here):
        what = next((w for name, w in KINDS.items() if f"{{{name}}}" in path), None)
        if what is None:
            continue
        bodies = {"releases": {"artifact_id": f"art_{'0' * 26}"}, "migrate": {"platform": "elsewhere"}}
        body = bodies.get(path.rpartition("/")[2]) if method == "POST" else None
        answer = await here.http.request(method, filled(path), json=body)
        if method == "PATCH":
            answer = await here.http.patch(filled(path), json={"port": 1} if what == "service" else {})
        problem(answer, 404, f"{what}_not_found")


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
    answer = await here.http.put("/v1/builds")
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"
    problem(await here.http.delete("/healthz"), 405, "method_not_allowed")


@pytest.mark.parametrize("path", ["/v1/builds/%00", "/v1/services/a%00b", "/v1/runs/%00/source"])
async def test_a_nul_in_an_address_is_nobody_s_name(here: World, path: str) -> None:
    problem(await here.http.get(path), 404, "route_not_found")


@pytest.mark.parametrize(
    ("query", "field"), [("service=%00", "service"), ("limit=5&label=a=%00b", "label"), ("x%00=", "x\ufffd")]
)
async def test_a_nul_in_a_query_is_refused(here: World, query: str, field: str) -> None:
    body = problem(await here.http.get(f"/v1/builds?{query}"), 422, "invalid_request")
    assert [e["field"] for e in body["errors"]] == [field]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=201", "limit=x", "status=done", "service=" + "a" * 41, "&".join(["label=a"] * 9),
        "since=0", "until=1767322800", "since=2026-01-02", "until=2026-01-02T03:04:05",
    ],
)  # fmt: skip
async def test_queries_have_bounds(here: World, query: str) -> None:
    body = problem(await here.http.get(f"/v1/builds?{query}"), 422, "invalid_request")
    assert body["errors"][0]["field"].partition(".")[0] == query.partition("=")[0]


CURSORS = [
    "x", "!!!", "ä", "a" * 512, encode_cursor(1, 2, 3), encode_cursor(None), encode_cursor({}), encode_cursor("\x00"),
    encode_cursor(10**30), encode_cursor(True), encode_cursor(1.5), base64.urlsafe_b64encode(b"[" * 300).decode(),
]  # fmt: skip


async def test_a_cursor_of_somebody_else(here: World) -> None:
    build, _, _ = await here.deployed("echo")
    strings = ("/v1/builds", "/v1/services")
    numbers = ("/v1/services/echo/releases", f"/v1/builds/{build.id}/events", f"/v1/builds/{build.id}/logs")
    for path, cursor in itertools.product((*strings, *numbers), CURSORS):
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
    await here.settled()
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

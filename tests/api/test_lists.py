"""Lists of many builds: every filter is a short walk along an index, whatever share of the rows it keeps."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import event, text
from sqlalchemy.dialects import postgresql

from app.api import lists
from app.api.deps import encode_cursor
from app.ids import first_id, new_id
from app.models import Project
from tests.support.world import World, world

MANY = 3000
HOOK = "https://hooks.example.com/"
NONE: dict[str, Any] = dict.fromkeys(("status", "platform", "service", "since", "until", "cursor")) | {"labels": []}
FILTERS: list[dict[str, Any]] = [
    {}, {"status": "failed"}, {"platform": "there"}, {"service": "rare"}, {"labels": ["rare=1"]}, {"labels": ["all=1"]},
    {"labels": ["all=1", "rare=1"]}, {"status": "failed", "labels": ["rare=1"]},
]  # fmt: skip


async def fill(here: World) -> str:
    """Make builds a minute apart; one in a thousand is rare in every way, and the newest are not."""
    project = await here.one(Project, name="default")
    await here.sql(
        "insert into service (id, project_id, name, host, platform, status, deleted_at) "
        "values ('svc_rare', :p, 'rare', 'rare', 'here', 'pending', null), "
        "('svc_once', :p, 'rare', 'once', 'here', 'deleted', now())",
        p=project.id,
    )
    await here.sql(
        "insert into build (id, project_id, status, builder_platform, source, spec, labels, service_id, created_at) "
        "select 'bld_' || lpad(n::text, 26, '0'), :p, case when n % 1000 = 1 then 'failed' else 'succeeded' end, "
        "case when n % 1000 = 1 then 'there' else 'here' end, '{\"kind\": \"archive\"}', '{}', "
        'case when n % 1000 = 1 then \'{"all": "1", "rare": "1"}\'::jsonb else \'{"all": "1"}\' end, '
        "case when n % 1000 = 1 then case when n < 2000 then 'svc_once' else 'svc_rare' end end, "
        "now() - make_interval(mins => :many - n) "
        "from generate_series(1, :many) n",
        p=project.id,
        many=MANY,
    )
    await here.sql("analyze build")
    await here.sql("analyze build_label")
    return project.id


@pytest.mark.parametrize("deep", [False, True])
async def test_no_page_reads_or_sorts_the_whole(here: World, deep: bool) -> None:
    await fill(here)
    project = await here.one(Project, name="default")
    cursor = encode_cursor("bld_" + "1500".rjust(26, "0")) if deep else None
    for narrowed in FILTERS:
        async with here.context.sessions() as session:
            statement = lists.builds(project, limit=51, **NONE | {"cursor": cursor} | narrowed)
            sql = str(
                statement.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})  # type: ignore[no-untyped-call]
            )
            found = (
                await session.execute(text(f"explain (analyze, format json) {sql.replace(':', chr(92) + ':')}"))
            ).scalar_one()
        nodes = list(walk(found[0]["Plan"]))
        read = [n for n in nodes if n.get("Relation Name") in {"build", "build_label"}]
        assert read
        for node in read:
            assert node["Node Type"] in {"Index Scan", "Index Only Scan"}, (narrowed, node)
            assert node.get("Rows Removed by Filter", 0) == 0, (narrowed, node)
            assert node["Actual Rows"] * node["Actual Loops"] <= 51, (narrowed, node)


def walk(node: dict[str, Any]) -> Any:
    yield node
    for inner in node.get("Plans", ()):
        yield from walk(inner)


async def test_a_list_is_narrowed_and_says_where_it_goes_on(here: World) -> None:
    old = {"labels": {"k": "a=b"}}
    first = (await here.http.post("/v1/builds", json=here.order("echo") | old)).json()
    second = (await here.http.post("/v1/builds", json=here.order() | old)).json()
    at = datetime.fromisoformat(second["created_at"])
    for query, wanted in (
        ({"label": "k=a=b"}, [second, first]), ({"label": ["k=a=b", "x=1"]}, []), ({"platform": "yard"}, [second, first]),
        ({"platform": "none"}, []), ({"service": "echo"}, [first]), ({"service": "none"}, []),
        ({"since": at.isoformat()}, [second]), ({"until": at.isoformat()}, [first]),
        ({"until": at.isoformat(), "label": "k=a=b"}, [first]),
    ):  # fmt: skip
        answer = await here.http.get("/v1/builds", params=query)
        assert [b["id"] for b in answer.json()["items"]] == [b["id"] for b in wanted], query
        assert "link" not in answer.headers
    answer = await here.http.get("/v1/builds", params={"limit": 1, "label": "k=a=b"})
    where = answer.headers["link"].partition(">")[0].removeprefix("<")
    assert [b["id"] for b in (await here.http.get(where)).json()["items"]] == [first["id"]]
    assert (await here.http.get("/v1/builds?since=2026-01-01T00:00:00")).status_code == 422
    await here.sql("delete from build where id = :id", id=second["id"])
    assert [r.build_id for r in await here.sql("select build_id from build_label")] == [first["id"]]


async def walk_links(here: World, path: str) -> list[Any]:
    """Return the items of a list by pages of one, where each says where the next is."""
    found, pages = [], 0
    where = f"{path}{'&' if '?' in path else '?'}limit=1"
    while where:
        answer = await here.http.get(where)
        assert answer.status_code == 200, answer.text
        found += answer.json()["items"]
        pages += 1
        where = answer.headers.get("link", "").partition(">")[0].removeprefix("<")
    assert pages > 1, path
    return found


async def test_every_list_says_where_it_goes_on(here: World) -> None:
    build = await here.submit("echo")
    await here.jobs()
    builder = await here.builder(build)
    await builder.claim()
    assert (await builder.log("one", "two")).is_success
    await builder.finish()
    await here.jobs()
    for name in ("echo", "other"):
        await here.deployed(name)
    await here.settled()
    for path, body in (("keys", {"name": "two"}), ("projects", {"name": "two"}), *[("webhooks", {"url": HOOK})] * 2):
        answer = await here.http.post(f"/v1/{path}", json=body)
        assert answer.status_code == 201, answer.text
    events = (await here.http.get(f"/v1/builds/{build.id}/events")).json()
    for path in (
        "builds", "services", "services/echo/releases", "events", f"builds/{build.id}/events", f"builds/{build.id}/logs",
        f"events?after={events['items'][1]['id']}", "keys", "projects", "webhooks",
    ):  # fmt: skip
        whole = (await here.http.get(f"/v1/{path}")).json()["items"]
        assert await walk_links(here, f"/v1/{path}") == whole, path


async def test_services_and_releases_are_narrowed(here: World) -> None:
    asked: list[str] = []
    for name in ("one", "two", "two"):
        await here.deployed(name)
    event.listen(here.context.engine.sync_engine, "before_cursor_execute", lambda *a: asked.append(a[2]))
    services = (await here.http.get("/v1/services")).json()["items"]
    assert len([s for s in asked if "FROM service" in s or "FROM release" in s]) == 1, "a list is one statement"
    assert [s["name"] for s in services] == ["two", "one"]
    assert all(s["live_release"]["digest"] for s in services)
    assert services == [(await here.http.get(f"/v1/services/{n}")).json() for n in ("two", "one")]
    at = services[0]["created_at"]
    for query, wanted in (({"since": at}, ["two"]), ({"until": at}, ["one"]), ({"since": at, "until": at}, [])):
        found = (await here.http.get("/v1/services", params=query)).json()["items"]
        assert [s["name"] for s in found] == wanted, query
    for status, numbers in (("live", [2]), ("superseded", [1]), ("failed", [])):
        found = (await here.http.get("/v1/services/two/releases", params={"status": status})).json()["items"]
        assert [r["number"] for r in found] == numbers, status


def test_ids_sort_by_the_time_they_hold() -> None:
    now = datetime.now(UTC)
    assert first_id("bld", now - timedelta(seconds=1)) < new_id("bld") < first_id("bld", now + timedelta(minutes=1))
    assert len(first_id("bld", now)) == len(new_id("bld"))


async def test_pages_of_other_origins_may_call_where_the_operator_says_so(database_url: str, tmp_path: Any) -> None:
    origin = "https://dashboard.example.com"
    async with world(database_url, tmp_path / "home", cors_origins=(origin,)) as here:
        asked = {"Origin": origin, "Access-Control-Request-Method": "GET"}
        headers = asked | {"Access-Control-Request-Headers": "authorization, last-event-id, prefer"}
        answer = await here.http.options("/v1/builds", headers=headers)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        assert int(answer.headers["access-control-max-age"]) >= 600

        @here.app.get("/crash")
        async def crash() -> None:
            raise RuntimeError

        answers: list[httpx.Response] = [
            await here.http.get(p, headers={"Origin": origin}) for p in ("/v1/builds", "/v1/builds/none", "/crash")
        ]
        assert [a.status_code for a in answers] == [200, 404, 500]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == origin
            exposed = {h.strip() for h in answer.headers["access-control-expose-headers"].split(",")}
            assert {
                "Location",
                "Link",
                "Retry-After",
                "RateLimit",
                "Preference-Applied",
                "Idempotency-Replayed",
            } <= exposed
        stranger = await here.http.get("/v1/builds", headers={"Origin": "https://evil.example.com"})
        assert "access-control-allow-origin" not in stranger.headers


async def test_no_origin_may_call_unless_the_operator_says_so(here: World) -> None:
    answer = await here.http.get("/v1/builds", headers={"Origin": "https://dashboard.example.com"})
    assert "access-control-allow-origin" not in answer.headers

"""``Idempotency-Key``: one effect and one answer, however often and however at once a request is sent."""

import asyncio
from typing import Any

import httpx
import pytest

from app.api.once import OnceRoute
from app.main import ROUTERS
from tests.support.problems import problem
from tests.support.world import World, client

Json = dict[str, Any]
NOT_CREATING = {"cancel_batch", "cancel_build", "sleep_service", "wake_service"}
"""POSTs that may be sent twice as they are."""


async def count(here: World, table: str = "build") -> int:
    return int((await here.sql(f"select count(*) as n from {table}"))[0].n)


def with_key(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


async def test_every_creating_post_takes_a_key(here: World) -> None:
    for path, methods in here.app.openapi()["paths"].items():
        for method, operation in methods.items():
            if method != "post" or path.startswith("/v1/runs/") or operation["operationId"] in NOT_CREATING:
                continue
            names = [p["name"] for p in operation.get("parameters", [])]
            assert "Idempotency-Key" in names, operation["operationId"]
    for router in ROUTERS:
        for route in router.routes:
            names = [p.alias for p in route.dependant.header_params]
            assert isinstance(route, OnceRoute) or "Idempotency-Key" not in names, "the answer is kept nowhere"


async def test_the_same_request_again_gets_the_first_answer_and_has_no_other_effect(here: World) -> None:
    order = here.order("echo")
    first = await here.http.post("/v1/builds", json=order, headers=with_key("k1"))
    assert "idempotency-replayed" not in first.headers
    # The same in another spelling of JSON.
    again = await here.http.post("/v1/builds", json=dict(reversed(order.items())), headers=with_key("k1"))
    assert again.status_code == first.status_code == 202
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert again.json() == first.json()
    assert await count(here) == 1
    assert len(await here.waiting("dispatch")) == 1


async def test_another_request_under_the_same_key_is_refused(here: World) -> None:
    await here.http.post("/v1/builds", json=here.order(), headers=with_key("k1"))
    for path, body in (
        ("/v1/builds", here.order("echo")),
        ("/v1/builds?x=1", here.order()),
        ("/v1/projects", {"name": "a"}),
    ):
        problem(
            await here.http.post(path, json=body, headers=with_key("k1")),
            422,
            "idempotency_key_reused",
            field="Idempotency-Key",
        )
    assert await count(here) == 1


async def test_a_key_is_its_project_s_own(here: World) -> None:
    await here.http.post("/v1/builds", json=here.order(), headers=with_key("k1"))
    _, other = await here.project("acme")
    async with other:
        answer = await other.post("/v1/builds", json=here.order(), headers=with_key("k1"))
    assert "idempotency-replayed" not in answer.headers
    assert await count(here) == 2


async def test_a_replay_needs_the_scope_of_the_first(here: World) -> None:
    await here.http.post("/v1/builds", json=here.order(), headers=with_key("k1"))
    narrow = (await here.http.post("/v1/keys", json={"name": "x", "scopes": ["builds:read"]})).json()["key"]
    async with client(here.app, narrow) as reader:
        problem(await reader.post("/v1/builds", json=here.order(), headers=with_key("k1")), 403, "insufficient_scope")


async def test_one_effect_of_many_at_once(here: World) -> None:
    answers = await asyncio.gather(
        *(here.http.post("/v1/builds", json=here.order(), headers=with_key("k1")) for _ in range(12))
    )
    assert await count(here) == 1
    good = [a for a in answers if a.status_code == 202]
    assert len({a.json()["id"] for a in good}) == 1
    for answer in answers:
        if answer.status_code != 202:
            problem(answer, 409, "idempotency_in_flight")
            assert answer.headers["retry-after"] == "1"


async def test_what_is_under_way_is_told_without_waiting(here: World) -> None:
    async with here.context.sessions.begin() as session:
        # As the first one does, which has not committed yet.
        from app.api.once import Once

        body = b'{"name":"acme"}'
        project = (await here.sql("select id from project"))[0].id
        await Once(here.context, project, "k1", "POST /v1/projects?").enter(session, body)
        answer = await here.http.post("/v1/projects", json={"name": "acme"}, headers=with_key("k1"))
        problem(answer, 409, "idempotency_in_flight")
    assert (await here.http.post("/v1/projects", json={"name": "acme"}, headers=with_key("k1"))).status_code == 201


async def test_refusals_for_good_are_kept_and_passing_ones_are_not(here: World) -> None:
    headers = with_key("k1")
    problem(await here.http.post("/v1/services/echo/rollback", headers=headers), 404, "service_not_found")
    await here.deployed("echo")
    answer = await here.http.post("/v1/services/echo/rollback", headers=headers)
    problem(answer, 404, "service_not_found")
    assert answer.headers["idempotency-replayed"] == "true"
    for _ in range(2):  # what it names can't be kept as it is
        problem(await here.http.post("/v1/builds", json={"a\x00": 1}, headers=with_key("k3")), 422, "invalid_request")

    narrow = (await here.http.post("/v1/keys", json={"name": "x", "scopes": ["builds:write"]})).json()["key"]
    async with client(here.app, narrow) as builder:
        problem(await builder.post("/v1/builds", json=here.order("echo"), headers=with_key("k2")), 403)
    assert (await here.http.post("/v1/builds", json=here.order("echo"), headers=with_key("k2"))).status_code == 202


async def test_a_crash_keeps_nothing(here: World) -> None:
    await here.sql("alter table build rename to hidden")
    transport = httpx.ASGITransport(here.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=here.http.headers) as http:
        problem(await http.post("/v1/builds", json=here.order(), headers=with_key("k1")), 500, "internal_error")
    await here.sql("alter table hidden rename to build")
    answer = await here.http.post("/v1/builds", json=here.order(), headers=with_key("k1"))
    assert answer.status_code == 202
    assert "idempotency-replayed" not in answer.headers


async def test_a_secret_is_not_shown_twice(here: World) -> None:
    first = await here.http.post("/v1/keys", json={"name": "ci"}, headers=with_key("k1"))
    again = await here.http.post("/v1/keys", json={"name": "ci"}, headers=with_key("k1"))
    assert again.json() == {k: v for k, v in first.json().items() if k != "key"}
    secret = first.json()["key"]
    assert not await here.sql("select 1 from idempotency_key k where k::text like :key", key=f"%{secret[14:]}%")


async def test_a_source_too(here: World) -> None:
    from app.builds import archives

    _, archive = archives.pack_files({"go.mod": "module a\n"}, here.context.settings)
    _, other = archives.pack_files({"go.mod": "module b\n"}, here.context.settings)
    first = await here.http.post("/v1/sources", content=archive, headers=with_key("k1"))
    again = await here.http.post("/v1/sources", content=archive, headers=with_key("k1"))
    assert (again.json(), again.headers["idempotency-replayed"]) == (first.json(), "true")
    problem(await here.http.post("/v1/sources", content=other, headers=with_key("k1")), 422, "idempotency_key_reused")


async def test_a_key_is_free_again_after_a_day(here: World) -> None:
    await here.http.post("/v1/builds", json=here.order(), headers=with_key("k1"))
    await here.sql("update idempotency_key set created_at = now() - interval '24 hours 1 second'")
    answer = await here.http.post("/v1/builds", json=here.order("echo"), headers=with_key("k1"))
    assert answer.status_code == 202
    assert "idempotency-replayed" not in answer.headers
    assert await count(here, "idempotency_key") == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "two words"])
async def test_what_a_key_can_t_be(here: World, key: str) -> None:
    answer = await here.http.post("/v1/builds", json=here.order(), headers=with_key(key))
    problem(answer, 422, "invalid_request", field="Idempotency-Key")

"""Keys: what each may do, how long, and who may make them."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from app.keys import CACHE_SECONDS, Doorman, expand
from app.requests import Scope
from tests.support.problems import problem
from tests.support.world import World, client

SCOPELESS = {"/v1/platforms", "/v1/projects", "/v1/projects/{project}"}
"""What every key may look at."""
NARROW = ("/v1/runs/", "/healthz", "/readyz")
"""What takes no API key."""


@asynccontextmanager
async def caller(
    here: World, *scopes: Scope, project: str | None = None, **more: Any
) -> AsyncIterator[httpx.AsyncClient]:
    body = {"name": "test", "scopes": list(scopes) or [Scope.ADMIN], "project": project, **more}
    answer = await here.http.post("/v1/keys", json=body)
    assert answer.status_code == 201, answer.text
    async with client(here.app, answer.json()["key"]) as http:
        yield http


def operations(here: World) -> list[tuple[str, str, list[str]]]:
    """Return (method, path, scopes) of every operation that takes an API key, by the API's own description."""
    found = []
    for path, methods in here.app.openapi()["paths"].items():
        if path.startswith(NARROW):
            continue
        for method, operation in methods.items():
            (requirement,) = operation["security"]
            (scopes,) = requirement.values()
            found.append((method.upper(), path, scopes))
    return found


async def test_each_route_takes_the_scope_it_declares_and_no_other(here: World) -> None:
    described = operations(here)
    assert {path for _, path, scopes in described if not scopes} <= SCOPELESS
    for scope in Scope:
        async with caller(here, scope) as http:
            for method, path, scopes in described:
                answer = await http.request(method, re.sub(r"{\w+}", "none", path), json={})
                if set(scopes) <= expand([scope]):
                    assert answer.status_code not in {401, 403} or path == "/v1/projects", (scope, method, path)
                else:
                    problem(answer, 403, "insufficient_scope")


async def test_a_build_that_deploys_needs_both_scopes(here: World) -> None:
    async with caller(here, Scope.BUILDS_WRITE) as builder:
        problem(await builder.post("/v1/builds", json=here.order("echo")), 403, "insufficient_scope")
        assert (await builder.post("/v1/builds", json=here.order())).status_code == 202
        build, _, _ = await here.deployed("echo")
        problem(await builder.post(f"/v1/builds/{build.id}/retry"), 403, "insufficient_scope")
        async with caller(here, Scope.BUILDS_WRITE, Scope.SERVICES_WRITE) as both:
            assert (await both.post("/v1/builds", json=here.order("echo"))).status_code == 202


async def test_a_key_is_shown_once(here: World) -> None:
    made = await here.http.post("/v1/keys", json={"name": "ci", "scopes": ["builds:read"]})
    assert made.headers["cache-control"] == "no-store"
    key = made.json()["key"]
    seen = await here.http.get(made.headers["location"])
    assert seen.json() == {k: v for k, v in made.json().items() if k != "key"}
    assert key.startswith(seen.json()["prefix"])
    assert key not in seen.text
    assert not await here.sql("select 1 from api_key k where k::text like :key", key=f"%{key[14:]}%")


async def test_a_revoked_key_is_refused_at_once(here: World) -> None:
    async with caller(here) as http:
        key_id = (await http.get("/v1/keys")).json()["items"][0]["id"]
        assert (await http.delete(f"/v1/keys/{key_id}")).json()["revoked_at"]
        problem(await http.get("/v1/builds"), 401, "unauthorized")
    assert (await here.http.delete(f"/v1/keys/{key_id}")).status_code == 200, "ending what has ended is fine"
    problem(await here.http.post(f"/v1/keys/{key_id}/rotate"), 409, "key_ended")
    assert key_id not in (await here.http.get("/v1/keys")).text
    assert key_id in (await here.http.get("/v1/keys?ended=true")).text


async def test_another_process_notices_a_revocation_within_its_bound(here: World) -> None:
    now = 0.0
    doorman = Doorman(here.context.sessions, clock=lambda: now)
    made = (await here.http.post("/v1/keys", json={"name": "x"})).json()
    assert await doorman.admit(made["key"]) is not None
    await here.http.delete(f"/v1/keys/{made['id']}")
    now = CACHE_SECONDS - 0.01
    assert await doorman.admit(made["key"]) is not None, "asked the database for each request"
    now = CACHE_SECONDS
    assert await doorman.admit(made["key"]) is None


async def test_a_key_runs_out(here: World) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    made = (await here.http.post("/v1/keys", json={"name": "x", "expires_at": soon.isoformat()})).json()
    doorman = Doorman(here.context.sessions)
    assert await doorman.admit(made["key"]) is not None
    await here.sql("update api_key set expires_at = now() - interval '1 s' where id = :id", id=made["id"])
    assert await Doorman(here.context.sessions).admit(made["key"]) is None
    for past in ("2020-01-01T00:00:00Z", "2020-01-01T00:00:00"):
        problem(await here.http.post("/v1/keys", json={"name": "x", "expires_at": past}), 422, field="expires_at")


async def test_rotation_gives_two_good_keys_and_then_one(here: World) -> None:
    made = (await here.http.post("/v1/keys", json={"name": "ci", "scopes": ["builds:read"]})).json()
    answer = await here.http.post(f"/v1/keys/{made['id']}/rotate", json={"overlap_seconds": 600})
    fresh = answer.json()
    assert (fresh["name"], fresh["scopes"]) == ("ci", ["builds:read"])
    old = (await here.http.get(f"/v1/keys/{made['id']}")).json()
    assert old["replaced_by"] == fresh["id"]
    assert old["expires_at"] is not None
    doorman = Doorman(here.context.sessions)
    for key in (made["key"], fresh["key"]):
        assert await doorman.admit(key) is not None
    await here.sql("update api_key set expires_at = expires_at - interval '600 s' where expires_at is not null")
    doorman = Doorman(here.context.sessions)
    assert await doorman.admit(made["key"]) is None
    assert await doorman.admit(fresh["key"]) is not None


async def test_its_last_use_is_noted_and_not_for_each_request(here: World) -> None:
    now = 0.0
    doorman = Doorman(here.context.sessions, clock=lambda: now)
    made = (await here.http.post("/v1/keys", json={"name": "x"})).json()
    assert made["last_used_at"] is None

    async def used() -> object:
        await doorman.admit(made["key"])
        return (await here.http.get(f"/v1/keys/{made['id']}")).json()["last_used_at"]

    first = await used()
    assert first is not None
    await here.sql("update api_key set last_used_at = now() - interval '5 minutes' where id = :id", id=made["id"])
    now = CACHE_SECONDS
    old = await used()
    assert old != first
    now = 61.0
    assert await used() != old


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "scopes": ["all"]}, "scopes.0"),
        ({"name": "x", "key": "mine"}, "key"),
    ],
)
async def test_what_a_key_can_t_be(here: World, body: dict[str, Any], field: str) -> None:
    problem(await here.http.post("/v1/keys", json=body), 422, field=field)


async def test_projects(here: World) -> None:
    made = await here.http.post("/v1/projects", json={"name": "acme", "max_concurrent_builds": 3})
    assert made.status_code == 201
    assert (await here.http.get(made.headers["location"])).json() == made.json()
    problem(await here.http.post("/v1/projects", json={"name": "acme"}), 409, "project_exists")
    for name in ("", "Acme", "a--b", "a" * 21):
        problem(await here.http.post("/v1/projects", json={"name": name}), 422, field="name")
    changed = await here.http.patch("/v1/projects/acme", json={"max_concurrent_builds": None})
    assert changed.json()["max_concurrent_builds"] is None
    names = [p["name"] for p in (await here.http.get("/v1/projects?limit=1")).json()["items"]]
    cursor = (await here.http.get("/v1/projects?limit=1")).json()["next_cursor"]
    names += [p["name"] for p in (await here.http.get("/v1/projects", params={"cursor": cursor})).json()["items"]]
    assert names == ["acme", "default"]
    problem(await here.http.post("/v1/keys", json={"name": "x", "project": "nobody"}), 404, "project_not_found")

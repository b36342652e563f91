"""What a project may have: never exceeded, told in headers, and counted once."""

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Any

import httpx
import pytest

from app.builds import submit
from app.builds.limits import LONG_QUEUE, QUEUED_RETRY_SECONDS, SERVICES_RETRY_SECONDS
from app.db import transaction
from app.models import Build, Project
from app.requests import BuildRequest
from tests.support.platform import TRAITS
from tests.support.problems import problem
from tests.support.waiting import eventually
from tests.support.world import FILES, World


async def limit(here: World, **limits: Any) -> None:
    answer = await here.http.patch("/v1/projects/default", json=limits)
    assert answer.status_code == 200, answer.text


async def usage(here: World) -> dict[str, int]:
    found: dict[str, int] = (await here.http.get("/v1/projects/default")).json()["usage"]
    return found


async def send(here: World, service: str | None = None, **headers: str) -> httpx.Response:
    return await here.http.post("/v1/builds", json=here.order(service), headers=headers)


def left(answer: httpx.Response) -> dict[str, dict[str, int]]:
    """Return what ``RateLimit`` says, by the limit's name; its policy names the same limits in the same order."""
    found = {}
    policies = answer.headers["ratelimit-policy"].split(", ")
    for item, policy in zip(answer.headers["ratelimit"].split(", "), policies, strict=True):
        name, *parameters = item.split(";")
        values = dict(p.split("=") for p in parameters + policy.split(";")[1:])
        assert policy.split(";")[0] == name
        assert name[0] == name[-1] == '"'
        found[name[1:-1]] = {key: int(value) for key, value in values.items()}
    return found


async def test_builds_per_day(here: World) -> None:
    await limit(here, max_builds_per_day=2)
    for remaining in (1, 0):
        answer = await send(here)
        assert answer.status_code == 202
        day = left(answer)["builds-per-day"]
        assert (day["q"], day["w"], day["r"]) == (2, 86_400, remaining)
        assert 0 < day["t"] <= 86_400
    answer = await send(here)
    assert "2 builds per day" in problem(answer, 429, "too_many_builds")["detail"]
    assert left(answer)["builds-per-day"]["r"] == 0
    assert int(answer.headers["retry-after"]) == left(answer)["builds-per-day"]["t"]
    assert (await usage(here))["builds_today"] == 2
    await here.sql("update build_count set day = day - 1")
    assert (await usage(here))["builds_today"] == 0
    assert left(await send(here))["builds-per-day"]["r"] == 1, "yesterday's builds count today"


async def test_queued_builds(here: World) -> None:
    await limit(here, max_queued_builds=2)
    first = await send(here)
    assert left(first)["queued-builds"] == {"q": 2, "r": 1}
    await send(here)
    answer = await send(here)
    problem(answer, 429, "too_many_queued")
    assert int(answer.headers["retry-after"]) == QUEUED_RETRY_SECONDS
    assert left(answer)["queued-builds"] == {"q": 2, "r": 0}
    assert (await usage(here))["builds_today"] == 2, "a refused build was counted"
    await here.http.post(f"/v1/builds/{first.json()['id']}/cancel")
    again = await here.http.post(f"/v1/builds/{first.json()['id']}/retry")
    assert left(again)["queued-builds"]["r"] == 0
    problem(await here.http.post(f"/v1/builds/{first.json()['id']}/retry"), 429, "too_many_queued")
    await here.jobs()
    assert (await send(here)).status_code == 202, "builds at work count as queued"


async def test_a_long_queue_is_counted_once_a_second(here: World) -> None:
    await here.sql(
        "insert into build (id, project_id, status, builder_platform, source, spec) select "
        "'bld_' || n, (select id from project), 'queued', 'far', '{}', '{}' from generate_series(1, :n) n",
        n=LONG_QUEUE,
    )
    most = LONG_QUEUE + 4
    await limit(here, max_queued_builds=most)
    first = await send(here)
    assert (left(first)["queued-builds"]["r"], first.json()["position"]) == (3, LONG_QUEUE + 1)
    await here.sql("update build_count set counted_at = now() + interval '1 hour'")
    await here.sql("update build set status = 'canceled' where id in ('bld_1', 'bld_2')")
    second = await send(here)
    assert (left(second)["queued-builds"]["r"], second.json()["position"]) == (2, LONG_QUEUE + 2), "it was counted anew"
    for _ in range(2):
        assert (await send(here)).status_code == 202
    assert left(await send(here))["queued-builds"]["r"] == 1, "what seemed to be one too many was not counted anew"
    await here.sql("update build_count set counted_at = now() - interval '2 seconds'")
    await here.sql("update build set status = 'canceled' where id = 'bld_3'")
    assert left(await send(here))["queued-builds"]["r"] == 1
    assert (await send(here)).status_code == 202
    problem(await send(here), 429, "too_many_queued")
    assert (await usage(here))["queued_builds"] == most


async def test_services(here: World) -> None:
    await limit(here, max_services=1)
    answer = await send(here, "one")
    assert left(answer)["services"] == {"q": 1, "r": 0}
    answer = await send(here, "two")
    problem(answer, 429, "too_many_services")
    assert int(answer.headers["retry-after"]) == SERVICES_RETRY_SECONDS
    assert [s.name for s in await here.sql("select name from service")] == ["one"]
    again = await send(here, "one")
    assert again.status_code == 202
    assert "services" not in left(again)
    assert (await here.http.delete("/v1/services/one")).status_code == 202
    assert (await send(here, "two")).status_code == 202


@pytest.mark.parametrize("name", ["max_builds_per_day", "max_queued_builds", "max_services"])
async def test_two_at_once_never_exceed(here: World, name: str) -> None:
    await limit(here, **{name: 1})
    project = await here.one(Project, name="default")
    first, second = (here.order(service, files=FILES | {"name": service}) for service in ("one", "two"))
    async with transaction(here.context.pool) as session:
        await submit.submit(here.context, session, project, BuildRequest.model_validate(first))
        answer = asyncio.create_task(here.http.post("/v1/builds", json=second))
        await eventually(lambda: here.sql("select 1 from pg_locks where not granted"))
    problem(await answer, 429)
    assert (await usage(here))["builds_today"] == 1


async def test_a_refusal_is_not_kept_and_a_replay_does_not_count(here: World) -> None:
    await limit(here, max_builds_per_day=0)
    key = {"Idempotency-Key": "k1"}
    problem(await send(here, **key), 429, "too_many_builds")
    await limit(here, max_builds_per_day=1)
    first = await send(here, **key)
    again = await send(here, **key)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.headers["idempotency-replayed"] == "true"
    assert (await usage(here))["builds_today"] == 1


async def test_source_bytes(here: World) -> None:
    await limit(here, max_source_bytes=50)
    assert "50" in problem(await send(here), 413, "too_large")["detail"]
    problem(await here.http.post("/v1/sources", content=b"x" * 51), 413, "too_large")
    git = here.order() | {"source": {"kind": "git", "url": "https://github.com/a/b"}}
    build = await here.send(git)
    await here.jobs()
    orders = await (await here.builder(build)).claim()
    assert orders["limits"]["source_bytes"] == 50


async def test_a_project_s_limits_are_the_installation_s_unless_it_has_its_own(here: World) -> None:
    settings = here.context.settings
    default = {
        "concurrent_builds": settings.project_concurrency,
        "queued_builds": settings.project_queued,
        "builds_per_day": settings.project_builds_per_day,
        "services": settings.project_services,
        "source_bytes": settings.max_source_bytes,
    }
    assert (await here.http.get("/v1/projects/default")).json()["limits"] == default
    await limit(here, max_services=0, max_source_bytes=settings.max_source_bytes * 2)
    changed = (await here.http.get("/v1/projects/default")).json()
    assert changed["limits"] == default | {"services": 0}
    await here.submit()
    await here.jobs()
    await here.submit()
    assert await usage(here) == {"concurrent_builds": 1, "queued_builds": 1, "builds_today": 2, "services": 0}


async def test_a_queued_build_s_place(here: World) -> None:
    here.yard.traits = replace(TRAITS, max_builders=2)
    here.context.catalog.entries = {"yard": here.yard.entry()}
    _, other = await here.project("other")
    first = (await send(here)).json()
    assert (first["position"], first["estimated_start_at"]) == (1, None)
    await here.jobs()
    await (await here.builder(await here.one(Build, id=first["id"]))).finish()
    await here.sql("update build set dispatched_at = finished_at - interval '60 seconds'")
    here.context.paces.clear()
    async with other:
        await other.post("/v1/builds", json=here.order())
        await send(here)
        await here.jobs()
        here.context.paces.clear()
        waiting = [(await send(here)).json() for _ in range(2)]
    for position, sent in enumerate(waiting, 1):
        seen = (await here.http.get(f"/v1/builds/{sent['id']}")).json()
        assert sent["position"] == seen["position"] == position
        for answer in (sent, seen):
            # Of the platform's two slots one is the other project's: this one's builds go one after the other.
            start = datetime.fromisoformat(answer["estimated_start_at"])
            wait = (start - datetime.fromisoformat(sent["created_at"])).total_seconds()
            assert 60 * position <= wait < 60 * position + 30
    ended = (await here.http.get(f"/v1/builds/{first['id']}")).json()
    assert (ended["position"], ended["estimated_start_at"]) == (None, None)


async def test_another_project_s_builds_don_t_count(here: World) -> None:
    await limit(here, max_queued_builds=1, max_builds_per_day=1)
    _, other = await here.project("other")
    async with other:
        assert (await other.post("/v1/builds", json=here.order())).status_code == 202
    assert (await send(here)).status_code == 202

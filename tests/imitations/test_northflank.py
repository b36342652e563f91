"""What the Northflank imitation itself refuses, and that it really runs what it says it runs."""

import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.imitations.northflank import PROJECT, TOKEN, NorthflankImitation
from app.imitations.server import serving
from tests.platforms import cloud
from tests.platforms import northflank_support as support
from tests.support.waiting import eventually

HEADERS = {"Authorization": f"Bearer {TOKEN}"}
HERE = f"/v1/projects/{PROJECT}"


@pytest.fixture
async def place(tmp_path: Path) -> AsyncGenerator[NorthflankImitation, None]:
    async with support.imitation(tmp_path / "northflank", builder=(sys.executable, "-m", "builder")) as served:
        yield served


@pytest.fixture
async def http(place: NorthflankImitation) -> AsyncGenerator[httpx.AsyncClient, None]:
    async with httpx.AsyncClient(base_url=place.url, headers=HEADERS, trust_env=False) as client:
        yield client


def job(**changes: Any) -> dict[str, Any]:
    external = {"imagePath": cloud.BUILDER_IMAGE}
    body = {"name": "one", "billing": {"deploymentPlan": "nf-compute-20"}, "deployment": {"external": external}}
    return {**body, **changes}


def message(answer: httpx.Response) -> str:
    text: str = answer.json()["error"]["message"]
    return text


async def test_the_real_builder_program_runs(place: NorthflankImitation, http: httpx.AsyncClient) -> None:
    claims: list[Request] = []

    async def claim(request: Request) -> Response:
        claims.append(request)
        return JSONResponse({"title": "gone"}, 410)

    async with serving(Starlette(routes=[Route("/v1/runs/{run}/claim", claim, methods=["POST"])])) as url:
        spec = cloud.builder_spec()
        env = {**spec.env, "SLIPWAY_URL": url, "SLIPWAY_RUN_ID": "run_1"}
        env |= {"SLIPWAY_RUN_DEADLINE": str(int(spec.deadline.timestamp()))}
        await http.put(f"{HERE}/jobs", json=job(runtimeEnvironment=env, settings={"backoffLimit": 0}))
        await http.post(f"{HERE}/jobs/one/runs", json={})
        (run,) = place.started
        await eventually(lambda: run.concluded is not None, 60)
    assert claims, run.lines
    assert claims[0].headers["authorization"] == "Bearer slr.token"


async def test_an_hour_has_a_number_of_requests(tmp_path: Path) -> None:
    async with (
        support.imitation(tmp_path / "small", hourly=2) as place,
        httpx.AsyncClient(base_url=place.url, headers=HEADERS, trust_env=False) as http,
    ):
        first, second, third = [await http.get(f"{HERE}/jobs") for _ in range(3)]
    assert [a.headers["x-ratelimit-remaining"] for a in (first, second, third)] == ["1", "0", "0"]
    assert (third.status_code, "retry-after" in third.headers) == (429, False)
    assert int(third.headers["x-ratelimit-reset"]) > 3590


async def test_a_token_is_wanted_and_a_wrong_verb_is_answered_in_plain_text(
    place: NorthflankImitation, http: httpx.AsyncClient
) -> None:
    refused = await http.get(f"{HERE}/jobs", headers={"Authorization": "Bearer other"})
    assert (refused.status_code, refused.json()) == (401, {"error": {"status": 401, "message": "Unauthorized"}})
    wrong = await http.patch(f"{HERE}/services/one")
    assert (wrong.status_code, wrong.headers["content-type"].split(";")[0]) == (405, "text/plain")
    assert place.contract.violations == []


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "1bld"},
        {"name": "b" * 53},
        {"deployment": {"external": {"imagePath": "nginx"}}},
        {"deployment": {"external": {"imagePath": f"127.0.0.1:5000/b@sha256:{'b' * 64}"}}},
        {"settings": {"activeDeadlineSeconds": 60}},
        {"billing": {"deploymentPlan": "nf-compute-100"}},
    ],
)
async def test_what_the_real_one_refuses_is_refused(
    place: NorthflankImitation, http: httpx.AsyncClient, changes: dict[str, Any]
) -> None:
    answer = await http.put(f"{HERE}/jobs", json=job(**changes))
    assert answer.status_code == 400
    assert place.jobs == {}
    place.contract.violations.clear()


async def test_a_secret_group_needs_its_service(http: httpx.AsyncClient) -> None:
    objects = {"restricted": True, "nfObjects": [{"id": "absent", "type": "service"}]}
    group = {"name": "one", "priority": 10, "secretType": "environment", "secrets": {"variables": {"A": "b"}}}
    assert (await http.put(f"{HERE}/secrets", json={**group, "restrictions": objects})).status_code == 404


async def test_a_taken_name_is_a_400(http: httpx.AsyncClient) -> None:
    body = {"name": "acme", "provider": "custom", "credentials": {"scope": {"pull": True}}}
    assert (await http.post("/v1/integrations/registries", json=body)).status_code == 200
    again = await http.post("/v1/integrations/registries", json=body)
    assert again.status_code == 400
    assert "already exists" in message(again)


async def test_an_image_that_can_t_be_pulled_leaves_a_run_that_runs(
    place: NorthflankImitation, http: httpx.AsyncClient
) -> None:
    place.registries["ghcr.io"] = place.url
    external = {"imagePath": f"ghcr.io/acme/other@sha256:{'c' * 64}"}
    await http.put(f"{HERE}/jobs", json=job(deployment={"external": external}, settings={"backoffLimit": 0}))
    run = (await http.post(f"{HERE}/jobs/one/runs", json={})).json()["data"]["id"]
    answer = (await http.get(f"{HERE}/jobs/one/runs/{run}")).json()["data"]
    assert (answer["status"], answer["concluded"]) == ("RUNNING", False)

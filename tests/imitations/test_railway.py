"""What the Railway imitation itself refuses and falls into, and that it really runs what it says it runs."""

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

from app.imitations import graphql
from app.imitations.railway import PATH, TOKEN, RailwayImitation
from app.imitations.server import serving
from app.platforms.base import Phase, Ref
from app.platforms.railway import documents
from tests.platforms import cloud
from tests.platforms import railway_support as support
from tests.support.waiting import eventually

PROJECT, ENVIRONMENT = "project-services", "environment-services"
SOURCE = {"image": cloud.BUILDER_IMAGE}


@pytest.fixture
async def place(tmp_path: Path) -> AsyncGenerator[RailwayImitation, None]:
    async with support.imitation(tmp_path / "railway", builder=(sys.executable, "-m", "builder")) as served:
        yield served


@pytest.fixture
async def http(place: RailwayImitation) -> AsyncGenerator[httpx.AsyncClient, None]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=place.url, headers=headers, trust_env=False) as client:
        yield client


async def ask(http: httpx.AsyncClient, document: documents.Document, **variables: Any) -> Any:
    body = {"query": document.text, "variables": variables, "operationName": document.name}
    return (await http.post(f"{PATH}?source=tests", json=body)).json()


async def create(http: httpx.AsyncClient, **more: Any) -> Any:
    return await ask(http, documents.CREATE_SERVICE, input={"projectId": PROJECT, "name": "one", **more})


async def test_the_real_builder_program_runs(place: RailwayImitation) -> None:
    claims: list[Request] = []

    async def claim(request: Request) -> Response:
        claims.append(request)
        return JSONResponse({"title": "gone"}, 410)

    made = support.platform(place)
    assert made.platform.builders is not None
    async with serving(Starlette(routes=[Route("/v1/runs/{run}/claim", claim, methods=["POST"])])) as url:
        spec = cloud.builder_spec(env={"SLIPWAY_URL": url, "SLIPWAY_RUN_ID": "run_1", "SLIPWAY_RUN_DEADLINE": "0"})
        env = {**spec.env, "SLIPWAY_RUN_DEADLINE": str(int(spec.deadline.timestamp()))}
        spec = cloud.builder_spec(env=env)
        ref = Ref(name=spec.name, handle=(await made.platform.builders.launch(spec)).handle)
        await eventually(lambda: place.deployments[0].stopped, 60)
    assert claims, place.deployments[0].lines
    assert claims[0].headers["authorization"] == "Bearer slr.token"
    assert (await made.platform.builders.inspect(ref)).phase in {Phase.EXITED, Phase.FAILED}
    await made.aclose()


async def test_a_request_without_a_query_string_is_stopped_at_the_edge(http: httpx.AsyncClient) -> None:
    answer = await http.post(PATH, json={"query": documents.CREATE_SERVICE.text})
    assert (answer.status_code, answer.text) == (429, "error code: 1015")


async def test_the_token_is_checked_and_the_refusal_is_a_200(place: RailwayImitation) -> None:
    async with httpx.AsyncClient(base_url=place.url, trust_env=False) as client:
        body = {"query": documents.DEPLOYMENT.text, "variables": {"id": "1"}, "operationName": "LookAtDeployment"}
        answer = await client.post(f"{PATH}?source=tests", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["message"]) == (200, "Not Authorized")


async def test_a_name_has_at_most_thirty_two_characters(place: RailwayImitation, http: httpx.AsyncClient) -> None:
    assert "32" in (await create(http, name="n" * 33))["errors"][0]["message"]
    assert (await create(http, name="n" * 32))["data"]["serviceCreate"]["id"] in place.services


async def test_a_service_with_a_source_deploys_at_once_and_names_are_not_unique(
    place: RailwayImitation, http: httpx.AsyncClient
) -> None:
    await create(http)
    assert place.deployments == []
    await create(http, source=SOURCE)
    assert (len(place.services), len(place.deployments)) == (2, 1)


@pytest.mark.parametrize(("skip", "deployments"), [(True, 0), (False, 1)])
async def test_variables_deploy_unless_told_not_to(
    place: RailwayImitation, http: httpx.AsyncClient, skip: bool, deployments: int
) -> None:
    service = (await create(http))["data"]["serviceCreate"]["id"]
    await ask(http, documents.UPDATE, service=service, environment=ENVIRONMENT, input={"source": SOURCE})
    values = {"projectId": PROJECT, "environmentId": ENVIRONMENT, "serviceId": service, "variables": {"A": "1"}}
    await ask(http, documents.SET_VARIABLES, input={**values, "skipDeploys": skip})
    assert len(place.deployments) == deployments


async def test_references_are_expanded_across_services(place: RailwayImitation, http: httpx.AsyncClient) -> None:
    await create(http, name="two", variables={"KEY": "hush"})
    service = place.services[(await create(http))["data"]["serviceCreate"]["id"]]
    assert place.host._render(service, "x${{two.KEY}}") == "xhush"


async def test_unknown_fields_are_a_400(place: RailwayImitation, http: httpx.AsyncClient) -> None:
    answer = await http.post(f"{PATH}?source=tests", json={"query": "query A { colour }", "operationName": "A"})
    assert (answer.status_code, answer.json()["errors"][0]["extensions"]["code"]) == (400, "GRAPHQL_VALIDATION_FAILED")
    place.contract.violations.clear()


@pytest.mark.parametrize(
    "text", ["", "subscription A { a }", "query A { a", "query A { ...none }", "query A { a } query B { b }"]
)
def test_what_the_reader_can_t_follow_it_refuses(text: str) -> None:
    with pytest.raises(graphql.Unreadable):
        graphql.read(text, {})


def test_the_reader_puts_variables_and_fragments_in() -> None:
    text = 'fragment f on T { x y(n: 1) { z } } query A($v: Int!) { a(v: $v, s: "t", b: true, e: RED) { ...f } }'
    [root] = graphql.read(text, {"v": 7})
    assert root.arguments == {"v": 7, "s": "t", "b": True, "e": "RED"}
    value = {"x": 1, "w": 2, "y": lambda arguments: {"z": arguments["n"], "q": 0}}
    assert graphql.select([value], root.fields) == [{"x": 1, "y": {"z": 1}}]

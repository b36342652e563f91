"""What the Fly imitation itself refuses, and that it really runs what it says it runs."""

import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.images.client import Registry
from app.images.errors import RegistryError
from app.imitations.fly import ORG, TOKEN, FlyImitation
from app.imitations.server import serving
from tests.platforms import cloud
from tests.platforms import fly_support as support
from tests.support.waiting import eventually

HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
async def place(tmp_path: Path) -> AsyncGenerator[FlyImitation, None]:
    async with support.imitation(tmp_path / "fly", builder=(sys.executable, "-m", "builder")) as served:
        yield served


@pytest.fixture
async def http(place: FlyImitation) -> AsyncGenerator[httpx.AsyncClient, None]:
    async with httpx.AsyncClient(base_url=place.url, headers=HEADERS, trust_env=False) as client:
        await client.post("/v1/apps", json={"name": "one", "org_slug": ORG})
        yield client


async def test_the_real_builder_program_runs(place: FlyImitation, http: httpx.AsyncClient) -> None:
    claims: list[Request] = []

    async def claim(request: Request) -> Response:
        claims.append(request)
        return JSONResponse({"title": "gone"}, 410)

    async with serving(Starlette(routes=[Route("/v1/runs/{run}/claim", claim, methods=["POST"])])) as url:
        spec = cloud.builder_spec(env={"SLIPWAY_URL": url, "SLIPWAY_RUN_ID": "run_1"})
        env = {**spec.env, "SLIPWAY_RUN_DEADLINE": str(int(spec.deadline.timestamp()))}
        config = {"image": spec.image, "env": env, "auto_destroy": True, "restart": {"policy": "no"}}
        body = {"name": "b", "config": config}
        machine = (await http.post("/v1/apps/one/machines", json=body)).json()["id"]
        kept = place.apps["one"].machines[machine]
        await eventually(lambda: kept.gone, 60)
    assert claims, kept.lines
    assert claims[0].headers["authorization"] == "Bearer slr.token"
    assert kept.events[0]["request"]["MonitorEvent"]["exit_event"]["guest_exit_code"] in {0, 40}


async def test_a_name_is_unique_within_an_app(http: httpx.AsyncClient) -> None:
    body = {"name": "b", "config": {"image": cloud.BUILDER_IMAGE, "env": {}}}
    assert (await http.post("/v1/apps/one/machines", json=body)).status_code == 200
    assert (await http.post("/v1/apps/one/machines", json=body)).status_code == 409


@pytest.mark.parametrize("seconds", [0, 61])
async def test_a_wait_has_bounds(place: FlyImitation, http: httpx.AsyncClient, seconds: int) -> None:
    body = {"name": "b", "config": {"image": cloud.BUILDER_IMAGE, "env": {}}}
    machine = (await http.post("/v1/apps/one/machines", json=body)).json()["id"]
    wait = f"/v1/apps/one/machines/{machine}/wait?state=destroyed&timeout={seconds}"
    assert (await http.get(wait)).status_code == 400


@pytest.mark.parametrize("content", [b"", b"[]"])
async def test_stop_wants_an_object(place: FlyImitation, http: httpx.AsyncClient, content: bytes) -> None:
    body = {"name": "b", "config": {"image": cloud.BUILDER_IMAGE, "env": {}}}
    machine = (await http.post("/v1/apps/one/machines", json=body)).json()["id"]
    headers = {"Content-Type": "application/json"}
    stopped = await http.post(f"/v1/apps/one/machines/{machine}/stop", content=content, headers=headers)
    assert stopped.status_code == 400
    place.contract.violations.clear()


async def test_a_stop_in_the_midst_of_a_start_is_obeyed(place: FlyImitation, http: httpx.AsyncClient) -> None:
    place.host.released.clear()
    body = {"name": "b", "config": {"image": cloud.BUILDER_IMAGE, "env": {}}}
    machine = (await http.post("/v1/apps/one/machines", json=body)).json()["id"]
    assert (await http.post(f"/v1/apps/one/machines/{machine}/stop", json={})).status_code == 200
    place.host.released.set()
    waited = await http.get(f"/v1/apps/one/machines/{machine}/wait?state=stopped&timeout=5")
    assert waited.status_code == 200
    assert place.apps["one"].machines[machine].starts == 0


async def test_a_private_foreign_image_can_t_be_pulled(http: httpx.AsyncClient) -> None:
    image = f"ghcr.io/acme/agent@sha256:{'a' * 64}"
    answer = await http.post("/v1/apps/one/machines", json={"name": "b", "config": {"image": image}})
    assert answer.status_code == 400
    assert "MANIFEST_UNKNOWN" in answer.text


@pytest.mark.parametrize(("repository", "password"), [("one", "wrong"), ("two", TOKEN)])
async def test_the_registry_is_for_our_apps_and_token(
    place: FlyImitation, http: httpx.AsyncClient, repository: str, password: str
) -> None:
    async with Registry(place.url, username="x", password=password) as registry:
        with pytest.raises(RegistryError):
            await registry.put_manifest(repository, "latest", "application/json", b"{}")


@pytest.mark.parametrize("header", ["", "Bearer fm2_wrong", f"Basic {TOKEN}"])
async def test_the_token_is_checked(place: FlyImitation, header: str) -> None:
    async with httpx.AsyncClient(base_url=place.url, headers={"Authorization": header}, trust_env=False) as client:
        assert (await client.get("/v1/apps/one")).status_code == 401

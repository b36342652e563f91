"""Northflank's traps for services, each with the guard that a failure here shows to be gone."""
# Over 250 lines: one trap after the other.

import asyncio
import dataclasses
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from app.imitations.northflank import PROJECT, NorthflankImitation
from app.platforms import catalog, northflank
from app.platforms.base import (
    Inspection,
    Misconfigured,
    Phase,
    Rejected,
    ServiceRef,
    Services,
    ServiceSpec,
    Size,
    StartFailed,
    Transient,
)
from app.platforms.northflank import names
from app.settings import NorthflankSettings, Settings
from tests.gateway.support import Sleeper, connected, gateway
from tests.images.support import Place, registry
from tests.platforms import cloud
from tests.platforms import northflank_support as support
from tests.platforms.contract import INSTALLATION, name, until
from tests.support.agents import layer_of, push

#: A service: answers with the variable that is asked for. MODE: crash; once (listens in its first life only).
PROGRAM = f"""#!{sys.executable} -BS
import http.server, os, pathlib, time
print("mode", os.environ.get("MODE"), flush=True)
if os.environ.get("MODE") == "crash":
    print("boom", flush=True)
    raise SystemExit(3)
if os.environ.get("MODE") == "once":
    flag = pathlib.Path(os.environ["FLAG"])
    if flag.exists():
        time.sleep(600)
    flag.touch()

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ.get(self.path.partition("=")[2], "").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
""".encode()


@pytest.fixture
async def images(tmp_path: Path) -> AsyncGenerator[Place, None]:
    async with registry(tmp_path / "registry") as served:
        yield served


@pytest.fixture
async def place(tmp_path: Path, images: Place) -> AsyncGenerator[NorthflankImitation, None]:
    async with support.imitation(tmp_path / "northflank", registries={support.REGISTRY: images.url}) as one:
        yield one


@pytest.fixture
async def made(place: NorthflankImitation) -> AsyncGenerator[northflank.NorthflankPlatform, None]:
    one = support.platform(place)
    yield one
    await one.aclose()


@pytest.fixture
def services(made: northflank.NorthflankPlatform) -> Services:
    assert made.platform.services is not None
    return made.platform.services


@pytest.fixture
async def spec(images: Place) -> ServiceSpec:
    return cloud.service_spec(await push(images, layer_of({"app/agent": PROGRAM})))


async def up(services: Services, spec: ServiceSpec) -> Inspection:
    await services.deploy(spec)

    async def running() -> Inspection | None:
        seen = await services.inspect(support.ref_of(spec))
        return seen if seen.address else None

    seen = await until(running)
    assert seen is not None
    return seen


async def variable(seen: Inspection, wanted: str) -> str:
    assert seen.address is not None
    return await cloud.get(seen.address, f"/?name={wanted}")


# --------------------------------------------------------------------------------------------------- rollouts


async def test_completed_of_the_rollout_before_is_not_believed(
    place: NorthflankImitation, services: Services, spec: ServiceSpec, tmp_path: Path
) -> None:
    spec = dataclasses.replace(spec, env={"MODE": "once", "FLAG": str(tmp_path / "flag")})
    await up(services, spec)
    ref = support.ref_of(spec)
    await services.sleep(ref)
    with pytest.raises(StartFailed) as caught:
        await services.wake(ref)
    assert caught.value.reason == "not_listening"
    service = next(iter(place.services.values()))
    assert (service.rollout, service.containers[-1].status) == ("COMPLETED", "TASK_RUNNING")
    seen = await services.inspect(ref)
    assert (seen.phase, seen.address) == (Phase.STARTING, None)


async def test_a_slow_start_is_starting_and_waking_waits_for_it(
    place: NorthflankImitation, services: Services, spec: ServiceSpec
) -> None:
    await up(services, spec)
    ref = support.ref_of(spec)
    await services.sleep(ref)
    place.host.released.clear()
    waking = asyncio.create_task(services.wake(ref))
    await until(lambda: _held(place))
    assert (await services.inspect(ref)).phase is Phase.STARTING
    place.host.released.set()
    await cloud.get(await waking, "/")


async def _held(place: NorthflankImitation) -> bool:
    return next(iter(place.services.values())).containers[-1].status == "TASK_STAGING"


async def test_waking_returns_only_once_the_edge_passes_requests(
    place: NorthflankImitation, services: Services, spec: ServiceSpec
) -> None:
    await up(services, spec)
    ref = support.ref_of(spec)
    await services.sleep(ref)
    patient = support.platform(place, services={"start_seconds": 20.0})
    try:
        assert patient.platform.services is not None
        place.host.released.clear()
        waking = asyncio.create_task(patient.platform.services.wake(ref))
        await until(lambda: _held(place))
        # Made some time before it is completed, so that the rollout is surely its own, and the edge alone is late.
        next(iter(place.services.values())).containers[-1].created -= 5
        place.misbehave("edge lags", times=40)
        place.host.released.set()
        await cloud.get(await waking, "/")
    finally:
        await patient.aclose()


async def test_what_goes_on_failing_is_told_although_its_log_can_t_be_read(
    place: NorthflankImitation, services: Services, spec: ServiceSpec
) -> None:
    spec = dataclasses.replace(spec, env={"MODE": "crash"})
    await services.deploy(spec)
    await until(lambda: _failed(place, 2))
    place.misbehave("logs forbidden")
    seen = await services.inspect(support.ref_of(spec))
    assert seen.phase is Phase.FAILED
    assert "View Observability" in (seen.message or "")
    assert "boom" in ((await services.inspect(support.ref_of(spec))).message or "")


async def _failed(place: NorthflankImitation, times: int) -> bool:
    containers = next(iter(place.services.values())).containers
    return sum(c.status == "TASK_FAILED" for c in containers) >= times


@pytest.mark.parametrize("june", [True, False])
async def test_answers_of_june_and_of_october_are_understood(
    tmp_path: Path, images: Place, spec: ServiceSpec, *, june: bool
) -> None:
    registries = {support.REGISTRY: images.url}
    async with support.imitation(tmp_path / "other", registries=registries, june=june) as place:
        made = support.platform(place)
        try:
            services = made.platform.services
            assert services is not None
            await up(services, spec)
            ref = support.ref_of(spec)
            await services.sleep(ref)
            assert (await services.inspect(ref)).phase is Phase.ASLEEP
            await services.wake(ref)
            assert (place.count("get ports") == 0) is june
        finally:
            await made.aclose()


async def test_our_gateway_reaches_it_by_its_own_name(services: Services, spec: ServiceSpec) -> None:
    seen = await up(services, spec)
    assert seen.address is not None
    async with gateway(a=Sleeper(seen.address)) as server, connected(server.port) as client:
        client.get("a.localhost", "/?name=HOSTNAME")
        assert (await client.answer()).body.decode() == seen.address.instance_id


# --------------------------------------------------------------------------------------------------- pause, resume


async def test_sleeping_waits_until_the_pause_is_done(
    place: NorthflankImitation, services: Services, spec: ServiceSpec
) -> None:
    before = await up(services, spec)
    place.misbehave("pause is slow")
    ref = support.ref_of(spec)
    await services.sleep(ref)
    assert (await services.inspect(ref)).phase is Phase.ASLEEP
    assert before.address is not None
    with pytest.raises(httpx.ConnectError):
        await cloud.get(before.address, "/")
    await services.wake(ref)
    assert place.count("resume") == 1


async def test_a_resume_that_a_pause_swallowed_is_sent_again(
    place: NorthflankImitation, made: northflank.NorthflankPlatform, services: Services, spec: ServiceSpec
) -> None:
    await up(services, spec)
    place.misbehave("pause is slow")
    nf_id = names.service_id(spec.service, spec.release)
    await made.clients[0].pause(nf_id)
    await made.clients[0].resume(nf_id)
    await cloud.get(await services.wake(support.ref_of(spec)), "/")
    assert place.count("resume") == 2


async def test_resuming_what_is_not_paused_is_fine(
    made: northflank.NorthflankPlatform, services: Services, spec: ServiceSpec
) -> None:
    await up(services, spec)
    await made.clients[0].resume(names.service_id(spec.service, spec.release))


async def test_waking_what_is_not_there_is_rejected(services: Services, spec: ServiceSpec) -> None:
    with pytest.raises(Rejected, match="no release"):
        await services.wake(support.ref_of(spec))


# --------------------------------------------------------------------------------------------------- deploy


@pytest.mark.parametrize("fault", ["504 after success", "cut after success", "exists"])
async def test_a_deploy_that_was_not_answered_is_one_service(
    place: NorthflankImitation, services: Services, spec: ServiceSpec, fault: str
) -> None:
    place.misbehave(fault, "put service")
    await up(services, spec)
    assert len(place.services) == 1


async def test_deploying_what_sleeps_again_lets_it_sleep(
    place: NorthflankImitation, services: Services, spec: ServiceSpec
) -> None:
    await up(services, spec)
    await services.sleep(support.ref_of(spec))
    place.requests.clear()
    await services.deploy(spec)
    assert [request.operation for request in place.requests] == ["get service"]
    assert (await services.inspect(support.ref_of(spec))).phase is Phase.ASLEEP


async def test_a_wrong_credential_or_digest_is_rejected_and_leaves_nothing(
    place: NorthflankImitation, services: Services, spec: ServiceSpec
) -> None:
    for changes in ({"password": "wrong"}, {"digest": f"sha256:{'0' * 64}"}):
        bad = dataclasses.replace(spec, image=dataclasses.replace(spec.image, **changes))
        with pytest.raises(Rejected, match="digest or credential"):
            await services.deploy(bad)
        await services.retire(support.ref_of(bad))
        assert place.things == []


async def test_a_registry_with_a_port_is_refused_with_what_to_do(
    place: NorthflankImitation, images: Place, spec: ServiceSpec
) -> None:
    made = support.platform(place, changes={"registry": None})
    try:
        assert made.platform.services is not None
        with pytest.raises(Misconfigured, match="SLIPWAY_NORTHFLANK__REGISTRY"):
            await made.platform.services.deploy(spec)
    finally:
        await made.aclose()
    assert place.requests == []


async def test_a_pull_credential_is_for_this_project_and_is_renewed(
    place: NorthflankImitation, services: Services, spec: ServiceSpec
) -> None:
    place.misbehave("500", "put service", times=4)
    with pytest.raises(Transient):
        await services.deploy(spec)
    await up(services, dataclasses.replace(spec))
    (credential,) = place.credentials.values()
    assert credential["restrictions"] == {"restricted": True, "projects": [PROJECT]}
    assert credential["credentials"]["scope"] == {"pull": True, "push": False}
    assert place.count("update credential") == 1


async def test_the_plan_that_was_really_got_is_told(services: Services, spec: ServiceSpec) -> None:
    launched = await services.deploy(dataclasses.replace(spec, size=Size(cpus=0.3, memory_mb=300)))
    assert launched.effective == Size(cpus=0.5, memory_mb=1024, plan="nf-compute-50")


async def test_a_promote_takes_few_requests(
    place: NorthflankImitation, made: northflank.NorthflankPlatform, services: Services, spec: ServiceSpec
) -> None:
    await services.deploy(dataclasses.replace(spec, secrets={"API_KEY": "hush"}))
    assert sum(made.requests.values()) == 5
    place.requests.clear()
    await services.inspect(support.ref_of(spec))
    assert len(place.requests) == 3


# --------------------------------------------------------------------------------------------------- secrets


async def test_secrets_go_by_a_group_of_this_release_alone(
    place: NorthflankImitation, services: Services, spec: ServiceSpec
) -> None:
    other = dataclasses.replace(spec, service=name("svc"), release=name("rel"))
    seen = await up(
        services, dataclasses.replace(spec, secrets={"API_KEY": "hush"}, env={"API_KEY": "plain", "A": "b"})
    )
    assert await variable(seen, "API_KEY") == "hush"
    assert await variable(seen, "A") == "b"
    assert await variable(await up(services, other), "API_KEY") == ""
    bodies = [r.body for r in place.requests if r.operation != "put secret"]
    assert not any(b"hush" in body for body in bodies)
    (group,) = place.secrets.values()
    nf_id = names.service_id(spec.service, spec.release)
    assert group["restrictions"] == {"restricted": True, "nfObjects": [{"id": nf_id, "type": "service"}]}
    await services.retire(support.ref_of(spec))
    assert place.secrets == {}


async def test_no_program_runs_before_its_secrets_are_there(
    place: NorthflankImitation, services: Services, spec: ServiceSpec
) -> None:
    spec = dataclasses.replace(spec, secrets={"API_KEY": "hush"})
    place.misbehave("500", "put secret", times=4)
    with pytest.raises(Transient):
        await services.deploy(spec)
    assert next(iter(place.services.values())).containers == []
    assert await variable(await up(services, spec), "API_KEY") == "hush"


async def test_a_service_that_secret_groups_do_not_know_yet_is_tried_again(
    place: NorthflankImitation, services: Services, spec: ServiceSpec
) -> None:
    spec = dataclasses.replace(spec, secrets={"API_KEY": "hush"})
    body = {"error": {"status": 404, "message": "Service not found"}}
    place.misbehave("500", "put secret", status=404, body=body)
    with pytest.raises(Transient):
        await services.deploy(spec)
    assert await variable(await up(services, spec), "API_KEY") == "hush"


async def test_a_refused_secret_is_not_in_the_error(
    place: NorthflankImitation, services: Services, spec: ServiceSpec
) -> None:
    body = {"error": {"status": 400, "message": "Request failed", "details": {"secrets": ["hush is not valid"]}}}
    place.misbehave("500", "put secret", status=400, body=body)
    with pytest.raises(Rejected) as caught:
        await services.deploy(dataclasses.replace(spec, secrets={"API_KEY": "hush"}))
    assert "hush" not in f"{caught.value} {caught.value!r}"
    assert "secrets" in str(caught.value)


# --------------------------------------------------------------------------------------------------- ends


async def test_removing_waits_for_its_end_and_leaves_nothing(
    place: NorthflankImitation, services: Services, spec: ServiceSpec
) -> None:
    spec = dataclasses.replace(spec, secrets={"API_KEY": "hush"})
    await up(services, spec)
    place.misbehave("credential in use")
    await services.retire(support.ref_of(spec))
    assert (await services.inspect(support.ref_of(spec))).phase is Phase.GONE
    assert place.things == []


async def test_a_service_whose_name_ends_alike_is_not_deleted(services: Services, spec: ServiceSpec) -> None:
    tail = "0" * 9 + "7654321"
    alike = [
        dataclasses.replace(spec, service=f"slp-{INSTALLATION}-svc-{x * 10}{tail}", release=name("rel")) for x in "ab"
    ]
    for one in alike:
        await up(services, one)
    await services.delete(ServiceRef(service=alike[0].service, release=""))
    assert (await services.inspect(support.ref_of(alike[0]))).phase is Phase.GONE
    assert (await services.inspect(support.ref_of(alike[1]))).phase is Phase.RUNNING


async def test_two_installations_in_one_project_leave_each_other_alone(services: Services, spec: ServiceSpec) -> None:
    foreign = dataclasses.replace(
        spec,
        service=spec.service.replace(INSTALLATION, "zzzzzz"),
        release=spec.release.replace(INSTALLATION, "zzzzzz"),
    )
    await up(services, spec)
    await up(services, foreign)
    assert [i.ref.name for i in (await services.list_ours("zzzzzz")).items] == [foreign.release]
    assert [i.ref.name for i in (await services.list_ours(INSTALLATION)).items] == [spec.release]
    await services.delete(support.ref_of(spec))
    assert (await services.inspect(support.ref_of(foreign))).phase is Phase.RUNNING


async def test_what_the_sweep_lists_can_be_retired_by_it(
    place: NorthflankImitation, services: Services, spec: ServiceSpec
) -> None:
    await up(services, spec)
    (found,) = (await services.list_ours(INSTALLATION)).items
    await services.retire(ServiceRef(service=spec.service, release=found.ref.name, handle=found.ref.handle))
    assert place.things == []


# --------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"registry_public": "https://registry.example.com"}, set()),
        ({"registry_public": "https://registry.example.com/prefix"}, set()),
        ({"registry_public": "https://registry.example.com:5000"}, {"services"}),
        ({"registry_public": "https://registry"}, {"services"}),
        ({"public_url": "https://slipway.example.com:8443"}, {"services"}),
        ({"builder_image": f"registry:5000/b@sha256:{'b' * 64}"}, {"builders"}),
        ({"builder_image": f"ghcr.io/b@sha256:{'b' * 64}"}, set()),
    ],
)
def test_a_registry_that_it_can_t_pull_from_is_known_before_anything_is_built(
    given: dict[str, str], found: set[str]
) -> None:
    own = NorthflankSettings(token=SecretStr("t"), project="p")
    entry = catalog.entries(Settings(northflank=own, **given))["northflank"]  # type: ignore[arg-type]
    assert set(entry.problems) == found
    assert all("SLIPWAY_" in problem for problem in entry.problems.values())
    mended = Settings(northflank=own.model_copy(update={"registry": "images.example.com"}), **given)  # type: ignore[arg-type]
    assert "services" not in catalog.entries(mended)["northflank"].problems

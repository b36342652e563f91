"""Each trap that is known of Railway, sprung on the imitation: a test fails when its guard is taken away."""
# Over 250 lines: one trap after the other.

import dataclasses
import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from app.imitations import graphql
from app.imitations.railway import RailwayImitation
from app.platforms import railway
from app.platforms.base import (
    ImageRef,
    Inspection,
    Misconfigured,
    Phase,
    PlatformError,
    RateLimited,
    Ref,
    Rejected,
    ServiceRef,
    ServiceSpec,
    Size,
    StartFailed,
    Transient,
)
from app.platforms.budget import Bucket
from app.platforms.railway import builders as builders_module
from app.platforms.railway import documents
from app.platforms.railway import services as services_module
from app.platforms.railway.client import Deployment, Instance, PlanLimit, RailwayApi, ServiceInstance
from app.platforms.railway.names import long_name, short_name
from app.platforms.railway.objects import Objects
from tests.images.support import Place, registry
from tests.platforms import cloud
from tests.platforms import railway_support as support
from tests.platforms.contract import INSTALLATION, name, until
from tests.support import contracts
from tests.support.agents import layer_of, push

SCRIPT = f"""#!{sys.executable} -ISu
import os, sys
print("mode", os.environ.get("MODE"))
if os.environ.get("MODE") == "crash":
    sys.exit("boom")
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204 if os.environ.get("MODE") == "204" and self.path == "/" else 200)
        self.send_header("Content-Length", "0" if os.environ.get("MODE") == "204" else str(len(self.body())))
        self.end_headers()
        self.wfile.write(b"" if os.environ.get("MODE") == "204" else self.body())
    def body(self):
        return os.environ.get(self.path.partition("name=")[2], "").encode()
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.fixture
async def imitation(tmp_path: Path) -> AsyncGenerator[RailwayImitation, None]:
    async with support.imitation(tmp_path / "railway") as place:
        yield place


@pytest.fixture
def naps() -> cloud.Naps:
    return cloud.Naps()


@pytest.fixture
async def made(imitation: RailwayImitation, naps: cloud.Naps) -> AsyncGenerator[railway.RailwayPlatform, None]:
    one = support.platform(imitation, naps)
    yield one
    await one.aclose()


@pytest.fixture
def builders(made: railway.RailwayPlatform) -> Any:
    return made.platform.builders


@pytest.fixture
def services(made: railway.RailwayPlatform) -> Any:
    return made.platform.services


@pytest.fixture
async def place(tmp_path: Path) -> AsyncGenerator[Place, None]:
    async with registry(tmp_path / "registry") as served:
        yield served


@pytest.fixture
async def image(place: Place) -> ImageRef:
    return await push(place, layer_of({"app/agent": SCRIPT.encode()}))


@pytest.fixture
def spec(image: ImageRef) -> ServiceSpec:
    return cloud.service_spec(image)


def next_release(spec: ServiceSpec, **changes: Any) -> ServiceSpec:
    return dataclasses.replace(spec, **{"release": name("rel"), **changes})


async def deploy(services: Any, spec: ServiceSpec) -> ServiceRef:
    launched = await services.deploy(spec)
    return ServiceRef(service=spec.service, release=spec.release, handle=launched.handle)


async def reaches(services: Any, ref: ServiceRef | Ref, *phases: Phase) -> Inspection:
    async def look() -> Inspection | None:
        seen: Inspection = await services.inspect(ref)
        return seen if seen.phase in phases else None

    seen = await until(look, 30)
    assert seen is not None
    return seen


async def up(services: Any, spec: ServiceSpec) -> ServiceRef:
    ref = await deploy(services, spec)
    await reaches(services, ref, Phase.RUNNING)
    return ref


async def env(seen: Inspection, variable: str) -> str:
    """Ask a running release for a variable of its environment."""
    assert seen.address is not None
    url = httpx.URL(seen.address.url)
    async with httpx.AsyncClient(timeout=10, headers={"Host": url.netloc.decode()}) as client:
        return (await client.get(f"http://127.0.0.1:{url.port}/env?name={variable}")).text


def sent(imitation: RailwayImitation, operation: str) -> list[dict[str, Any]]:
    """Return the variables of all requests of one operation."""
    return [json.loads(r.body)["variables"] for r in imitation.requests if r.operation == operation]


# ------------------------------------------------------------------------------------------------------- wire


async def test_each_url_has_a_query_string(imitation: RailwayImitation, builders: Any) -> None:
    spec = cloud.builder_spec()
    await builders.launch(spec)
    await builders.stop(Ref(name=spec.name))
    assert imitation.requests
    assert all("source=slipway" in r.query for r in imitation.requests)


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        ("auth", Misconfigured),
        ("no project token", Misconfigured),
        ("2fa", Misconfigured),
        ("throttle in 200", RateLimited),
        ("edge 429", RateLimited),
        ("edge 403", RateLimited),
        ("bad input", Rejected),
        ("invalid document", Rejected),
        ("problem processing", Transient),
        ("server error", Transient),
        ("503 text", Transient),
    ],
)
async def test_refusals_are_told_apart_by_their_words(
    imitation: RailwayImitation, builders: Any, trouble: str, kind: type[PlatformError]
) -> None:
    imitation.misbehave(trouble, "project", times=10)
    with pytest.raises(PlatformError) as caught:
        await builders.list_ours(INSTALLATION)
    assert type(caught.value) is kind
    assert "4711" in str(caught.value) or trouble in {"edge 429", "edge 403", "503 text"}


async def test_a_throttle_inside_a_200_is_waited_out_by_the_caller(imitation: RailwayImitation, builders: Any) -> None:
    imitation.misbehave("throttle in 200")
    with pytest.raises(RateLimited) as caught:
        await builders.launch(cloud.builder_spec())
    assert (caught.value.retry_after or 0) >= 35
    assert (imitation.count("serviceCreate"), imitation.services) == (1, {})


@pytest.mark.parametrize(
    "said",
    ["You do this too quickly", "Your plan allows 5 of them per hour", "Rate limit exceeded", "Too many requests"],
)
async def test_a_throttle_is_known_by_each_of_its_words(imitation: RailwayImitation, builders: Any, said: str) -> None:
    body = {"errors": [{"message": said, "extensions": {"code": "INTERNAL_SERVER_ERROR"}}], "data": None}
    imitation.misbehave("throttle in 200", "project", times=10, body=body)
    with pytest.raises(RateLimited):
        await builders.list_ours(INSTALLATION)


async def test_a_429_is_tried_again(imitation: RailwayImitation, builders: Any) -> None:
    imitation.misbehave("429", "project", times=2)
    assert (await builders.list_ours(INSTALLATION)).complete
    assert imitation.count("project") == 3


async def test_the_reset_header_is_a_time_of_day_and_no_number_of_seconds(imitation: RailwayImitation) -> None:
    imitation.misbehave("429", "project", headers={"retry-after": "0", "x-ratelimit-reset": "1795400000"})
    made = railway.create(support.settings(imitation), sleep=cloud.Naps())
    assert made.platform.builders is not None
    with pytest.raises(RateLimited):
        await made.platform.builders.list_ours(INSTALLATION)
    budget = made.api._api.budget
    assert isinstance(budget, Bucket)
    assert budget._closed_until - budget.clock() < 60
    await made.aclose()


async def test_what_is_polled_leaves_requests_to_what_deletes() -> None:
    assert documents.LOOK.kind == documents.DEPLOYMENT.kind == "poll"
    assert {d.kind for d in (documents.STOP, documents.REMOVE, documents.CANCEL, documents.DELETE_SERVICE)} == {"stop"}
    never = {documents.CREATE_SERVICE, documents.DEPLOY, documents.CREATE_DOMAIN, documents.ROLLBACK}
    assert {d for d in documents.ALL if not d.repeat} == never


async def test_an_account_without_requests_left_still_deletes(imitation: RailwayImitation) -> None:
    budget = Bucket(platform="railway", limit=100, window=1e9, reset="")
    made = support.platform(imitation, budget=budget)
    assert made.platform.builders is not None
    spec = cloud.builder_spec("pass")
    await made.platform.builders.launch(spec)
    budget._tokens = 30
    with pytest.raises(RateLimited):
        await made.platform.builders.list_ours(INSTALLATION)
    budget._tokens = 15
    with pytest.raises(RateLimited):
        await made.platform.builders.launch(cloud.builder_spec())
    await made.platform.builders.stop(Ref(name=spec.name))
    await made.aclose()
    assert imitation.services == {}


async def test_the_timeout_is_as_long_as_railway_s_own_client_s(made: railway.RailwayPlatform) -> None:
    assert (made.api._api._timeout.read or 0) >= 90


# ------------------------------------------------------------------------------------------------------- creation


async def test_names_fit_into_thirty_two_characters(imitation: RailwayImitation, builders: Any) -> None:
    spec = cloud.builder_spec()
    await builders.launch(spec)
    [service] = imitation.services.values()
    assert len(service.name) == 32
    assert long_name(service.name, "run") == spec.name
    assert short_name(long_name(service.name, "svc") or "") == service.name
    assert long_name("somebody-else", "run") is None


async def test_nothing_is_deployed_before_all_is_set(
    imitation: RailwayImitation, services: Any, spec: ServiceSpec
) -> None:
    await up(services, spec)
    await up(services, next_release(spec))
    order = [r.operation for r in imitation.requests]
    assert len(imitation.deployments) == order.count("serviceInstanceDeployV2") == 2
    assert order.index("serviceInstanceLimitsUpdate") < order.index("serviceInstanceDeployV2")
    assert sent(imitation, "serviceCreate")[0]["input"].keys() == {"projectId", "environmentId", "name"}


@pytest.mark.parametrize("trouble", ["cut after success", "504 after success", "problem processing"])
async def test_a_service_whose_creation_was_lost_is_found_again(
    imitation: RailwayImitation, builders: Any, trouble: str
) -> None:
    imitation.misbehave(trouble, "serviceCreate", after=True)
    await builders.launch(cloud.builder_spec())
    assert (len(imitation.services), len(imitation.deployments)) == (1, 1)


@pytest.mark.parametrize("operation", ["serviceInstanceDeployV2", "serviceDomainCreate"])
async def test_what_must_not_be_sent_twice_is_looked_for(
    imitation: RailwayImitation, services: Any, spec: ServiceSpec, operation: str
) -> None:
    imitation.misbehave("504 after success", operation)
    ref = await deploy(services, spec)
    [service] = imitation.services.values()
    assert (len(service.deployments), len(service.domains)) == (1, 1)
    assert ref.handle == f"{service.id}/{service.deployments[0].id}"


async def test_a_deploy_that_came_to_nothing_is_not_taken_for_the_last_one(
    imitation: RailwayImitation, services: Any, spec: ServiceSpec
) -> None:
    first = await up(services, spec)
    imitation.misbehave("server error", "serviceInstanceDeployV2")
    newer = next_release(spec)
    with pytest.raises(Transient):
        await services.deploy(newer)
    again = await up(services, newer)
    assert first.handle != again.handle
    assert len(imitation.deployments) == 2


async def test_a_launch_that_was_cut_short_goes_on_with_its_service(imitation: RailwayImitation, builders: Any) -> None:
    imitation.misbehave("bad input", "serviceInstanceUpdate")
    spec = cloud.builder_spec()
    with pytest.raises(Rejected):
        await builders.launch(spec)
    assert (await builders.list_ours(INSTALLATION)).items[0].ref.name == spec.name
    await builders.launch(spec)
    assert (len(imitation.services), len(imitation.deployments)) == (1, 1)


async def test_what_was_just_created_may_not_be_found_for_a_while(
    imitation: RailwayImitation, services: Any, spec: ServiceSpec, naps: cloud.Naps
) -> None:
    imitation.misbehave("not found yet", "serviceInstance", times=2)
    imitation.misbehave("not found yet", "variableCollectionUpsert", times=3)
    await deploy(services, spec)
    assert naps.now() <= 30


async def test_limits_that_the_plan_refuses_are_told_not_fatal(imitation: RailwayImitation, builders: Any) -> None:
    imitation.misbehave("plan")
    launched = await builders.launch(cloud.builder_spec(size=Size(cpus=2, memory_mb=2048)))
    assert launched.effective == Size(cpus=32, memory_mb=32 * 1024)
    again = await builders.launch(cloud.builder_spec(size=Size(cpus=2, memory_mb=2048)))
    assert again.effective == Size(cpus=2, memory_mb=2048)
    assert sent(imitation, "serviceInstanceLimitsUpdate")[1]["input"]["memoryGB"] == 2


async def test_a_refusal_of_the_plan_names_the_operator(imitation: RailwayImitation, builders: Any) -> None:
    imitation.misbehave("plan", "serviceInstanceDeployV2")
    with pytest.raises(PlanLimit, match="upgrade"):
        await builders.launch(cloud.builder_spec())


async def test_a_private_image_is_refused_before_anything_is_made_on_a_plan_without(
    imitation: RailwayImitation, spec: ServiceSpec
) -> None:
    made = support.platform(imitation, settings=support.settings(imitation, plan="hobby"))
    assert made.platform.services is not None
    with pytest.raises(Misconfigured, match="Pro"):
        await made.platform.services.deploy(spec)
    await made.aclose()
    assert imitation.services == {}
    assert not made.platform.traits.private_registry


async def test_builders_and_services_may_not_share_a_project(imitation: RailwayImitation) -> None:
    with pytest.raises(ValidationError, match="project of their own"):
        support.settings(imitation, builders_project="project-services")


# ------------------------------------------------------------------------------------------------------- variables


async def test_values_that_railway_would_expand_are_refused_unsent(
    imitation: RailwayImitation, services: Any, builders: Any, spec: ServiceSpec
) -> None:
    other = await up(services, dataclasses.replace(spec, secrets={"KEY": "hush"}))
    theirs = f"${{{{{short_name(other.service)}.KEY}}}}"
    thief = cloud.service_spec(spec.image, env={"A": f"x{theirs}"})
    before = len(imitation.requests)
    with pytest.raises(Rejected, match="the value of A"):
        await services.deploy(thief)
    with pytest.raises(Rejected):
        await services.deploy(dataclasses.replace(thief, env={}, secrets={"A": theirs}))
    with pytest.raises(Rejected):
        await builders.launch(cloud.builder_spec(env={"A": theirs}))
    assert len(imitation.requests) == before


async def test_secrets_are_variables_of_their_own_service_alone_and_go_with_the_release(
    imitation: RailwayImitation, services: Any, spec: ServiceSpec
) -> None:
    ref = await up(services, dataclasses.replace(spec, secrets={"KEY": "hush"}))
    await up(services, cloud.service_spec(spec.image))
    holders = [r.operation for r in imitation.requests if b"hush" in r.body]
    assert holders == ["variableCollectionUpsert"]
    assert [("KEY" in s.variables) for s in imitation.services.values()] == [True, False]
    assert all(v["input"]["serviceId"] for v in sent(imitation, "variableCollectionUpsert"))
    await services.retire(ref)
    assert not any("KEY" in s.variables for s in imitation.services.values())
    assert (await services.inspect(ref)).phase is Phase.GONE


async def test_a_release_does_not_inherit_what_the_last_one_had(services: Any, spec: ServiceSpec) -> None:
    await up(services, dataclasses.replace(spec, env={"A": "1"}, secrets={"KEY": "hush"}))
    ref = await up(services, next_release(spec))
    seen = await services.inspect(ref)
    assert [await env(seen, "A"), await env(seen, "KEY")] == ["", ""]


# ------------------------------------------------------------------------------------------------------- builders


async def test_a_builder_that_fails_is_not_started_again(imitation: RailwayImitation, builders: Any) -> None:
    spec = cloud.builder_spec("print('so bad'); raise SystemExit(20)")
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    seen = await reaches(builders, ref, Phase.FAILED)
    assert "so bad" in (seen.message or "")
    assert seen.exit_code is None
    assert [d.starts for d in imitation.deployments] == [1]


async def test_a_builder_that_is_done_has_exited_though_railway_says_success(
    imitation: RailwayImitation, builders: Any
) -> None:
    spec = cloud.builder_spec("print('done')")
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    await reaches(builders, ref, Phase.EXITED)
    assert imitation.deployments[0].status == "SUCCESS"


@pytest.mark.parametrize("status", ["NEEDS_APPROVAL", "SKIPPED"])
async def test_what_waits_for_a_person_or_was_skipped_is_told(
    imitation: RailwayImitation, builders: Any, status: str
) -> None:
    imitation.misbehave(status)
    spec = cloud.builder_spec()
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    seen = await builders.inspect(ref)
    assert (seen.phase, status in seen.message) == (Phase.FAILED, True)
    await builders.stop(ref)


async def test_a_queued_builder_is_canceled_and_a_running_one_stopped(
    imitation: RailwayImitation, builders: Any
) -> None:
    imitation.host.released.clear()
    spec = cloud.builder_spec()
    await builders.launch(spec)
    await builders.stop(Ref(name=spec.name))
    assert (imitation.count("deploymentCancel"), imitation.count("deploymentStop")) == (1, 0)
    imitation.host.released.set()
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    await reaches(builders, ref, Phase.RUNNING)
    await builders.stop(ref)
    assert (imitation.count("deploymentCancel"), imitation.count("deploymentStop")) == (1, 1)
    assert imitation.services == {}


async def test_a_deployment_that_ends_just_before_its_stop_is_over(
    imitation: RailwayImitation, made: railway.RailwayPlatform, builders: Any
) -> None:
    spec = cloud.builder_spec("print('done')")
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    await reaches(builders, ref, Phase.EXITED)
    ours, [deployment] = builders._objects.deployments, imitation.deployments
    known = await ours.one(deployment.id)
    deployment.status = "REMOVED"
    for earlier in ("QUEUED", "DEPLOYING", "SUCCESS"):
        await ours.end(known.model_copy(update={"status": earlier, "stopped": False}))
    imitation.misbehave("bad input", "deploymentStop")
    deployment.status, deployment.stopped = "SUCCESS", False
    with pytest.raises(Rejected):
        await ours.end(known.model_copy(update={"stopped": False}))


#: railway.md §3, the table of deployment statuses: as a builder's phase, and as a service's.
PHASES = {
    "QUEUED": (Phase.STARTING, Phase.STARTING),
    "WAITING": (Phase.STARTING, Phase.STARTING),
    "INITIALIZING": (Phase.STARTING, Phase.STARTING),
    "BUILDING": (Phase.STARTING, Phase.STARTING),
    "DEPLOYING": (Phase.STARTING, Phase.STARTING),
    "NEEDS_APPROVAL": (Phase.FAILED, Phase.FAILED),
    "SUCCESS": (Phase.RUNNING, Phase.RUNNING),
    "SLEEPING": (Phase.EXITED, Phase.ASLEEP),
    "CRASHED": (Phase.FAILED, Phase.FAILED),
    "FAILED": (Phase.FAILED, Phase.FAILED),
    "SKIPPED": (Phase.FAILED, Phase.FAILED),
    "REMOVING": (Phase.GONE, Phase.ASLEEP),
    "REMOVED": (Phase.GONE, Phase.ASLEEP),
}


@pytest.mark.parametrize("status", PHASES)
def test_every_status_has_its_phase(status: str) -> None:
    wire = {"id": "1", "status": status, "deploymentStopped": False, "createdAt": "2026-11-23T06:00:00Z", "new": 1}
    deployment = Deployment.model_validate(wire)
    assert (builders_module.phase_of(deployment), services_module.phase_of(deployment)) == PHASES[status]
    exited = deployment.model_copy(update={"instances": (Instance(id="1", status="EXITED"),)})
    stopped = deployment.model_copy(update={"stopped": True})
    if status == "SUCCESS":
        assert [builders_module.phase_of(d) for d in (exited, stopped)] == [Phase.EXITED, Phase.EXITED]
        assert services_module.phase_of(stopped) is Phase.ASLEEP


async def test_a_builder_costs_few_requests(made: railway.RailwayPlatform, builders: Any) -> None:
    spec = cloud.builder_spec("print('done')")
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    await reaches(builders, ref, Phase.EXITED)
    made.api.requests.clear()
    await builders.stop(ref)
    stopping = made.api.requests.total()
    assert stopping == 3
    made.api.requests.clear()
    await builders.launch(cloud.builder_spec())
    assert made.api.requests.total() + stopping <= 12


# ------------------------------------------------------------------------------------------------------- deletion


async def test_a_deletion_counts_when_no_page_of_the_listing_has_it(tmp_path: Path, naps: cloud.Naps) -> None:
    async with support.imitation(tmp_path / "paged", page=1) as imitation:
        made = support.platform(imitation, naps)
        assert made.platform.builders is not None
        specs = [cloud.builder_spec("pass") for _ in range(3)]
        for spec in specs:
            await made.platform.builders.launch(spec)
        assert len((await made.platform.builders.list_ours(INSTALLATION)).items) == 3
        imitation.misbehave("lagging list", times=4)
        await made.platform.builders.stop(Ref(name=specs[-1].name))
        assert [i.ref.name for i in (await made.platform.builders.list_ours(INSTALLATION)).items] == [
            s.name for s in specs[:2]
        ]
        await made.aclose()


async def test_a_deletion_that_never_shows_is_not_done(imitation: RailwayImitation, builders: Any) -> None:
    spec = cloud.builder_spec("pass")
    await builders.launch(spec)
    imitation.misbehave("lagging list", times=1000)
    with pytest.raises(Transient, match="listed after its deletion"):
        await builders.stop(Ref(name=spec.name))


async def test_all_services_of_a_name_are_deleted(imitation: RailwayImitation, made: railway.RailwayPlatform) -> None:
    spec = cloud.builder_spec("pass")
    theirs = Objects(
        made.api,
        project="project-builders",
        environment="environment-builders",
        kind="run",
        most=Size(cpus=1, memory_mb=1),
    )
    await theirs.create(spec.name)
    await theirs.create(spec.name)
    assert made.platform.builders is not None
    await made.platform.builders.launch(spec)
    assert len(imitation.deployments) == 1
    await made.platform.builders.stop(Ref(name=spec.name))
    assert imitation.services == {}


async def test_a_listing_that_does_not_come_to_its_end_proves_nothing(
    imitation: RailwayImitation, builders: Any
) -> None:
    imitation.misbehave("stuck cursor", times=1000)
    with pytest.raises(Transient, match="end"):
        await builders.list_ours(INSTALLATION)
    assert imitation.count("project") < 5


# ------------------------------------------------------------------------------------------------------- services


async def test_a_failure_without_a_log_is_told_from_events(services: Any, spec: ServiceSpec) -> None:
    wrong = dataclasses.replace(spec.image, password="mistaken")
    ref = await deploy(services, dataclasses.replace(spec, image=wrong))
    seen = await reaches(services, ref, Phase.FAILED)
    assert "failed to pull" in (seen.message or "")
    assert "mistaken" not in (seen.message or "")
    assert await services.logs(ref) == []


async def test_a_digest_that_is_not_there_fails_the_release(services: Any, spec: ServiceSpec) -> None:
    absent = dataclasses.replace(spec.image, digest=f"sha256:{'0' * 64}")
    ref = await deploy(services, dataclasses.replace(spec, image=absent))
    assert "failed to pull" in ((await reaches(services, ref, Phase.FAILED)).message or "")


async def test_a_deployment_of_another_image_is_no_success(
    imitation: RailwayImitation, services: Any, spec: ServiceSpec, place: Place
) -> None:
    await up(services, spec)
    other = await push(place, layer_of({"app/agent": SCRIPT.encode() + b"# newer\n"}))
    imitation.misbehave("stale image")
    ref = await deploy(services, next_release(spec, image=other))
    seen = await reaches(services, ref, Phase.FAILED, Phase.RUNNING)
    assert (seen.phase, seen.address) == (Phase.FAILED, None)
    assert other.digest in (seen.message or "")


async def test_a_failed_release_leaves_the_old_one_and_its_configuration(
    imitation: RailwayImitation, services: Any, spec: ServiceSpec
) -> None:
    old = await up(services, dataclasses.replace(spec, env={"A": "old"}))
    failed = await deploy(services, next_release(spec, env={"A": "new", "MODE": "crash"}))
    await reaches(services, failed, Phase.FAILED)
    assert await env(await services.inspect(old), "A") == "old"
    await services.retire(failed)
    assert (await services.inspect(failed)).phase is Phase.GONE
    seen = await reaches(services, old, Phase.RUNNING)
    assert await env(seen, "A") == "old"
    [service] = imitation.services.values()
    assert (service.variables["A"], "MODE" in service.variables) == ("old", False)
    # What is deployed next is the old release, whoever deploys it.
    await services.sleep(old)
    assert (await services.inspect(old)).phase is Phase.ASLEEP
    await services.wake(old)
    assert await env(await services.inspect(old), "A") == "old"


async def test_without_a_rollback_the_old_image_at_least_is_configured_again(
    imitation: RailwayImitation, services: Any, spec: ServiceSpec, place: Place
) -> None:
    await up(services, spec)
    imitation.deployments[0].served = False  # too old to be rolled back to
    other = await push(place, layer_of({"app/agent": SCRIPT.encode() + b"# newer\n"}))
    failed = await deploy(services, next_release(spec, image=other, env={"MODE": "crash"}, secrets={"KEY": "hush"}))
    await reaches(services, failed, Phase.FAILED)
    await services.retire(failed)
    [service] = imitation.services.values()
    assert service.image == spec.image.reference
    assert "KEY" not in service.variables


async def test_a_rollback_s_new_deployment_is_found(
    imitation: RailwayImitation, services: Any, spec: ServiceSpec
) -> None:
    old = await up(services, spec)
    failed = await deploy(services, next_release(spec, env={"MODE": "crash"}))
    await reaches(services, failed, Phase.FAILED)
    await services.retire(failed)
    seen = await reaches(services, old, Phase.RUNNING)
    assert imitation.count("deploymentRollback") == 1

    async def moved() -> bool:
        now = await services.inspect(old)
        return bool(now.phase is Phase.RUNNING and now.handle == f"{service.id}/{service.deployments[-1].id}")

    [service] = imitation.services.values()
    await until(moved, 30)
    assert seen.handle is not None


async def test_a_release_without_a_health_check_of_200_never_serves(services: Any, spec: ServiceSpec) -> None:
    ref = await deploy(services, dataclasses.replace(spec, env={"MODE": "204"}))
    with pytest.raises(StartFailed) as caught:
        await services.wake(ref)
    assert caught.value.reason == "not_listening"
    assert (await services.inspect(ref)).phase is Phase.STARTING


async def test_sleep_is_health_and_a_wake_is_a_request_which_may_fail(
    imitation: RailwayImitation, services: Any, spec: ServiceSpec
) -> None:
    ref = await up(services, spec)
    before = await services.inspect(ref)
    assert await imitation.idle_pass() == [short_name(spec.service)]
    seen = await services.inspect(ref)
    assert (seen.phase, seen.address) == (Phase.ASLEEP, None)
    imitation.misbehave("502 after sleep")
    address = await services.wake(ref)
    assert address.instance_id != before.address.instance_id
    assert len(imitation.deployments) == 1


async def test_a_request_wakes_what_railway_put_to_sleep(
    imitation: RailwayImitation, services: Any, spec: ServiceSpec
) -> None:
    ref = await up(services, spec)
    seen = await services.inspect(ref)
    await imitation.idle_pass()
    assert await env(seen, "RAILWAY_DEPLOYMENT_ID") == imitation.deployments[0].id
    assert (await services.inspect(ref)).phase is Phase.RUNNING


async def test_what_has_to_stay_up_does_not_sleep(
    imitation: RailwayImitation, services: Any, spec: ServiceSpec
) -> None:
    await up(services, dataclasses.replace(spec, scale_min=1))
    assert await imitation.idle_pass() == []


async def test_the_idle_time_can_not_be_chosen(made: railway.RailwayPlatform) -> None:
    traits = made.platform.traits
    assert (traits.min_idle_seconds, traits.max_idle_seconds, traits.idle_signal) == (600, 600, "outbound")


async def test_an_upgrade_keeps_the_address(imitation: RailwayImitation, services: Any, spec: ServiceSpec) -> None:
    first = await services.inspect(await up(services, spec))
    second = await services.inspect(await up(services, next_release(spec)))
    assert [len(s.domains) for s in imitation.services.values()] == [1]
    assert first.address.url == second.address.url
    assert first.address.instance_id != second.address.instance_id


async def test_a_replaced_release_is_neither_stopped_nor_woken(
    imitation: RailwayImitation, services: Any, spec: ServiceSpec
) -> None:
    old = await up(services, spec)
    new = await up(services, next_release(spec))
    await services.sleep(old)
    with pytest.raises(Rejected, match="another release"):
        await services.wake(old)
    await services.retire(old)
    assert (await services.inspect(new)).phase is Phase.RUNNING
    assert imitation.count("deploymentRollback") == 0


# ------------------------------------------------------------------------------------------------------- schema

checked = pytest.mark.skipif(
    contracts.folder() is None or not graphql.AVAILABLE, reason="Railway's schema or graphql-core is not at hand"
)


@checked
@pytest.mark.parametrize("document", documents.ALL, ids=lambda d: d.name)
def test_every_document_is_valid(document: documents.Document) -> None:
    schema = graphql.load(contracts.folder(), RailwayImitation.contract_file)
    assert isinstance(schema, graphql.Schema)
    assert schema.invalid(document.text) == []
    assert graphql.read(document.text, {})


@checked
async def test_a_misspelt_field_is_caught(tmp_path: Path) -> None:
    place = RailwayImitation(tmp_path, builder=(), builder_image="", contracts=contracts.folder())
    async with place:
        api = RailwayApi(place.api_url, place.token, sleep=cloud.Naps())
        objects = Objects(
            api,
            project="project-services",
            environment="environment-services",
            kind="svc",
            most=Size(cpus=1, memory_mb=1),
        )
        service = await objects.create(name("svc"))
        await objects.update(service, sleepAplication=True)
        misspelt = dataclasses.replace(
            documents.LOOK, text=documents.LOOK.text.replace("activeDeployments", "latestDeployment x")
        )
        with pytest.raises(PlatformError):
            await api.ask(misspelt, ServiceInstance, "serviceInstance", service=service, environment="e")
        await api.aclose()
    assert any("sleepAplication" in v for v in place.contract.violations)
    assert len(place.contract.violations) >= 2


@checked
async def test_an_answer_that_the_schema_does_not_know_is_caught() -> None:
    schema = graphql.load(contracts.folder(), RailwayImitation.contract_file)
    assert isinstance(schema, graphql.Schema)
    body = {
        "query": documents.CREATE_SERVICE.text,
        "variables": {"input": {"projectId": "p"}},
        "operationName": "CreateService",
    }
    good = {"data": {"serviceCreate": {"id": "1", "name": "n"}}}
    assert list(schema.problems(body, good)) == []
    for wrong in ({"id": "1", "name": None}, {"id": "1"}, {"id": "1", "name": "n", "color": "red"}):
        assert list(schema.problems(body, {"data": {"serviceCreate": wrong}}))

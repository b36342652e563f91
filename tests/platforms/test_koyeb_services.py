"""Services on Koyeb and the traps around them; each test names what goes wrong without its guard."""
# Over 250 lines: one trap after the other.

import dataclasses
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.imitations.koyeb import KoyebImitation
from app.imitations.koyeb_machines import App
from app.platforms.address import request_for
from app.platforms.base import (
    Address,
    ImageRef,
    Inspection,
    NoCapacity,
    Phase,
    Rejected,
    ServiceRef,
    Services,
    ServiceSpec,
    Size,
    Transient,
)
from tests.platforms import cloud
from tests.platforms import koyeb_support as support
from tests.platforms.contract import INSTALLATION, name, until


@pytest.fixture
async def imitation(tmp_path: Path) -> AsyncGenerator[KoyebImitation, None]:
    async with support.imitation(tmp_path / "koyeb") as place:
        yield place


@pytest.fixture
async def services(imitation: KoyebImitation) -> AsyncGenerator[Services, None]:
    async with support.opened(support.settings(imitation)) as platform:
        assert platform.services is not None
        yield platform.services


@pytest.fixture
async def image(stored: cloud.Stored) -> AsyncGenerator[ImageRef, None]:
    async with stored.served() as one:
        yield one


@pytest.fixture
def spec(image: ImageRef) -> ServiceSpec:
    return support.service_spec(image)


def bodies(imitation: KoyebImitation, operation: str) -> list[dict[str, Any]]:
    return [json.loads(r.body) for r in imitation.requests if r.operation == operation]


def following(spec: ServiceSpec, **changes: Any) -> ServiceSpec:
    return dataclasses.replace(spec, release=name("rel"), **changes)


async def deployed(services: Services, spec: ServiceSpec) -> ServiceRef:
    return ServiceRef(service=spec.service, release=spec.release, handle=(await services.deploy(spec)).handle)


async def reached(services: Services, ref: ServiceRef, phase: Phase) -> Inspection:
    async def there() -> Inspection | None:
        seen = await services.inspect(ref)
        return seen if seen.phase is phase else None

    seen = await until(there, 40)
    assert seen is not None
    return seen


async def up(services: Services, spec: ServiceSpec) -> ServiceRef:
    ref = await deployed(services, spec)
    await reached(services, ref, Phase.RUNNING)
    return ref


async def ask(address: Address | None, path: str) -> str:
    assert address is not None
    base, headers = request_for(address.url)
    async with httpx.AsyncClient(timeout=20, headers=headers) as client:
        return (await client.get(base + path)).text


def unpulled(**changes: Any) -> ServiceSpec:
    """A spec for tests that are over before an image is pulled."""
    digest = f"sha256:{'a' * 64}"
    return support.service_spec(ImageRef(registry="http://127.0.0.1:1", repository="a/b", digest=digest), **changes)


# --------------------------------------------------------------------------------------------------- rollouts


async def test_a_bad_rollout_is_seen_though_the_service_says_healthy(
    imitation: KoyebImitation, services: Services, spec: ServiceSpec
) -> None:
    old = await up(services, spec)
    new = await deployed(services, following(spec, env={"MODE": "crash"}))
    seen = await reached(services, new, Phase.FAILED)
    assert imitation.services[0].status == "HEALTHY"
    assert "boom" in (seen.message or "")
    assert seen.address is None
    still = await services.inspect(old)
    assert still.phase is Phase.RUNNING
    assert await ask(still.address, "/env?name=SLIPWAY_RELEASE") == old.release
    await services.retire(new)
    assert (await services.inspect(old)).phase is Phase.RUNNING


async def test_retiring_a_rollout_under_way_cancels_it(
    imitation: KoyebImitation, services: Services, spec: ServiceSpec
) -> None:
    old = await up(services, spec)
    new = await deployed(services, following(spec, env={"MODE": "mute"}))
    await services.retire(new)
    assert imitation.services[0].latest.status == "CANCELED"
    assert (await services.inspect(new)).phase is Phase.FAILED
    assert (await services.inspect(old)).phase is Phase.RUNNING


async def test_a_superseded_release_is_gone_and_putting_it_to_sleep_leaves_the_new_one(
    imitation: KoyebImitation, services: Services, spec: ServiceSpec
) -> None:
    """A service can only be paused as a whole, and superseded releases are put to sleep to be kept."""
    old = await up(services, spec)
    new = await up(services, following(spec))
    await services.sleep(old)
    assert imitation.count("pause service") == 0
    assert (await services.inspect(old)).phase is Phase.GONE
    assert (await services.inspect(new)).phase is Phase.RUNNING


async def test_a_pause_that_does_not_end_is_tried_again(imitation: KoyebImitation, spec: ServiceSpec) -> None:
    naps: list[float] = []

    async def nap(seconds: float) -> None:
        naps.append(seconds)

    async with support.opened(support.settings(imitation), poll_seconds=10, sleep=nap) as platform:
        assert platform.services is not None
        ref = await up(platform.services, spec)
        imitation.misbehave("never paused")
        with pytest.raises(Transient, match="still being paused"):
            await platform.services.sleep(ref)
        assert naps == [10, 10, 10]


async def test_a_release_that_serves_and_is_not_wanted_is_paused_and_the_next_resumes(
    imitation: KoyebImitation, services: Services, spec: ServiceSpec
) -> None:
    await services.retire(await up(services, spec))

    async def paused() -> bool:
        return imitation.services[0].status == "PAUSED"

    await until(paused)
    await reached(services, await deployed(services, following(spec)), Phase.RUNNING)


@pytest.mark.parametrize("trap", ["cut after success", "504 after success"])
async def test_a_rollout_that_went_through_without_an_answer_is_found(
    imitation: KoyebImitation, services: Services, spec: ServiceSpec, trap: str
) -> None:
    imitation.misbehave(trap, "create service")
    await up(services, spec)
    imitation.misbehave(trap, "update service")
    new = await up(services, following(spec))
    (service,) = imitation.services
    assert len(service.deployments) == 2
    assert new.handle == f"{service.id}/{service.latest.id}"


async def test_what_somebody_else_has_just_made_is_ours_too(imitation: KoyebImitation, services: Services) -> None:
    for operation in ("create app", "create secret", "create service"):
        imitation.misbehave("exists", operation)
    spec = unpulled(secrets={"KEY": "x"})
    await services.deploy(spec)
    assert (len(imitation.apps), len(imitation.services), len(imitation.secrets)) == (1, 1, 1)


async def test_a_rollout_that_did_not_go_through_is_asked_for_again_by_the_caller(
    imitation: KoyebImitation, services: Services
) -> None:
    spec = unpulled()
    imitation.misbehave("cut before", "create service")
    with pytest.raises(Transient):
        await services.deploy(spec)
    assert imitation.services == []
    await services.deploy(spec)
    assert len(imitation.services) == 1


async def test_a_deployment_that_is_not_told_yet_is_found_later(
    imitation: KoyebImitation, services: Services, spec: ServiceSpec
) -> None:
    imitation.misbehave("no latest yet", times=2)
    ref = await deployed(services, spec)
    assert (ref.handle or "").endswith("/")
    await reached(services, ref, Phase.RUNNING)


async def test_a_status_that_is_new_to_us_fails_nothing(
    imitation: KoyebImitation, services: Services, spec: ServiceSpec
) -> None:
    ref = await up(services, spec)
    active = imitation.services[0].latest
    body = {"deployment": {"id": active.id, "status": "DREAMING", "definition": active.definition}}
    imitation.misbehave("new status", times=2, body=body)
    seen = await services.inspect(ref)
    assert (seen.phase, seen.address) == (Phase.STARTING, None)
    assert "DREAMING" in (seen.message or "")


async def test_degraded_goes_on_being_waited_for(
    imitation: KoyebImitation, services: Services, spec: ServiceSpec
) -> None:
    ref = await up(services, spec)
    imitation.services[0].latest.status = "DEGRADED"
    seen = await services.inspect(ref)
    assert (seen.phase, seen.address) == (Phase.STARTING, None)
    imitation.services[0].latest.status = "HEALTHY"


async def test_a_healthy_release_that_does_not_serve_yet_has_no_address(
    imitation: KoyebImitation, services: Services, spec: ServiceSpec
) -> None:
    """The address is the service's: until the traffic is moved over, the old release answers there."""
    await up(services, spec)
    new = await up(services, following(spec))
    (service,) = imitation.services
    service.active = service.deployments[0]
    seen = await services.inspect(new)
    assert (seen.phase, seen.address) == (Phase.STARTING, None)
    service.active = service.latest


async def test_a_used_up_quota_tries_the_next_region(imitation: KoyebImitation, services: Services) -> None:
    imitation.misbehave("quota")
    assert (await services.deploy(unpulled())).region == "was"
    imitation.misbehave("quota", times=2)
    with pytest.raises(NoCapacity):
        await services.deploy(unpulled())


# --------------------------------------------------------------------------------------------------- definitions


async def test_what_is_asked_for_is_as_the_platform_wants_it(imitation: KoyebImitation, services: Services) -> None:
    launched = await services.deploy(unpulled(size=Size(cpus=0.3, memory_mb=300), port=9000, health_path="/up"))
    (body,) = bodies(imitation, "create service")
    definition = body["definition"]
    assert definition["type"] == "WEB"
    assert definition["mesh"] == "DEPLOYMENT_MESH_DISABLED"
    assert definition["instance_types"] == [{"type": "micro"}]
    assert launched.effective == Size(cpus=0.5, memory_mb=512, plan="micro")
    assert definition["scalings"] == [
        {"min": 0, "max": 1, "targets": [{"sleep_idle_delay": {"deep_sleep_value": 300}}]}
    ]
    assert definition["ports"] == [{"port": 9000, "protocol": "http"}]
    assert {e["key"]: e.get("value") for e in definition["env"]}["PORT"] == "9000"
    assert definition["health_checks"][0]["http"] == {"port": 9000, "path": "/up", "method": "GET"}
    assert "life_cycle" not in body  # a service must not delete itself
    (app,) = bodies(imitation, "create app")
    assert app["life_cycle"] == {"delete_when_empty": True}
    assert launched.url == f"http://{imitation.apps[app['name']].domain}"


async def test_a_service_that_stays_up_has_no_sleep(imitation: KoyebImitation, services: Services) -> None:
    await services.deploy(unpulled(scale_min=1))
    assert bodies(imitation, "create service")[0]["definition"]["scalings"] == [{"min": 1, "max": 1}]


@pytest.mark.parametrize(("idle", "got"), [(1, 60), (86_400, 21_600), (90, 90)])
async def test_an_idle_time_that_the_plan_does_not_take_becomes_the_nearest(
    imitation: KoyebImitation, services: Services, idle: int, got: int
) -> None:
    await services.deploy(unpulled(idle_seconds=idle))
    (target,) = bodies(imitation, "create service")[0]["definition"]["scalings"][0]["targets"]
    assert target == {"sleep_idle_delay": {"deep_sleep_value": got}}


async def test_braces_that_koyeb_would_expand_are_refused_unsent(imitation: KoyebImitation, services: Services) -> None:
    with pytest.raises(Rejected, match="ANY holds"):
        await services.deploy(unpulled(env={"ANY": "{{ secret.other }}"}))
    assert imitation.requests == []


# --------------------------------------------------------------------------------------------------- secrets


async def test_secrets_go_by_reference_and_go_with_their_service(
    imitation: KoyebImitation, services: Services, spec: ServiceSpec
) -> None:
    imitation.secrets["other"] = {"name": "acme", "type": "SIMPLE", "value": "theirs"}
    secrets = {"API_KEY": "hush-{{ 1 }}", "DB": "hush-2"}
    ref = await up(services, dataclasses.replace(spec, secrets=secrets))
    seen = await services.inspect(ref)
    assert await ask(seen.address, "/env?name=DB") == "hush-2"
    assert "hush" not in str(bodies(imitation, "create service"))
    assert spec.image.password
    assert spec.image.password not in str(bodies(imitation, "create service"))
    assert sorted(s["type"] for s in imitation.secrets.values()) == ["REGISTRY", "SIMPLE", "SIMPLE", "SIMPLE"]
    assert all(len(s["name"]) <= 63 for s in imitation.secrets.values())
    await services.delete(ServiceRef(service=spec.service, release=""))
    assert [s["name"] for s in imitation.secrets.values()] == ["acme"]
    assert imitation.apps == {}


async def test_a_retired_release_takes_only_its_own_secrets(
    imitation: KoyebImitation, services: Services, spec: ServiceSpec
) -> None:
    old = await up(services, dataclasses.replace(spec, secrets={"KEY": "old"}))
    await up(services, following(spec, secrets={"KEY": "new"}))
    assert len(imitation.secrets) == 4
    await services.retire(old)
    assert {s.get("value") for s in imitation.secrets.values() if s["type"] == "SIMPLE"} == {"new"}
    assert len(imitation.secrets) == 2


async def test_a_secret_that_is_there_gets_the_value_it_is_to_have(
    imitation: KoyebImitation, services: Services
) -> None:
    spec = unpulled(secrets={"KEY": "first"})
    imitation.misbehave("cut after success", "create secret")
    imitation.misbehave("cut before", "create service")
    with pytest.raises(Transient):
        await services.deploy(spec)
    await services.deploy(dataclasses.replace(spec, secrets={"KEY": "second"}))
    assert [s["value"] for s in imitation.secrets.values()] == ["second"]


async def test_secrets_beyond_the_first_page_go_too(imitation: KoyebImitation, services: Services) -> None:
    for number in range(250):
        imitation.secrets[str(number)] = {"name": f"acme-{number}", "type": "SIMPLE"}
    spec = unpulled(secrets={"KEY": "x"})
    await services.deploy(spec)
    assert len(imitation.secrets) == 251
    await services.delete(ServiceRef(service=spec.service, release=""))
    assert len(imitation.secrets) == 250


async def test_an_image_that_cannot_be_pulled_says_so(
    imitation: KoyebImitation, services: Services, spec: ServiceSpec
) -> None:
    wrong = dataclasses.replace(spec, image=dataclasses.replace(spec.image, password="no-such"))
    seen = await reached(services, await deployed(services, wrong), Phase.FAILED)
    assert "image pull failed" in (seen.message or "")
    assert "no-such" not in (seen.message or "")


# --------------------------------------------------------------------------------------------------- sleep


async def test_it_falls_asleep_by_itself_and_a_request_wakes_it(
    imitation: KoyebImitation, services: Services, spec: ServiceSpec
) -> None:
    ref = await up(services, spec)
    before = await services.inspect(ref)
    assert await imitation.idle_pass(3600) == []
    assert await imitation.idle_pass() == [spec.service]
    assert imitation.services[0].status == "HEALTHY"
    asleep = await services.inspect(ref)
    assert asleep.phase is Phase.ASLEEP
    assert asleep.address is not None  # a fresh release may sleep before anybody looked: asking it wakes it
    first = await ask(asleep.address, "/env?name=KOYEB_INSTANCE_ID")
    assert before.address is not None
    assert first != before.address.instance_id
    assert (await services.inspect(ref)).phase is Phase.RUNNING


async def test_what_sleeps_is_woken_by_a_knock(
    imitation: KoyebImitation, services: Services, spec: ServiceSpec
) -> None:
    ref = await up(services, spec)
    await imitation.idle_pass()
    address = await services.wake(ref)
    assert await ask(address, "/env?name=KOYEB_INSTANCE_ID") == address.instance_id
    assert imitation.count("resume service") == 0


# --------------------------------------------------------------------------------------------------- budget


async def test_a_promote_costs_few_requests(imitation: KoyebImitation, services: Services, spec: ServiceSpec) -> None:
    imitation.host.released.clear()
    before = len(imitation.requests)
    ref = await deployed(services, spec)
    for _ in range(3):
        assert (await services.inspect(ref)).phase is Phase.STARTING
    imitation.host.released.set()

    async def healthy() -> bool:
        return imitation.services[0].active is not None

    await until(healthy, 40)
    assert (await services.inspect(ref)).phase is Phase.RUNNING
    assert len(imitation.requests) - before <= 12, [r.operation for r in imitation.requests[before:]]


async def test_an_app_without_a_service_is_listed_and_deleted(imitation: KoyebImitation, services: Services) -> None:
    spec = unpulled()
    imitation.misbehave("plan")
    with pytest.raises(Rejected):
        await services.deploy(spec)
    (item,) = (await services.list_ours(INSTALLATION)).items
    assert item.ref.name == spec.service
    await services.delete(ServiceRef(service=spec.service, release=""))
    assert (await services.list_ours(INSTALLATION)).items == ()


async def test_a_listing_is_read_to_its_last_page(imitation: KoyebImitation, services: Services) -> None:
    for _ in range(150):
        app = App(name("svc"), "", delete_when_empty=False)
        imitation.apps[app.name] = app
    listing = await services.list_ours(INSTALLATION)
    assert {item.ref.name for item in listing.items} == set(imitation.apps)
    assert listing.complete

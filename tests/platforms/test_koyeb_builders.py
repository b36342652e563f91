"""Builders on Koyeb and the traps around them; each test names what goes wrong without its guard."""
# Over 250 lines: one trap after the other.

import contextlib
import json
import sys
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app.imitations.koyeb import LIFETIMES, KoyebImitation
from app.imitations.programs import Line
from app.platforms.base import (
    Builders,
    Inspection,
    Misconfigured,
    NoCapacity,
    Phase,
    RateLimited,
    Ref,
    Rejected,
    Transient,
)
from app.platforms.budget import Bucket
from app.platforms.catalog import entries
from app.settings import KoyebSettings, Settings
from tests.builder.standin import RUN, TOKEN, ControlPlane, serving
from tests.platforms import cloud
from tests.platforms import koyeb_support as support
from tests.platforms.contract import INSTALLATION, name, until
from tests.support import contracts
from tests.support.processes import REPOSITORY


@pytest.fixture
async def imitation(tmp_path: Path) -> AsyncGenerator[KoyebImitation, None]:
    async with support.imitation(tmp_path / "koyeb") as place:
        yield place


@contextlib.asynccontextmanager
async def opened(imitation: KoyebImitation, **options: Any) -> AsyncGenerator[Builders, None]:
    async with support.opened(options.pop("settings", None) or support.settings(imitation), **options) as platform:
        assert platform.builders is not None
        yield platform.builders


@pytest.fixture
async def builders(imitation: KoyebImitation) -> AsyncGenerator[Builders, None]:
    async with opened(imitation) as one:
        yield one


def created(imitation: KoyebImitation) -> dict[str, Any]:
    """Return the last body that a service was made of."""
    found: dict[str, Any] = json.loads([r.body for r in imitation.requests if r.operation == "create service"][-1])
    return found


async def settled(builders: Builders, ref: Ref) -> Inspection:
    async def over() -> Inspection | None:
        seen = await builders.inspect(ref)
        return seen if seen.phase not in {Phase.STARTING, Phase.RUNNING} else None

    seen = await until(over)
    assert seen is not None
    return seen


async def running(builders: Builders, ref: Ref) -> Inspection:
    async def up() -> Inspection | None:
        seen = await builders.inspect(ref)
        return seen if seen.phase is Phase.RUNNING else None

    seen = await until(up)
    assert seen is not None
    return seen


async def test_a_builder_is_a_worker_that_stays_and_removes_itself(
    imitation: KoyebImitation, builders: Builders
) -> None:
    await builders.launch(cloud.builder_spec(deadline=datetime.now(UTC) + timedelta(seconds=1000)))
    body = created(imitation)
    definition = body["definition"]
    assert definition["type"] == "WORKER"
    assert definition["scalings"] == [{"min": 1, "max": 1}]  # it gets no requests: anything else would put it to sleep
    assert not definition.keys() & {"ports", "routes", "health_checks"}
    assert definition["mesh"] == "DEPLOYMENT_MESH_DISABLED"
    assert 1590 <= body["life_cycle"]["delete_after_create"] <= 1600
    env = {e["key"]: e["value"] for e in definition["env"]}
    assert env["SLIPWAY_HOLD_AFTER_CALLBACK"] == "1"
    assert imitation.token not in str(body)
    assert await imitation.expire(1600) == [body["name"]]
    assert (await builders.list_ours(INSTALLATION)).items == ()


async def test_a_life_time_is_within_what_the_account_allows(imitation: KoyebImitation, builders: Builders) -> None:
    far = datetime.now(UTC) + timedelta(seconds=LIFETIMES[1] - 100)
    await builders.launch(cloud.builder_spec(deadline=far))
    assert created(imitation)["life_cycle"]["delete_after_create"] == LIFETIMES[1]
    with pytest.raises(Rejected, match="live 86400 s at most"):
        await builders.launch(cloud.builder_spec(deadline=far + timedelta(seconds=1000)))


async def test_the_real_builder_claims_as_its_instance_and_holds_after_its_callback(tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(REPOSITORY), "SLIPWAY_GO": "/bin/false"}
    program = (sys.executable, "-m", "builder")
    with serving(ControlPlane()) as plane:
        async with (
            support.imitation(tmp_path / "koyeb", builder=program, builder_env=env) as imitation,
            opened(imitation) as builders,
        ):
            orders = {"SLIPWAY_URL": plane.url, "SLIPWAY_RUN_ID": RUN, "SLIPWAY_RUN_TOKEN": TOKEN}
            orders |= {"SLIPWAY_RUN_DEADLINE": str(plane.deadline)}
            spec = cloud.builder_spec(env=orders)
            ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)

            async def called_back() -> bool:
                return plane.completion is not None

            await until(called_back, 60)
            (instance,) = imitation.services[0].latest.instances
            assert plane.instance == instance.id
            assert (await running(builders, ref)).phase is Phase.RUNNING
            assert instance.running is not None
            await builders.stop(ref)
            assert instance.running.code is not None
            assert (await builders.inspect(ref)).phase is Phase.GONE


@pytest.mark.parametrize("code", [0, 10])
async def test_a_builder_that_ended_was_started_again_and_counts_as_failed(
    imitation: KoyebImitation, builders: Builders, code: int
) -> None:
    spec = cloud.builder_spec(f"raise SystemExit({code})")
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    seen = await settled(builders, ref)
    assert seen.phase is Phase.FAILED
    assert "started again" in (seen.message or "")


@pytest.mark.parametrize("trap", ["cut after success", "504 after success", "exists"])
async def test_a_launch_that_went_through_without_an_answer_is_found_by_its_name(
    imitation: KoyebImitation, builders: Builders, trap: str
) -> None:
    spec = cloud.builder_spec()
    imitation.misbehave(trap, "create service")
    imitation.misbehave(trap, "create app")
    launched = await builders.launch(spec)
    assert [s.id for s in imitation.services] == [launched.handle]
    assert imitation.count("create service") == 1


async def test_a_name_that_only_begins_alike_is_another_s(imitation: KoyebImitation, builders: Builders) -> None:
    first = cloud.builder_spec()
    longer = cloud.builder_spec(name=f"{first.name}x")
    await builders.launch(longer)
    assert (await builders.inspect(Ref(name=first.name))).phase is Phase.GONE
    await builders.stop(Ref(name=first.name))
    assert [s.name for s in imitation.services] == [longer.name]


async def test_a_used_up_quota_is_no_capacity_after_all_regions(imitation: KoyebImitation, builders: Builders) -> None:
    imitation.misbehave("quota")
    assert (await builders.launch(cloud.builder_spec())).region == "was"
    imitation.misbehave("quota", times=2)
    with pytest.raises(NoCapacity) as caught:
        await builders.launch(cloud.builder_spec(regions=("fra", "par")))
    assert caught.value.region == "par"
    assert len(imitation.services) == 1


@pytest.mark.parametrize(
    ("trap", "error"),
    [("plan", Rejected), ("unauthorized", Misconfigured), ("html", Transient), ("429 later", RateLimited)],
)
async def test_a_refusal_says_whose_fault_it_is(
    imitation: KoyebImitation, builders: Builders, trap: str, error: type[Exception]
) -> None:
    imitation.misbehave(trap, "create service")
    with pytest.raises(error) as caught:
        await builders.launch(cloud.builder_spec())
    assert type(caught.value) is error
    assert imitation.token not in str(caught.value)
    if isinstance(caught.value, RateLimited):
        assert caught.value.retry_after == 600  # there is no Retry-After, only the window's end


async def test_a_throttled_create_is_sent_again(imitation: KoyebImitation, builders: Builders) -> None:
    imitation.misbehave("429", "create service", times=2)
    await builders.launch(cloud.builder_spec())
    assert imitation.count("create service") == 3
    assert len(imitation.services) == 1


async def test_a_wrong_token_is_the_operator_s_fault(imitation: KoyebImitation) -> None:
    wrong = support.settings(imitation, token=SecretStr("wrong"))
    async with opened(imitation, settings=wrong) as builders:
        with pytest.raises(Misconfigured, match="authentication_error"):
            await builders.launch(cloud.builder_spec())


async def test_the_budget_is_fed_by_the_answers(imitation: KoyebImitation) -> None:
    bucket = Bucket(platform="koyeb", limit=10_000, window=60)
    async with opened(imitation, budget=bucket) as builders:
        await builders.list_ours(INSTALLATION)
    assert bucket.left < 500  # the account's own 399 count, not what we believed


async def test_braces_that_koyeb_would_expand_are_refused_unsent(imitation: KoyebImitation, builders: Builders) -> None:
    for value in ("{{ secret.other }}", "x{{KOYEB_APP_ID}}"):
        with pytest.raises(Rejected, match="would expand"):
            await builders.launch(cloud.builder_spec(env={"ANY": value}))
    assert imitation.count("create service") == 0


async def test_a_builder_without_a_deployment_yet_is_starting(imitation: KoyebImitation, builders: Builders) -> None:
    imitation.host.released.clear()
    spec = cloud.builder_spec()
    imitation.misbehave("no latest yet", times=2)
    launched = await builders.launch(spec)
    assert (await builders.inspect(Ref(name=spec.name, handle=launched.handle))).phase is Phase.STARTING
    imitation.host.released.set()
    await running(builders, Ref(name=spec.name, handle=launched.handle))


async def test_a_status_that_is_new_to_us_ends_nothing(imitation: KoyebImitation, builders: Builders) -> None:
    spec = cloud.builder_spec()
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    await running(builders, ref)
    imitation.misbehave("new status")
    seen = await builders.inspect(ref)
    assert seen.phase is Phase.RUNNING
    assert "DREAMING" in (seen.message or "")


async def test_a_sleeping_builder_is_a_failure(imitation: KoyebImitation, builders: Builders) -> None:
    spec = cloud.builder_spec()
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    await running(builders, ref)
    await imitation.host.sleep(imitation.services[0].latest)
    assert (await builders.inspect(ref)).phase is Phase.FAILED


async def test_a_record_of_a_deleted_builder_is_no_builder(imitation: KoyebImitation, builders: Builders) -> None:
    spec = cloud.builder_spec()
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    await builders.stop(ref)
    imitation.misbehave("deleted record")
    assert (await builders.inspect(ref)).phase is Phase.GONE


async def test_a_deletion_that_does_not_end_is_reported(imitation: KoyebImitation) -> None:
    naps: list[float] = []

    async def nap(seconds: float) -> None:
        naps.append(seconds)

    async with opened(imitation, poll_seconds=15, sleep=nap) as builders:
        spec = cloud.builder_spec()
        ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
        imitation.misbehave("never deleted")
        with pytest.raises(Transient, match="still being deleted"):
            await builders.stop(ref)
        assert naps == [15, 15, 15]
        (item,) = (await builders.list_ours(INSTALLATION)).items
        assert item.phase is Phase.EXITED


async def test_logs_reach_back_to_the_start(imitation: KoyebImitation, builders: Builders) -> None:
    """Without a start the platform tells of the last fifteen minutes only."""
    spec = cloud.builder_spec()
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    await running(builders, ref)
    service = imitation.services[0]
    service.created_at -= timedelta(hours=1)
    instance = service.latest.instances[0]

    async def said() -> bool:
        return bool(instance.lines)

    await until(said)
    old = [Line(line.at - timedelta(minutes=50), line.text) for line in instance.lines]
    instance.lines.clear()
    instance.lines.extend(old)
    lines = await builders.logs(ref)
    assert "hello" in {line.text for line in lines}
    assert {line.stream for line in lines} == {"stdout", "platform"}
    assert [line.at for line in lines] == sorted(line.at for line in lines)
    assert len(await builders.logs(ref, limit=1)) == 1


async def test_logs_go_on_over_pages(imitation: KoyebImitation, builders: Builders) -> None:
    spec = cloud.builder_spec()
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    service = imitation.services[0]
    await running(builders, ref)
    first = service.created_at
    service.latest.instances[0].lines.clear()
    service.latest.said[:] = [Line(first + timedelta(milliseconds=i), str(i)) for i in range(1500)]
    lines = await builders.logs(ref, limit=1400)
    assert len(lines) == 1400
    assert lines[-1].text == "1499"


async def test_a_healthy_build_costs_few_requests(imitation: KoyebImitation, builders: Builders) -> None:
    await builders.launch(cloud.builder_spec())  # the account's app and quotas are known from now on
    before = len(imitation.requests)
    spec = cloud.builder_spec()
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    await builders.inspect(ref)
    await builders.stop(ref)
    polls = [r for r in imitation.requests[before:] if r.operation == "get service"]
    assert len(imitation.requests) - before - len(polls) <= 5
    assert imitation.requests[before].operation == "create service"


async def test_an_image_of_ours_that_is_private_is_pulled_with_the_operator_s_secret(
    imitation: KoyebImitation,
) -> None:
    async with opened(imitation, settings=support.settings(imitation, builder_registry_secret="acme-ghcr")) as builders:
        await builders.launch(cloud.builder_spec())
    assert created(imitation)["definition"]["docker"]["image_registry_secret"] == "acme-ghcr"


async def test_one_misspelt_field_is_caught(tmp_path: Path) -> None:
    place = KoyebImitation(
        tmp_path,
        builder=cloud.PROGRAM,
        builder_image=cloud.BUILDER_IMAGE,
        contracts=contracts.folder(),
    )
    if not hasattr(place.contract, "_sides"):
        pytest.skip("the official contract is not at hand")
    async with place:
        async with opened(place) as builders:
            await builders.launch(cloud.builder_spec())
        body = created(place)
        assert place.contract.violations == []
        async with support.client(place) as client:
            app_id = body.pop("app_id")
            body |= {"name": name("run")}
            await client.create_service({"app_id": app_id, "lifecycle": body.pop("life_cycle"), **body})
            body["definition"]["scalings"][0]["minimum"] = 1
            await client.create_service({"app_id": app_id, **body, "name": name("run")})
    assert ["lifecycle" in v or "minimum" in v for v in place.contract.violations] == [True, True]


async def test_it_is_offered_only_when_said_so() -> None:
    token = {"token": "t"}
    assert entries(Settings())["koyeb"].missing == ("SLIPWAY_KOYEB__ENABLED", "SLIPWAY_KOYEB__TOKEN")
    off = entries(Settings(koyeb=KoyebSettings.model_validate(token)))["koyeb"]
    assert (off.configured, off.missing) == (False, ("SLIPWAY_KOYEB__ENABLED",))
    assert entries(Settings(koyeb=KoyebSettings.model_validate(token | {"enabled": True})))["koyeb"].configured

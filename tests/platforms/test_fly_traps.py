"""Each known trap of Fly, sprung by the imitation: fly.md §10 and §11. Every test fails when its guard is taken out."""
# Over 250 lines: one trap after the other.

import contextlib
import dataclasses
import io
import sys
import tarfile
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.imitations import closing
from app.imitations.fly import TOKEN, FlyImitation
from app.platforms import fly
from app.platforms.base import (
    ImageRef,
    Misconfigured,
    NoCapacity,
    Phase,
    RateLimited,
    Ref,
    ServiceRef,
    ServiceSpec,
    Transient,
)
from app.platforms.fly import places
from app.platforms.fly.answers import Machine
from app.platforms.fly.client import authorization, bare
from tests.images.support import Place, registry
from tests.platforms import cloud
from tests.platforms import fly_support as support
from tests.platforms.contract import INSTALLATION, name
from tests.support import contracts
from tests.support.agents import push
from tests.support.waiting import eventually

#: A service without a compiler: answers every path with its process id.
AGENT = f"""#!{sys.executable} -BES
import os, socket, sys
mode = os.environ.get("MODE")
if mode == "crash":
    print("boom"); sys.exit(3)
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
status = "500 No" if mode == "sick" else "200 OK"
while True:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        body = str(os.getpid()).encode()
        head = f"HTTP/1.1 {{status}}\\r\\nContent-Length: {{len(body)}}\\r\\nConnection: close\\r\\n\\r\\n"
        connection.sendall(head.encode() + body)
"""


@pytest.fixture
async def place(tmp_path: Path) -> AsyncGenerator[FlyImitation, None]:
    async with support.imitation(tmp_path / "fly") as served:
        yield served


@pytest.fixture
def naps() -> cloud.Naps:
    return cloud.Naps()


@pytest.fixture
async def made(place: FlyImitation, naps: cloud.Naps) -> AsyncGenerator[fly.FlyPlatform, None]:
    one = support.platform(place, naps)
    yield one
    await one.aclose()


@pytest.fixture
def builders(made: fly.FlyPlatform) -> fly.FlyBuilders:
    assert isinstance(made.platform.builders, fly.FlyBuilders)
    return made.platform.builders


@pytest.fixture
def services(made: fly.FlyPlatform) -> fly.FlyServices:
    assert isinstance(made.platform.services, fly.FlyServices)
    return made.platform.services


@pytest.fixture
async def source(tmp_path: Path) -> AsyncGenerator[Place, None]:
    async with registry(tmp_path / "registry") as served:
        yield served


@pytest.fixture
async def image(source: Place) -> ImageRef:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("app/agent")
        info.size, info.mode = len(AGENT.encode()), 0o755
        archive.addfile(info, io.BytesIO(AGENT.encode()))
    return await push(source, out.getvalue())


@pytest.fixture
def spec(image: ImageRef) -> ServiceSpec:
    return cloud.service_spec(image)


def machines(place: FlyImitation, name: str) -> int:
    return sum(m.name == name for a in place.apps.values() for m in a.machines.values())


def reference(spec: ServiceSpec, handle: str | None = None) -> ServiceRef:
    return ServiceRef(service=spec.service, release=spec.release, handle=handle)


async def up(services: fly.FlyServices, spec: ServiceSpec) -> ServiceRef:
    """Deploy, wait for the check, activate."""
    ref = reference(spec, (await services.deploy(spec)).handle)

    async def healthy() -> bool:
        return bool((await services.inspect(ref)).healthy)

    await eventually(healthy)
    await services.activate(ref)
    return ref


# --------------------------------------------------------------------------------------------------- capacity, rates


@pytest.mark.parametrize("shape", [n for n in FlyImitation.misbehaviours if n.startswith("capacity")])
async def test_no_room_moves_on_in_every_shape(place: FlyImitation, builders: fly.FlyBuilders, shape: str) -> None:
    place.misbehave(shape)
    launched = await builders.launch(cloud.builder_spec())
    # A full host is tried once more in its region, a full region is left.
    host = shape in {"capacity: volume", "capacity: host", "capacity: 412", "capacity: host off"}
    assert launched.region == ("iad" if host else "ord")


async def test_no_room_anywhere_is_told(place: FlyImitation, builders: fly.FlyBuilders) -> None:
    place.misbehave("capacity: host", times=4)
    with pytest.raises(NoCapacity, match="iad, ord"):
        await builders.launch(cloud.builder_spec())
    assert place.count("create machine") == 4


async def test_a_refused_pace_waits_or_is_told(place: FlyImitation, builders: fly.FlyBuilders) -> None:
    place.misbehave("429", "create machine")
    spec = cloud.builder_spec()
    await builders.launch(spec)
    assert machines(place, spec.name) == 1
    place.misbehave("429 later", "create machine")
    with pytest.raises(RateLimited) as caught:
        await builders.launch(cloud.builder_spec())
    assert caught.value.retry_after == 600


# --------------------------------------------------------------------------------------------------- outcome unknown


@pytest.mark.parametrize("trouble", ["cut after success", "timeout after success", "504 after success"])
async def test_a_create_that_took_effect_is_found(place: FlyImitation, naps: cloud.Naps, trouble: str) -> None:
    async with contextlib.aclosing(support.platform(place, naps, timeout=0.5)) as one:
        assert one.platform.builders
        await one.platform.builders.launch(cloud.builder_spec())
        place.misbehave(trouble, "create machine")
        spec = cloud.builder_spec()
        launched = await one.platform.builders.launch(spec)
    assert machines(place, spec.name) == 1
    assert launched.handle.endswith(next(m.id for m in place.machines if m.name == spec.name))


async def test_a_create_that_did_not_is_not_repeated_blindly(place: FlyImitation, builders: fly.FlyBuilders) -> None:
    place.misbehave("500", "create machine")
    with pytest.raises(Transient):
        await builders.launch(cloud.builder_spec())
    assert place.count("create machine") == 1


async def test_another_process_s_create_is_found_by_name(place: FlyImitation, builders: fly.FlyBuilders) -> None:
    spec = cloud.builder_spec()
    first = await builders.launch(spec)
    new = places.NewMachine(
        app=first.handle.partition("/")[0], name=spec.name, body={"config": {"image": spec.image}}, regions=("iad",)
    )
    again = await places.make_machine(builders._client, new)
    assert first.handle.endswith(again.id)


async def test_a_builder_that_is_over_is_not_launched_again(place: FlyImitation, builders: fly.FlyBuilders) -> None:
    spec = cloud.builder_spec("pass")
    first = await builders.launch(spec)
    await eventually(lambda: not place.machines)
    assert (await builders.launch(spec)).handle == first.handle


# --------------------------------------------------------------------------------------------------- late knowledge


async def test_404_right_after_create_is_not_the_end(place: FlyImitation, builders: fly.FlyBuilders) -> None:
    spec = cloud.builder_spec()
    launched = await builders.launch(spec)
    place.misbehave("404 after create")
    place.apps[launched.handle.partition("/")[0]].machines.clear()  # nor does the listing know it yet
    seen = await builders.inspect(Ref(name=spec.name, handle=launched.handle))
    assert seen.phase is Phase.STARTING


async def test_a_slow_start_is_starting_and_not_started_again(
    place: FlyImitation, builders: fly.FlyBuilders, services: fly.FlyServices, spec: ServiceSpec
) -> None:
    place.host.released.clear()
    builder = cloud.builder_spec()
    first = await builders.launch(builder)
    assert (await builders.launch(builder)).handle == first.handle
    assert (await builders.inspect(Ref(name=builder.name, handle=first.handle))).phase is Phase.STARTING
    ref = reference(spec, (await services.deploy(spec)).handle)
    assert (await services.inspect(ref)).phase is Phase.STARTING
    place.host.released.set()
    await up(services, spec)
    assert (machines(place, builder.name), machines(place, spec.release)) == (1, 1)


@pytest.mark.parametrize("said", [True, False, "stop", "suspend"])
def test_autostop_may_be_answered_as_a_word_or_a_boolean(said: bool | str) -> None:
    machine = Machine.model_validate({"id": "m1", "config": {"services": [{"autostop": said}]}})
    assert machine.config is not None
    assert machine.config.services[0].autostop == said


@pytest.mark.parametrize("trouble", ["app not visible", "app unauthorized"])
async def test_a_fresh_app_may_be_unknown(place: FlyImitation, naps: cloud.Naps, trouble: str) -> None:
    async with contextlib.aclosing(support.platform(place, naps)) as one:
        place.misbehave("app not visible")  # the look before the create
        place.misbehave(trouble, times=3)
        assert await places.ensure_app(one.client, name("svc"), sleep=naps)
    assert len(naps.asked) >= 3


async def test_an_image_just_pushed_may_be_unknown(
    place: FlyImitation, services: fly.FlyServices, spec: ServiceSpec, naps: cloud.Naps
) -> None:
    place.misbehave("manifest unknown", times=3)
    await services.deploy(spec)
    assert place.count("create machine") == 4
    assert len(naps.asked) == 3


async def test_secrets_may_be_late(place: FlyImitation, services: fly.FlyServices, spec: ServiceSpec) -> None:
    spec = dataclasses.replace(spec, secrets={"API_KEY": "hush"})
    place.misbehave("secrets lag", times=2)
    await services.deploy(spec)
    sent = next(r.body for r in place.requests if r.operation == "create machine")
    assert b'"min_secrets_version":1' in sent.replace(b" ", b"")
    assert b"hush" not in sent


async def test_a_release_drops_the_secrets_it_does_not_have(
    place: FlyImitation, services: fly.FlyServices, spec: ServiceSpec
) -> None:
    await services.deploy(dataclasses.replace(spec, secrets={"OLD": "1", "KEPT": "1"}))
    await services.deploy(dataclasses.replace(spec, release=name("rel"), secrets={"KEPT": "2"}))
    assert place.apps[spec.service].secrets == {"KEPT": "2"}
    assert [m.secrets for m in place.machines] == [{"OLD": "1", "KEPT": "1"}, {"KEPT": "2"}]


# --------------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("quirks", [(), ("flat exit event",), ("destroyed record",)])
async def test_the_exit_is_seen_in_both_places(
    place: FlyImitation, builders: fly.FlyBuilders, quirks: tuple[str, ...]
) -> None:
    for quirk in quirks:
        place.misbehave(quirk)
    spec = cloud.builder_spec("raise SystemExit(10)")
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    await eventually(lambda: not place.machines)
    seen = await builders.inspect(ref)
    assert (seen.phase, seen.exit_code, seen.out_of_memory) == (Phase.FAILED, 10, False)


async def test_out_of_memory_is_told(place: FlyImitation, builders: fly.FlyBuilders) -> None:
    place.misbehave("oom")
    spec = cloud.builder_spec()
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    await eventually(lambda: not place.machines)
    seen = await builders.inspect(ref)
    assert (seen.phase, seen.out_of_memory) == (Phase.FAILED, True)


async def test_an_exit_code_that_is_left_out_is_0(place: FlyImitation, builders: fly.FlyBuilders) -> None:
    spec = cloud.builder_spec("pass")
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    await eventually(lambda: not place.machines)
    seen = await builders.inspect(ref)
    assert (seen.phase, seen.exit_code) == (Phase.EXITED, 0)


async def test_a_builder_gone_without_a_trace_is_gone(place: FlyImitation, builders: fly.FlyBuilders) -> None:
    place.misbehave("lost exit event")
    spec = cloud.builder_spec("pass")
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    await eventually(lambda: not place.machines)
    assert (await builders.inspect(ref)).phase is Phase.GONE


async def test_a_wait_that_runs_out_is_taken_up_again(
    place: FlyImitation, services: fly.FlyServices, spec: ServiceSpec
) -> None:
    ref = await up(services, spec)
    place.misbehave("wait runs out", times=2)
    await services.sleep(ref)
    assert place.count("wait") == 3
    asked = [r.query for r in place.requests if r.operation == "wait"]
    assert all(1 <= int(q.rpartition("timeout=")[2]) <= 60 for q in asked)


async def test_a_lease_that_somebody_holds_is_waited_out(
    place: FlyImitation, services: fly.FlyServices, spec: ServiceSpec
) -> None:
    ref = await up(services, spec)
    place.misbehave("lease held", "stop")
    await services.sleep(ref)
    assert (await services.inspect(ref)).phase is Phase.ASLEEP


# --------------------------------------------------------------------------------------------------- sleep and traffic


async def test_it_sleeps_by_itself_and_a_release_that_must_stay_does_not(
    place: FlyImitation, services: fly.FlyServices, spec: ServiceSpec
) -> None:
    ref = await up(services, spec)
    kept = dataclasses.replace(spec, service=name("svc"), release=name("rel"), scale_min=1)
    await up(services, kept)
    assert await place.idle_pass() == [spec.release]
    assert (await services.inspect(ref)).phase is Phase.ASLEEP


async def test_a_deploy_survives_the_proxy_s_sleep(
    place: FlyImitation, services: fly.FlyServices, spec: ServiceSpec
) -> None:
    first = await up(services, spec)
    await place.idle_pass()
    second = dataclasses.replace(spec, release=name("rel"))
    ref = reference(second, (await services.deploy(second)).handle)
    await place.idle_pass()  # the new one is not routed to yet, so nothing may stop it

    async def healthy() -> bool:
        return bool((await services.inspect(ref)).healthy)

    await eventually(healthy)
    await services.activate(ref)
    assert [m.name for m in place.machines if not m.cordoned] == [second.release]
    assert (await services.inspect(first)).phase is Phase.ASLEEP


async def test_a_release_that_is_sick_listens_and_is_not_healthy(services: fly.FlyServices, spec: ServiceSpec) -> None:
    sick = dataclasses.replace(spec, env={"MODE": "sick"})
    ref = reference(sick, (await services.deploy(sick)).handle)

    async def told() -> bool:
        seen = await services.inspect(ref)
        return seen.address is not None and seen.healthy is False and "500" in (seen.message or "")

    await eventually(told)


async def test_a_new_release_gets_no_traffic_before_it_is_activated(
    place: FlyImitation, services: fly.FlyServices, spec: ServiceSpec
) -> None:
    ref = reference(spec, (await services.deploy(spec)).handle)

    async def healthy() -> bool:
        return bool((await services.inspect(ref)).healthy)

    await eventually(healthy)
    assert await place.pick(spec.service) is None
    await services.activate(ref)
    assert await place.pick(spec.service)


async def test_the_old_release_is_taken_out_only_after_the_new_one_is_known(
    place: FlyImitation, services: fly.FlyServices, spec: ServiceSpec, naps: cloud.Naps
) -> None:
    await up(services, spec)
    naps.asked.clear()
    await up(services, dataclasses.replace(spec, release=name("rel")))
    assert naps.asked == [10.0]
    verbs = [r.operation for r in place.requests if r.operation in {"cordon", "uncordon"}]
    assert verbs == ["uncordon", "uncordon", "cordon"]


# --------------------------------------------------------------------------------------------------- names, listings


async def test_an_app_s_name_that_somebody_else_has_gets_another(
    place: FlyImitation, services: fly.FlyServices, spec: ServiceSpec
) -> None:
    place.foreign.add(spec.service)
    ref = await up(services, spec)
    assert [a for a in place.apps if a.startswith(f"{spec.service}-")]
    assert (await services.inspect(reference(spec))).phase is Phase.RUNNING
    assert [i.ref.name for i in (await services.list_ours(INSTALLATION)).items] == [spec.service]
    await services.delete(ref)
    assert place.apps == {}


async def test_an_empty_page_in_the_middle_is_not_the_end(
    place: FlyImitation, builders: fly.FlyBuilders, services: fly.FlyServices, spec: ServiceSpec
) -> None:
    one = cloud.builder_spec()
    await builders.launch(one)
    place.misbehave("empty page")
    assert (await builders.inspect(Ref(name=one.name))).phase is not Phase.GONE
    place.misbehave("empty page")
    assert len((await builders.list_ours(INSTALLATION)).items) == 1
    await services.deploy(spec)
    place.misbehave("empty page")
    assert len((await services.list_ours(INSTALLATION)).items) == 1


async def test_pages_are_followed(tmp_path: Path) -> None:
    async with (
        support.imitation(tmp_path / "fly", page=2) as place,
        contextlib.aclosing(support.platform(place)) as one,
    ):
        assert one.platform.builders
        for _ in range(5):
            await one.platform.builders.launch(cloud.builder_spec())
        assert len((await one.platform.builders.list_ours(INSTALLATION)).items) == 5


async def test_a_listing_without_a_region_is_incomplete(place: FlyImitation, builders: fly.FlyBuilders) -> None:
    place.misbehave("error region")
    assert not (await builders.list_ours(INSTALLATION)).complete
    assert (await builders.list_ours(INSTALLATION)).complete


# --------------------------------------------------------------------------------------------------- credentials


@pytest.mark.parametrize("token", ["fm2_x", "FlyV1 fm2_x", " flyv1 fm1r_x,fm2_y ", "Bearer fm1a_x"])
def test_macaroons_go_by_their_own_scheme(token: str) -> None:
    assert authorization(token) == f"FlyV1 {bare(token)}"
    assert " " not in bare(token)


def test_other_tokens_are_bearers() -> None:
    assert authorization("FlyV1 abc") == authorization("abc") == "Bearer abc"


async def test_a_token_as_it_is_printed_works_everywhere(place: FlyImitation, spec: ServiceSpec) -> None:
    settings = support.settings(place, token=SecretStr(f"FlyV1 {TOKEN}"))
    async with contextlib.aclosing(support.platform(place, settings=settings)) as one:
        assert one.platform.services
        await one.platform.services.deploy(spec)


async def test_a_bad_token_is_the_operator_s_fault(place: FlyImitation) -> None:
    settings = support.settings(place, token=SecretStr("fm2_wrong"))
    async with contextlib.aclosing(support.platform(place, settings=settings)) as one:
        assert one.platform.builders
        with pytest.raises(Misconfigured) as caught:
            await one.platform.builders.launch(cloud.builder_spec())
    assert "fm2_wrong" not in repr(caught.value)


async def test_no_token_and_no_secret_reaches_a_builder(
    place: FlyImitation, builders: fly.FlyBuilders, services: fly.FlyServices, spec: ServiceSpec
) -> None:
    await services.deploy(dataclasses.replace(spec, secrets={"API_KEY": "hush"}))
    script = "import json, os; print(json.dumps(dict(os.environ)), flush=True); import time; time.sleep(600)"
    one = cloud.builder_spec(script)
    await builders.launch(one)
    machine = next(m for m in place.machines if m.name == one.name)
    await eventually(lambda: machine.lines)
    assert TOKEN not in machine.lines[0].text
    assert "hush" not in machine.lines[0].text
    assert machine.app.secrets == {}
    assert machine.app.ips == []
    assert machine.app.network not in {place.apps[spec.service].network, "default"}


# --------------------------------------------------------------------------------------------------- the contract watches


@pytest.mark.skipif(
    contracts.folder() is None or not closing.AVAILABLE, reason="no official contracts, or nothing to check them with"
)
async def test_a_misspelt_field_is_caught(place: FlyImitation, services: fly.FlyServices, spec: ServiceSpec) -> None:
    ref = await up(services, spec)
    app = ref.handle.partition("/")[0] if ref.handle else ""
    service = {"internal_port": 8080, "auto_stop_machines": "stop"}
    image = place.machines[0].config["image"]
    await services._client.create_machine(app, {"name": "x", "config": {"image": image, "services": [service]}})
    assert any("auto_stop_machines" in v for v in place.contract.violations)
    # The real one takes it, too, and the service never sleeps.
    machine = next(m for m in place.machines if m.name == "x")
    assert "auto_stop_machines" not in machine.service
    place.contract.violations.clear()

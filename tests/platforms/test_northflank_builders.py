"""Northflank's traps for builders, each with the guard that a failure here shows to be gone."""
# Over 250 lines: one trap after the other.

import dataclasses
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.imitations.northflank import NorthflankImitation
from app.platforms import northflank
from app.platforms.base import (
    Builders,
    Inspection,
    Misconfigured,
    Phase,
    RateLimited,
    Ref,
    Size,
    Transient,
    Unsupported,
)
from app.platforms.budget import Bucket
from app.platforms.northflank import names
from tests.platforms import cloud
from tests.platforms import northflank_support as support
from tests.platforms.cloud import PROGRAM, Naps
from tests.platforms.contract import INSTALLATION, name, soon, until
from tests.support import contracts

SUCCEEDS = "print('done', flush=True)"


@pytest.fixture
async def place(tmp_path: Path) -> AsyncGenerator[NorthflankImitation, None]:
    async with support.imitation(tmp_path / "northflank") as one:
        yield one


@pytest.fixture
async def made(place: NorthflankImitation) -> AsyncGenerator[northflank.NorthflankPlatform, None]:
    one = support.platform(place)
    yield one
    await one.aclose()


@pytest.fixture
def builders(made: northflank.NorthflankPlatform) -> Builders:
    assert made.platform.builders is not None
    return made.platform.builders


async def over(builders: Builders, ref: Ref) -> Inspection:
    async def look() -> Inspection | None:
        seen = await builders.inspect(ref)
        return seen if seen.phase in {Phase.EXITED, Phase.FAILED} else None

    seen = await until(look)
    assert seen is not None
    return seen


# --------------------------------------------------------------------------------------------------- one run


@pytest.mark.parametrize("fault", ["504 after success", "cut after success"])
async def test_a_run_whose_start_was_not_answered_is_adopted(
    place: NorthflankImitation, builders: Builders, fault: str
) -> None:
    place.misbehave(fault, "start run")
    launched = await builders.launch(cloud.builder_spec())
    assert [run.id for run in place.started] == [launched.handle]


async def test_a_run_that_was_not_started_is_started_by_the_next_launch(
    place: NorthflankImitation, builders: Builders
) -> None:
    spec = cloud.builder_spec()
    place.misbehave("503 text", "start run")
    with pytest.raises(Transient):
        await builders.launch(spec)
    await builders.launch(spec)
    assert len(place.started) == 1


async def test_a_job_is_put_again_after_an_unknown_outcome(place: NorthflankImitation, builders: Builders) -> None:
    place.misbehave("504 after success", "put job")
    await builders.launch(cloud.builder_spec())
    assert (place.count("put job"), len(place.jobs), len(place.started)) == (2, 1, 1)


async def test_a_run_that_is_not_visible_yet_is_not_lost(place: NorthflankImitation, builders: Builders) -> None:
    spec = cloud.builder_spec()
    launched = await builders.launch(spec)
    place.misbehave("run not visible")
    assert (await builders.inspect(Ref(name=spec.name, handle=launched.handle))).phase is Phase.RUNNING


# --------------------------------------------------------------------------------------------------- what a job says


async def test_a_failed_builder_is_not_run_again(place: NorthflankImitation, builders: Builders) -> None:
    spec = cloud.builder_spec("raise SystemExit(20)")
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    seen = await over(builders, ref)
    assert (seen.phase, seen.exit_code, place.started[0].attempts) == (Phase.FAILED, None, 1)


async def test_a_hanging_builder_is_ended_without_us(place: NorthflankImitation, builders: Builders) -> None:
    spec = cloud.builder_spec(deadline=soon(0.2))
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    assert (await over(builders, ref)).phase is Phase.FAILED
    assert not place.host.live or await until(lambda: _none_left(place))


async def _none_left(place: NorthflankImitation) -> bool:
    return all(running.code is not None for running in place.host.live)


async def test_success_is_read_from_the_status_and_not_from_counters(builders: Builders) -> None:
    spec = cloud.builder_spec(SUCCEEDS)
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    assert (await over(builders, ref)).phase is Phase.EXITED


async def test_the_job_has_disk_for_a_compiler_and_no_secret_of_ours(
    place: NorthflankImitation, builders: Builders
) -> None:
    spec = cloud.builder_spec()
    launched = await builders.launch(spec)
    body = next(iter(place.jobs.values())).body
    assert body["deployment"]["storage"] == {"ephemeralStorage": {"storageSize": 8192}}
    assert body["runtimeEnvironment"] == dict(spec.env)
    assert place.token not in json.dumps(body)
    assert launched.effective.memory_mb == 2048


async def test_the_operator_s_credential_pulls_a_private_builder_image(place: NorthflankImitation) -> None:
    made = support.platform(place, changes={"builder_credentials": "acme-ghcr", "builders_project": "agents"})
    try:
        assert made.platform.builders is not None
        await made.platform.builders.launch(cloud.builder_spec())
    finally:
        await made.aclose()
    external = next(iter(place.jobs.values())).body["deployment"]["external"]
    assert external == {"imagePath": cloud.BUILDER_IMAGE, "credentials": "acme-ghcr"}


@pytest.mark.parametrize(
    "image", [f"127.0.0.1:5000/builder@sha256:{'b' * 64}", f"localhost/b@sha256:{'b' * 64}", "ghcr.io/b:latest", None]
)
async def test_an_image_that_northflank_could_not_name_is_refused_here(
    place: NorthflankImitation, builders: Builders, image: str | None
) -> None:
    with pytest.raises(Misconfigured):
        await builders.launch(dataclasses.replace(cloud.builder_spec(), image=image))
    assert place.requests == []


async def test_a_size_beyond_all_plans_is_unsupported(builders: Builders) -> None:
    with pytest.raises(Unsupported, match="largest"):
        await builders.launch(dataclasses.replace(cloud.builder_spec(), size=Size(cpus=64, memory_mb=1024)))


# --------------------------------------------------------------------------------------------------- errors


async def test_a_wrong_token_and_a_lacking_permission_are_told_apart(
    place: NorthflankImitation, builders: Builders
) -> None:
    spec = cloud.builder_spec()
    await builders.launch(spec)
    place.misbehave("logs forbidden")
    with pytest.raises(Misconfigured, match="View Observability"):
        await builders.logs(Ref(name=spec.name))
    place.misbehave("unauthorized", "get run", "list runs")
    with pytest.raises(Misconfigured, match="token is not taken"):
        await builders.inspect(Ref(name=spec.name))


async def test_unpaid_bills_are_the_operator_s(place: NorthflankImitation, builders: Builders) -> None:
    place.misbehave("billing")
    with pytest.raises(Misconfigured, match="billing"):
        await builders.launch(cloud.builder_spec())


async def test_an_unknown_project_is_the_operator_s(place: NorthflankImitation) -> None:
    made = support.platform(place, changes={"project": "elsewhere"})
    try:
        assert made.platform.builders is not None
        with pytest.raises(Misconfigured, match="no project elsewhere"):
            await made.platform.builders.launch(cloud.builder_spec())
    finally:
        await made.aclose()


async def test_no_secret_is_in_an_error(place: NorthflankImitation) -> None:
    made = support.platform(place, changes={"token": SecretStr("nf-wrong-and-secret")})
    try:
        assert made.platform.builders is not None
        with pytest.raises(Misconfigured) as caught:
            await made.platform.builders.launch(cloud.builder_spec())
    finally:
        await made.aclose()
    assert "nf-wrong" not in f"{caught.value} {caught.value!r}"


async def test_a_throttled_request_waits_for_the_window_s_end(place: NorthflankImitation) -> None:
    naps = Naps()
    made = support.platform(place, naps)
    try:
        assert made.platform.builders is not None
        place.misbehave("429", "put job")
        await made.platform.builders.launch(cloud.builder_spec())
        assert len(naps.asked) == 1
        assert naps.asked[0] <= 1
        place.misbehave("429 later", "put job")
        with pytest.raises(RateLimited) as caught:
            await made.platform.builders.launch(cloud.builder_spec())
        assert caught.value.retry_after is not None
        assert 1800 <= caught.value.retry_after <= 1801
    finally:
        await made.aclose()


# --------------------------------------------------------------------------------------------------- requests


async def test_a_builder_at_work_is_looked_at_once_a_minute(place: NorthflankImitation) -> None:
    now = [0.0]
    made = support.platform(place, builders={"poll_seconds": 60.0, "clock": lambda: now[0]})
    spec = cloud.builder_spec()
    try:
        builders = made.platform.builders
        assert builders is not None
        ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
        for now[0] in range(0, 900, 20):
            assert (await builders.inspect(ref)).phase is Phase.RUNNING
        assert place.count("get run") == 15
        await builders.stop(ref)
        assert (await builders.inspect(ref)).phase is Phase.GONE
    finally:
        await made.aclose()


async def test_whoever_lists_twice_sees_all_of_it_twice(place: NorthflankImitation) -> None:
    """How seldom a sweep does so is the platform's traits; ``slipway check`` lists to see that all is gone."""
    made = support.platform(place)
    try:
        assert made.platform.traits.list_seconds == 600
        for part in (made.platform.builders, made.platform.services):
            assert part is not None
            assert [(await part.list_ours(INSTALLATION)).complete for _ in range(2)] == [True, True]
    finally:
        await made.aclose()


async def test_a_healthy_build_takes_five_requests(
    place: NorthflankImitation, made: northflank.NorthflankPlatform, builders: Builders
) -> None:
    """So a hundred at once, of any length, take half of an hour's thousand."""
    spec = cloud.builder_spec(SUCCEEDS)
    launched = await builders.launch(spec)
    await builders.stop(Ref(name=spec.name, handle=launched.handle))
    expected = {"put job": 1, "list runs": 1, "start run": 1, "abort run": 1, "delete job": 1}
    assert dict(made.requests) == expected
    assert len(place.requests) == 5
    assert place.things == []


async def test_the_last_requests_of_an_hour_are_for_stopping(place: NorthflankImitation) -> None:
    account = Bucket(platform="northflank", limit=20, window=3600, max_wait=0)
    made = support.platform(place, allowance=account)
    spec = cloud.builder_spec()
    try:
        builders = made.platform.builders
        assert builders is not None
        ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)

        async def look_on() -> None:
            for _ in range(20):
                await builders.inspect(ref)

        async def read_on() -> None:
            for _ in range(20):
                await builders.logs(ref)

        with pytest.raises(RateLimited):
            await look_on()
        assert account.left > 7
        with pytest.raises(RateLimited):
            await read_on()
        assert account.left > 3
        await builders.stop(ref)
    finally:
        await made.aclose()
    assert place.things == []


async def test_what_the_platform_says_is_left_is_believed(tmp_path: Path) -> None:
    account = northflank.client.budget(1000)
    async with support.imitation(tmp_path / "small", hourly=300) as place:
        made = support.platform(place, allowance=account)
        try:
            assert made.platform.builders is not None
            await made.platform.builders.list_ours(INSTALLATION)
        finally:
            await made.aclose()
    assert isinstance(account, Bucket)
    assert 299 <= account.left < 300


# --------------------------------------------------------------------------------------------------- lists, ends, logs


async def test_all_pages_are_listed_and_a_lost_cursor_is_said(tmp_path: Path) -> None:
    async with support.imitation(tmp_path / "pages", page=2) as place:
        made = support.platform(place)
        try:
            builders = made.platform.builders
            assert builders is not None
            specs = [cloud.builder_spec(SUCCEEDS) for _ in range(5)]
            for spec in specs:
                await builders.launch(spec)
            listing = await builders.list_ours(INSTALLATION)
            assert {item.ref.name for item in listing.items} == {spec.name for spec in specs}
            assert listing.complete
            place.misbehave("no cursor")
            assert not (await builders.list_ours(INSTALLATION)).complete
        finally:
            await made.aclose()


async def test_stopping_what_is_over_or_has_no_handle_removes_it(
    place: NorthflankImitation, builders: Builders
) -> None:
    ended, running = cloud.builder_spec(SUCCEEDS), cloud.builder_spec()
    ref = Ref(name=ended.name, handle=(await builders.launch(ended)).handle)
    await over(builders, ref)
    await builders.stop(ref)
    await builders.launch(running)
    await builders.stop(Ref(name=running.name))
    assert (place.things, await _none_left(place)) == ([], True)


@pytest.mark.parametrize("envelope", [None, "logs in data.logs", "logs in data.data"])
async def test_logs_are_found_in_every_envelope(
    place: NorthflankImitation, builders: Builders, envelope: str | None
) -> None:
    spec = cloud.builder_spec("print('one')\nprint('two')")
    ref = Ref(name=spec.name, handle=(await builders.launch(spec)).handle)
    await over(builders, ref)
    if envelope:
        place.misbehave(envelope)
    assert [line.text for line in await builders.logs(ref)] == ["one", "two"]
    assert [line.text for line in await builders.logs(ref, limit=1)] == ["two"]


async def test_a_team_s_token_has_paths_of_its_own(place: NorthflankImitation) -> None:
    made = support.platform(place, changes={"team": "acme"})
    try:
        assert made.platform.builders is not None
        await made.platform.builders.launch(cloud.builder_spec(SUCCEEDS))
    finally:
        await made.aclose()
    assert {request.path.split("/projects")[0] for request in place.requests} == {"/v1/teams/acme"}


# --------------------------------------------------------------------------------------------------- the contract


async def test_one_misspelt_field_is_caught(tmp_path: Path) -> None:
    if contracts.folder() is None:
        pytest.skip("no official contracts at hand")
    place = NorthflankImitation(
        tmp_path, builder=PROGRAM, builder_image=cloud.BUILDER_IMAGE, contracts=contracts.folder()
    )
    async with place:
        made = support.platform(place)
        try:
            body = {"name": name("run"), "billing": {"deploymentPlan": "nf-compute-20"}}
            external = {"imagePath": cloud.BUILDER_IMAGE}
            deployment = {"external": external, "storage": {"ephemeralStorage": {"storagesize": 8192}}}
            await made.clients[0].put_job({**body, "deployment": deployment, "settings": {"backoffLimit": 0}})
        finally:
            await made.aclose()
    assert len(place.contract.violations) == 1
    assert "storagesize" in place.contract.violations[0]


def test_names_keep_within_northflank_s_bounds() -> None:
    run, service, release = name("run"), name("svc"), name("rel")
    nf_id = names.service_id(service, release)
    assert len(run) <= 52
    assert len(nf_id) <= 54
    assert len(names.credential_id(nf_id)) <= 39
    # The public name's first label, with an account's twelve characters.
    assert len(f"p1--{nf_id}--{'a' * 12}") <= 63
    assert names.release_name(nf_id, INSTALLATION) == release
    assert names.release_name(nf_id, "zzzzzz") is None
    assert names.belongs(nf_id, service)
    assert not names.belongs(nf_id, name("svc"))

"""What no row owns is removed, and nothing else: not what is young, unknown, another's, or suspiciously much."""

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.builds import sweep
from app.ids import new_id, remote_name
from app.models import Release, Run, Service
from app.platforms.base import BuilderSpec, Found, Phase, PlatformError, Ref, Size, Transient
from tests.support.databases import SharedServer
from tests.support.platform import NAME, TRAITS
from tests.support.world import World, world

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OLD = NOW - timedelta(hours=1)


def found(*names: str, at: datetime | None = OLD) -> list[Found]:
    return [Found(ref=Ref(name=n), created_at=at, phase=Phase.RUNNING) for n in names]


def split(
    listing: list[Found], owned: set[str] | None = None, known: dict[str, str] | None = None
) -> tuple[list[str], dict[str, str]]:
    doomed, spared = sweep.orphans(listing, owned or set(), known or {}, NOW, 60)
    return [d.ref.name for d in doomed], dict(spared)


def test_only_what_a_row_gave_up_goes() -> None:
    doomed, spared = split(found("mine", "over", "unknown"), {"mine"}, {"over": "ended"})
    assert doomed == ["over"]
    assert list(spared) == ["unknown"]


def test_the_young_are_spared_and_the_undated_are_not_young() -> None:
    young = found("a", at=NOW - timedelta(seconds=59))
    assert split(young, known={"a": "ended"})[0] == []
    assert split(found("a", at=None), known={"a": "ended"})[0] == ["a"]


@pytest.mark.parametrize(
    ("listed", "over", "removed"),
    [(5, 5, 5), (6, 6, 0), (25, 5, 5), (30, 6, 6), (30, 7, 0), (100, 20, 20), (100, 21, 0)],
)
def test_too_much_at_once_is_an_alarm(listed: int, over: int, removed: int) -> None:
    names = [f"n{i}" for i in range(listed)]
    doomed, spared = split(found(*names), set(names[over:]), dict.fromkeys(names[:over], "ended"))
    assert len(doomed) == removed
    assert len(spared) == (0 if removed else over)


async def stray(here: World, name: str) -> None:
    """Make a builder that no row knows."""
    spec = BuilderSpec(name=name, env={}, image=None, size=Size(cpus=1, memory_mb=256), deadline=datetime.now(UTC))
    builders = here.yard.platform().builders
    assert builders is not None
    await builders.launch(spec)


async def test_a_builder_nobody_owns_is_stopped(here: World) -> None:
    build = await here.submit()
    await here.jobs()
    mine = (await here.run_of(build)).name
    orphan = remote_name(here.context.installation, new_id("run"))
    foreign, nonsense = remote_name("zzzzzz", new_id("run")), f"slp-{here.context.installation}-what"
    for name in (orphan, foreign, nonsense):
        await stray(here, name)
    await sweep.sweep(here.context)
    assert len(here.yard.machines) == 4, "all are younger than the grace period"
    await here.sweep()
    assert set(here.yard.machines) == {mine, foreign, nonsense}


async def test_an_ended_run_s_machine_is_stopped(here: World) -> None:
    build = await here.submit()
    await here.jobs()
    run = await here.run_of(build)
    await (await here.builder(build)).finish()
    await here.forget_jobs()
    await here.sweep()
    assert here.yard.machines == {}
    assert (await here.one(Run, id=run.id)).status == "succeeded"


async def test_releases_and_services_that_a_row_gave_up(here: World) -> None:
    _, _, first = await here.deployed("echo", env={"V": "1"})
    _, _, second = await here.deployed("echo", env={"V": "2"})
    _, gone, _ = await here.deployed("gone")
    await here.sql("update service set status = 'deleted', deleted_at = now() where id = :i", i=gone.id)
    await here.sql("update release set retired_at = now() where service_id = :i", i=gone.id)
    await here.sql("update release set retired_at = now() where id = :i", i=first.id)
    await here.sweep()
    assert set(here.yard.units) == {remote_name(here.context.installation, second.id)}


async def test_a_release_that_no_row_knows_is_spared(here: World) -> None:
    """The database was restored from before the last deploy: it may be somebody's live service."""
    _, _, release = await here.deployed("echo")
    here.yard.units[remote_name(here.context.installation, new_id("rel"))] = here.unit(release)
    await here.sweep()
    assert len(here.yard.units) == 2


async def test_a_database_restored_from_before_the_last_deploy(here: World) -> None:
    _, _, first = await here.deployed("echo", env={"V": "1"})
    _, _, second = await here.deployed("echo", env={"V": "2"})
    await here.sql("delete from release where id = :i", i=second.id)
    await here.sql("update release set status = 'live', finished_at = null where id = :i", i=first.id)
    await here.sql("update service set live_release_id = :i", i=first.id)
    await here.sweep()
    names = {remote_name(here.context.installation, r.id) for r in (first, second)}
    assert set(here.yard.units) == names, "the service that callers reach was removed"


async def test_two_installations_on_one_platform(here: World, postgres: SharedServer, tmp_path: Path) -> None:
    await here.deployed("echo")
    with postgres.database() as other_url:
        async with world(other_url, tmp_path / "other", yard=here.yard) as opened:
            # A template's clones share its installation id, which a real migration makes at random.
            await opened.sql("update installation set id = 'other1'")
            context = dataclasses.replace(opened.context, installation="other1")
            there = dataclasses.replace(opened, context=context)
            there.app.state.context = context
            _, service, release = await there.deployed("echo")
            build = await there.submit()
            await there.jobs()
            await here.sweep()
            await there.sweep()
            assert len(here.yard.units) == 2
            assert (await there.run_of(build)).name in here.yard.machines
            await there.sql("update release set retired_at = now() where id = :i", i=release.id)
            await here.sweep()
            assert len(here.yard.units) == 2, "one installation removed what is the other's"
            await there.sweep()
            assert len(here.yard.units) == 1
            assert service.name == "echo"


async def test_a_partial_listing_ends_nothing_that_is_missing_from_it(here: World) -> None:
    build = await here.submit()
    await here.jobs()
    here.yard.complete = False
    machines = dict(here.yard.machines)
    here.yard.machines.clear()
    await here.sweep()
    here.yard.machines.update(machines)
    assert (await here.run_of(build)).status == "launching"
    await (await here.builder(build)).finish()


@pytest.mark.parametrize("error", [Transient(NAME, "list", "down"), TimeoutError()])
async def test_a_platform_that_can_t_be_listed_is_skipped(here: World, error: PlatformError) -> None:
    here.yard.misbehave("list builders", error)
    await stray(here, remote_name(here.context.installation, new_id("run")))
    await here.sweep()
    assert len(here.yard.machines) == 1
    await here.sweep()
    assert here.yard.machines == {}


async def test_one_that_can_t_be_removed_keeps_nobody_else(here: World) -> None:
    _, _, release = await here.deployed("echo")
    await here.sql("update release set retired_at = now()")
    stuck, other = sorted(remote_name(here.context.installation, new_id("run")) for _ in range(2))
    for name in (stuck, other):
        await stray(here, name)
    here.yard.misbehave("stop", Transient(NAME, "stop", "no answer"))
    await here.sweep()
    assert list(here.yard.machines) == [stuck]
    assert here.yard.units == {}, f"release {release.number} was not even looked at"


async def test_what_goes_is_counted_against_the_whole_listing(here: World) -> None:
    for _ in range(sweep.ORPHANS_FLOOR + 1):
        await stray(here, remote_name(here.context.installation, new_id("run")))
    await here.sweep()
    assert len(here.yard.machines) == sweep.ORPHANS_FLOOR + 1
    here.yard.machines.popitem()
    await here.sweep()
    assert here.yard.machines == {}


async def test_rows_are_not_touched_by_a_sweep(here: World) -> None:
    await here.deployed("echo")
    before = [(await here.rows(m))[0].__dict__.copy() for m in (Service, Release, Run)]
    await here.sweep()
    after = [(await here.rows(m))[0].__dict__.copy() for m in (Service, Release, Run)]
    for row in (*before, *after):
        row.pop("_sa_instance_state")
    assert before == after


# --------------------------------------------------------------------------------------------------- listings that cost


async def test_a_listing_that_costs_requests_is_one_worker_s_turn(here: World) -> None:
    here.yard.traits = dataclasses.replace(TRAITS, list_seconds=300.0)
    here.context.catalog.held[NAME] = here.yard.platform()
    other = dataclasses.replace(here.context, process="another")
    await here.sweep()
    await sweep.sweep(other)
    await here.sweep()
    assert here.yard.count("list builders") == 1
    await here.sql("update lease set expires_at = now() where name = 'sweep:yard'")
    await sweep.sweep(other)
    await here.sweep()
    assert here.yard.count("list builders") == 2


async def test_what_the_platform_does_not_date_has_its_grace_all_the_same(here: World) -> None:
    _, _, release = await here.deployed("echo")
    name = here.unit(release).spec.release
    undated = Found(ref=Ref(name=name), created_at=None, phase=Phase.RUNNING)
    retired = datetime.now(UTC) - timedelta(seconds=5)
    (by_row,) = sweep.dated([undated], {name: release.id}, {name: retired})
    assert by_row.created_at == retired
    (by_id,) = sweep.dated([undated], {name: release.id}, {name: None})
    assert by_id.created_at is not None
    assert abs((by_id.created_at - release.created_at).total_seconds()) < 1
    dated = Found(ref=Ref(name=name), created_at=OLD, phase=Phase.RUNNING)
    assert sweep.dated([dated], {name: release.id}, {name: retired}) == [dated]

    here.yard.dated = False
    await here.sql("update release set status = 'superseded', retired_at = now()")
    await sweep.sweep(here.context)
    assert name in here.yard.units, "it went within the grace period"
    await here.sql("update release set retired_at = now() - interval '1 day'")
    await sweep.sweep(here.context)
    assert name not in here.yard.units

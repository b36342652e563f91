"""What every platform must do: subclass, give the fixtures, and run against an imitation or the real thing.

A subclass overrides ``platform`` (and what it needs for it) and the fixtures that make specs. The names it is given are
of the installation ``INSTALLATION``. Where a platform can't do a thing by its traits, the test says so and passes it by.
"""
# Over 250 lines: the whole contract is in one file, builders and services side by side.

import asyncio
import dataclasses
import itertools
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import httpx
import pytest

from app.platforms.base import (
    Address,
    Builders,
    BuilderSpec,
    Inspection,
    Phase,
    Platform,
    Ref,
    ServiceRef,
    Services,
    ServiceSpec,
    Size,
    StartFailed,
    Unsupported,
)
from tests.support.waiting import eventually

INSTALLATION = secrets.token_hex(3)
"""Another one in each process: a real account may hold what an earlier run left."""
given: list[str] = []
"""All names that were made, for whoever has to clean up after them."""
_numbers = itertools.count(1)


T = TypeVar("T")


async def until(look: Callable[[], Awaitable[T]], seconds: float = 20.0) -> T:
    """Ask again until the answer is true, and return it; see ``eventually``."""
    answers: list[T] = []

    async def once() -> bool:
        answers.append(await look())
        return bool(answers[-1])

    asked: Callable[[], bool | Awaitable[bool]] = once
    await eventually(asked, seconds)
    return answers[-1]


def name(kind: str) -> str:
    """Return a remote name nobody has had."""
    given.append(f"slp-{INSTALLATION}-{kind}-{next(_numbers):026d}")
    return given[-1]


Restart = Callable[[], Awaitable[Platform]]
"""Drops the platform object as a crash of its process would, and returns a new one of the same place."""


class BuildersContract:
    """A subclass gives ``platform``, ``restart``, ``builder_spec`` (a builder that stays up) and ``ending_spec``."""

    huge = Size(cpus=100_000, memory_mb=2**30)
    seconds = 20.0
    """How long the platform may take for a change to be seen."""

    @pytest.fixture
    def builders(self, platform: Platform) -> Builders:
        assert platform.builders is not None
        return platform.builders

    @pytest.fixture
    def builder_spec(self) -> BuilderSpec:
        """A builder that goes on until it is stopped; it writes a line ``hello``."""
        raise NotImplementedError

    @pytest.fixture
    def ending_spec(self) -> BuilderSpec:
        """A builder that ends with exit code 10."""
        raise NotImplementedError

    async def starts(self, spec: BuilderSpec) -> int:
        """Return how many machines were really started for this spec."""
        raise NotImplementedError

    async def test_launching_twice_gives_one_builder(self, builders: Builders, builder_spec: BuilderSpec) -> None:
        first = await builders.launch(builder_spec)
        second = await builders.launch(builder_spec)
        assert first == second
        assert await self.starts(builder_spec) == 1

    async def test_launching_at_once_gives_one_builder(self, builders: Builders, builder_spec: BuilderSpec) -> None:
        launched = await asyncio.gather(*(builders.launch(builder_spec) for _ in range(5)))
        assert len({one.handle for one in launched}) == 1
        assert await self.starts(builder_spec) == 1

    async def test_a_launched_builder_is_seen_and_listed(self, builders: Builders, builder_spec: BuilderSpec) -> None:
        launched = await builders.launch(builder_spec)
        ref = Ref(name=builder_spec.name, handle=launched.handle, region=launched.region)
        assert (await builders.inspect(ref)).phase in {Phase.STARTING, Phase.RUNNING}
        assert (await builders.inspect(Ref(name=builder_spec.name))).phase in {Phase.STARTING, Phase.RUNNING}
        listing = await builders.list_ours(INSTALLATION)
        assert listing.complete
        assert [item.ref.name for item in listing.items] == [builder_spec.name]

    async def test_another_installation_s_builder_is_not_ours(
        self, builders: Builders, builder_spec: BuilderSpec
    ) -> None:
        await builders.launch(builder_spec)
        for foreign in ("zzzzzz", INSTALLATION[:-1]):
            assert (await builders.list_ours(foreign)).items == ()

    async def test_an_absent_builder_is_gone_and_stopping_it_is_fine(self, builders: Builders) -> None:
        absent = Ref(name=name("run"))
        assert (await builders.inspect(absent)).phase is Phase.GONE
        await builders.stop(absent)
        assert await builders.logs(absent) == []

    async def test_stopping_ends_and_removes_it(self, builders: Builders, builder_spec: BuilderSpec) -> None:
        launched = await builders.launch(builder_spec)
        ref = Ref(name=builder_spec.name, handle=launched.handle, region=launched.region)
        await builders.stop(ref)
        assert (await builders.inspect(ref)).phase is Phase.GONE
        assert (await builders.list_ours(INSTALLATION)).items == ()
        await builders.stop(ref)

    async def test_an_ended_builder_tells_its_exit_code(
        self, platform: Platform, builders: Builders, ending_spec: BuilderSpec
    ) -> None:
        ref = Ref(name=ending_spec.name, handle=(await builders.launch(ending_spec)).handle)

        async def ended() -> Inspection | None:
            seen = await builders.inspect(ref)
            return seen if seen.phase in {Phase.EXITED, Phase.FAILED, Phase.GONE} else None

        seen = await until(ended, self.seconds)
        if platform.traits.exit_codes:
            assert seen is not None
            assert (seen.phase, seen.exit_code) == (Phase.FAILED, 10)

    async def test_logs_hold_what_it_wrote(self, builders: Builders, builder_spec: BuilderSpec) -> None:
        ref = Ref(name=builder_spec.name, handle=(await builders.launch(builder_spec)).handle)

        async def said() -> bool:
            return any("hello" in line.text for line in await builders.logs(ref))

        await until(said, self.seconds)

    async def test_a_restart_of_ours_finds_it_again(
        self, builders: Builders, builder_spec: BuilderSpec, restart: Restart
    ) -> None:
        launched = await builders.launch(builder_spec)
        again = (await restart()).builders
        assert again is not None
        assert (await again.inspect(Ref(name=builder_spec.name))).phase in {Phase.STARTING, Phase.RUNNING}
        assert (await again.launch(builder_spec)).handle == launched.handle
        assert await self.starts(builder_spec) == 1
        await again.stop(Ref(name=builder_spec.name, handle=launched.handle))

    async def test_sizes_fit_or_are_refused(self, builders: Builders, builder_spec: BuilderSpec) -> None:
        got = builders.fit(builder_spec.size)
        assert got.cpus >= builder_spec.size.cpus
        assert got.memory_mb >= builder_spec.size.memory_mb
        assert builders.fit(got) == got
        with pytest.raises(Unsupported):
            builders.fit(self.huge)


class ServicesContract:
    """A subclass gives ``platform``, ``restart`` and ``service_spec``: an image that answers with its instance id.

    ``variant`` changes the program by its environment variable MODE: ``crash``, ``mute``.
    """

    huge = Size(cpus=100_000, memory_mb=2**30)
    seconds = 20.0
    wakes_by_itself = False
    """A request wakes it: the platform's own proxy stands in front."""
    address_per_release = True
    """Each release has an address of its own; else all share their service's, and ``activate`` says who answers."""

    @pytest.fixture
    def services(self, platform: Platform) -> Services:
        assert platform.services is not None
        return platform.services

    @pytest.fixture
    def service_spec(self) -> ServiceSpec:
        raise NotImplementedError

    def variant(self, spec: ServiceSpec, mode: str = "", **changes: Any) -> ServiceSpec:
        """Return another release of the same service."""
        env = {**spec.env, "MODE": mode}
        return dataclasses.replace(spec, **{"release": name("rel"), "env": env, **changes})

    async def up(self, services: Services, spec: ServiceSpec) -> tuple[ServiceRef, Inspection]:
        """Deploy a release and wait until it runs."""
        launched = await services.deploy(spec)
        ref = ServiceRef(service=spec.service, release=spec.release, handle=launched.handle, region=launched.region)

        async def running() -> Inspection | None:
            seen = await services.inspect(ref)
            assert seen.phase in {Phase.STARTING, Phase.RUNNING}, seen
            return seen if seen.address else None

        seen = await until(running, self.seconds)
        assert seen is not None
        await services.activate(ref)
        return ref, seen

    async def ask(self, seen: Inspection) -> str:
        """Return the id of the instance that answers."""
        assert seen.address is not None
        return await self.get(seen.address, "/")

    async def get(self, address: Address, path: str) -> str:
        """Send a request to a release as a caller of it does."""
        async with httpx.AsyncClient(timeout=5) as client:
            return (await client.get(address.url + path)).text

    async def test_a_deployed_release_runs_and_answers(self, services: Services, service_spec: ServiceSpec) -> None:
        _, seen = await self.up(services, service_spec)
        assert seen.phase is Phase.RUNNING
        assert seen.address is not None
        assert await self.ask(seen) == seen.address.instance_id

    async def test_deploying_twice_gives_one(self, services: Services, service_spec: ServiceSpec) -> None:
        _, first = await self.up(services, service_spec)
        launched = await asyncio.gather(*(services.deploy(service_spec) for _ in range(3)))
        assert len({one.handle for one in launched}) == 1
        _, second = await self.up(services, service_spec)
        assert first.address == second.address
        assert len((await services.list_ours(INSTALLATION)).items) == 1

    async def test_deploying_at_once_gives_one(self, services: Services, service_spec: ServiceSpec) -> None:
        await asyncio.gather(*(services.deploy(service_spec) for _ in range(4)))
        _, seen = await self.up(services, service_spec)
        assert {await self.ask(seen) for _ in range(3)} == {seen.address.instance_id if seen.address else None}

    async def test_sleep_and_wake_give_another_instance(self, services: Services, service_spec: ServiceSpec) -> None:
        ref, before = await self.up(services, service_spec)
        assert before.address is not None
        boot = await self.get(before.address, "/boot")
        await services.sleep(ref)
        assert (await services.inspect(ref)).phase is Phase.ASLEEP
        await services.sleep(ref)
        if not self.wakes_by_itself:
            with pytest.raises(httpx.TransportError):
                await self.ask(before)
        address = await services.wake(ref)
        assert address.instance_id != before.address.instance_id
        seen = await services.inspect(ref)
        assert (seen.phase, seen.address) == (Phase.RUNNING, address)
        assert await self.ask(seen) == address.instance_id
        assert await self.get(address, "/boot") != boot
        assert await services.wake(ref) == address

    async def test_many_wakes_at_once_are_one_start(self, services: Services, service_spec: ServiceSpec) -> None:
        ref, _ = await self.up(services, service_spec)
        await services.sleep(ref)
        addresses = await asyncio.gather(*(services.wake(ref) for _ in range(20)))
        assert len(set(addresses)) == 1

    async def test_a_crash_at_start_is_told(self, services: Services, service_spec: ServiceSpec) -> None:
        spec = self.variant(service_spec, "crash")
        ref = ServiceRef(service=spec.service, release=spec.release, handle=(await services.deploy(spec)).handle)

        async def failed() -> Inspection | None:
            seen = await services.inspect(ref)
            assert seen.address is None
            return seen if seen.phase is Phase.FAILED else None

        seen = await until(failed, self.seconds)
        assert seen is not None
        assert "boom" in (seen.message or "")
        with pytest.raises(StartFailed) as caught:
            await services.wake(ref)
        assert caught.value.reason == "crashed_at_start"
        assert "boom" in caught.value.message

    async def test_what_does_not_listen_never_runs(self, services: Services, service_spec: ServiceSpec) -> None:
        spec = self.variant(service_spec, "mute")
        ref = ServiceRef(service=spec.service, release=spec.release, handle=(await services.deploy(spec)).handle)
        assert (await services.inspect(ref)).phase is Phase.STARTING
        await services.sleep(ref)
        with pytest.raises(StartFailed) as caught:
            await services.wake(ref)
        assert caught.value.reason == "not_listening"
        assert (await services.inspect(ref)).address is None

    async def test_releases_run_side_by_side_and_retiring_one_leaves_the_other(
        self, services: Services, service_spec: ServiceSpec
    ) -> None:
        old, seen_old = await self.up(services, service_spec)
        first = await self.ask(seen_old)
        new, seen_new = await self.up(services, self.variant(service_spec))
        assert await self.ask(seen_new) != first
        if self.address_per_release:
            assert await self.ask(seen_old) == first
        await services.retire(old)
        assert (await services.inspect(old)).phase is Phase.GONE
        assert await services.inspect(new) == seen_new
        await self.ask(seen_new)
        await services.retire(old)

    async def test_delete_takes_all_releases_and_only_this_service(
        self, services: Services, service_spec: ServiceSpec
    ) -> None:
        other, seen_other = await self.up(services, self.variant(service_spec, service=name("svc")))
        first, _ = await self.up(services, service_spec)
        second, _ = await self.up(services, self.variant(service_spec))
        for _ in range(2):
            await services.delete(ServiceRef(service=service_spec.service, release=""))
        assert [(await services.inspect(r)).phase for r in (first, second)] == [Phase.GONE, Phase.GONE]
        assert await services.inspect(other) == seen_other

    async def test_an_absent_release_is_gone_and_ending_it_is_fine(self, services: Services) -> None:
        absent = ServiceRef(service=name("svc"), release=name("rel"))
        assert (await services.inspect(absent)).phase is Phase.GONE
        await services.sleep(absent)
        await services.retire(absent)
        await services.delete(absent)
        assert await services.logs(absent) == []

    async def test_listing_is_of_one_installation(self, services: Services, service_spec: ServiceSpec) -> None:
        await self.up(services, service_spec)
        listing = await services.list_ours(INSTALLATION)
        assert listing.complete
        assert {i.ref.name for i in listing.items} & {service_spec.release, service_spec.service}
        assert (await services.list_ours("zzzzzz")).items == ()

    async def test_secrets_and_environment_arrive(self, services: Services, service_spec: ServiceSpec) -> None:
        _, seen = await self.up(services, self.variant(service_spec, secrets={"API_KEY": "hush"}))
        assert seen.address is not None
        assert await self.get(seen.address, "/env?name=API_KEY") == "hush"

    async def test_a_restart_of_ours_changes_nothing_for_a_running_release(
        self, services: Services, service_spec: ServiceSpec, restart: Restart
    ) -> None:
        ref, before = await self.up(services, service_spec)
        again = (await restart()).services
        assert again is not None
        assert await again.inspect(ref) == before
        assert await self.ask(before) == (before.address.instance_id if before.address else None)
        await again.sleep(ref)
        assert (await again.wake(ref)).instance_id != (before.address.instance_id if before.address else None)

    async def test_logs_hold_what_it_wrote(self, services: Services, service_spec: ServiceSpec) -> None:
        ref, _ = await self.up(services, service_spec)

        async def said() -> bool:
            return any("mode" in line.text for line in await services.logs(ref))

        await until(said, self.seconds)

    async def idled(self) -> bool:
        """Let the time pass after which the platform puts idle services to sleep by itself; False where it can't be made to."""
        return True

    async def test_sleep_settings_are_kept_or_told(
        self, platform: Platform, services: Services, service_spec: ServiceSpec
    ) -> None:
        """An idle time out of the traits' bounds becomes the nearest, which the API warns of or refuses by the same traits."""
        traits = platform.traits
        assert 1 <= traits.min_idle_seconds <= (traits.max_idle_seconds or 86_400) <= 86_400
        drowsy, _ = await self.up(services, dataclasses.replace(service_spec, idle_seconds=1))
        patient = self.variant(service_spec, service=name("svc"), idle_seconds=86_400, scale_min=1)
        kept, _ = await self.up(services, patient)
        if await self.idled():
            by_itself = traits.scale_to_zero == "automatic"
            assert (await services.inspect(drowsy)).phase is (Phase.ASLEEP if by_itself else Phase.RUNNING)
        assert (await services.inspect(kept)).phase is Phase.RUNNING

    async def test_sizes_fit_or_are_refused(self, services: Services, service_spec: ServiceSpec) -> None:
        got = services.fit(service_spec.size)
        assert got.memory_mb >= service_spec.size.memory_mb
        assert services.fit(got) == got
        with pytest.raises(Unsupported):
            services.fit(self.huge)
        with pytest.raises(Unsupported):
            await services.deploy(dataclasses.replace(service_spec, size=self.huge))


def soon(seconds: float = 120.0) -> datetime:
    """Return a deadline."""
    return datetime.now(UTC) + timedelta(seconds=seconds)

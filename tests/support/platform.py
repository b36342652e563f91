"""A platform that is really there, in this process: machines with states, services on real loopback ports.

``Yard`` is the place and what a test looks at; ``Yard.platform()`` is a client of it, as ``app.platforms.base`` wants one,
so that several control planes can share one yard; both halves of the contract are in this one file, side by side.
``plan`` holds, per verb, what to do instead of behaving. How a service behaves once it is up is up to its program, and
that is its variable ``BEHAVE``: see ``tests.support.machines``.
"""

import asyncio
import contextlib
import itertools
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from app.platforms.base import (
    Address,
    BuilderSpec,
    Found,
    Inspection,
    Launched,
    Listing,
    LogLine,
    Phase,
    Platform,
    PlatformError,
    Ref,
    ServiceRef,
    ServiceSpec,
    Size,
    StartFailed,
    Traits,
    Unsupported,
)
from app.platforms.catalog import Entry
from tests.support.machines import Behaviour, Machine, Unit

NAME = "yard"
TRAITS = Traits(
    scale_to_zero="manual",
    idle_signal="requests",
    exit_codes=True,
    private_registry=True,
    own_registry=None,
    remote=False,
    max_builders=4,
    max_idle_seconds=3600,
    goarch=("amd64",),
    poll_seconds=0.005,
)
LARGEST = Size(cpus=16, memory_mb=65536)
GATE_SECONDS = 20.0


@dataclass(frozen=True)
class Lost:
    """A misdeed: the call takes effect, and then fails with ``error``."""

    error: PlatformError


@dataclass
class Gate:
    """A misdeed: the call takes effect, sets ``entered``, and returns, or fails with ``error``, only after ``go``."""

    entered: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    error: PlatformError | None = None

    async def passed(self) -> None:
        self.entered.set()
        async with asyncio.timeout(GATE_SECONDS):
            await self.go.wait()
        if self.error is not None:
            raise self.error

    async def reached(self) -> None:
        async with asyncio.timeout(GATE_SECONDS):
            await self.entered.wait()


#: An exception is raised instead of the effect.
Misdeed = Exception | Lost | Gate


@dataclass
class Yard:
    """The place: what is there, what was asked of it, and what it shall do wrong."""

    traits: Traits = TRAITS
    machines: dict[str, Machine] = field(default_factory=dict)
    units: dict[str, Unit] = field(default_factory=dict)
    plan: dict[str, deque[Misdeed]] = field(default_factory=lambda: defaultdict(deque))
    calls: list[tuple[str, str]] = field(default_factory=list)
    launched: list[str] = field(default_factory=list)
    """Names in the order in which machines were really made."""
    most: int = 0
    """How many machines ran at once, at most."""
    complete: bool = True
    """Whether listings are whole."""
    healthy: bool | None = None
    """What its own health check says of every release; None: it has none."""
    url: str | None = None
    """The address it gives each service."""
    lists_services: bool = False
    """Whether a service is what its listing has; else a release."""
    age: timedelta = timedelta(0)
    """How much older things look in listings than they are."""
    preparing: str | None = None
    """What a launch says that it makes first."""
    toolchain: str | None = None
    """What builders say that they build with."""
    dated: bool = True
    """Whether listings tell when things were made."""
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def misbehave(self, verb: str, *misdeeds: Misdeed) -> None:
        self.plan[verb].extend(misdeeds)

    def gate(self, verb: str, error: PlatformError | None = None) -> Gate:
        gate = Gate(error=error)
        self.plan[verb].append(gate)
        return gate

    def count(self, verb: str, name: str | None = None) -> int:
        return sum(1 for v, n in self.calls if v == verb and name in {None, n})

    @contextlib.asynccontextmanager
    async def doing(self, verb: str, name: str) -> AsyncIterator[None]:
        """Around the effect of every call: misbehave as planned."""
        self.calls.append((verb, name))
        misdeed = self.plan[verb].popleft() if self.plan[verb] else None
        if isinstance(misdeed, Exception):
            raise misdeed
        yield
        if isinstance(misdeed, Lost):
            raise misdeed.error
        if isinstance(misdeed, Gate):
            await misdeed.passed()

    def when(self, made: datetime) -> datetime | None:
        return made - self.age if self.dated else None

    def handle(self) -> str:
        return f"h{next(self._numbers)}"

    def platform(self, name: str = NAME) -> Platform:
        return Platform(
            name=name,
            traits=self.traits,
            builders=YardBuilders(self),
            services=YardServices(self),
            toolchain=self.toolchain,
        )

    def entry(self, name: str = NAME) -> Entry:
        return Entry(name=name, traits=self.traits, configured=True)

    async def close(self) -> None:
        for unit in self.units.values():
            await unit.stop()


def _fit(size: Size) -> Size:
    if size.cpus > LARGEST.cpus or size.memory_mb > LARGEST.memory_mb:
        raise Unsupported(NAME, "fit", f"the largest plan has {LARGEST.cpus} cores and {LARGEST.memory_mb} MB")
    return Size(cpus=max(1.0, size.cpus), memory_mb=max(256, size.memory_mb), plan="std")


class YardBuilders:
    """See ``app.platforms.base.Builders``."""

    def __init__(self, yard: Yard) -> None:
        self.yard = yard

    def fit(self, size: Size) -> Size:
        return _fit(size)

    async def launch(self, spec: BuilderSpec) -> Launched:
        if self.yard.preparing and spec.progress:
            await spec.progress(self.yard.preparing)
        async with self.yard.doing("launch", spec.name):
            machine = self.yard.machines.get(spec.name)
            if machine is None:
                machine = Machine(spec, self.yard.handle(), datetime.now(UTC))
                self.yard.machines[spec.name] = machine
                self.yard.launched.append(spec.name)
                running = sum(m.phase is Phase.RUNNING for m in self.yard.machines.values())
                self.yard.most = max(self.yard.most, running)
        return Launched(handle=machine.handle, region="here", effective=spec.size)

    async def inspect(self, ref: Ref) -> Inspection:
        async with self.yard.doing("inspect builder", ref.name):
            machine = self.yard.machines.get(ref.name)
        if machine is None:
            return Inspection(phase=Phase.GONE)
        return Inspection(
            phase=machine.phase, handle=machine.handle, exit_code=machine.exit_code, out_of_memory=machine.out_of_memory
        )

    async def stop(self, ref: Ref) -> None:
        async with self.yard.doing("stop", ref.name):
            self.yard.machines.pop(ref.name, None)

    async def list_ours(self, installation: str) -> Listing:
        async with self.yard.doing("list builders", installation):
            found = [
                Found(ref=Ref(name=n, handle=m.handle), created_at=self.yard.when(m.created_at), phase=m.phase)
                for n, m in self.yard.machines.items()
                if n.startswith(f"slp-{installation}-")
            ]
        return Listing(items=tuple(found), complete=self.yard.complete)

    async def logs(self, ref: Ref, *, limit: int = 200) -> list[LogLine]:
        async with self.yard.doing("builder logs", ref.name):
            machine = self.yard.machines.get(ref.name)
        words = machine.words[-limit:] if machine else []
        return [LogLine(at=datetime.now(UTC), text=w, stream="platform") for w in words]


class YardServices:
    """See ``app.platforms.base.Services``; a release is the unit that is listed."""

    def __init__(self, yard: Yard) -> None:
        self.yard = yard

    def fit(self, size: Size) -> Size:
        return _fit(size)

    async def deploy(self, spec: ServiceSpec) -> Launched:
        async with self.yard.doing("deploy", spec.release):
            unit = self.yard.units.get(spec.release)
            if unit is None:
                unit = self.yard.units[spec.release] = Unit(spec, self.yard.handle(), datetime.now(UTC))
                await unit.start()
        return Launched(handle=unit.handle, region=None, effective=spec.size, url=self.yard.url)

    async def inspect(self, ref: ServiceRef) -> Inspection:
        async with self.yard.doing("inspect", ref.release):
            unit = self.yard.units.get(ref.release)
        if unit is None:
            return Inspection(phase=Phase.GONE)
        hungry = unit.phase is Phase.EXITED and unit.behaviour is Behaviour.HUNGRY
        return Inspection(
            phase=unit.phase,
            address=unit.address,
            exit_code=unit.exit_code,
            out_of_memory=hungry,
            healthy=self.yard.healthy,
        )

    async def activate(self, ref: ServiceRef) -> None:
        async with self.yard.doing("activate", ref.release):
            pass

    async def sleep(self, ref: ServiceRef) -> None:
        async with self.yard.doing("sleep", ref.release):
            if unit := self.yard.units.get(ref.release):
                await unit.stop()

    async def wake(self, ref: ServiceRef) -> Address:
        async with self.yard.doing("wake", ref.release):
            unit = self.yard.units.get(ref.release)
            if unit is None:
                raise StartFailed(NAME, "wake", "there is no such release")
            if unit.address is None:
                await unit.start()
        if unit.address is None:
            raise StartFailed(NAME, "wake", "it ended with code 3", reason="crashed_at_start")
        return unit.address

    async def retire(self, ref: ServiceRef) -> None:
        async with self.yard.doing("retire", ref.release):
            if unit := self.yard.units.pop(ref.release, None):
                await unit.stop(Phase.GONE)

    async def delete(self, ref: ServiceRef) -> None:
        async with self.yard.doing("delete", ref.service):
            for name in [n for n, u in self.yard.units.items() if u.spec.service == ref.service]:
                await self.yard.units.pop(name).stop(Phase.GONE)

    async def list_ours(self, installation: str) -> Listing:
        async with self.yard.doing("list services", installation):
            named = [(u.spec.service if self.yard.lists_services else n, u) for n, u in self.yard.units.items()]
            found = [
                Found(ref=Ref(name=n, handle=u.handle), created_at=self.yard.when(u.created_at), phase=u.phase)
                for n, u in named
                if n.startswith(f"slp-{installation}-")
            ]
        return Listing(items=tuple(found), complete=self.yard.complete)

    async def logs(self, ref: ServiceRef, *, limit: int = 200) -> list[LogLine]:
        async with self.yard.doing("logs", ref.release):
            unit = self.yard.units.get(ref.release)
        if unit is None:
            return []
        return [LogLine(at=datetime.now(UTC), text=f"start {n + 1}") for n in range(unit.starts)][-limit:]

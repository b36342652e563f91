"""Builders on Fly: a machine that destroys itself at its end, in an app of its own that holds no secret (fly.md §4).

All builders of an installation share one app, ``slp-<installation>-builders``, with a private network of its own and neither
addresses nor secrets: whatever a build gets to see there, it is not a service's. No token of Fly is ever in a builder.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from app.platforms.base import (
    BuilderSpec,
    Found,
    Inspection,
    Launched,
    Listing,
    LogLine,
    Misconfigured,
    Phase,
    PlatformError,
    Ref,
    Size,
)
from app.platforms.failures import Missing
from app.platforms.fly import phases, sizes
from app.platforms.fly.answers import Machine
from app.platforms.fly.client import NAME, FlyClient
from app.platforms.fly.places import KEY, NewMachine, Sleep, ensure_app, find_machine, make_machine
from app.platforms.locks import Locks

FRESH_SECONDS = 10.0
"""For how long a machine that we made may be unknown to a look at it."""


def app_of(name: str) -> str:
    """Return the builders' app of the installation that a remote name belongs to."""
    return f"{'-'.join(name.split('-')[:2])}-builders"


class FlyBuilders:
    """Fulfils ``Builders``; the handle is ``app/machine id``."""

    def __init__(
        self,
        client: FlyClient,
        regions: tuple[str, ...],
        *,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._regions = regions
        self._sleep = sleep
        self._clock = clock
        self._locks = Locks()
        self._apps: dict[str, str] = {}
        self._fresh: dict[str, float] = {}

    def fit(self, size: Size) -> Size:
        """The nearest size with CPUs of its own: a compiler on shared ones is throttled (fly.md §4)."""
        return sizes.fit(size, sizes.BUILDER_KINDS, "fit")

    async def launch(self, spec: BuilderSpec) -> Launched:
        """Find the builder of this name, or make it: in the first region that has room."""
        if spec.image is None:
            raise Misconfigured(NAME, "launch", "a builder on Fly needs SLIPWAY_BUILDER_IMAGE")
        size = self.fit(spec.size)
        async with self._locks.of(spec.name):
            app = await self._app(spec.name)
            machine = await find_machine(self._client, app, spec.name, include_deleted=True)
            if machine is None:
                machine = await self._make(app, spec, size)
            return Launched(handle=f"{app}/{machine.id}", region=machine.region, effective=size)

    async def _app(self, name: str) -> str:
        wanted = app_of(name)
        async with self._locks.of(wanted):
            if wanted not in self._apps:
                self._apps[wanted] = await ensure_app(self._client, wanted, sleep=self._sleep)
        return self._apps[wanted]

    async def _make(self, app: str, spec: BuilderSpec, size: Size) -> Machine:
        new = NewMachine(app=app, name=spec.name, body=_body(spec, size), regions=spec.regions or self._regions)
        try:
            machine = await make_machine(self._client, new, sleep=self._sleep)
        except Missing:
            self._apps.pop(app_of(spec.name), None)  # somebody removed the app: make it again next time
            raise
        now = self._clock()
        self._fresh = {k: t for k, t in self._fresh.items() if now - t < FRESH_SECONDS} | {machine.id: now}
        return machine

    async def inspect(self, ref: Ref) -> Inspection:
        """Look at it; how it ended may be told even once it has destroyed itself."""
        machine = await self._look(ref)
        if machine is not None:
            seen = phases.builder(machine)
            handle = ref.handle or f"{await self._known_app(ref.name)}/{machine.id}"
            return Inspection(
                phase=seen.phase,
                handle=handle if seen.phase is not Phase.GONE else None,
                region=seen.region,
                exit_code=seen.exit_code,
                out_of_memory=seen.out_of_memory,
                message=seen.message,
            )
        _, _, machine_id = (ref.handle or "").partition("/")
        if self._clock() - self._fresh.get(machine_id, -FRESH_SECONDS) < FRESH_SECONDS:
            return Inspection(phase=Phase.STARTING, handle=ref.handle, region=ref.region)
        return Inspection(phase=Phase.GONE)

    async def _look(self, ref: Ref) -> Machine | None:
        if ref.handle:
            app, _, machine = ref.handle.partition("/")
            try:
                return await self._client.get_machine(app, machine)
            except Missing:
                pass  # gone, destroyed with a record in the listing, or not visible yet
        app = await self._known_app(ref.name)
        return await find_machine(self._client, app, ref.name, include_deleted=True)

    async def _known_app(self, name: str) -> str:
        """Return the builders' app without making it: its first name, unless we know better."""
        return self._apps.get(app_of(name), app_of(name))

    async def stop(self, ref: Ref) -> None:
        """Kill and remove it: nothing that a canceled builder could still say is wanted."""
        app, _, machine = (ref.handle or "").partition("/")
        if not machine:
            found = await find_machine(self._client, await self._known_app(ref.name), ref.name)
            if found is None or found.gone:
                return
            app, machine = await self._known_app(ref.name), found.id
        self._fresh.pop(machine, None)
        try:
            await self._client.delete_machine(app, machine)
        except Missing:
            return

    async def list_ours(self, installation: str) -> Listing:
        """List by one sweep of the organization; a region that did not answer makes it incomplete."""
        machines, complete = await self._client.org_machines()
        prefix = f"slp-{installation}-run-"
        items = tuple(
            Found(
                ref=Ref(name=m.name, handle=f"{m.app_name}/{m.id}", region=m.region),
                created_at=m.created_at,
                phase=phases.builder(m).phase,
            )
            for m in machines
            if m.name.startswith(prefix) and not m.gone
        )
        return Listing(items=items, complete=complete)

    async def logs(self, ref: Ref, *, limit: int = 200) -> list[LogLine]:
        """Return what Fly still has of it; nothing when it does not say, since this interface is without a promise."""
        try:
            machine = await self._look(ref)
            if machine is None:
                return []
            app = ref.handle.partition("/")[0] if ref.handle else await self._known_app(ref.name)
            return await lines(self._client, app, machine.id, limit)
        except PlatformError:
            return []


async def lines(client: FlyClient, app: str, machine: str, limit: int) -> list[LogLine]:
    """Return the newest lines of a machine, oldest first."""
    found = (await client.logs(app, machine)).data
    return [LogLine(at=e.attributes.timestamp, text=e.attributes.message) for e in found][-limit:]


def _body(spec: BuilderSpec, size: Size) -> dict[str, Any]:
    metadata = {f"slipway_{k}": v for k, v in spec.metadata.items()}
    metadata |= {KEY: spec.name, "slipway_role": "builder", "slipway_deadline": str(int(spec.deadline.timestamp()))}
    return {
        "skip_service_registration": True,
        "config": {
            "image": spec.image,
            "env": dict(spec.env),
            "guest": sizes.guest(size),
            "auto_destroy": True,
            "restart": {"policy": "no"},
            "stop_config": {"signal": "SIGTERM", "timeout": "10s"},
            "metadata": metadata,
        },
    }


__all__ = ["KEY", "FlyBuilders", "app_of", "lines"]

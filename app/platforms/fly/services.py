"""Services on Fly: an app per service, a machine per release, put to sleep and woken by Fly's own proxy (fly.md §6).

A new release comes up beside the one that serves (``skip_service_registration``), passes its check there, and only then takes
over: it is uncordoned, the others are cordoned. A cordoned machine that is stopped is kept for a rollback.
Releases keep the secrets they were made with: an app's secrets reach a machine only when it is made or updated (fly.md §5).
"""
# Over 250 lines: one verb of the Protocol after the other.

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import httpx

from app.images.client import Registry
from app.images.copy import copy
from app.platforms.base import (
    Address,
    Found,
    Inspection,
    Launched,
    Listing,
    LogLine,
    Phase,
    PlatformError,
    Ref,
    ServiceRef,
    ServiceSpec,
    Size,
    StartFailed,
    Transient,
)
from app.platforms.failures import Missing
from app.platforms.fly import phases, sizes
from app.platforms.fly.answers import Machine
from app.platforms.fly.builders import lines
from app.platforms.fly.client import NAME, FlyClient, bare
from app.platforms.fly.places import KEY, NewMachine, Sleep, ensure_app, find_app, find_machine, make_machine
from app.platforms.http import trust
from app.platforms.locks import Locks
from app.settings import FlySettings

SETTLE_SECONDS = 10.0
"""How long the proxies everywhere may take to hear of a new machine, before the old one is taken out."""
START_SECONDS = 45.0
STOP_SECONDS = 30.0
GONE_SECONDS = 60.0
LOOK_SECONDS = 0.5
ROLE = "slipway_role"
_LAST_LINES = 5


class FlyServices:
    """Fulfils ``Services``; the handle is ``app/machine id``, and ``list_ours`` lists apps."""

    def __init__(
        self,
        client: FlyClient,
        settings: FlySettings,
        *,
        settle_seconds: float = SETTLE_SECONDS,
        start_seconds: float = START_SECONDS,
        look_seconds: float = LOOK_SECONDS,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._settings = settings
        self._settle_seconds = settle_seconds
        self._start_seconds = start_seconds
        self._look_seconds = look_seconds
        self._sleep = sleep
        self._clock = clock
        self._locks = Locks()

    def fit(self, size: Size) -> Size:
        """The nearest shared size, else one with CPUs of its own."""
        return sizes.fit(size, sizes.SERVICE_KINDS, "fit")

    def _url(self, app: str) -> str:
        return self._settings.service_url.format(app=app)

    # ------------------------------------------------------------------------------------------------ deploy

    async def deploy(self, spec: ServiceSpec) -> Launched:
        """Make app, addresses, image, secrets and machine, in this order; each is left alone where it is there already."""
        size = self.fit(spec.size)
        async with self._locks.of(spec.service):
            app = await ensure_app(self._client, spec.service, sleep=self._sleep)
            machine = await find_machine(self._client, app, spec.release)
            if machine is None:
                await self._addresses(app)
                image = await self._image(app, spec)
                version = await self._secrets(app, spec)
                body = _body(spec, size, image, version)
                new = NewMachine(app=app, name=spec.release, body=body, regions=spec.regions or self._settings.regions)
                machine = await make_machine(self._client, new, sleep=self._sleep)
        return Launched(handle=f"{app}/{machine.id}", region=machine.region, effective=size, url=self._url(app))

    async def _addresses(self, app: str) -> None:
        """Without an address the app's name leads nowhere."""
        ips = await self._client.ips(app)
        if not any("." in ip.ip for ip in ips):
            await self._client.assign_ip(app, "shared_v4")
        if not any(":" in ip.ip for ip in ips):
            await self._client.assign_ip(app, "v6")

    async def _image(self, app: str, spec: ServiceSpec) -> str:
        """Copy the image into Fly's registry, since Fly pulls no private image from elsewhere (fly.md §7)."""
        image = spec.image
        source = Registry(image.registry, username=image.username, password=image.password, transport=_transport())
        token = bare(self._settings.token.get_secret_value())
        target = Registry(self._settings.registry, username="x", password=token, transport=_transport())
        async with source, target:
            await copy(source, image.repository, image.digest, target, app)
        return f"{target.host}/{app}@{image.digest}"

    async def _secrets(self, app: str, spec: ServiceSpec) -> int | None:
        """Make the app's secrets those of this release; return the version that its machine has to wait for."""
        known = {s.name for s in (await self._client.secrets(app)).secrets}
        if not known and not spec.secrets:
            return None
        values: dict[str, str | None] = dict.fromkeys(known - spec.secrets.keys())
        return (await self._client.set_secrets(app, values | dict(spec.secrets))).version

    # ------------------------------------------------------------------------------------------------ look

    async def inspect(self, ref: ServiceRef) -> Inspection:
        """Look at one release; of one that failed, the message ends with its last lines."""
        found = await self._look(ref)
        if found is None:
            return Inspection(phase=Phase.GONE)
        return await self._seen(*found)

    async def _seen(self, app: str, machine: Machine, after: str | None = None) -> Inspection:
        seen = phases.service(machine, self._url(app), after=after)
        handle = f"{app}/{machine.id}" if seen.phase is not Phase.GONE else None
        message = seen.message
        if seen.phase is Phase.FAILED:
            said = await self._tail(app, machine.id)
            message = f"{message}\n{said}" if said else message
        return Inspection(
            phase=seen.phase,
            handle=handle,
            region=seen.region,
            exit_code=seen.exit_code,
            out_of_memory=seen.out_of_memory,
            message=message,
            address=seen.address,
            healthy=seen.healthy,
        )

    async def _tail(self, app: str, machine: str) -> str:
        try:
            return "\n".join(line.text for line in await lines(self._client, app, machine, _LAST_LINES))
        except PlatformError:
            return ""

    async def _look(self, ref: ServiceRef) -> tuple[str, Machine] | None:
        app, _, machine_id = (ref.handle or "").partition("/")
        if machine_id:
            try:
                machine = await self._client.get_machine(app, machine_id)
            except Missing:
                # Not visible yet, or really gone: the listing decides.
                pass
            else:
                return None if machine.gone else (app, machine)
        else:
            found = await find_app(self._client, ref.service)
            if found is None:
                return None
            app = found.name
        listed = await find_machine(self._client, app, ref.release)
        return None if listed is None or listed.gone else (app, listed)

    # ------------------------------------------------------------------------------------------------ traffic

    async def activate(self, ref: ServiceRef) -> None:
        """Put this release into the proxy's routing and, once that is known everywhere, take the others out."""
        app, green = await self._uncordon(ref)
        others = await self._client.machines(app, {ROLE: "service"})
        blues = [m for m in others if m.id != green and not m.gone and not m.cordoned]
        if blues:
            await self._sleep(self._settle_seconds)
        for blue in blues:
            await self._client.act(app, blue.id, "cordon")

    async def _uncordon(self, ref: ServiceRef) -> tuple[str, str]:
        """Put the machine, seen a moment ago, into the routing, and look for it only if need be; returns its app and id."""
        app, _, machine = (ref.handle or "").partition("/")
        if machine:
            with contextlib.suppress(Missing):
                await self._client.act(app, machine, "uncordon")
                return app, machine
        found = await self._look(ref)
        if found is None:
            raise Transient(NAME, "activate", f"the machine of {ref.release} isn't there")
        await self._client.act(found[0], found[1].id, "uncordon")
        return found[0], found[1].id

    async def sleep(self, ref: ServiceRef) -> None:
        """Stop the machine; while it is routed to, the next request wakes it."""
        found = await self._look(ref)
        if found is None:
            return
        app, machine = found
        try:
            await self._client.act(app, machine.id, "stop", {"signal": "SIGTERM", "timeout": "10s"})
            if not await self._client.wait(app, machine.id, "stopped,suspended,failed,destroyed", STOP_SECONDS):
                raise Transient(NAME, "sleep", f"{ref.release} did not stop within {STOP_SECONDS:g} seconds")
        except Missing:
            return

    async def wake(self, ref: ServiceRef) -> Address:
        """Start the machine and return once its check passes."""
        found = await self._look(ref)
        if found is None:
            raise StartFailed(NAME, "wake", f"{ref.release} isn't there")
        app, machine = found
        seen = phases.service(machine, self._url(app))
        if seen.healthy and seen.address:
            return seen.address
        last = machine.events[0].id if machine.events else None
        if machine.state not in {"started", "starting"}:
            await self._client.act(app, machine.id, "start")
        deadline = self._clock() + self._start_seconds
        while self._clock() < deadline:
            look = await self._client.get_machine(app, machine.id)
            # What an older start came to is no news; a machine still stopped has not begun yet.
            seen = phases.service(look, self._url(app), after=last)
            if seen.healthy and seen.address:
                return seen.address
            if seen.phase is Phase.FAILED:
                told = (await self._seen(app, look, last)).message or ""
                raise StartFailed(
                    NAME, "wake", told, reason="out_of_memory" if seen.out_of_memory else "crashed_at_start"
                )
            await self._sleep(self._look_seconds)
        raise StartFailed(
            NAME, "wake", f"it did not listen within {self._start_seconds:g} seconds", reason="not_listening"
        )

    # ------------------------------------------------------------------------------------------------ ends

    async def retire(self, ref: ServiceRef) -> None:
        """Remove the release's machine."""
        found = await self._look(ref)
        if found is None:
            return
        app, machine = found
        try:
            await self._client.delete_machine(app, machine.id)
        except Missing:
            return

    async def delete(self, ref: ServiceRef) -> None:
        """Remove the app, and wait until it is really gone."""
        app = await find_app(self._client, ref.service)
        if app is None:
            return
        deadline = self._clock() + GONE_SECONDS
        while True:
            try:
                await self._client.delete_app(app.name)
                await self._client.get_app(app.name)
            except Missing:
                return
            if self._clock() > deadline:
                raise Transient(NAME, "delete", f"{app.name} is still there after {GONE_SECONDS:g} seconds")
            await self._sleep(self._look_seconds)

    async def list_ours(self, installation: str) -> Listing:
        """List our services' apps. Fly does not say when an app was made."""
        prefix, items = f"slp-{installation}-svc-", list[Found]()
        async for app in self._client.apps():
            if app.name.startswith(prefix):
                name = "-".join(app.name.split("-")[:4])
                phase = Phase.RUNNING if app.machine_count else Phase.STARTING
                items.append(Found(ref=Ref(name=name, handle=f"{app.name}/"), created_at=None, phase=phase))
        return Listing(items=tuple(items), complete=True)

    async def logs(self, ref: ServiceRef, *, limit: int = 200) -> list[LogLine]:
        """Return what Fly still has of the release; nothing when it does not say."""
        try:
            found = await self._look(ref)
            return await lines(self._client, found[0], found[1].id, limit) if found else []
        except PlatformError:
            return []


def _transport() -> httpx.AsyncHTTPTransport:
    return httpx.AsyncHTTPTransport(verify=trust())


def _body(spec: ServiceSpec, size: Size, image: str, secrets_version: int | None) -> dict[str, Any]:
    sleeps = spec.scale_min == 0
    env = {"PORT": str(spec.port), "SLIPWAY_SERVICE": spec.service, "SLIPWAY_RELEASE": spec.release}
    check = {"type": "http", "port": spec.port, "method": "GET", "path": spec.health_path}
    block = {
        "protocol": "tcp",
        "internal_port": spec.port,
        # The API's names, not those of fly.toml, which it drops without a word; and always all three (fly.md §6).
        "autostop": "stop" if sleeps else "off",
        "autostart": True,
        "min_machines_running": 0 if sleeps else spec.scale_min,
        "ports": [{"port": 443, "handlers": ["tls", "http"]}, {"port": 80, "handlers": ["http"], "force_https": True}],
        "concurrency": {"type": "requests", "soft_limit": 20, "hard_limit": 50},
        "checks": [check | {"interval": "5s", "timeout": "5s", "grace_period": "5s"}],
    }
    metadata = {f"slipway_{k}": v for k, v in spec.metadata.items()} | {KEY: spec.release, ROLE: "service"}
    body: dict[str, Any] = {
        "skip_service_registration": True,
        "config": {
            "image": image,
            "env": {**env, "SLIPWAY_DIGEST": spec.image.digest, **spec.env},
            "guest": sizes.guest(size),
            "restart": {"policy": "on-failure", "max_retries": 5},
            "stop_config": {"signal": "SIGTERM", "timeout": "10s"},
            "services": [block],
            "metadata": metadata,
        },
    }
    return body if secrets_version is None else {**body, "min_secrets_version": secrets_version}

"""Services: one deployment service per release, paused and resumed by us, since nothing there wakes one at zero.

What it says of a rollout is not believed alone: COMPLETED may be of the rollout before, and not every completed one takes
requests yet. A release listens when an instance runs and either the platform's edge passes a request to it, or the rollout was
completed after that instance had been made.
"""
# Over 250 lines: one verb of the Protocol after the other, over one service per release.

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from app.platforms.base import (
    Address,
    Found,
    Inspection,
    Launched,
    Listing,
    LogLine,
    Misconfigured,
    Phase,
    PlatformError,
    Ref,
    Rejected,
    ServiceRef,
    ServiceSpec,
    Size,
    StartFailed,
    Transient,
)
from app.platforms.failures import Conflict, Missing
from app.platforms.locks import Locks
from app.platforms.northflank import answers, names
from app.platforms.northflank.client import NAME, Client
from app.platforms.northflank.edge import Edge
from app.settings import NorthflankSettings

START_SECONDS = 90.0
SETTLE_SECONDS = 45.0
"""How long a pause or a deletion may take to be done."""
LOOK_SECONDS = 5.0
"""How often the API is asked about what it was told to do; the edge, which costs no request of ours, is asked more often."""
GRACE_SECONDS = 30
DISK_MB = 1024
LAST_LINES = 5
_PORT = "p1"
_HEALTH = "SLIPWAY_HEALTH_PATH"
_SERVICE = "SLIPWAY_SERVICE"
_PHASES = {"FAILED": Phase.FAILED, "COMPLETED": Phase.RUNNING}


class NorthflankServices:
    """Fulfils ``Services``; the release is the unit that ``list_ours`` lists."""

    def __init__(
        self,
        client: Client,
        settings: NorthflankSettings,
        edge: Edge,
        *,
        start_seconds: float = START_SECONDS,
        settle_seconds: float = SETTLE_SECONDS,
        look_seconds: float = LOOK_SECONDS,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._settings = settings
        self._edge = edge
        self._start_seconds = start_seconds
        self._settle_seconds = settle_seconds
        self._look_seconds = look_seconds
        self._sleep = sleep
        self._clock = clock
        self._locks = Locks()

    def fit(self, size: Size) -> Size:
        """Return the smallest plan that is enough."""
        return names.fit(size, "fit")

    # ------------------------------------------------------------------------------------------------ deploy

    async def deploy(self, spec: ServiceSpec) -> Launched:
        """Keep the pull credential, make the service, give it its secrets, start it; a second call finds the first.

        With secrets it is made at zero, since a group can only be restricted to a service that is there, and must be there
        before the program is.
        """
        size = names.fit(spec.size, "deploy")
        nf_id = names.service_id(spec.service, spec.release)
        image = names.image_path(self._image(spec), "deploy")
        async with self._locks.of(nf_id):
            found = await self._client.service(nf_id)
            begun = found is not None and found.asleep and bool(spec.secrets)
            if found is None or begun:
                credential = await self._credential(spec, nf_id)
                if spec.secrets:
                    if found is None:
                        await self._put(self._body(spec, nf_id, size, image, credential, instances=0))
                    await self._keep_secrets(spec, nf_id)
                await self._put(self._body(spec, nf_id, size, image, credential, instances=1))
        return Launched(handle=nf_id, region=None, effective=size)

    async def _keep_secrets(self, spec: ServiceSpec, nf_id: str) -> None:
        try:
            await self._client.put_secret(_secret(spec, nf_id))
        except Missing as e:
            message = "the service that was just made is not known everywhere yet"
            raise Transient(NAME, "deploy", message, e.request_id) from e

    async def _put(self, body: dict[str, Any]) -> None:
        try:
            await self._client.put_service(body)
        except Missing as e:
            raise Misconfigured(NAME, "deploy", f"there is no project {self._client.project}", e.request_id) from e
        except Conflict:
            # Two that make the same service at once: the other one's is ours.
            if await self._client.service(body["name"]) is None:
                raise

    def _image(self, spec: ServiceSpec) -> str:
        if self._settings.registry is None:
            return spec.image.reference
        host = self._settings.registry.split("://", 1)[-1].rstrip("/")
        return f"{host}/{spec.image.repository}@{spec.image.digest}"

    async def _credential(self, spec: ServiceSpec, nf_id: str) -> str | None:
        """Keep what pulls this image, for this project alone; return its id, None for an open image."""
        if spec.image.password is None:
            return None
        name = names.credential_id(nf_id)
        scope = {"pull": True, "push": False}
        login = {"username": spec.image.username, "password": spec.image.password, "scope": scope}
        restrictions = {"restricted": True, "projects": [self._client.project]}
        values = {"credentials": login, "restrictions": restrictions}
        url = self._settings.registry or spec.image.registry
        url = url if "://" in url else f"https://{url}"
        try:
            await self._client.add_credential({"name": name, "provider": "custom", "registryUrl": url, **values})
        except Conflict:
            await self._client.update_credential(name, values)
        return name

    def _body(
        self, spec: ServiceSpec, nf_id: str, size: Size, image: str, credential: str | None, *, instances: int
    ) -> dict[str, Any]:
        probe = {"protocol": "TCP", "port": spec.port, "initialDelaySeconds": 1, "timeoutSeconds": 2}
        return {
            "name": nf_id,
            "billing": {"deploymentPlan": size.plan},
            "deployment": {
                "instances": instances,
                "external": {"imagePath": image} | ({"credentials": credential} if credential else {}),
                "docker": {"configType": "default"},
                "gracePeriodSeconds": GRACE_SECONDS,
                "storage": {"ephemeralStorage": {"storageSize": DISK_MB}},
            },
            "ports": [{"name": _PORT, "internalPort": spec.port, "public": True, "protocol": "HTTP"}],
            "runtimeEnvironment": _environment(spec),
            # The health path is for promote to judge; these only tell whether it listens at all, and end what is wedged.
            "healthChecks": [
                {**probe, "type": "readinessProbe", "periodSeconds": 2, "failureThreshold": 3, "successThreshold": 1},
                {**probe, "type": "livenessProbe", "periodSeconds": 20, "failureThreshold": 6, "successThreshold": 1},
            ],
        }

    # ------------------------------------------------------------------------------------------------ look

    async def inspect(self, ref: ServiceRef) -> Inspection:
        """Look at one release, with its last lines when it does not come up."""
        nf_id = names.service_id(ref.service, ref.release)
        service = await self._client.service(nf_id)
        if service is None:
            return Inspection(phase=Phase.GONE)
        if service.asleep:
            return Inspection(phase=Phase.ASLEEP, handle=nf_id)
        return await self._look(service, await self._url(service))

    async def _look(
        self, service: answers.Service, url: str | None, *, past: Collection[str] = (), usable: bool = False
    ) -> Inspection:
        """Judge a service that is not at zero. ``past`` are instances of before; ``usable``: only the edge's word counts."""
        instances = [c for c in await self._client.containers(service.id) if c.name not in past]
        instances.sort(key=lambda c: (c.created_at, c.updated_at))
        running = [c for c in instances if c.status == answers.RUNNING]
        if running and url is not None:
            newest = running[-1]
            fresh = not usable and _completed_since(service, newest)
            if fresh or await self._edge.passes(url, _health(service)):
                address = Address(url=url, instance_id=newest.name)
                return Inspection(phase=Phase.RUNNING, handle=service.id, address=address)
        failures = sum(c.status == answers.FAILED for c in instances)
        # One that failed is started again, so it may be running at this very moment, until it fails again.
        alive = any(c.status == answers.RUNNING or c.status in answers.COMING for c in instances)
        if (failures and not alive) or failures > 1 or service.status.deployment.status == "FAILED":
            return Inspection(phase=Phase.FAILED, handle=service.id, message=await self._last_words(service.id))
        rollout = service.status.deployment.status or "unknown"
        message = f"rollout {rollout}; nothing listens yet" if running else f"rollout {rollout}; no instance runs yet"
        return Inspection(phase=Phase.STARTING, handle=service.id, message=message)

    async def _url(self, service: answers.Service) -> str | None:
        """Return the public address, read and never built; None while there is none."""
        dns = _public(service.ports) or _public(await self._client.ports(service.id))
        return self._settings.service_url.format(dns=dns) if dns else None

    async def _last_words(self, nf_id: str) -> str:
        try:
            lines = await self._client.logs("services", nf_id, LAST_LINES)
        except PlatformError as e:
            return f"The program ended by itself; its log can't be read: {e.message}"
        said = "; ".join(line.text.strip() for line in lines if line.text.strip())[-500:]
        return f"The program ended by itself: {said}" if said else "The program ended by itself."

    # ------------------------------------------------------------------------------------------------ sleep, wake

    async def activate(self, ref: ServiceRef) -> None:
        """Nothing to do: the gateway routes."""

    async def sleep(self, ref: ServiceRef) -> None:
        """Pause it, and wait until that is done: a resume that comes before would be lost."""
        nf_id = names.service_id(ref.service, ref.release)
        async with self._locks.of(nf_id):
            service = await self._client.service(nf_id, kind="stop")
            if service is None or service.asleep:
                return
            await self._client.pause(nf_id)
            await self._settled(nf_id, "sleep", lambda service: service is None or service.asleep)

    async def _settled(self, nf_id: str, operation: str, done: Callable[[answers.Service | None], bool]) -> None:
        until, pause = self._clock() + self._settle_seconds, self._look_seconds / 10
        while not done(await self._client.service(nf_id, kind="stop")):
            if self._clock() > until:
                raise Transient(NAME, operation, f"it was not done within {self._settle_seconds:g} seconds")
            await self._sleep(pause)
            pause = min(pause * 2, self._look_seconds)

    async def wake(self, ref: ServiceRef) -> Address:
        """Resume it, and return once the edge passes requests to it; as slow as a start."""
        nf_id = names.service_id(ref.service, ref.release)
        async with self._locks.of(nf_id):
            until, past, last = self._clock() + self._start_seconds, set[str](), "it was not looked at"
            while True:
                service = await self._client.service(nf_id)
                if service is None:
                    raise Rejected(NAME, "wake", f"there is no release {ref.release}")
                url = await self._url(service)
                if service.asleep:
                    # Also when our own resume was lost to a pause that was still going on.
                    past |= {c.name for c in await self._client.containers(nf_id)}
                    await self._client.resume(nf_id)
                    last = "it was resumed"
                else:
                    seen = await self._look(service, url, past=past, usable=True)
                    if seen.address is not None:
                        return seen.address
                    if seen.phase is Phase.FAILED:
                        raise StartFailed(NAME, "wake", seen.message or "the program ended", None, "crashed_at_start")
                    last = seen.message or last
                if self._clock() > until:
                    message = f"it did not listen within {self._start_seconds:g} seconds ({last})"
                    raise StartFailed(NAME, "wake", message, None, "not_listening")
                await self._edge.wait(url, _health(service), min(self._look_seconds, self._start_seconds / 4))

    # ------------------------------------------------------------------------------------------------ end

    async def retire(self, ref: ServiceRef) -> None:
        """Remove the release's service, secrets and pull credential."""
        await self._remove(names.service_id(ref.service, ref.release))

    async def delete(self, ref: ServiceRef) -> None:
        """Remove all releases of the service, found by name and made sure of by what is in them."""
        services, _ = await self._client.services(kind="stop")
        secrets, _ = await self._client.secrets()
        mine = {i for i in (*(s.id for s in services), *(s.id for s in secrets)) if names.belongs(i, ref.service)}
        if ref.release:
            mine.add(names.service_id(ref.service, ref.release))
        for nf_id in sorted(mine):
            found = await self._client.service(nf_id, kind="stop")
            if found is None or found.runtime_environment.get(_SERVICE, ref.service) == ref.service:
                await self._remove(nf_id)

    async def _remove(self, nf_id: str) -> None:
        """Remove what belongs to it first, the service last: what is left over is found by it."""
        async with self._locks.of(nf_id):
            credential, in_use = names.credential_id(nf_id), False
            await self._client.delete_secret(nf_id)
            try:
                await self._client.delete_credential(credential)
            except Rejected:
                in_use = True
            await self._client.delete_service(nf_id)
            await self._settled(nf_id, "delete", lambda service: service is None)
            if in_use:
                await self._client.delete_credential(credential)

    # ------------------------------------------------------------------------------------------------ list, logs

    async def list_ours(self, installation: str) -> Listing:
        """List releases."""
        services, complete = await self._client.services()
        items = []
        for service in services:
            if name := names.release_name(service.id, installation):
                phase = _PHASES.get(service.status.deployment.status, Phase.STARTING)
                items.append(Found(ref=Ref(name=name, handle=service.id), created_at=None, phase=phase))
        return Listing(items=tuple(items), complete=complete)

    async def logs(self, ref: ServiceRef, *, limit: int = 200) -> list[LogLine]:
        """Return the release's last lines. Misconfigured when the token's role may not see logs."""
        return await self._client.logs("services", names.service_id(ref.service, ref.release), limit)


def _environment(spec: ServiceSpec) -> dict[str, str]:
    """Return the plain part of the environment: a value here would hide the secret of the same name without a word."""
    own = {"PORT": str(spec.port), _HEALTH: spec.health_path, _SERVICE: spec.service, "SLIPWAY_RELEASE": spec.release}
    return {k: v for k, v in spec.env.items() if k not in spec.secrets} | own | {"SLIPWAY_DIGEST": spec.image.digest}


def _secret(spec: ServiceSpec, nf_id: str) -> dict[str, Any]:
    """Return the release's secret group; one without restrictions would reach every program of the project."""
    return {
        "name": nf_id,
        "secretType": "environment",
        "priority": 10,
        "secrets": {"variables": dict(spec.secrets)},
        "restrictions": {"restricted": True, "nfObjects": [{"id": nf_id, "type": "service"}]},
    }


def _health(service: answers.Service) -> str:
    return str(service.runtime_environment.get(_HEALTH, "/"))


def _public(ports: Collection[answers.Port]) -> str | None:
    return next((port.dns for port in ports if port.dns), None)


def _completed_since(service: answers.Service, container: answers.Container) -> bool:
    """Tell whether the rollout was completed with this instance and not before it, which is told in whole seconds."""
    rollout = service.status.deployment
    at = rollout.last_transition_time
    return rollout.status == "COMPLETED" and at is not None and at.timestamp() > container.created_at + 1

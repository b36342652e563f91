"""Services: one app with one WEB service each, whose deployments are our releases.

A rollout replaces the whole definition. Koyeb itself brings the new deployment up beside the old one, checks its health on our
health path, moves the traffic over and ends the old one; a bad rollout leaves the old one serving. Each definition says in its
environment which release it is (``SLIPWAY_RELEASE``): a resume makes a new deployment of the same release, so ids don't tell.

Of a service's deployments only two matter: the latest, which was asked for, and the active one, which serves.
"""
# Over 250 lines: all that may become of one service, in one place.

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime

from app.platforms.address import knock
from app.platforms.base import (
    Address,
    Found,
    Inspection,
    Launched,
    Listing,
    LogLine,
    NoCapacity,
    Phase,
    Ref,
    Rejected,
    ServiceRef,
    ServiceSpec,
    Size,
    StartFailed,
    Transient,
)
from app.platforms.failures import Conflict, Missing
from app.platforms.koyeb import definitions
from app.platforms.koyeb.answers import App, Deployment, Instance, Service
from app.platforms.koyeb.client import NAME, Json
from app.platforms.koyeb.common import (
    COMING,
    FAILED,
    GONE,
    LEAVING,
    STOPPED,
    Account,
    fit,
    lines,
    phase_of,
    reasons,
)
from app.platforms.koyeb.secrets import Secrets
from app.platforms.locks import Locks

CRASHES = 2
"""So many instances that ended mean that the next one will end, too; Koyeb goes on for a quarter of an hour."""
CRASHED = "the program ended"
TAIL = 20
PAUSE_SECONDS = 25.0


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A service with the newest deployment of one release; ``deployment`` None when neither latest nor active is of it."""

    service: Service
    deployment: Deployment | None
    latest: bool = False
    other_serves: bool = False
    """Whether the active deployment is of another release."""


class KoyebServices:
    """See ``app.platforms.base.Services``; a handle is ``<service id>/<deployment id>``."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._client = account.client
        self._secrets = Secrets(account.client)
        self._domains: dict[str, str] = {}
        self._locks = Locks()

    def fit(self, size: Size) -> Size:
        """See ``Services``."""
        return fit(size)

    # --- deploy

    async def deploy(self, spec: ServiceSpec) -> Launched:
        """Ask for a rollout, unless the latest deployment is of this release already."""
        size = fit(spec.size)
        definition = definitions.web(spec, size, self._account.settings)
        regions = spec.regions or self._account.settings.regions
        async with self._locks.of(spec.service):
            app = await self._account.need_app(spec.service, delete_when_empty=True)
            service = await self._service_of(app)
            seen = await self._seen(service, spec.release) if service else None
            if seen is None or seen.deployment is None or not seen.latest:
                await self._secrets.keep(spec)
                service = await self._roll_out(app, service, spec, definition, regions)
                region = definition["regions"][0]
            else:
                service, region = seen.service, next(iter(seen.deployment.definition.regions), regions[0])
        latest = service.latest_deployment_id or ""
        url = await self._url(app.id, app)
        return Launched(handle=f"{service.id}/{latest}", region=region, effective=size, url=url)

    async def _roll_out(
        self, app: App, service: Service | None, spec: ServiceSpec, definition: Json, regions: tuple[str, ...]
    ) -> Service:
        full: NoCapacity | None = None
        for region in regions:
            definition["regions"] = [region]
            try:
                return await self._put(app, service, spec.release, definition)
            except NoCapacity as e:
                full = NoCapacity(NAME, e.operation, e.message, e.request_id, region=region)
        raise full or Rejected(NAME, "create service", "no region was named")

    async def _put(self, app: App, service: Service | None, release: str, definition: Json) -> Service:
        try:
            if service is None:
                body = {"app_id": app.id, "name": definitions.SERVICE, "definition": definition}
                return await self._client.create_service(body)
            changed = await self._client.update_service(service.id, definition)
        except (Conflict, Transient) as e:
            # Perhaps it was done all the same: the release's name in the definition tells.
            found = await self._service_of(app)
            if found and (seen := await self._seen(found, release)).deployment and seen.latest:
                return seen.service
            raise Transient(NAME, e.operation, e.message, e.request_id, getattr(e, "retry_after", None)) from None
        if service.status in {"PAUSED", "PAUSING"}:
            await self._client.resume_service(service.id)
        return changed

    # --- look

    async def inspect(self, ref: ServiceRef) -> Inspection:
        """Judge a release by its own deployment: the service stays HEALTHY for the old one while a new one fails."""
        own = await self._own(ref)
        if own is not None and own.status in COMING - {"STARTING"}:
            return Inspection(phase=Phase.STARTING, handle=ref.handle)
        seen = await self._find(ref, own)
        if seen is None or seen.deployment is None:
            return Inspection(phase=Phase.GONE)
        service, deployment = seen.service, seen.deployment
        if service.status in {"PAUSED", "PAUSING"}:
            return Inspection(phase=Phase.ASLEEP, handle=_handle(seen))
        if not seen.latest and deployment.status in STOPPED:
            return Inspection(phase=Phase.GONE)
        instances = await self._client.instances(deployment_id=deployment.id)
        phase, message = self._judge(deployment, instances)
        address = None
        if deployment.status in {"HEALTHY", "SLEEPING"} and service.active_deployment_id == deployment.id:
            address = await self._address(service, instances)
        if phase is Phase.RUNNING and address is None:
            phase = Phase.STARTING
        if phase is Phase.FAILED:
            message = await self._tell(service, deployment, instances, message)
        region = next(iter(deployment.definition.regions), None)
        return Inspection(phase=phase, handle=_handle(seen), region=region, message=message, address=address)

    async def _own(self, ref: ServiceRef) -> Deployment | None:
        """Ask for the deployment that we were given: while it is far from running it is all there is to know."""
        deployment_id = (ref.handle or "").partition("/")[2]
        if not deployment_id:
            return None
        try:
            deployment = await self._client.deployment(deployment_id)
        except Missing:
            return None
        return deployment if definitions.release_of(deployment) == ref.release else None

    def _judge(self, deployment: Deployment, instances: list[Instance]) -> tuple[Phase, str | None]:
        ended = [i for i in instances if i.status in {"ERROR", "STOPPED"}]
        if deployment.status in COMING | FAILED and len(ended) >= CRASHES:
            return Phase.FAILED, f"{CRASHED} {len(ended)} times right after its start"
        if deployment.status == "STASHED":
            return Phase.FAILED, "the deployment was saved and not rolled out"
        if deployment.status in STOPPED:
            return Phase.FAILED, f"the deployment is {deployment.status}"
        phase = phase_of(deployment.status)
        if phase is None:
            return Phase.STARTING, self._account.strange(deployment.status)
        return phase, None

    async def _tell(
        self, service: Service, deployment: Deployment, instances: list[Instance], message: str | None
    ) -> str:
        """Say why it failed: what Koyeb says, and the program's last words, since Koyeb calls every failure ERROR."""
        said = reasons([message] if message else [], deployment.messages, instances=instances)
        start = service.created_at or datetime.fromtimestamp(0, UTC)
        entries = await self._client.logs(start=start, limit=TAIL, deployment_id=deployment.id)
        words = " | ".join(line.text for line in lines(entries) if line.stream != "platform" and line.text)
        return ": ".join(filter(None, [said, words[-1500:]])) or f"the deployment is {deployment.status}"

    async def _address(self, service: Service, instances: list[Instance]) -> Address | None:
        url = await self._url(service.app_id or "")
        up = [i for i in instances if i.status in {"HEALTHY", "SLEEPING"}]
        if url is None or not (up or instances):
            return None
        return Address(url=url, instance_id=(up or instances)[-1].id)

    async def _url(self, app_id: str, app: App | None = None) -> str | None:
        """Return the address that Koyeb gave the app: its suffix is random, so it is read, never made up."""
        if app_id not in self._domains:
            app = app if app and app.domains else await self._client.app(app_id)
            name = next((d.name for d in app.domains if d.type == "AUTOASSIGNED"), None)
            if name is None:
                return None
            self._domains[app_id] = self._account.settings.service_url.format(domain=name)
        return self._domains[app_id]

    # --- sleep and wake: Koyeb does both by itself; these are for whoever wants it now

    async def sleep(self, ref: ServiceRef) -> None:
        """Pause the service if this release is the one that serves; a superseded one has no machine to stop."""
        async with self._locks.of(ref.service):
            seen = await self._find(ref)
            if seen is None or seen.deployment is None or not seen.latest or seen.other_serves:
                return
            if seen.service.status not in {"PAUSED", "PAUSING"}:
                await self._client.pause_service(seen.service.id)
            await self._account.until(seen.service.id, {"PAUSED"}, PAUSE_SECONDS, "pause service", "paused")

    async def wake(self, ref: ServiceRef) -> Address:
        """Resume a paused service, knock at a sleeping one, and wait until it listens."""
        async with self._locks.of(ref.service):
            seen = await self._find(ref)
            if seen is None or seen.deployment is None:
                raise StartFailed(NAME, "wake", "there is no such release")
            if seen.service.status in {"PAUSED", "PAUSING"}:
                await self._client.resume_service(seen.service.id)
            return await self._until_up(ServiceRef(service=ref.service, release=ref.release, handle=ref.handle))

    async def _until_up(self, ref: ServiceRef) -> Address:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._account.settings.start_seconds
        while True:
            seen = await self.inspect(ref)
            if seen.phase is Phase.RUNNING and seen.address:
                return seen.address
            if seen.phase in {Phase.FAILED, Phase.EXITED, Phase.GONE}:
                crashed = CRASHED in (seen.message or "") or seen.phase is not Phase.FAILED
                message = seen.message or "it does not run"
                raise StartFailed(NAME, "wake", message, reason="crashed_at_start" if crashed else "not_listening")
            if seen.phase is Phase.ASLEEP and seen.address:
                await knock(seen.address.url)
            if loop.time() > until:
                raise StartFailed(NAME, "wake", "it did not listen in time", reason="not_listening")
            await self._account.sleep(self._account.poll_seconds)

    async def activate(self, ref: ServiceRef) -> None:
        """Nothing to do: Koyeb moved the traffic when the deployment became healthy."""

    # --- end

    async def retire(self, ref: ServiceRef) -> None:
        """Cancel the release's rollout if it is under way, and remove its secrets unless it is what serves."""
        async with self._locks.of(ref.service):
            seen = await self._find(ref)
            if seen and seen.deployment and seen.latest:
                if seen.deployment.status in COMING:
                    with contextlib.suppress(Rejected):  # it has ended meanwhile
                        await self._client.cancel_deployment(seen.deployment.id)
                elif not seen.other_serves and seen.deployment.status in {"HEALTHY", "DEGRADED", "SLEEPING"}:
                    # Nothing else is there to serve, and it is not wanted: nobody shall pay for it.
                    await self._client.pause_service(seen.service.id)
            await self._secrets.remove(ref.service, ref.release)

    async def delete(self, ref: ServiceRef) -> None:
        """Remove service, app and secrets, in this order: what is in use may not be removable."""
        async with self._locks.of(ref.service):
            if app := await self._account.find_app(ref.service):
                for service in await self._client.services(app.id):
                    if service.status not in GONE:
                        await self._account.end_service(service.id)
                with contextlib.suppress(Missing):
                    await self._client.delete_app(app.id)
                self._domains.pop(app.id, None)
            await self._secrets.remove(ref.service)

    async def list_ours(self, installation: str) -> Listing:
        """List the apps of our services; the app is the unit, since it goes last."""
        prefix = f"slp-{installation}-"
        items = tuple(
            Found(
                ref=Ref(name=a.name, handle=a.id),
                created_at=a.created_at,
                phase=Phase.RUNNING,
            )
            for a in await self._client.apps()
            if a.name.startswith(prefix) and a.name != f"{prefix}builders" and a.status not in LEAVING
        )
        return Listing(items=items, complete=True)

    async def logs(self, ref: ServiceRef, *, limit: int = 200) -> list[LogLine]:
        """See ``Services``; only lines of this release's newest deployment."""
        seen = await self._find(ref)
        if seen is None or seen.deployment is None:
            return []
        start = seen.service.created_at or datetime.fromtimestamp(0, UTC)
        return lines(await self._client.logs(start=start, limit=limit, deployment_id=seen.deployment.id))

    # --- find

    async def _find(self, ref: ServiceRef, own: Deployment | None = None) -> Seen | None:
        service_id = (ref.handle or "").partition("/")[0]
        try:
            if service_id:
                service: Service | None = await self._client.service(service_id)
            else:
                app = await self._account.find_app(ref.service)
                service = await self._service_of(app) if app else None
        except Missing:
            return None
        if service is None or service.status in LEAVING:
            return None
        return await self._seen(service, ref.release, own)

    async def _seen(self, service: Service, release: str, own: Deployment | None = None) -> Seen:
        """Look at what serves and what was asked for last; ``own``, as it was a moment ago, need not be asked for again."""
        latest, active = service.latest_deployment_id, service.active_deployment_id
        found = {own.id: own} if own else {}
        for each in (active, latest):
            if each and each not in found:
                found[each] = await self._client.deployment(each)
        serving, asked = found.get(active or ""), found.get(latest or "")
        other = serving is not None and definitions.release_of(serving) != release
        if asked is not None and definitions.release_of(asked) == release:
            return Seen(service=service, deployment=asked, latest=True, other_serves=other)
        return Seen(service=service, deployment=None if other else serving, other_serves=other)

    async def _service_of(self, app: App) -> Service | None:
        found = await self._client.services(app.id, definitions.SERVICE)
        return next((s for s in found if s.status not in LEAVING), None)


def _handle(seen: Seen) -> str:
    return f"{seen.service.id}/{seen.deployment.id if seen.deployment else ''}"

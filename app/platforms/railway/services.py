"""Services: one Railway service per service of ours, changed in place, so that its address stays the same.

A deploy leaves the old deployment serving until the new one's health check has passed, and Railway then switches by itself:
two releases don't serve side by side, and ``activate`` has nothing to do. The service sleeps by Railway's own rule, some ten
minutes without outbound packets, and any request wakes it.

Which release a deployment is of is not to be seen on it. So two variables tell, set together with the release's own in one
call: its name, and the newest deployment from before. A deployment newer than that is of this release.

Secrets are variables of this one service: Railway has no other object for them. They go when the release is retired or the
service is deleted.
"""
# Over 250 lines: one verb of the Protocol after the other, over one view of a service.

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from app.platforms.address import knock
from app.platforms.base import (
    Address,
    Inspection,
    Launched,
    Listing,
    LogLine,
    Misconfigured,
    Phase,
    RateLimited,
    Rejected,
    ServiceRef,
    ServiceSpec,
    Size,
    StartFailed,
    Transient,
)
from app.platforms.locks import Locks
from app.platforms.railway import documents
from app.platforms.railway.client import NAME, Deployment, Domain, ServiceInstance
from app.platforms.railway.deployments import REMOVED, STARTING
from app.platforms.railway.names import check_values, fit, image_source, parts
from app.platforms.railway.objects import Objects

MARK = "SLIPWAY_RELEASE"
AFTER = "SLIPWAY_AFTER"
NOTHING = "none"
HEALTH_SECONDS = 120
DRAINING_SECONDS = 15
RETRIES = 5
START_SECONDS = 150.0
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class View:
    """A service as it is: ``own`` is the release's deployment, None when it has none; ``current`` that it is configured."""

    service: str
    seen: ServiceInstance
    own: Deployment | None
    current: bool


class RailwayServices:
    """Fulfils ``Services``. A handle is ``<service>/<deployment>``, both Railway's ids; services are the unit listed.

    ``service_url`` makes an address of a ``{domain}``. ``private`` says that the plan pulls with credentials.
    """

    def __init__(
        self,
        objects: Objects,
        *,
        service_url: str,
        private: bool = True,
        region: str | None = None,
        start_seconds: float = START_SECONDS,
        poll_seconds: float = POLL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._objects = objects
        self._service_url = service_url
        self._private = private
        self._region = region
        self._start_seconds = start_seconds
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._locks = Locks()

    def fit(self, size: Size) -> Size:
        """As asked, up to what the plan allows."""
        return fit(size, self._objects.most)

    # ------------------------------------------------------------------------------------------------ deploy

    async def deploy(self, spec: ServiceSpec) -> Launched:
        """Configure the release and deploy it; a second call finds the deployment of the first."""
        size = self.fit(spec.size)
        check_values({**spec.env, **spec.secrets})
        if spec.image.password and not self._private:
            message = "the image needs a credential, and Railway takes one on its Pro plan only (SLIPWAY_RAILWAY__PLAN)"
            raise Misconfigured(NAME, "deploy", message)
        region = next(iter(spec.regions), self._region)
        async with self._locks.of(spec.service):
            service = await self._service(spec.service)
            seen = await self._objects.fresh(lambda: self._look(service))
            variables = await self._variables(service)
            latest = seen.latest.id if seen.latest else NOTHING
            known = variables.get(MARK) == spec.release and variables.get(AFTER) != latest
            if not known:
                size = await self._configure(service, spec, size, latest, region)
            domain = seen.domain or await self._domain(service, spec.port)
            deployment = latest if known else await self._objects.deploy(service, after=latest)
            return Launched(handle=f"{service}/{deployment}", region=region, effective=size, url=self._url(domain))

    async def _service(self, name: str) -> str:
        found = await self._objects.named(name)
        return found[0].service if found else await self._objects.create(name)

    async def _configure(self, service: str, spec: ServiceSpec, size: Size, after: str, region: str | None) -> Size:
        ours = {"PORT": str(spec.port), MARK: spec.release, AFTER: after, "SLIPWAY_SERVICE": spec.service}
        return await self._objects.configure(
            service,
            variables={**spec.env, **spec.secrets, **ours, "SLIPWAY_DIGEST": spec.image.digest},
            size=size,
            **image_source(spec.image),
            sleepApplication=spec.scale_min == 0,
            restartPolicyType="ON_FAILURE",
            restartPolicyMaxRetries=RETRIES,
            healthcheckPath=spec.health_path,
            healthcheckTimeout=HEALTH_SECONDS,
            drainingSeconds=DRAINING_SECONDS,
            region=region,
            numReplicas=1,
        )

    async def _domain(self, service: str, port: int) -> str:
        """Give the service a public name; asked for only when it has none, since each call makes another."""
        body = {"serviceId": service, "environmentId": self._objects.environment, "targetPort": port}
        ask = self._objects.api.ask
        try:
            return (await ask(documents.CREATE_DOMAIN, Domain, "serviceDomainCreate", input=body)).domain
        except RateLimited:
            raise
        except Transient:
            seen = await self._objects.look(service)
            if seen is None or seen.domain is None:
                raise
            return seen.domain

    def _url(self, domain: str) -> str:
        return self._service_url.format(domain=domain, label=domain.partition(".")[0])

    # ------------------------------------------------------------------------------------------------ look

    async def _look(self, service: str) -> ServiceInstance:
        return await self._objects.api.ask(
            documents.LOOK,
            ServiceInstance,
            "serviceInstance",
            service=service,
            environment=self._objects.environment,
        )

    async def _variables(self, service: str) -> Mapping[str, str]:
        return await self._objects.api.ask(
            documents.VARIABLES,
            dict[str, str],
            "variables",
            project=self._objects.project,
            environment=self._objects.environment,
            service=service,
        )

    async def _view(self, ref: ServiceRef, *, sure: bool = False) -> View | None:
        """Find the release's deployment: the one we were given while it is the newest, else the one that the marks tell.

        ``sure`` asks for the marks in any case.
        """
        service, given = parts(ref.handle)
        if service is None:
            found = await self._objects.named(ref.service)
            if not found:
                return None
            service = found[0].service
        seen = await self._objects.look(service)
        if seen is None:
            return None
        latest = seen.latest
        if latest is not None and latest.id == given and latest.status not in REMOVED and not sure:
            return View(service, seen, latest, True)
        variables = await self._variables(service)
        if variables.get(MARK) == ref.release:
            newer = latest is not None and latest.id != variables.get(AFTER)
            return View(service, seen, latest if newer else None, True)
        return View(service, seen, next((d for d in seen.active if d.id == given), None), False)

    async def inspect(self, ref: ServiceRef) -> Inspection:
        """Look at one release. What another release has replaced is gone."""
        view = await self._view(ref)
        return Inspection(phase=Phase.GONE) if view is None else await self._inspect(ref, view)

    async def _inspect(self, ref: ServiceRef, view: View) -> Inspection:
        own = view.own
        if own is None:
            return Inspection(phase=Phase.GONE)
        phase, message, address = phase_of(own), None, None
        if phase is Phase.FAILED:
            message, _ = await self._objects.deployments.last_words(own)
        elif phase is Phase.RUNNING and (wrong := _other_image(view)) is not None:
            phase, message = Phase.FAILED, wrong
        elif phase is Phase.RUNNING:
            running = sorted(i.id for i in own.instances if i.status == "RUNNING")
            domain = view.seen.domain
            if running and domain is not None:
                address = Address(url=self._url(domain), instance_id=running[0])
            else:
                phase = Phase.STARTING
        handle = f"{view.service}/{own.id}"
        return Inspection(phase=phase, handle=handle, region=ref.region, message=message, address=address)

    # ------------------------------------------------------------------------------------------------ sleep, wake

    async def activate(self, ref: ServiceRef) -> None:
        """Nothing to do: Railway switches once the health check has passed."""

    async def sleep(self, ref: ServiceRef) -> None:
        """Stop the release's deployment, which no request wakes; a release that another has replaced has none."""
        async with self._locks.of(ref.service):
            view = await self._view(ref)
            if view is not None and view.own is not None and view.own.status != "SLEEPING":
                await self._objects.deployments.end(view.own)

    async def wake(self, ref: ServiceRef) -> Address:
        """Wake what Railway put to sleep by a request, deploy anew what we stopped; returns once it listens."""
        async with self._locks.of(ref.service):
            view = await self._view(ref)
            if view is None:
                raise Rejected(NAME, "wake", f"there is no service {ref.service}")
            seen = await self._inspect(ref, view)
            if seen.address is not None:
                return seen.address
            own = view.own
            if not view.current:
                raise Rejected(NAME, "wake", "another release has taken its place")
            if own is not None and own.status == "SLEEPING":
                if view.seen.domain is not None:
                    await knock(self._url(view.seen.domain))
            elif own is None or seen.phase is not Phase.STARTING:
                latest = view.seen.latest.id if view.seen.latest else None
                deployment = await self._objects.deploy(view.service, after=latest)
                ref = ServiceRef(
                    service=ref.service, release=ref.release, handle=f"{view.service}/{deployment}", region=ref.region
                )
            return await self._until_running(ref)

    async def _until_running(self, ref: ServiceRef) -> Address:
        end = self._clock() + self._start_seconds
        while True:
            view = await self._view(ref)
            if view is None:
                raise Rejected(NAME, "wake", f"there is no service {ref.service} any more")
            seen = await self._inspect(ref, view)
            if seen.address is not None:
                return seen.address
            if seen.phase in {Phase.FAILED, Phase.EXITED, Phase.GONE}:
                message, unhealthy = (
                    await self._objects.deployments.last_words(view.own) if view.own else ("It is gone.", False)
                )
                raise StartFailed(NAME, "wake", message, reason="not_listening" if unhealthy else "crashed_at_start")
            if self._clock() > end:
                message = f"The program did not pass its health check within {self._start_seconds:g} seconds."
                raise StartFailed(NAME, "wake", message, reason="not_listening")
            await self._objects.api.sleep(self._poll_seconds)

    # ------------------------------------------------------------------------------------------------ end

    async def retire(self, ref: ServiceRef) -> None:
        """Remove the release's deployment; where another one still serves, bring its configuration back.

        Without that, whatever deploys the service next would deploy the failed release again.
        """
        async with self._locks.of(ref.service):
            view = await self._view(ref, sure=True)
            if view is None:
                return
            if view.own is not None:
                await self._objects.deployments.drop(view.own)
            if not view.current:
                return
            serving = next((d for d in view.seen.active if _serves(d) and d != view.own), None)
            if serving is None:
                await self._clear(view.service)
            elif serving.can_rollback:
                # The former image, and the former variables, which nobody else has any more.
                await self._objects.api.ask(documents.ROLLBACK, bool, "deploymentRollback", id=serving.id)
            elif serving.image is not None:
                await self._clear(view.service)
                await self._objects.update(view.service, source={"image": serving.image})

    async def _clear(self, service: str) -> None:
        """Take away all variables, the secrets among them."""
        values = {
            "projectId": self._objects.project,
            "environmentId": self._objects.environment,
            "serviceId": service,
            "variables": {},
            "replace": True,
            "skipDeploys": True,
        }
        await self._objects.api.ask(documents.SET_VARIABLES, bool, "variableCollectionUpsert", input=values)

    async def delete(self, ref: ServiceRef) -> None:
        """Delete the service with its deployments, variables and address; returns when no listing has it."""
        async with self._locks.of(ref.service):
            await self._objects.remove(ref.service)

    async def list_ours(self, installation: str) -> Listing:
        """List services."""
        return await self._objects.ours(installation, lambda d: phase_of(d) if d else Phase.STARTING)

    async def logs(self, ref: ServiceRef, *, limit: int = 200) -> list[LogLine]:
        """Return the last lines of the release's deployment."""
        view = await self._view(ref)
        return await self._objects.deployments.lines(view.own.id, limit) if view is not None and view.own else []


def _serves(deployment: Deployment) -> bool:
    return deployment.status in {"SUCCESS", "SLEEPING"} and not deployment.stopped


def _other_image(view: View) -> str | None:
    """Say so when the deployment runs another image than is configured: a redeploy takes the old one's."""
    wanted = view.seen.source.image if view.seen.source and view.current else None
    runs = view.own.image if view.own else None
    if wanted is None or runs is None:
        return None
    same = wanted.rpartition("@")[2] == runs.rpartition("@")[2]
    return None if same else f"Railway runs {runs} instead of {wanted}"


def phase_of(deployment: Deployment) -> Phase:
    """Say where a release is. SLEEPING is healthy; what was stopped or removed by us sleeps as well."""
    if deployment.status in {"CRASHED", "FAILED", "SKIPPED", "NEEDS_APPROVAL"}:
        return Phase.FAILED
    if deployment.status in REMOVED or deployment.status == "SLEEPING" or deployment.stopped:
        return Phase.ASLEEP
    return Phase.STARTING if deployment.status in STARTING else Phase.RUNNING

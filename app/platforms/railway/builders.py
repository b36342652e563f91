"""Builders: a service that runs its image once (restart NEVER) and is deleted.

Railway has no jobs and shows no exit code: exit 0 is SUCCESS with everything stopped, anything else CRASHED. It sets no
limit to a run's time either, so that the deadline is the control plane's to keep.
"""

from app.platforms.base import BuilderSpec, Inspection, Launched, Listing, LogLine, Misconfigured, Phase, Ref, Size
from app.platforms.locks import Locks
from app.platforms.railway.client import NAME, Deployment
from app.platforms.railway.deployments import REMOVED, STARTING
from app.platforms.railway.names import check_values, fit, parts
from app.platforms.railway.objects import Objects


class RailwayBuilders:
    """Fulfils ``Builders``. A handle is ``<service>/<deployment>``, both Railway's ids."""

    def __init__(self, objects: Objects, *, region: str | None = None) -> None:
        self._objects = objects
        self._region = region
        self._locks = Locks()

    def fit(self, size: Size) -> Size:
        """As asked, up to what the plan allows."""
        return fit(size, self._objects.most)

    async def launch(self, spec: BuilderSpec) -> Launched:
        """Create a service without source, configure it, deploy it; whatever is there of it already is gone on from."""
        size = self.fit(spec.size)
        if spec.image is None:
            raise Misconfigured(NAME, "launch", "SLIPWAY_BUILDER_IMAGE is not set")
        check_values(spec.env)
        region = next(iter(spec.regions), self._region)
        async with self._locks.of(spec.name):
            found = await self._objects.named(spec.name)
            if found and found[0].latest is not None:
                handle = f"{found[0].service}/{found[0].latest.id}"
                return Launched(handle=handle, region=region, effective=size)
            service = found[0].service if found else await self._objects.create(spec.name)
            effective = await self._objects.configure(
                service,
                variables=spec.env,
                size=size,
                source={"image": spec.image},
                restartPolicyType="NEVER",
                region=region,
                numReplicas=1,
                sleepApplication=False,
            )
            deployment = await self._objects.deploy(service, after=None)
            return Launched(handle=f"{service}/{deployment}", region=region, effective=effective)

    async def inspect(self, ref: Ref) -> Inspection:
        """Look at the deployment that we were given; at the service's newest only when that one was replaced or is unknown."""
        service, deployment_id = parts(ref.handle)
        deployment = await self._objects.deployments.one(deployment_id) if deployment_id else None
        if deployment is None or deployment.status in REMOVED:
            if service is None:
                found = await self._objects.named(ref.name)
                if not found:
                    return Inspection(phase=Phase.GONE)
                service, deployment = found[0].service, found[0].latest
            else:
                seen = await self._objects.look(service)
                if seen is None:
                    return Inspection(phase=Phase.GONE)
                deployment = seen.latest
        handle = f"{service}/{deployment.id}" if deployment else service
        seen_phase = phase_of(deployment)
        message = None
        if deployment is not None and seen_phase is Phase.FAILED:
            message, _ = await self._objects.deployments.last_words(deployment)
        return Inspection(phase=seen_phase, handle=handle, region=ref.region, message=message)

    async def stop(self, ref: Ref) -> None:
        """End it and delete its service, and all others of its name; returns when no listing has them."""
        await self._objects.remove(ref.name)

    async def list_ours(self, installation: str) -> Listing:
        """List all services of builders, with or without a deployment."""
        return await self._objects.ours(installation, phase_of)

    async def logs(self, ref: Ref, *, limit: int = 200) -> list[LogLine]:
        """Return the deployment's last lines."""
        _, deployment = parts(ref.handle)
        if deployment is None:
            found = await self._objects.named(ref.name)
            deployment = found[0].latest.id if found and found[0].latest else None
        return await self._objects.deployments.lines(deployment, limit) if deployment else []


def phase_of(deployment: Deployment | None) -> Phase:
    """Say where a builder is; a service without a deployment is one whose launch is not done yet."""
    if deployment is None:
        return Phase.STARTING
    if deployment.status in {"CRASHED", "FAILED", "SKIPPED", "NEEDS_APPROVAL"}:
        return Phase.FAILED
    if deployment.status in REMOVED:
        return Phase.GONE
    if deployment.status == "SLEEPING" or deployment.stopped:
        return Phase.EXITED
    if deployment.status in STARTING:
        return Phase.STARTING
    exited = deployment.instances and all(i.status in {"EXITED", "STOPPED", "REMOVED"} for i in deployment.instances)
    return Phase.EXITED if exited else Phase.RUNNING

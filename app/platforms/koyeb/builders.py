"""Builders as WORKER services that delete themselves.

Koyeb has no jobs: whatever exits is started again, for ever, and its exit code is shown nowhere. So a builder holds after its
callback until it is deleted, claims its run under its instance's id, and has a life-time beyond its deadline in case that
nobody is left to delete it. A second instance under one builder means that the first one died.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime

from app.platforms.base import (
    BuilderSpec,
    Found,
    Inspection,
    Launched,
    Listing,
    LogLine,
    NoCapacity,
    Phase,
    Ref,
    Rejected,
    Size,
    Transient,
)
from app.platforms.failures import Conflict, Missing
from app.platforms.koyeb.answers import Deployment, Instance, Service
from app.platforms.koyeb.client import NAME, Json
from app.platforms.koyeb.common import GONE, LEAVING, MESH, Account, fit, lines, phase_of, reasons, variables

MARGIN_SECONDS = 600
"""How long a builder may outlive its deadline before the platform removes it by itself."""
QUOTAS_SECONDS = 3600.0
PLATFORM_ENV = {"SLIPWAY_HOLD_AFTER_CALLBACK": "1", "SLIPWAY_INSTANCE_FROM": "KOYEB_INSTANCE_ID"}


class KoyebBuilders:
    """See ``app.platforms.base.Builders``; a handle is the service's id."""

    def __init__(self, account: Account, *, clock: Callable[[], float] = time.time) -> None:
        self._account = account
        self._client = account.client
        self._clock = clock
        self._apps: dict[str, str] = {}
        self._bounds: tuple[float, int, int | None] | None = None

    def fit(self, size: Size) -> Size:
        """See ``Builders``."""
        return fit(size)

    async def launch(self, spec: BuilderSpec) -> Launched:
        """Create the service, or adopt the one of this name: names are the only key there is."""
        size = fit(spec.size)
        body = await self._body(spec, size)
        regions = spec.regions or self._account.settings.regions
        full: NoCapacity | None = None
        for region in regions:
            body["definition"]["regions"] = [region]
            try:
                service = await self._create(spec.name, body)
            except NoCapacity as e:
                full = NoCapacity(NAME, e.operation, e.message, e.request_id, region=region)
                continue
            return Launched(handle=service.id, region=region, effective=size)
        raise full or Rejected(NAME, "create service", "no region was named")

    async def _body(self, spec: BuilderSpec, size: Size) -> Json:
        if spec.image is None:
            raise Rejected(NAME, "create service", "there is no builder image")
        docker: Json = {"image": spec.image}
        if secret := self._account.settings.builder_registry_secret:
            docker["image_registry_secret"] = secret
        return {
            "name": spec.name,
            "life_cycle": {"delete_after_create": await self._life_time(spec.deadline)},
            "definition": {
                "type": "WORKER",
                "docker": docker,
                "env": variables({**spec.env, **PLATFORM_ENV}),
                "instance_types": [{"type": size.plan}],
                "scalings": [{"min": 1, "max": 1}],
                "mesh": MESH,
            },
        }

    async def _life_time(self, deadline: datetime) -> int:
        """Return the seconds to live from now, within what the account allows."""
        left = max(0, int(deadline.timestamp() - self._clock()))
        least, most = await self._life_times()
        if most is not None and left > most:
            raise Rejected(NAME, "create service", f"services of this account live {most} s at most")
        wanted = max(least, left + MARGIN_SECONDS)
        return wanted if most is None else min(wanted, most)

    async def _life_times(self) -> tuple[int, int | None]:
        if self._bounds is None or self._clock() - self._bounds[0] > QUOTAS_SECONDS:
            cycle = (await self._client.quotas()).lifecycle
            self._bounds = (self._clock(), cycle.delete_after_create_min or 0, cycle.delete_after_create_max or None)
        return self._bounds[1:]

    async def _create(self, name: str, body: Json) -> Service:
        app_id = await self._need_app(name)
        try:
            return await self._client.create_service({"app_id": app_id, **body})
        except Missing:
            # Somebody deleted the app that we remember.
            self._apps.pop(_app_name(name), None)
            raise Transient(NAME, "create service", "the app for builders is gone", retry_after=1) from None
        except (Conflict, Transient) as e:
            if found := await self._find(name):
                return found
            if isinstance(e, Conflict):
                raise Transient(NAME, "create service", "the name is taken, yet nothing has it", e.request_id) from None
            raise

    async def _need_app(self, name: str) -> str:
        app_name = _app_name(name)
        if app_name not in self._apps:
            self._apps[app_name] = (await self._account.need_app(app_name, delete_when_empty=False)).id
        return self._apps[app_name]

    async def _find(self, name: str) -> Service | None:
        app = await self._account.find_app(_app_name(name))
        found = await self._client.services(app.id, name) if app else []
        return next((s for s in found if s.status not in GONE), None)

    async def _look(self, ref: Ref) -> Service | None:
        if ref.handle is None:
            return await self._find(ref.name)
        try:
            found = await self._client.service(ref.handle)
        except Missing:
            return None
        return None if found.status in GONE else found

    async def inspect(self, ref: Ref) -> Inspection:
        """Judge by the latest deployment and by how many instances there have been; a status of the service says too little."""
        service = await self._look(ref)
        if service is None:
            return Inspection(phase=Phase.GONE)
        if service.status in LEAVING:
            return Inspection(phase=Phase.EXITED, handle=service.id, message="it is being deleted")
        if not service.latest_deployment_id:
            return Inspection(phase=Phase.STARTING, handle=service.id)
        deployment = await self._client.deployment(service.latest_deployment_id)
        instances = await self._client.instances(service_id=service.id)
        phase, message = self._judge(deployment, instances)
        text = reasons([message] if message else [], deployment.messages, instances=instances)
        return Inspection(
            phase=phase,
            handle=service.id,
            region=next((i.region for i in instances), None),
            out_of_memory=phase is Phase.FAILED and "out of memory" in text.lower(),
            message=text or None,
        )

    def _judge(self, deployment: Deployment, instances: list[Instance]) -> tuple[Phase, str | None]:
        if len(instances) > 1:
            return Phase.FAILED, f"the builder's machine ended and was started again ({len(instances)} instances)"
        if deployment.status in {"SLEEPING", "STASHED"}:
            return Phase.FAILED, f"a builder must not be {deployment.status}"
        phase = phase_of(deployment.status)
        if phase is None:
            return Phase.RUNNING, self._account.strange(deployment.status)
        return phase, None

    async def stop(self, ref: Ref) -> None:
        """See ``Builders``."""
        handle = ref.handle
        if handle is None:
            found = await self._find(ref.name)
            handle = found.id if found else None
        if handle is not None:
            await self._account.end_service(handle)

    async def list_ours(self, installation: str) -> Listing:
        """See ``Builders``; one app holds all builders of an installation."""
        prefix = f"slp-{installation}-"
        app = await self._account.find_app(f"{prefix}builders")
        found = await self._client.services(app.id) if app else []
        items = tuple(
            Found(
                ref=Ref(name=s.name, handle=s.id),
                created_at=s.created_at.astimezone(UTC) if s.created_at else None,
                phase=Phase.EXITED if s.status in LEAVING else Phase.RUNNING,
            )
            for s in found
            if s.name.startswith(prefix) and s.status not in GONE
        )
        return Listing(items=items, complete=True)

    async def logs(self, ref: Ref, *, limit: int = 200) -> list[LogLine]:
        """Return its last lines, the platform's own among them, from its very start on."""
        service = await self._look(ref)
        if service is None:
            return []
        start = service.created_at or datetime.fromtimestamp(0, UTC)
        return lines(await self._client.logs(start=start, limit=limit, service_id=service.id))


def _app_name(name: str) -> str:
    """Return the app of a builder called ``slp-<installation>-…``."""
    return "-".join([*name.split("-")[:2], "builders"])

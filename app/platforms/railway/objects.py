"""What builders and services have in common: Railway services in one environment of one project, found by name.

Nothing here can be created twice without harm, and there are no idempotency keys: the name is the key. Listings are read to
their last page, and a deletion counts only when a listing no longer has the service.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from app.platforms.base import Found, Listing, Phase, RateLimited, Ref, Size, Transient
from app.platforms.budget import Kind as BudgetKind
from app.platforms.failures import Missing
from app.platforms.railway import documents
from app.platforms.railway.answers import Everything
from app.platforms.railway.client import NAME, Deployment, PlanLimit, RailwayApi, Service, ServiceInstance
from app.platforms.railway.deployments import Deployments
from app.platforms.railway.names import Kind, long_name, short_name

MAX_PAGES = 50
APPEAR_WAITS = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Reads trail writes: for these 30 seconds what was just created may be "not found", and what was deleted be listed."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A service of ours as a listing has it."""

    service: str
    name: str
    created_at: datetime | None
    latest: Deployment | None


class Objects:
    """The services of one environment. ``kind`` says what they are to us."""

    def __init__(self, api: RailwayApi, *, project: str, environment: str, kind: Kind, most: Size) -> None:
        self.api = api
        self.deployments = Deployments(api)
        self.project = project
        self.environment = environment
        self.kind: Kind = kind
        self.most = most

    # ------------------------------------------------------------------------------------------------ find

    async def listed(self, kind: BudgetKind = "call") -> list[Thing]:
        """Read all pages; Transient when a cursor does not move, since a part of a listing proves nothing.

        ``kind`` is what it is for: whoever deletes may use the last request, a sweep comes last.
        """
        services: dict[str, Service] = {}
        latest: dict[str, Deployment | None] = {}
        async for page in self._pages(replace(documents.LIST, kind=kind)):
            services |= {e.node.id: e.node for e in page.project.services.edges}
            latest |= {e.node.service: e.node.latest for e in page.environment.instances.edges}
        return [
            Thing(service=s.id, name=s.name, created_at=s.created_at, latest=latest.get(s.id))
            for s in services.values()
        ]

    async def _pages(self, document: documents.Document) -> AsyncIterator[Everything]:
        cursors: tuple[str | None, str | None] = (None, None)
        for _ in range(MAX_PAGES):
            page = await self.api.ask_all(
                document,
                Everything,
                project=self.project,
                environment=self.environment,
                services=cursors[0],
                instances=cursors[1],
            )
            yield page
            pages = (page.project.services.page, page.environment.instances.page)
            if not any(p.has_next for p in pages):
                return
            ahead = (pages[0].end or cursors[0], pages[1].end or cursors[1])
            if ahead == cursors:
                break
            cursors = ahead
        raise Transient(NAME, documents.LIST.name, "the listing does not come to its end")

    async def named(self, name: str, kind: BudgetKind = "call") -> list[Thing]:
        """Return the services of this name, oldest first; more than one when a create was not so lost as it seemed."""
        found = [t for t in await self.listed(kind) if t.name == short_name(name)]
        return sorted(found, key=lambda t: (t.created_at is None, t.created_at, t.service))

    async def ours(self, installation: str, phase: Callable[[Deployment | None], Phase]) -> Listing:
        """List what is of an installation."""
        items = []
        for thing in await self.listed("poll"):
            name = long_name(thing.name, self.kind)
            if name is not None and name.startswith(f"slp-{installation}-"):
                handle = f"{thing.service}/{thing.latest.id}" if thing.latest else thing.service
                ref = Ref(name=name, handle=handle)
                items.append(Found(ref=ref, created_at=thing.created_at, phase=phase(thing.latest)))
        return Listing(items=tuple(items), complete=True)

    async def look(self, service: str) -> ServiceInstance | None:
        """Return a service's state, None when it isn't there."""
        try:
            return await self.api.ask(
                documents.LOOK, ServiceInstance, "serviceInstance", service=service, environment=self.environment
            )
        except Missing:
            return None

    # ------------------------------------------------------------------------------------------------ make

    async def create(self, name: str) -> str:
        """Create a service without a source, so that nothing is deployed yet; returns its id.

        Not idempotent at Railway: after a failure that leaves it open, it is looked for before anybody tries again.
        """
        body = {"projectId": self.project, "environmentId": self.environment, "name": short_name(name)}
        try:
            return (await self.api.ask(documents.CREATE_SERVICE, Service, "serviceCreate", input=body)).id
        except RateLimited:
            raise
        except Transient:
            for wait in APPEAR_WAITS[:3]:
                if found := await self.named(name):
                    return found[0].service
                await self.api.sleep(wait)
            raise

    async def fresh(self, act: Callable[[], Awaitable[T]]) -> T:
        """Do something with what was perhaps just created, which Railway may not find for some seconds."""
        for wait in APPEAR_WAITS:
            try:
                return await act()
            except Missing:
                await self.api.sleep(wait)
        return await act()

    async def configure(self, service: str, *, variables: Mapping[str, str], size: Size, **changes: Any) -> Size:
        """Set variables, configuration and limits, none of which deploys anything; returns the size that it got.

        ``replace`` takes away what an older release had; without ``skipDeploys`` the variables alone would deploy.
        """
        values = {
            "projectId": self.project,
            "environmentId": self.environment,
            "serviceId": service,
            "variables": dict(variables),
            "replace": True,
            "skipDeploys": True,
        }
        await self.fresh(lambda: self.api.ask(documents.SET_VARIABLES, bool, "variableCollectionUpsert", input=values))
        await self.update(service, **changes)
        limits = {
            "serviceId": service,
            "environmentId": self.environment,
            "memoryGB": size.memory_mb / 1024,
            "vCPUs": size.cpus,
        }
        try:
            await self.api.ask(documents.LIMITS, bool, "serviceInstanceLimitsUpdate", input=limits)
        except PlanLimit:
            return self.most  # without limits of its own a service may take what the plan has
        return size

    async def update(self, service: str, **changes: Any) -> None:
        """Change the configuration; what is None stays as it is."""
        given = {k: v for k, v in changes.items() if v is not None}
        await self.fresh(
            lambda: self.api.ask(
                documents.UPDATE,
                bool,
                "serviceInstanceUpdate",
                service=service,
                environment=self.environment,
                input=given,
            )
        )

    async def deploy(self, service: str, *, after: str | None) -> str:
        """Deploy what is configured and return the deployment's id; ``after`` is the newest one from before.

        Not idempotent: after a failure that leaves it open, a newer deployment than that is taken for this one.
        """
        try:
            return await self.api.ask(
                documents.DEPLOY, str, "serviceInstanceDeployV2", service=service, environment=self.environment
            )
        except RateLimited:
            raise
        except Transient:
            for wait in APPEAR_WAITS[:3]:
                seen = await self.look(service)
                if seen is not None and seen.latest is not None and seen.latest.id != after:
                    return seen.latest.id
                await self.api.sleep(wait)
            raise

    # ------------------------------------------------------------------------------------------------ end

    async def remove(self, name: str) -> None:
        """Delete every service of this name with all it has, and see to it that a listing has none of them any more."""
        for wait in (*APPEAR_WAITS, None):
            found = await self.named(name, "stop")
            if not found:
                return
            if wait is None:
                break
            for thing in found:
                await self._delete(thing)
            if not await self.named(name, "stop"):
                return
            await self.api.sleep(wait)
        raise Transient(NAME, documents.DELETE_SERVICE.name, f"{name} is listed after its deletion")

    async def _delete(self, thing: Thing) -> None:
        if thing.latest is not None:
            await self.deployments.end(thing.latest)
        try:
            # Without an environment: with one, a service that is also in another environment would stay there.
            await self.api.ask(documents.DELETE_SERVICE, bool, "serviceDelete", id=thing.service)
        except Missing:
            return

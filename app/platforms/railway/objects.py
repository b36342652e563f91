"""What builders and services have in common: Railway services in one environment of one project, found by name.

A service name has at most 32 characters (docs.railway.com, services), ours have 41: the installation and the id without what
stands between them are just 32. The kind is left out, so builders and services live in projects of their own.

Nothing here can be created twice without harm, and there are no idempotency keys: the name is the key. Listings are read to
their last page, and a deletion counts only when a listing no longer has the service.
"""
# Over 250 lines: finding, making, ending and reading one kind of thing, which builders and services both do.

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, TypeVar

from pydantic import Field

from app.platforms.base import (
    Found,
    ImageRef,
    Listing,
    LogLine,
    Phase,
    RateLimited,
    Ref,
    Rejected,
    Size,
    Transient,
    Unsupported,
)
from app.platforms.budget import Kind as BudgetKind
from app.platforms.failures import Missing
from app.platforms.http import Wire
from app.platforms.railway import documents
from app.platforms.railway.client import (
    NAME,
    Deployment,
    Event,
    Line,
    Page,
    PlanLimit,
    RailwayApi,
    Service,
    ServiceInstance,
)

MAX_PAGES = 50
APPEAR_WAITS = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Reads trail writes: for these 30 seconds what was just created may be "not found", and what was deleted be listed."""
LAST_LINES = 5

PENDING = frozenset({"QUEUED", "WAITING", "NEEDS_APPROVAL", "INITIALIZING", "BUILDING"})
STARTING = frozenset({"QUEUED", "WAITING", "INITIALIZING", "BUILDING", "DEPLOYING"})
REMOVED = frozenset({"REMOVING", "REMOVED"})
ENDED = REMOVED | {"CRASHED", "FAILED", "SKIPPED"}

Kind = Literal["run", "svc"]
T = TypeVar("T")


def short_name(name: str) -> str:
    """Return the name that a resource of ours has at Railway; names that aren't of our form stay as they are."""
    match = re.fullmatch(r"slp-([0-9a-z]{6})-[a-z]{3}-([0-9a-v]{26})", name)
    return match[1] + match[2] if match else name


def long_name(short: str, kind: Kind) -> str | None:
    """Return our name for a service at Railway, None when it isn't one of ours."""
    match = re.fullmatch(r"([0-9a-z]{6})([0-9a-v]{26})", short)
    return f"slp-{match[1]}-{kind}-{match[2]}" if match else None


def fit(size: Size, most: Size) -> Size:
    """Return the size as asked, since Railway takes any, up to what the plan allows."""
    if size.cpus > most.cpus or size.memory_mb > most.memory_mb:
        message = f"the plan allows at most {most.cpus:g} vCPU and {most.memory_mb} MiB"
        raise Unsupported(NAME, "fit", message)
    return Size(cpus=size.cpus, memory_mb=size.memory_mb)


def check_values(values: Mapping[str, str]) -> None:
    """Refuse values that Railway would expand: ``${{…}}`` reads other variables of the project, and can't be escaped."""
    for name, value in values.items():
        if "${{" in value:
            message = f"the value of {name} holds ${{{{, which Railway would replace; encode it, for example as base64"
            raise Rejected(NAME, "deploy", message)


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A service of ours as a listing has it."""

    service: str
    name: str
    created_at: datetime | None
    latest: Deployment | None


class _ServiceEdge(Wire):
    node: Service


class _Services(Wire):
    edges: tuple[_ServiceEdge, ...]
    page: Page = Field(alias="pageInfo")


class _InstanceNode(Wire):
    service: str = Field(alias="serviceId")
    latest: Deployment | None = Field(None, alias="latestDeployment")


class _InstanceEdge(Wire):
    node: _InstanceNode


class _Instances(Wire):
    edges: tuple[_InstanceEdge, ...]
    page: Page = Field(alias="pageInfo")


class _Project(Wire):
    services: _Services


class _Environment(Wire):
    instances: _Instances = Field(alias="serviceInstances")


class _Everything(Wire):
    project: _Project
    environment: _Environment


class _EventEdge(Wire):
    node: Event


class _Events(Wire):
    edges: tuple[_EventEdge, ...]


class Objects:
    """The services of one environment. ``kind`` says what they are to us."""

    def __init__(self, api: RailwayApi, *, project: str, environment: str, kind: Kind, most: Size) -> None:
        self.api = api
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

    async def _pages(self, document: documents.Document) -> AsyncIterator[_Everything]:
        cursors: tuple[str | None, str | None] = (None, None)
        for _ in range(MAX_PAGES):
            page = await self.api.ask_all(
                document,
                _Everything,
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

    async def end(self, deployment: Deployment) -> None:
        """Cancel or stop a deployment, whichever its state takes; done when it is over already."""
        if deployment.stopped or deployment.status in ENDED:
            return
        document = documents.CANCEL if deployment.status in PENDING else documents.STOP
        try:
            await self.api.ask(document, bool, _FIELDS[document.name], id=deployment.id)
        except Missing:
            return
        except Rejected:
            # It has moved on meanwhile: left the queue, or ended by itself.
            now = await self.deployment(deployment.id)
            if now is not None and now.status == deployment.status and not now.stopped:
                raise
            if now is not None:
                await self.end(now)

    async def deployment(self, deployment: str) -> Deployment | None:
        """Return a deployment's state, None when it isn't there."""
        try:
            return await self.api.ask(documents.DEPLOYMENT, Deployment, "deployment", id=deployment)
        except Missing:
            return None

    async def drop(self, deployment: Deployment) -> None:
        """End a deployment and remove it."""
        await self.end(deployment)
        if deployment.status not in REMOVED:
            try:
                await self.api.ask(documents.REMOVE, bool, _FIELDS[documents.REMOVE.name], id=deployment.id)
            except Missing:
                return

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
            await self.end(thing.latest)
        try:
            # Without an environment: with one, a service that is also in another environment would stay there.
            await self.api.ask(documents.DELETE_SERVICE, bool, "serviceDelete", id=thing.service)
        except Missing:
            return

    # ------------------------------------------------------------------------------------------------ logs

    async def lines(self, deployment: str, limit: int) -> list[LogLine]:
        """Return a deployment's last lines, oldest first."""
        try:
            found = await self.api.ask(
                documents.LOGS, list[Line], "deploymentLogs", deployment=deployment, limit=min(max(limit, 1), 5000)
            )
        except Missing:
            return []
        lines = [LogLine(at=datetime.fromisoformat(x.timestamp), text=x.message, stream=_stream(x)) for x in found]
        return sorted(lines, key=lambda line: line.at)[-limit:]

    async def last_words(self, deployment: Deployment) -> tuple[str, bool]:
        """Say why a deployment failed, and whether it was its health check.

        A deployment that never ran has no log: what is known of it is in its events.
        """
        said = "; ".join(line.text for line in await self.lines(deployment.id, LAST_LINES))[-500:]
        what = "The program ended" if deployment.status == "CRASHED" else f"The deployment is {deployment.status}"
        events: tuple[_EventEdge, ...] = ()
        if deployment.status != "CRASHED":
            try:
                events = (
                    await self.api.ask(documents.EVENTS, _Events, "deploymentEvents", deployment=deployment.id)
                ).edges
            except Missing:
                events = ()
        wrong = [(e.node.step, p.error or p.reason or p.detail) for e in events if (p := e.node.payload)]
        causes = "; ".join(f"{step}: {text}" for step, text in wrong if text)[-500:]
        message = ": ".join(t for t in (what, causes, said) if t)
        return message, any(step == "HEALTHCHECK" and text for step, text in wrong)


_FIELDS = {
    documents.CANCEL.name: "deploymentCancel",
    documents.STOP.name: "deploymentStop",
    documents.REMOVE.name: "deploymentRemove",
}


def _stream(line: Line) -> Literal["stdout", "stderr"]:
    return "stderr" if (line.severity or "").lower() in {"error", "err"} else "stdout"


def image_source(image: ImageRef) -> dict[str, Any]:
    """Return the fields that name a service's image by digest, and the credential it is pulled with."""
    fields: dict[str, Any] = {"source": {"image": image.reference}}
    if image.username and image.password:
        fields["registryCredentials"] = {"username": image.username, "password": image.password}
    return fields


def parts(handle: str | None) -> tuple[str | None, str | None]:
    """Split a handle, ``<service>/<deployment>``, into what is there of it."""
    service, _, deployment = (handle or "").partition("/")
    return service or None, deployment or None

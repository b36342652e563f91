"""Koyeb: apps, services, deployments, instances, secrets, logs and the edge, after koyeb.md (whose sections the docstrings name).

The API is at ``url``. Each app's domain is a name below ``localhost``, behind ``edge_url``.
"""
# Over 250 lines: one handler of the API after the other, over one table of apps.

import os
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from app.images.client import Registry
from app.images.errors import RegistryDenied
from app.images.reference import parse_reference
from app.imitations.base import Fault, Imitation, Refused
from app.imitations.koyeb_machines import OPEN, App, Deployment, Host, Instance, Service, new_id, now
from app.imitations.programs import Line, Program, Running, pull

TOKEN = "koyeb-imitation"  # noqa: S105 - opens nothing but this stand-in
ORGANIZATION = "0b3c2f9e-1f8d-4f6e-9a52-6d1f0a7f4c11"
REGIONS = ("fra", "par", "was", "sfo", "sin", "tyo")
TYPES = ("nano", "micro", "small", "medium", "large", "xlarge")
WAKE_SECONDS = 10.0
LIFETIMES = (60, 86_400)
IDLE = (60, 21_600)
_NAME = re.compile(r"[-.a-z0-9]+")
_CREATE = ("create service",)


def _bad(field: str, description: str, code: str = "invalid_argument") -> Refused:
    """Return a refusal in the API's form (koyeb.md §2)."""
    fields = [{"field": field, "description": description}]
    return Refused(400, {"status": 400, "code": code, "message": "Validation error", "fields": fields})


def _missing() -> Refused:
    return Refused(404, {"status": 404, "code": "not_found", "message": "Not Found"})


def _stamp(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


class KoyebImitation(Imitation):
    """See the module. ``builder`` is the command that a service of ``builder_image`` runs, ``builder_env`` its toolchain.

    ``health_seconds`` is how long a program may take to answer; a quarter of an hour there.
    """

    name = "koyeb"
    contract_file = "koyeb.openapi.json"
    misbehaviours: ClassVar[Mapping[str, Fault]] = {
        "429": Fault(429, "slow down", headers={"x-ratelimit-remaining": "0", "x-ratelimit-reset": "0"}, checked=False),
        "429 later": Fault(429, "slow down", headers={"x-ratelimit-reset": "600"}, checked=False),
        "quota": Fault(
            400,
            {"status": 400, "code": "failed_precondition", "message": "quota of services is used up", "fields": []},
            operations=_CREATE,
        ),
        "plan": Fault(
            400,
            {"status": 400, "code": "authorization_error", "message": "your plan does not allow this", "fields": []},
            operations=_CREATE,
        ),
        # koyeb.md §2 Errors: there is no 409
        "exists": Fault(400, _bad("name", "already exists").body, operations=_CREATE, after=True),
        "unauthorized": Fault(401, {"status": 401, "code": "authentication_error", "message": "Invalid token"}),
        "new status": Fault(
            200,
            {"deployment": {"id": new_id(), "status": "DREAMING"}},
            operations=("get deployment",),
            checked=False,
        ),
        "html": Fault(200, "<html>the console</html>", checked=False),
    }
    quirks = frozenset({"no latest yet", "deleted record", "never deleted", "never paused"})

    def __init__(
        self,
        folder: Path,
        *,
        builder: Sequence[str],
        builder_image: str,
        token: str = TOKEN,
        health_seconds: float = 10.0,
        **options: Any,
    ) -> None:
        super().__init__(folder, **options)
        self.apps: dict[str, App] = {}
        self.secrets: dict[str, dict[str, Any]] = {}
        self.host: Host = Host(
            folder=folder / "instances",
            pull=self._pull,
            secrets=self._secret_value,
            outfit=self.outfit,
            health_seconds=health_seconds,
        )
        self.token = token
        self.builder_image = builder_image
        self._builder = tuple(builder)
        self._gone: dict[str, Service] = {}

    service_url: ClassVar[str] = "http://{domain}"

    @property
    def services(self) -> list[Service]:
        """All services that are there."""
        return [s for a in self.apps.values() for s in a.services.values()]

    @property
    def things(self) -> list[str]:
        """See ``Imitation``; what is being deleted is still there."""
        apps = [f"app {app.name}" for app in self.apps.values()]
        services = [f"service {s.name} of {s.app.name}" for s in self.services]
        return apps + services + [f"secret {secret['name']}" for secret in self.secrets.values()]

    @property
    def programs(self) -> list[Running]:
        """See ``Imitation``."""
        return [running for running in self.host.alive if running.code is None]

    async def rest(self, speed: float) -> None:
        """Put to sleep after the delay that each service asks for (koyeb.md §5)."""
        await self.idle_pass(None, speed=speed)

    def routes(self) -> Sequence[BaseRoute]:
        """See ``Imitation``; a path outside of /v1 is the web console (koyeb.md §2)."""
        return [
            self.route("get organization", "GET", "/v1/account/organization", self.get_organization),
            self.route("get quotas", "GET", "/v1/organizations/{id}/quotas", self.get_quotas),
            self.route("list apps", "GET", "/v1/apps", self.list_apps),
            self.route("create app", "POST", "/v1/apps", self.create_app),
            self.route("get app", "GET", "/v1/apps/{id}", self.get_app),
            self.route("delete app", "DELETE", "/v1/apps/{id}", self.delete_app),
            self.route("list services", "GET", "/v1/services", self.list_services),
            self.route("create service", "POST", "/v1/services", self.create_service),
            self.route("get service", "GET", "/v1/services/{id}", self.get_service),
            self.route("update service", "PUT", "/v1/services/{id}", self.update_service),
            self.route("delete service", "DELETE", "/v1/services/{id}", self.delete_service),
            self.route("pause service", "POST", "/v1/services/{id}/pause", self.pause_service),
            self.route("resume service", "POST", "/v1/services/{id}/resume", self.resume_service),
            self.route("get deployment", "GET", "/v1/deployments/{id}", self.get_deployment),
            self.route("cancel deployment", "POST", "/v1/deployments/{id}/cancel", self.cancel_deployment),
            self.route("list instances", "GET", "/v1/instances", self.list_instances),
            self.route("list secrets", "GET", "/v1/secrets", self.list_secrets),
            self.route("create secret", "POST", "/v1/secrets", self.create_secret),
            self.route("update secret", "PUT", "/v1/secrets/{id}", self.update_secret),
            self.route("delete secret", "DELETE", "/v1/secrets/{id}", self.delete_secret),
            self.route("query logs", "GET", "/v1/streams/logs/query", self.query_logs),
            Route("/{path:path}", _console),
        ]

    # ------------------------------------------------------------------------------------------------- who asks

    def _enter(self, request: Request) -> None:
        """Check the token (koyeb.md §2)."""
        if request.headers.get("authorization") != f"Bearer {self.token}":
            raise Refused(401, {"status": 401, "code": "authentication_error", "message": "Invalid token"})

    def _answer(self, body: Mapping[str, Any]) -> Response:
        headers = {"x-ratelimit-limit": "400, 400;w=60", "x-ratelimit-remaining": "399", "x-ratelimit-reset": "60"}
        return JSONResponse(dict(body), headers=headers)

    def _page(self, request: Request, name: str, rows: Sequence[Mapping[str, Any]], *, next_page: bool) -> Response:
        """Cut out one page; instances and secrets don't say whether there is more (koyeb.md §2)."""
        limit, offset = int(request.query_params.get("limit", 10)), int(request.query_params.get("offset", 0))
        if not 0 < limit <= 100:
            raise _bad("limit", "must be between 1 and 100")
        body = {name: list(rows[offset : offset + limit]), "limit": limit, "offset": offset, "count": len(rows)}
        return self._answer(body | ({"has_next": offset + limit < len(rows)} if next_page else {}))

    async def get_organization(self, request: Request) -> Response:
        """koyeb.md §2."""
        self._enter(request)
        return self._answer({"organization": {"id": ORGANIZATION, "name": "imitation", "plan": "pro"}})

    async def get_quotas(self, request: Request) -> Response:
        """koyeb.md §7: 64-bit numbers come as strings."""
        self._enter(request)
        cycle = {"delete_after_create_min": LIFETIMES[0], "delete_after_create_max": LIFETIMES[1]}
        sleep = {"deep_sleep_idle_delay_min": IDLE[0], "deep_sleep_idle_delay_max": IDLE[1]}
        return self._answer({"quotas": {"services": "100", "lifecycle": cycle, "scale_to_zero": sleep}})

    # ------------------------------------------------------------------------------------------------- apps

    def _app(self, app_id: str) -> App:
        for app in self.apps.values():
            if app.id == app_id:
                return app
        raise _missing()

    def _app_json(self, app: App) -> dict[str, Any]:
        domain = {"id": new_id(), "name": app.domain, "type": "AUTOASSIGNED", "status": "ACTIVE", "app_id": app.id}
        return {
            "id": app.id,
            "name": app.name,
            "organization_id": ORGANIZATION,
            "created_at": _stamp(app.created_at),
            "status": "HEALTHY",
            "messages": [],
            "domains": [domain],
        }

    async def list_apps(self, request: Request) -> Response:
        """koyeb.md §2: a filter by name is not exact."""
        self._enter(request)
        found = [a for a in self.apps.values() if request.query_params.get("name", "") in a.name]
        return self._page(request, "apps", [self._app_json(a) for a in found], next_page=True)

    async def create_app(self, request: Request) -> Response:
        """koyeb.md §2 and §4: a duplicate name is a 400; the domain's name can't be known before."""
        self._enter(request)
        body = await request.json()
        name = body.get("name", "")
        if not 3 <= len(name) <= 64 or not _NAME.fullmatch(name):
            raise _bad("name", "must be 3 to 64 of [-.a-z0-9]")
        if name in self.apps:
            raise _bad("name", "already exists")
        empty = bool((body.get("life_cycle") or {}).get("delete_when_empty"))
        app = self.apps[name] = App(name, "", empty)
        app.domain = f"{name}-{os.urandom(4).hex()}.localhost:{self.edge_url.rpartition(':')[2]}"
        return self._answer({"app": self._app_json(app)})

    async def get_app(self, request: Request) -> Response:
        """koyeb.md §4 Hostname."""
        self._enter(request)
        return self._answer({"app": self._app_json(self._app(request.path_params["id"]))})

    async def delete_app(self, request: Request) -> Response:
        """koyeb.md §4: after its services."""
        self._enter(request)
        app = self._app(request.path_params["id"])
        if app.services:
            body = {"status": 400, "code": "failed_precondition", "message": "the app has services", "fields": []}
            raise Refused(400, body)
        self.apps.pop(app.name)
        return self._answer({})

    # ------------------------------------------------------------------------------------------------- services

    def _service(self, request: Request) -> Service:
        self._enter(request)
        for service in self.services:
            if service.id == request.path_params["id"]:
                return service
        if (gone := self._gone.get(request.path_params["id"])) and self.quirk("deleted record"):
            return gone
        raise _missing()

    def _service_json(self, service: Service) -> dict[str, Any]:
        latest = "" if self.quirk("no latest yet") else service.latest.id
        return {
            "id": service.id,
            "name": service.name,
            "type": service.kind,
            "organization_id": ORGANIZATION,
            "app_id": service.app.id,
            "status": service.status,
            "created_at": _stamp(service.created_at),
            "messages": [],
            "version": "1",
            "active_deployment_id": service.active.id if service.active else "",
            "latest_deployment_id": latest,
            "life_cycle": service.life_cycle,
        }

    async def list_services(self, request: Request) -> Response:
        """koyeb.md §2: a filter by name is not exact."""
        self._enter(request)
        app_id, name = request.query_params.get("app_id"), request.query_params.get("name", "")
        found = [s for s in self.services if app_id in {None, s.app.id} and name in s.name]
        return self._page(request, "services", [self._service_json(s) for s in found], next_page=True)

    async def create_service(self, request: Request) -> Response:
        """koyeb.md §2, §3.1, §4."""
        self._enter(request)
        body = await request.json()
        app, name = self._app(body.get("app_id", "")), body.get("name", "")
        if not 2 <= len(name) <= 63 or not _NAME.fullmatch(name):
            raise _bad("name", "must be 2 to 63 of [-.a-z0-9]")
        if name in app.services:
            raise _bad("name", "already exists")
        definition, life = self._checked(body.get("definition") or {}), body.get("life_cycle") or {}
        seconds = life.get("delete_after_create")
        if seconds is not None and not LIFETIMES[0] <= seconds <= LIFETIMES[1]:
            raise _bad("life_cycle.delete_after_create", f"must be between {LIFETIMES[0]} and {LIFETIMES[1]}")
        service = app.services[name] = Service(app, name, definition["type"], life)
        self.host.begin(Deployment(service, definition))
        return self._answer({"service": self._service_json(service)})

    def _checked(self, definition: dict[str, Any]) -> dict[str, Any]:
        """Refuse what the platform refuses of a definition (koyeb.md §3.1, §4, §5)."""
        kind, scaling = definition.get("type"), (definition.get("scalings") or [{}])[0]
        if kind not in {"WEB", "WORKER"} or "docker" not in definition:
            raise _bad("definition", "needs a type and a source")
        if kind == "WORKER" and (definition.get("ports") or definition.get("routes")):
            raise _bad("definition.ports", "a worker has none")
        if kind == "WORKER" and scaling.get("min", 1) < 1:
            raise _bad("definition.scalings", "a worker can't scale to zero")
        if not set(definition.get("regions") or [""]) <= set(REGIONS):
            raise _bad("definition.regions", "unknown region", "authorization_error")
        if not {one.get("type") for one in definition.get("instance_types") or [{}]} <= set(TYPES):
            raise _bad("definition.instance_types", "unknown type", "authorization_error")
        self._check_parts(definition, scaling)
        return definition

    def _check_parts(self, definition: Mapping[str, Any], scaling: Mapping[str, Any]) -> None:
        for target in scaling.get("targets", []):
            delay = target.get("sleep_idle_delay", {}).get("deep_sleep_value", IDLE[0])
            if not IDLE[0] <= delay <= IDLE[1]:
                raise _bad("definition.scalings", "the plan does not allow this sleep delay", "authorization_error")
        for check in definition.get("health_checks", []):
            if not (5 <= check["grace_period"] <= 300 and 30 <= check["interval"] <= 300 and check["restart_limit"]):
                raise _bad("definition.health_checks", "out of bounds")
        for one in definition.get("env", []):
            if "secret" in one and one["secret"] not in {s["name"] for s in self.secrets.values()}:
                raise _bad("definition.env", f"no secret {one['secret']}")

    async def get_service(self, request: Request) -> Response:
        """koyeb.md §2 Eventual consistency."""
        return self._answer({"service": self._service_json(self._service(request))})

    async def update_service(self, request: Request) -> Response:
        """koyeb.md §2: replaces the whole definition; what is left out is lost. A paused service stays so (not known)."""
        service = self._service(request)
        definition = self._checked((await request.json()).get("definition") or {})
        if service.status in {"PAUSED", "PAUSING"}:
            service.deployments.append(Deployment(service, definition))
        else:
            await self._overtake(service)
            self.host.begin(Deployment(service, definition))
        return self._answer({"service": self._service_json(service)})

    async def _overtake(self, service: Service) -> None:
        """End rollouts that are under way: the newest is the only one."""
        for old in service.deployments:
            if old is not service.active and old.status in OPEN:
                await self.host.end(old, "CANCELED")

    async def delete_service(self, request: Request) -> Response:
        """koyeb.md §4: is under way when the answer comes."""
        service = self._service(request)
        if service.status != "DELETING" and not self.quirk("never deleted"):
            self.host.spawn(self._remove(service), f"delete {service.id}")
        service.status = "DELETING"
        return self._answer({})

    async def _remove(self, service: Service) -> None:
        for deployment in service.deployments:
            await self.host.end(deployment)
        service.status = "DELETED"
        self._gone[service.id] = service
        service.app.services.pop(service.name, None)
        if service.app.delete_when_empty and not service.app.services:
            self.apps.pop(service.app.name, None)

    async def expire(self, seconds: float) -> list[str]:
        """Let ``seconds`` pass for services that have a life-time (koyeb.md §3.1 step 2); returns whose was over."""
        over = [s for s in self.services if s.life_cycle.get("delete_after_create", seconds + 1) <= seconds]
        for service in over:
            await self._remove(service)
        return [s.name for s in over]

    async def pause_service(self, request: Request) -> Response:
        """koyeb.md §4."""
        service = self._service(request)
        service.status = "PAUSING"
        if not self.quirk("never paused"):
            self.host.spawn(self._pause(service), f"pause {service.id}")
        return self._answer({})

    async def _pause(self, service: Service) -> None:
        for deployment in service.deployments:
            await self.host.end(deployment)
        service.active = None
        service.status = "PAUSED"

    async def resume_service(self, request: Request) -> Response:
        """koyeb.md §4: a new deployment of the latest definition."""
        service = self._service(request)
        if service.status in {"PAUSED", "PAUSING"}:
            service.status = "RESUMING"
        again = Deployment(service, service.latest.definition, resumed=True)
        await self._overtake(service)
        self.host.begin(again)
        return self._answer({})

    # ------------------------------------------------------------------------------------------------- deployments

    def _deployment(self, request: Request) -> Deployment:
        self._enter(request)
        every = [*self.services, *self._gone.values()]
        for deployment in (d for s in every for d in s.deployments):
            if deployment.id == request.path_params["id"]:
                return deployment
        raise _missing()

    async def get_deployment(self, request: Request) -> Response:
        """koyeb.md §4."""
        deployment = self._deployment(request)
        body = {
            "id": deployment.id,
            "organization_id": ORGANIZATION,
            "app_id": deployment.service.app.id,
            "service_id": deployment.service.id,
            "created_at": _stamp(deployment.created_at),
            "status": deployment.status,
            "messages": deployment.messages,
            "definition": deployment.definition,
            "metadata": {"trigger": {"type": "RESUME"}} if deployment.resumed else {},
        }
        return self._answer({"deployment": body})

    async def cancel_deployment(self, request: Request) -> Response:
        """koyeb.md §4."""
        deployment = self._deployment(request)
        if deployment.status not in OPEN:
            body = {"status": 400, "code": "failed_precondition", "message": "it has ended", "fields": []}
            raise Refused(400, body)
        await self.host.end(deployment, "CANCELED")
        return self._answer({})

    def _wanted(self, request: Request) -> list[Deployment]:
        query = request.query_params
        app_id, service_id, wanted = query.get("app_id"), query.get("service_id"), query.get("deployment_id")
        return [
            d
            for s in [*self.services, *self._gone.values()]
            for d in s.deployments
            if app_id in {None, s.app.id} and service_id in {None, s.id} and wanted in {None, d.id}
        ]

    async def list_instances(self, request: Request) -> Response:
        """koyeb.md §2 Lists: no has_next."""
        self._enter(request)
        rows = [self._instance_json(d, i) for d in self._wanted(request) for i in d.instances]
        return self._page(request, "instances", sorted(rows, key=lambda r: str(r["created_at"])), next_page=False)

    def _instance_json(self, deployment: Deployment, instance: Instance) -> dict[str, Any]:
        return {
            "id": instance.id,
            "app_id": deployment.service.app.id,
            "service_id": deployment.service.id,
            "status": instance.status,
            "region": instance.region,
            "created_at": _stamp(instance.created_at),
            "messages": instance.messages,
        }

    async def query_logs(self, request: Request) -> Response:
        """koyeb.md §8: by default the last fifteen minutes, newest first, a hundred lines."""
        self._enter(request)
        query = dict(parse_qsl(request.scope["query_string"].decode()))
        if not query.keys() & {"app_id", "service_id", "deployment_id", "instance_id", "instance_ids"}:
            raise _bad("service_id", "an id is needed")
        start = datetime.fromisoformat(query["start"]) if "start" in query else now() - timedelta(minutes=15)
        end = datetime.fromisoformat(query["end"]) if "end" in query else now() + timedelta(minutes=1)
        found = sorted(
            ((line.at, number, line.text, stream) for number, (line, stream) in enumerate(self._lines(request))),
            reverse=query.get("order", "desc") == "desc",
        )
        rows = [r for r in found if start <= r[0] < end]
        limit = int(query.get("limit", 100))
        if not 0 < limit <= 1000:
            raise _bad("limit", "must be between 1 and 1000")
        data = [{"msg": t, "created_at": _stamp(at), "labels": {"stream": s}} for at, _, t, s in rows[:limit]]
        more: dict[str, Any] = {"has_more": len(rows) > limit}
        if more["has_more"]:
            more |= {"next_start": _stamp(start), "next_end": data[-1]["created_at"]}
        return self._answer({"data": data, "pagination": more})

    def _lines(self, request: Request) -> list[tuple[Line, str]]:
        found = [(line, "koyeb") for d in self._wanted(request) for line in d.said]
        return found + [(line, "stdout") for d in self._wanted(request) for i in d.instances for line in i.lines]

    # ------------------------------------------------------------------------------------------------- secrets and images

    def _secret_value(self, name: str) -> str | None:
        return next((s.get("value") for s in self.secrets.values() if s["name"] == name), None)

    def _secret_json(self, secret_id: str) -> dict[str, Any]:
        known = self.secrets[secret_id]
        return {"id": secret_id, "name": known["name"], "type": known["type"], "organization_id": ORGANIZATION}

    async def list_secrets(self, request: Request) -> Response:
        """koyeb.md §6: never values."""
        self._enter(request)
        name = request.query_params.get("name", "")
        rows = [self._secret_json(i) for i, s in self.secrets.items() if name in s["name"]]
        return self._page(request, "secrets", rows, next_page=False)

    async def create_secret(self, request: Request) -> Response:
        """koyeb.md §6; RFC 1123 names."""
        self._enter(request)
        body = await request.json()
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", body.get("name", "")):
            raise _bad("name", "must be an RFC 1123 label")
        if any(s["name"] == body["name"] for s in self.secrets.values()):
            raise _bad("name", "already exists")
        secret_id = new_id()
        self.secrets[secret_id] = body
        return self._answer({"secret": self._secret_json(secret_id)})

    def _secret_id(self, request: Request) -> str:
        self._enter(request)
        secret_id = str(request.path_params["id"])
        if secret_id not in self.secrets:
            raise _missing()
        return secret_id

    async def update_secret(self, request: Request) -> Response:
        """koyeb.md §6: what runs keeps what it has."""
        secret_id = self._secret_id(request)
        self.secrets[secret_id] = await request.json()
        return self._answer({"secret": self._secret_json(secret_id)})

    async def delete_secret(self, request: Request) -> Response:
        """koyeb.md §6."""
        self.secrets.pop(self._secret_id(request))
        return self._answer({})

    async def _pull(self, definition: Mapping[str, Any]) -> Program:
        """Take the builder's image as a name for the builder program; pull every other with the named credential (§6)."""
        docker = definition["docker"]
        if docker["image"] == self.builder_image:
            return Program(self._builder, {})
        reference = parse_reference(docker["image"])
        name = docker.get("image_registry_secret")
        login = next((s.get("private_registry") for s in self.secrets.values() if s["name"] == name), None)
        if login is None:
            raise RegistryDenied(f"{reference.host} wants a credential")
        async with Registry(login["url"], username=login["username"], password=login["password"]) as registry:
            return await pull(registry, reference.repository, reference.digest, self.folder / "images")

    # ------------------------------------------------------------------------------------------------- the edge

    async def pick(self, label: str) -> str | None:
        """Send a request to what is active, waking it where it sleeps: the edge holds the request meanwhile (koyeb.md §5)."""
        mine = [s for s in self.services if s.kind == "WEB" and s.app.domain.partition(".")[0] == label]
        service = next(iter(mine), None)
        active = service.active if service else None
        if active is None:
            return None
        instance = active.serving or await self.host.wake(active, WAKE_SECONDS)
        active.used_at = max(active.used_at, time.monotonic())
        return f"http://127.0.0.1:{instance.port}" if instance else None

    async def idle_pass(self, idle_seconds: float | None = 0.0, *, speed: float = 1.0) -> list[str]:
        """Put to sleep what may sleep and had no request for so long (koyeb.md §5); returns the apps' names.

        None stands for the delay of each service itself, passed ``speed`` times faster.
        """
        slept = []
        for service in self.services:
            active = service.active
            if active is None or active.status != "HEALTHY" or self.edge.busy[service.app.domain.partition(".")[0]]:
                continue
            scaling = (active.definition.get("scalings") or [{}])[0]
            if scaling.get("min", 1):
                continue
            delays = [t["sleep_idle_delay"]["deep_sleep_value"] for t in scaling.get("targets", ())]
            asked = min(delays, default=IDLE[1])
            if time.monotonic() - active.used_at >= (asked / speed if idle_seconds is None else idle_seconds):
                await self.host.sleep(active)
                slept.append(service.app.name)
        return slept


async def _console(request: Request) -> Response:
    """Answer as the web application, which takes every path (koyeb.md §2)."""
    return HTMLResponse("<html>the console</html>")

"""Railway: one GraphQL endpoint over projects, services and deployments, after railway.md (whose sections the docstrings name).

The endpoint is ``api_url``; services are behind ``edge_url`` by host name ``<label of their domain>.localhost``.
"""
# Over 250 lines: one root field of the API after the other, over one table of services.

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from app.images.client import Registry
from app.images.errors import ImageInvalid, ImageNotFound, RegistryDenied, RegistryUnavailable
from app.images.reference import parse_reference
from app.imitations import graphql
from app.imitations.base import Fault, Imitation, Refused
from app.imitations.programs import Program, Running, pull
from app.imitations.railway_host import OVER, PENDING, Deployment, Host, Service, domain_of, new_id

TOKEN = "railway-imitation"  # noqa: S105 - opens nothing but this stand-in
MAX_NAME = 32
WAKE_SECONDS = 10.0
IDLE_SECONDS = 600.0
POLL_SECONDS = 0.01
PATH = "/graphql/v2"

Resolver = Callable[[Mapping[str, Any]], Awaitable[Any]]


def refusal(message: str, code: str = "INTERNAL_SERVER_ERROR", status: int = 200) -> Refused:
    """Return an error as the API gives it: most with status 200 and a code that says little (railway.md §1 Error shape)."""
    return Refused(status, _errors(message, code))


def _errors(message: str, code: str = "INTERNAL_SERVER_ERROR") -> dict[str, Any]:
    return {"errors": [{"message": message, "extensions": {"code": code}, "traceId": "4711"}], "data": None}


class RailwayImitation(Imitation):
    """See the module. ``builder`` is the command that a service of ``builder_image`` runs, ``builder_env`` its toolchain.

    ``registries`` maps the host of an image to the URL it is pulled from; hosts on loopback need no entry.
    """

    name = "railway"
    contract_file = "railway.schema.graphql"
    misbehaviours: ClassVar[Mapping[str, Fault]] = {
        # railway.md §1, Error shape and throttles
        "auth": Fault(200, _errors("Not Authorized")),
        "no project token": Fault(200, _errors("Project Token not found")),
        "2fa": Fault(200, _errors("Two Factor Authentication Required")),
        "throttle in 200": Fault(
            200,
            _errors("You are creating environments too quickly. This workspace allows 1 environment per 30 seconds"),
            operations=("serviceCreate",),
        ),
        "429": Fault(429, _errors("Rate limit exceeded"), headers={"retry-after": "0"}),
        "edge 429": Fault(429, "error code: 1015", checked=False),
        "edge 403": Fault(403, "<html>Access denied</html>", checked=False),
        "problem processing": Fault(200, _errors("Problem processing request")),
        "plan": Fault(
            200,
            _errors("Your plan does not allow this. Please upgrade.", "BAD_USER_INPUT"),
            operations=("serviceInstanceLimitsUpdate",),
        ),
        "not found yet": Fault(
            200, _errors("Service not found"), operations=("variableCollectionUpsert", "serviceInstance")
        ),
        "bad input": Fault(200, _errors("Invalid input", "BAD_USER_INPUT")),
        "server error": Fault(200, _errors("Something broke")),
        "invalid document": Fault(400, _errors("Cannot query field", "GRAPHQL_VALIDATION_FAILED")),
    }
    quirks = frozenset({"stale image", "stuck cursor", "lagging list", "502 after sleep", "SKIPPED", "NEEDS_APPROVAL"})

    def __init__(
        self,
        folder: Path,
        *,
        builder: Sequence[str],
        builder_image: str,
        registries: Mapping[str, str] | None = None,
        contracts: Path | None = None,
        token: str = TOKEN,
        page: int = 100,
        **options: Any,
    ) -> None:
        super().__init__(folder, **options)
        self.contract = graphql.load(contracts, self.contract_file)
        self.projects = {"project-services": "environment-services", "project-builders": "environment-builders"}
        self.services: dict[str, Service] = {}
        self.host: Host = Host(pull=self._pull, services=self.services, outfit=self.outfit)
        self.token = token
        self.builder = tuple(builder)
        self.builder_image = builder_image
        self._registries = registries or {}
        self._page = page
        self._deleted: list[Service] = []

    @property
    def api_url(self) -> str:
        """The endpoint."""
        return self.url + PATH

    @property
    def service_url(self) -> str:
        """Template of a service's address."""
        return f"http://{{label}}.localhost:{self.edge_url.rpartition(':')[2]}"

    @property
    def deployments(self) -> list[Deployment]:
        """All deployments of services that are still there, oldest first."""
        return [d for s in self.services.values() for d in s.deployments]

    @property
    def things(self) -> list[str]:
        """See ``Imitation``."""
        return [f"service {s.name} in {s.project}" for s in self.services.values()]

    @property
    def programs(self) -> list[Running]:
        """See ``Imitation``."""
        return [d.running for d in self.host.started if d.running is not None and d.running.code is None]

    async def rest(self, speed: float) -> None:
        """Let ten minutes without packets pass (railway.md §5.3)."""
        await self.idle_pass(IDLE_SECONDS / speed)

    def routes(self) -> Sequence[BaseRoute]:
        """See ``Imitation``; an operation is called by its first root field."""
        return [Route(PATH, self._endpoint, methods=["POST"])]

    async def _endpoint(self, request: Request) -> Response:
        """Enter, read the document, resolve its root fields, and return what is selected (railway.md §1 Basics)."""
        if not request.scope["query_string"]:
            return Response("error code: 1015", 429, media_type="text/html")
        body = await request.json()
        try:
            fields = graphql.read(body["query"], body.get("variables") or {})
        except graphql.Unreadable as e:
            return JSONResponse(_errors(str(e), "GRAPHQL_PARSE_FAILED"), 400)

        async def resolve(_: Request) -> Response:
            if request.headers.get("authorization") != f"Bearer {self.token}":
                raise refusal("Not Authorized")
            data = {}
            for one in fields:
                resolver: Resolver | None = getattr(self, f"on_{one.name}", None)
                if resolver is None:
                    raise refusal(f"Cannot query field {one.name}", "GRAPHQL_VALIDATION_FAILED", 400)
                found = await resolver(one.arguments)
                try:
                    data[one.name] = graphql.select(found, one.fields)
                except graphql.Unreadable as e:
                    raise refusal(str(e), "GRAPHQL_VALIDATION_FAILED", 400) from e
            return JSONResponse({"data": data})

        return await self._attend(fields[0].name, resolve, request)

    # ------------------------------------------------------------------------------------------------- reads

    def _service(self, service_id: str) -> Service:
        service = self.services.get(service_id)
        if service is None:
            raise refusal("Service not found")
        return service

    def _deployment(self, deployment_id: str) -> Deployment:
        found = next((d for d in self.deployments if d.id == deployment_id), None)
        if found is None:
            raise refusal("Deployment not found")
        return found

    def _connection(self, rows: Sequence[Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Cut out one page (railway.md §1 Pagination); "stuck cursor" has more to come at the same place."""
        offset = int(arguments.get("after") or 0)
        end = offset + min(self._page, arguments.get("first") or self._page)
        more = end < len(rows)
        cursor: str | None = str(min(end, len(rows)))
        if self.quirk("stuck cursor"):
            more, cursor = True, arguments.get("after")
        info = {"hasNextPage": more, "endCursor": cursor, "hasPreviousPage": offset > 0, "startCursor": str(offset)}
        return {"edges": [{"node": r, "cursor": str(i)} for i, r in enumerate(rows[offset:end])], "pageInfo": info}

    def _in(self, project: str | None, environment: str | None = None) -> list[Service]:
        found = list(self.services.values())
        if self._deleted and self.quirk("lagging list"):
            found += self._deleted
        return [s for s in found if s.project == project or s.environment == environment]

    async def on_project(self, arguments: Mapping[str, Any]) -> Any:
        """railway.md §2, services by page."""
        if arguments["id"] not in self.projects:
            raise refusal("Project not found")
        rows = [{"id": s.id, "name": s.name, "createdAt": s.created_at} for s in self._in(arguments["id"])]
        return {"id": arguments["id"], "services": lambda a: self._connection(rows, a)}

    async def on_environment(self, arguments: Mapping[str, Any]) -> Any:
        """Service instances of an environment, by page (official schema, type Environment)."""
        if arguments["id"] not in self.projects.values():
            raise refusal("Environment not found")
        rows = [self._instance(s) for s in self.services.values() if s.environment == arguments["id"]]
        return {"id": arguments["id"], "serviceInstances": lambda a: self._connection(rows, a)}

    def _instance(self, service: Service) -> dict[str, Any]:
        return {
            "id": f"instance-{service.id}",
            "serviceId": service.id,
            "source": {"image": service.image} if service.image else None,
            "latestDeployment": service.deployments[-1].json() if service.deployments else None,
            "activeDeployments": [d.json() for d in service.active],
            "domains": {"serviceDomains": service.domains, "customDomains": []},
        }

    async def on_serviceInstance(self, arguments: Mapping[str, Any]) -> Any:  # noqa: N802 - the API's name
        """railway.md §3 Status reads."""
        return self._instance(self._service(arguments["serviceId"]))

    async def on_deployment(self, arguments: Mapping[str, Any]) -> Any:
        """railway.md §3 Status reads."""
        return self._deployment(arguments["id"]).json()

    async def on_variables(self, arguments: Mapping[str, Any]) -> Any:
        """Variables of one service, references as they were written (official schema, unrendered)."""
        return dict(self._service(arguments["serviceId"]).variables)

    async def on_deploymentLogs(self, arguments: Mapping[str, Any]) -> Any:  # noqa: N802 - the API's name
        """railway.md §3 Logs: timestamps have nanoseconds."""
        lines = list(self._deployment(arguments["deploymentId"]).lines)[-arguments["limit"] :]
        stamps = [line.at.strftime("%Y-%m-%dT%H:%M:%S.%f000Z") for line in lines]
        return [{"timestamp": t, "message": x.text, "severity": "info"} for t, x in zip(stamps, lines, strict=True)]

    async def on_deploymentEvents(self, arguments: Mapping[str, Any]) -> Any:  # noqa: N802 - the API's name
        """railway.md §3 Event steps."""
        events = self._deployment(arguments["id"]).events
        return {"edges": [{"node": e, "cursor": str(i)} for i, e in enumerate(events)]}

    # ------------------------------------------------------------------------------------------------- services

    async def on_serviceCreate(self, arguments: Mapping[str, Any]) -> Any:  # noqa: N802 - the API's name
        """railway.md §3 and §1: names are not unique, and with a source it deploys at once."""
        body = arguments["input"]
        if body["projectId"] not in self.projects:
            raise refusal("Project not found")
        name = body.get("name") or new_id()
        if len(name) > MAX_NAME:
            raise refusal("Service name must be at most 32 characters long", "BAD_USER_INPUT")
        service = Service(name=name, project=body["projectId"], environment=self.projects[body["projectId"]])
        service.variables |= body.get("variables") or {}
        self.services[service.id] = service
        if body.get("source"):
            service.config["source"] = body["source"]
            self._deploy(service)
        return {"id": service.id, "name": service.name}

    async def on_variableCollectionUpsert(self, arguments: Mapping[str, Any]) -> Any:  # noqa: N802 - the API's name
        """railway.md §3 Traps: deploys unless told not to."""
        body = arguments["input"]
        service = self._service(body["serviceId"])
        service.variables = {**({} if body.get("replace") else service.variables), **body["variables"]}
        if not body.get("skipDeploys") and service.image:
            self._deploy(service)
        return True

    async def on_serviceInstanceUpdate(self, arguments: Mapping[str, Any]) -> Any:  # noqa: N802 - the API's name
        """railway.md §3 Traps: changes the configuration, deploys nothing; null leaves as it is (§1)."""
        service = self._service(arguments["serviceId"])
        service.config |= {k: v for k, v in arguments["input"].items() if v is not None}
        return True

    async def on_serviceInstanceLimitsUpdate(self, arguments: Mapping[str, Any]) -> Any:  # noqa: N802 - the API's name
        """railway.md §4.4."""
        body = arguments["input"]
        self._service(body["serviceId"]).limits = {"memoryGB": body["memoryGB"], "vCPUs": body["vCPUs"]}
        return True

    async def on_serviceDelete(self, arguments: Mapping[str, Any]) -> Any:  # noqa: N802 - the API's name
        """railway.md §2: takes deployments, variables and domains with it."""
        service = self._service(arguments["id"])
        for deployment in service.deployments:
            await self.host.end(deployment, "REMOVED")
        self._deleted.append(self.services.pop(service.id))
        return True

    async def on_serviceDomainCreate(self, arguments: Mapping[str, Any]) -> Any:  # noqa: N802 - the API's name
        """railway.md §5.1: each call makes another."""
        service = self._service(arguments["input"]["serviceId"])
        service.domains.append({"id": new_id(), "domain": domain_of(service)})
        return service.domains[-1]

    # ------------------------------------------------------------------------------------------------- deployments

    def _deploy(self, service: Service) -> Deployment:
        image = service.image
        if image is None:
            raise refusal("Service has no source to deploy", "BAD_USER_INPUT")
        if self.quirk("stale image") and service.deployments:
            image = service.deployments[-1].image  # railway.md §3 Traps: the old deployment's image runs again
        made = Deployment(service, image, dict(service.config), dict(service.variables), self.folder / "deployments")
        made.cwd /= made.id
        service.deployments.append(made)
        for status in ("SKIPPED", "NEEDS_APPROVAL"):
            if self.quirk(status):
                made.status = status
                return made
        self.host.begin(made)
        return made

    async def on_serviceInstanceDeployV2(self, arguments: Mapping[str, Any]) -> Any:  # noqa: N802 - the API's name
        """railway.md §3: returns the deployment's id."""
        return self._deploy(self._service(arguments["serviceId"])).id

    async def on_deploymentCancel(self, arguments: Mapping[str, Any]) -> Any:  # noqa: N802 - the API's name
        """railway.md §3: only while it is queued or built."""
        deployment = self._deployment(arguments["id"])
        if deployment.status not in PENDING:
            raise refusal("Deployment is past the point of cancelation", "BAD_USER_INPUT")
        await self.host.end(deployment, "REMOVED")
        return True

    async def on_deploymentStop(self, arguments: Mapping[str, Any]) -> Any:  # noqa: N802 - the API's name
        """railway.md §3 and §5.8: what served keeps its status and has stopped; only what runs can be stopped."""
        deployment = self._deployment(arguments["id"])
        if deployment.status in PENDING | OVER:
            raise refusal("Deployment is not running", "BAD_USER_INPUT")
        await self.host.end(deployment, None if deployment.status == "SUCCESS" else "REMOVED")
        return True

    async def on_deploymentRemove(self, arguments: Mapping[str, Any]) -> Any:  # noqa: N802 - the API's name
        """railway.md §3."""
        await self.host.end(self._deployment(arguments["id"]), "REMOVED")
        return True

    async def on_deploymentRollback(self, arguments: Mapping[str, Any]) -> Any:  # noqa: N802 - the API's name
        """railway.md §5.7: image and variables of then, in a deployment whose id is not told."""
        former = self._deployment(arguments["id"])
        if not former.served:
            raise refusal("Deployment can not be rolled back to", "BAD_USER_INPUT")
        former.service.config, former.service.variables = dict(former.config), dict(former.variables)
        self._deploy(former.service)
        return True

    async def _pull(self, service: Service, image: str) -> Program:
        """Pull with the service's own credential (railway.md §6); the builder's image stands for the builder program."""
        if image == self.builder_image:
            return Program(self.builder, {})
        credentials = service.config.get("registryCredentials") or {}
        try:
            reference = parse_reference(image)
            url = self._registries.get(reference.host, f"http://{reference.host}")
            async with Registry(
                url, username=credentials.get("username"), password=credentials.get("password")
            ) as registry:
                return await pull(registry, reference.repository, reference.digest, self.folder / "images")
        except (ImageNotFound, RegistryDenied, RegistryUnavailable, ImageInvalid, ValueError) as e:
            raise Refused(200, f"failed to pull {image}: {e}") from e

    # ------------------------------------------------------------------------------------------------- the edge

    async def pick(self, label: str) -> str | None:
        """Choose where a request goes, waking what sleeps (railway.md §5.3)."""
        named = (s for s in self.services.values() if any(d["domain"].startswith(f"{label}.") for d in s.domains))
        service = next(named, None)
        if service is None:
            return None
        for deployment in service.active:
            if deployment.status == "SLEEPING":
                await self.host.wake(deployment)
                if self.quirk("502 after sleep"):
                    return None
                await self._until_up(deployment)
            if deployment.status == "SUCCESS" and not deployment.stopped:
                deployment.used_at = time.monotonic()
                return f"http://127.0.0.1:{deployment.port}"
        return None

    async def _until_up(self, deployment: Deployment) -> None:
        end = time.monotonic() + WAKE_SECONDS
        while deployment.status == "DEPLOYING" and time.monotonic() < end:  # noqa: ASYNC110 - many writers, no event
            await asyncio.sleep(POLL_SECONDS)

    async def idle_pass(self, idle_seconds: float = 0.0) -> list[str]:
        """Put to sleep what may and sent nothing for so long (railway.md §5.3); here only answers to requests count."""
        slept = []
        for service in list(self.services.values()):
            if any(self.edge.busy[d["domain"].partition(".")[0]] for d in service.domains):
                continue
            for deployment in service.active:
                quiet = time.monotonic() - deployment.used_at >= idle_seconds
                if deployment.config.get("sleepApplication") and deployment.status == "SUCCESS" and quiet:
                    await self.host.sleep(deployment)
                    slept.append(service.name)
        return slept

"""Northflank: jobs and runs, deployment services, secret groups, registry credentials and the edge, after northflank.md.

The API is at ``url``, the services behind ``edge_url`` by host name ``p1--<service>--<account>.localhost``. Images come from the
registries of ``registries``: host names as they stand in image paths, and where each really is.
"""
# Over 250 lines: one handler of the API after the other, over a few tables.

import contextlib
import re
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from app.images.client import Registry
from app.images.errors import RegistryError
from app.images.reference import parse_reference
from app.imitations.base import Fault, Handler, Imitation, Refused
from app.imitations.contracts import Amendments
from app.imitations.northflank_workloads import Host, Job, Run, Service
from app.imitations.programs import Line, Program, Running, pull

PROJECT = "agents"
TOKEN = "nf-imitation"  # noqa: S105 - opens nothing but this stand-in
ACCOUNT = "imitation012"

_JOB_NAME = re.compile(r"[a-zA-Z]((-|\s)?[a-zA-Z0-9]+((-|\s)[a-zA-Z0-9]+)*)?")
_IMAGE = re.compile(r"([a-zA-Z0-9-]+\.[a-zA-Z0-9.-]+)/([a-z0-9._/-]+)@(sha256:[0-9a-f]{64})")
_PLAN = re.compile(r"nf-compute-(10|20|50|100-2|200-4|400-16|800-32)")
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_STORAGE = {"type": "object", "properties": {"storageSize": {"type": "integer"}}}
_SCHEMAS = "/components/schemas"
_ONE_TIME = {"error": {"status": 429, "message": "Too many requests"}}


def error(status: int, message: str, **more: Any) -> dict[str, Any]:
    """Return an error as the API writes it: an object in an object (northflank.md §2)."""
    return {"error": {"status": status, "message": message, **more}}


class NorthflankImitation(Imitation):
    """See the module. ``builder`` is the command that a job of ``builder_image`` runs, ``builder_env`` its toolchain."""

    name = "northflank"
    contract_file = "northflank.schemas.json"
    amendments = Amendments(
        requests={
            # The file leaves these open or offers an open alternative; northflank.md §3 and §4 tell what is in them.
            f"{_SCHEMAS}/CreateJobRequest/properties/deployment": {
                "$ref": f"#{_SCHEMAS}/CreateJobRequestExternalDeployment"
            },
            f"{_SCHEMAS}/CreateServiceDeploymentRequest/properties/deployment": {
                "$ref": f"#{_SCHEMAS}/CreateServiceDeploymentRequestExternalDeployment"
            },
            f"{_SCHEMAS}/CreateJobResponseDeploymentStorage/properties/ephemeralStorage": _STORAGE,
            f"{_SCHEMAS}/CreateJobRequest/properties/runtimeEnvironment": _TEXTS,
            f"{_SCHEMAS}/CreateServiceDeploymentRequest/properties/runtimeEnvironment": _TEXTS,
            f"{_SCHEMAS}/CreateSecretResponseSecrets/properties/variables": _TEXTS,
        },
        answers={
            # northflank.md §3: a manual job says so, though the file knows cron alone; no end can be told of a run under way.
            f"{_SCHEMAS}/CreateJobResponse/properties/jobType": {"enum": ["manual", "cron"]},
            f"{_SCHEMAS}/GetJobRunResponse/required": ["id", "runName", "status", "concluded"],
            # northflank.md §1: the answers of June had these two, and may have them still.
            f"{_SCHEMAS}/GetServiceResponseDeployment/properties/servicePaused": {"type": "boolean"},
            f"{_SCHEMAS}/CreateHarnessResponsePort/properties/dns": {"type": "string"},
            f"{_SCHEMAS}/GetServiceResponseDeployment/properties/ports": {
                "type": "array",
                "items": {"$ref": f"#{_SCHEMAS}/CreateHarnessResponsePort"},
            },
        },
    )
    misbehaviours: ClassVar[Mapping[str, Fault]] = {
        # northflank.md §2: no Retry-After, but the window's end in a header of its own
        "429": Fault(429, _ONE_TIME, headers={"x-ratelimit-remaining": "0", "x-ratelimit-reset": "0"}),
        "429 later": Fault(429, _ONE_TIME, headers={"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1800"}),
        "logs forbidden": Fault(
            401,
            error(401, "Unauthorized", details={"requiredPermission": "View Observability"}),
            operations=("job logs", "service logs"),
        ),
        "unauthorized": Fault(401, error(401, "Unauthorized")),
        "billing": Fault(400, error(400, "CPU deployments are disabled"), operations=("put service", "put job")),
        "exists": Fault(400, error(400, "Service already exists"), operations=("put service",), after=True),
        "credential in use": Fault(409, error(409, "Credentials in use"), operations=("delete credential",)),
        "run not visible": Fault(404, error(404, "Not found"), operations=("get run",)),
    }
    quirks = frozenset({"edge lags", "no cursor", "logs in data.logs", "logs in data.data", "pause is slow"})

    def __init__(
        self,
        folder: Path,
        *,
        builder: Sequence[str],
        builder_image: str,
        registries: Mapping[str, str] | None = None,
        token: str = TOKEN,
        projects: Sequence[str] = (PROJECT,),
        page: int = 100,
        hourly: int = 1_000_000,
        june: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(folder, **options)
        self.builder = builder
        self.builder_image = builder_image
        self.registries = dict(registries or {})
        self.token = token
        self.jobs: dict[tuple[str, str], Job] = {}
        self.services: dict[tuple[str, str], Service] = {}
        self.secrets: dict[tuple[str, str], dict[str, Any]] = {}
        self.credentials: dict[str, dict[str, Any]] = {}
        self.host: Host = Host(folder=folder / "containers", outfit=self.outfit)
        self.started: list[Run] = []
        """All runs there have been."""
        self.june = june
        """Whether answers have the fields that were lost between June and October 2026 (northflank.md §1)."""
        self._projects = frozenset(projects)
        self._page = page
        self._hourly = hourly
        self._window: tuple[float, int] | None = None

    @property
    def service_url(self) -> str:
        """Template of a service's address."""
        return f"http://{{dns}}:{self.edge_url.rpartition(':')[2]}"

    @property
    def things(self) -> list[str]:
        """See ``Imitation``; what is being deleted is still there."""
        kept: dict[str, Collection[tuple[str, str]]] = {
            "job": self.jobs,
            "service": self.services,
            "secret group": self.secrets,
        }
        named = [f"{kind} {name}" for kind, table in kept.items() for _, name in table]
        return named + [f"registry credential {name}" for name in self.credentials]

    @property
    def programs(self) -> list[Running]:
        """See ``Imitation``."""
        return [running for running in self.host.live if running.code is None]

    def routes(self) -> Sequence[BaseRoute]:
        """See ``Imitation``. Each path is there for teams, too, which the contract's file leaves out (northflank.md §2)."""
        project, registries = "/projects/{project}", "/integrations/registries"
        job, service = f"{project}/jobs/{{id}}", f"{project}/services/{{id}}"
        table: list[tuple[str, str, str, Handler]] = [
            ("list projects", "GET", "/projects", self.list_projects),
            ("put job", "PUT", f"{project}/jobs", self.put_job),
            ("list jobs", "GET", f"{project}/jobs", self.list_jobs),
            ("delete job", "DELETE", job, self.delete_job),
            ("start run", "POST", f"{job}/runs", self.start_run),
            ("list runs", "GET", f"{job}/runs", self.list_runs),
            ("get run", "GET", f"{job}/runs/{{run}}", self.get_run),
            ("abort run", "DELETE", f"{job}/runs/{{run}}", self.abort_run),
            ("job logs", "GET", f"{job}/logs", self.job_logs),
            ("put service", "PUT", f"{project}/services/deployment", self.put_service),
            ("list services", "GET", f"{project}/services", self.list_services),
            ("get service", "GET", service, self.get_service),
            ("delete service", "DELETE", service, self.delete_service),
            ("pause", "POST", f"{service}/pause", self.pause),
            ("resume", "POST", f"{service}/resume", self.resume),
            ("list containers", "GET", f"{service}/containers", self.list_containers),
            ("get ports", "GET", f"{service}/ports", self.get_ports),
            ("service logs", "GET", f"{service}/logs", self.service_logs),
            ("put secret", "PUT", f"{project}/secrets", self.put_secret),
            ("list secrets", "GET", f"{project}/secrets", self.list_secrets),
            ("delete secret", "DELETE", f"{project}/secrets/{{id}}", self.delete_secret),
            ("add credential", "POST", registries, self.add_credential),
            ("update credential", "PATCH", f"{registries}/{{id}}", self.update_credential),
            ("delete credential", "DELETE", f"{registries}/{{id}}", self.delete_credential),
        ]
        checked = [self.route(o, m, f"/v1{path}", handler) for o, m, path, handler in table]
        return checked + [self.unchecked(o, m, f"/v1/teams/{{team}}{path}", handler) for o, m, path, handler in table]

    # ------------------------------------------------------------------------------------------------- who asks

    def _enter(self, request: Request) -> str:
        """Count the request, check the token and the project (northflank.md §2); return the project."""
        begun, used = self._window or (time.monotonic(), 0)
        if time.monotonic() - begun > 3600:
            begun, used = time.monotonic(), 0
        self._window = (begun, used + 1)
        if used >= self._hourly:
            raise Refused(429, _ONE_TIME, self._rate())
        if request.headers.get("authorization") != f"Bearer {self.token}":
            raise Refused(401, error(401, "Unauthorized"))
        project = request.path_params.get("project", "")
        if project and project not in self._projects:
            raise Refused(404, error(404, "Project not found"))
        return str(project)

    def _rate(self) -> dict[str, str]:
        begun, used = self._window or (time.monotonic(), 0)
        left, reset = max(0, self._hourly - used), max(0, int(3600 - (time.monotonic() - begun)))
        return {
            "x-ratelimit-limit": str(self._hourly),
            "x-ratelimit-remaining": str(left),
            "x-ratelimit-reset": str(reset),
        }

    def _data(self, data: Any, pagination: dict[str, Any] | None = None) -> Response:
        """Answer as every success does: 200 and ``data`` (northflank.md §2)."""
        body = {"data": data} | ({"pagination": pagination} if pagination else {})
        return JSONResponse(body, headers=self._rate())

    def _paged(self, request: Request, rows: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        """Cut out one page: 50 unless asked, 100 at most (northflank.md §2)."""
        size = min(self._page, int(request.query_params.get("per_page", 50)), 100)
        offset = int(request.query_params.get("cursor") or 0)
        part, more = rows[offset : offset + size], offset + size < len(rows)
        if self.quirk("no cursor"):
            return part, {"hasNextPage": True, "count": len(part)}
        cursor = {"cursor": str(offset + size)} if more else {}
        return part, {"hasNextPage": more, "count": len(part), **cursor}

    async def _body(self, request: Request, limit: int) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        name = body.get("name", "")
        if not _JOB_NAME.fullmatch(name) or not 3 <= len(name) <= limit or name != name.lower():
            raise Refused(400, _invalid("name"))
        plan = body.get("billing", {}).get("deploymentPlan")
        if plan is not None and not _PLAN.fullmatch(plan):
            raise Refused(400, error(400, "Billing plan not found"))
        return body

    async def list_projects(self, request: Request) -> Response:
        """northflank.md §2: the way to verify a token."""
        self._enter(request)
        rows, page = self._paged(request, sorted(self._projects))
        return self._data({"projects": [{"id": p, "name": p} for p in rows]}, page)

    # ------------------------------------------------------------------------------------------------- jobs

    def _job(self, request: Request) -> Job:
        job = self.jobs.get((self._enter(request), request.path_params["id"]))
        if job is None:
            raise Refused(404, error(404, "Job not found"))
        return job

    def _run(self, request: Request) -> Run:
        job = self._job(request)
        run = next((r for r in job.runs if r.id == request.path_params["run"]), None)
        if run is None:
            raise Refused(404, error(404, "Job run not found"))
        return run

    async def put_job(self, request: Request) -> Response:
        """northflank.md §3: create or update by name."""
        project, body = self._enter(request), await self._body(request, 52)
        if not _IMAGE.fullmatch(body["deployment"]["external"]["imagePath"]):
            raise Refused(400, _invalid("deployment.external.imagePath"))
        if "settings" in body and "backoffLimit" not in body["settings"]:
            raise Refused(400, _invalid("settings.backoffLimit"))
        job = self.jobs.setdefault((project, body["name"]), Job(body["name"], body))
        job.body = body
        answer = {"id": job.id, "appId": f"/{ACCOUNT}/{project}/{job.id}", "jobType": "manual", "name": job.id}
        cluster = {"id": "nf-europe-west", "name": "europe-west"}
        return self._data({**answer, "billing": body["billing"], "cluster": cluster, "status": {}})

    async def list_jobs(self, request: Request) -> Response:
        """northflank.md §2 Lists."""
        project = self._enter(request)
        rows, page = self._paged(request, [j for (p, _), j in self.jobs.items() if p == project])
        return self._data({"jobs": [_listed(project, j.id, "jobType", "manual") for j in rows]}, page)

    async def delete_job(self, request: Request) -> Response:
        """northflank.md §3: its runs go with it."""
        job = self._job(request)
        self.jobs.pop((request.path_params["project"], job.id), None)
        for run in job.runs:
            await self.host.abort(run)
        return self._data({})

    async def start_run(self, request: Request) -> Response:
        """northflank.md §3: each call is one more run; overrides go over the job's environment."""
        job, body = self._job(request), await request.json()
        env = {**job.body.get("runtimeEnvironment", {}), **body.get("runtimeEnvironment", {})}
        env |= {"NF_OBJECT_ID": job.id, "NF_PROJECT_ID": request.path_params["project"]}
        external = job.body["deployment"]["external"]
        try:
            program: Program | None = await self._pull(external)
        except RegistryError:
            program = None
        run = Run(job, program, env)
        job.runs.insert(0, run)
        self.started.append(run)
        self.host.run(run)
        return self._data({"id": run.id, "runName": f"{job.id}-{run.id[:5]}"})

    async def list_runs(self, request: Request) -> Response:
        """northflank.md §3."""
        rows, page = self._paged(request, self._job(request).runs)
        return self._data({"runs": [_run_json(r) for r in rows]}, page)

    async def get_run(self, request: Request) -> Response:
        """northflank.md §3 Run object."""
        return self._data(_run_json(self._run(request)))

    async def abort_run(self, request: Request) -> Response:
        """northflank.md §3: of one that is over it is refused."""
        run = self._run(request)
        if run.concluded is not None:
            raise Refused(409, error(409, "Job run has already concluded"))
        await self.host.abort(run)
        return self._data({})

    async def job_logs(self, request: Request) -> Response:
        """northflank.md §3."""
        job, wanted = self._job(request), request.query_params.get("runId")
        lines = [line for run in job.runs if wanted in {None, run.id} for line in run.lines]
        return self._lines(request, lines)

    # ------------------------------------------------------------------------------------------------- services

    def _service(self, request: Request) -> Service:
        key = (self._enter(request), request.path_params["id"])
        service = self.services.get(key)
        if service is not None and service.leaving == 0:
            self.services.pop(key, None)
            service = None
        if service is None:
            raise Refused(404, error(404, "Service not found"))
        return service

    async def put_service(self, request: Request) -> Response:
        """northflank.md §4: create or update by name; the image is looked at there and then."""
        project, body = self._enter(request), await self._body(request, 54)
        path = body["deployment"]["external"]["imagePath"]
        if not _IMAGE.fullmatch(path):
            raise Refused(400, _invalid("deployment.external.imagePath"))
        try:
            program = await self._pull(body["deployment"]["external"])
        except RegistryError:
            raise Refused(400, error(400, "Unable to verify external image")) from None
        key = (project, body["name"])
        service = self.services.get(key)
        if service is None:
            service = self.services[key] = Service(body["name"], body, program, lambda: self._environment(*key))
        changed = service.body["deployment"]["external"] != body["deployment"]["external"]
        service.body = body
        if changed:
            service.program = program
            await self.host.halt(service)
        if service.instances:
            service.moved("IN_PROGRESS" if service.ready is None else service.rollout)
            self.host.keep(service)
        return self._data(self._service_json(service, project) | {"createdAt": service.created})

    def _environment(self, project: str, nf_id: str) -> dict[str, str]:
        """Merge what a service is given: its own values hide those of groups, silently (northflank.md §4 Env)."""
        env: dict[str, str] = {}
        for (owner, _), group in self.secrets.items():
            restrictions = group.get("restrictions") or {}
            objects = {(o["id"], o["type"]) for o in restrictions.get("nfObjects", ())}
            if owner == project and (not restrictions.get("restricted") or (nf_id, "service") in objects):
                env |= group["secrets"]["variables"]
        own = self.services[project, nf_id].body.get("runtimeEnvironment", {})
        return {**env, **own, "NF_OBJECT_ID": nf_id, "NF_PROJECT_ID": project}

    def _service_json(self, service: Service, project: str) -> dict[str, Any]:
        ports = [p | ({"dns": _dns(service)} if self.june else {}) for p in service.body["ports"]]
        rollout = {"status": service.rollout, "reason": "DEPLOYING", "lastTransitionTime": service.transition}
        shown = {k: v for k, v in service.body["deployment"].items() if k != "instances"}
        # While a pause is still going on, nothing shows of it (northflank.md §6).
        instances = 1 if service.pausing else service.instances
        return {
            "id": service.id,
            "appId": f"/{ACCOUNT}/{project}/{service.id}",
            "name": service.id,
            "serviceType": "deployment",
            "billing": service.body["billing"],
            "cluster": {"id": "nf-europe-west", "name": "europe-west"},
            "deployment": {**shown, "instances": instances},
            "ports": ports,
            "runtimeEnvironment": service.body["runtimeEnvironment"],
            "healthChecks": service.body.get("healthChecks", []),
            "status": {"deployment": rollout},
        }

    async def get_service(self, request: Request) -> Response:
        """northflank.md §4, and §6: a pause is seen only once it is done; §4 Delete: so is a deletion."""
        service = self._service(request)
        answer = self._service_json(service, request.path_params["project"]) | {"uid": service.id}
        answer |= {"servicePaused": service.paused and not service.pausing} if self.june else {}
        service.pausing = max(0, service.pausing - 1)
        if service.leaving is not None:
            service.leaving -= 1
        return self._data(answer)

    async def list_services(self, request: Request) -> Response:
        """northflank.md §2 Lists."""
        project = self._enter(request)
        found = [s for (p, _), s in self.services.items() if p == project and s.leaving is None]
        rows, page = self._paged(request, found)
        listed = [
            _listed(project, s.id, "serviceType", "deployment")
            | {"status": {"deployment": {"status": s.rollout, "reason": "DEPLOYING"}}}
            for s in rows
        ]
        return self._data({"services": listed}, page)

    async def delete_service(self, request: Request) -> Response:
        """northflank.md §4 Delete: asynchronous."""
        service = self._service(request)
        if service.leaving is None:
            service.leaving = 2
            service.paused = True
            await self.host.halt(service)
        return self._data({})

    async def pause(self, request: Request) -> Response:
        """northflank.md §6: settles asynchronously."""
        service = self._service(request)
        if not service.paused:
            service.paused, service.pausing = True, 3 if self.quirk("pause is slow") else 1
            await self.host.halt(service)
        return self._data({})

    async def resume(self, request: Request) -> Response:
        """northflank.md §6: refused where nothing is paused, and lost where a pause is still going on.

        The image is pulled again, as on a host that has none of it; where that fails no instance comes up.
        """
        service, body = self._service(request), await request.json()
        if not service.paused:
            raise Refused(409, error(409, "Service is not paused"))
        if service.pausing == 0:
            service.paused = False
            service.body["deployment"]["instances"] = body.get("instances", 1)
            with contextlib.suppress(RegistryError):
                service.program = await self._pull(service.body["deployment"]["external"])
                self.host.keep(service)
        return self._data({})

    async def list_containers(self, request: Request) -> Response:
        """northflank.md §3 and §4: past ones are listed, too."""
        rows, page = self._paged(request, self._service(request).containers)
        return self._data({"containers": [c.json() for c in rows]}, page)

    async def get_ports(self, request: Request) -> Response:
        """northflank.md §4 Hostname."""
        service = self._service(request)
        ports = [{**p, "id": p["name"], "domains": [], "dns": _dns(service)} for p in service.body["ports"]]
        return self._data({"ports": ports})

    async def service_logs(self, request: Request) -> Response:
        """northflank.md §4 Logs."""
        return self._lines(request, list(self._service(request).lines))

    def _lines(self, request: Request, lines: Sequence[Line]) -> Response:
        """Write lines, in any of the envelopes that were seen, with the prefix that they may carry (northflank.md §4 Logs)."""
        limit, last = int(request.query_params.get("lineLimit", 50)), list(lines)
        if request.query_params.get("direction") == "backward":
            last.reverse()
        data = [{"log": f"stdout F {n.text}", "ts": n.at.isoformat().replace("+00:00", "Z")} for n in last[:limit]]
        if self.quirk("logs in data.logs"):
            return Response(JSONResponse({"data": {"logs": data}}).body, media_type="text/plain")
        if self.quirk("logs in data.data"):
            return Response(JSONResponse({"data": {"data": data}}).body, media_type="text/plain")
        return self._data(data)

    # ------------------------------------------------------------------------------------------------- secrets, credentials

    async def put_secret(self, request: Request) -> Response:
        """northflank.md §4 Secrets: can be restricted only to what is there."""
        project, body = self._enter(request), await self._body(request, 100)
        for target in (body.get("restrictions") or {}).get("nfObjects", ()):
            if (project, target["id"]) not in self.services:
                raise Refused(404, error(404, "Service not found"))
        self.secrets[project, body["name"]] = body
        kept = {k: v for k, v in body.items() if k not in {"secrets"}}
        return self._data({**kept, "id": body["name"]})

    async def list_secrets(self, request: Request) -> Response:
        """northflank.md §2 Lists."""
        project = self._enter(request)
        rows, page = self._paged(request, [b for (p, _), b in self.secrets.items() if p == project])
        fields = ("name", "priority", "secretType", "restrictions")
        listed = [
            {**{f: b[f] for f in fields}, "id": b["name"], "projectId": project, "tags": [], "type": "secret"}
            for b in rows
        ]
        return self._data({"secrets": listed}, page)

    async def delete_secret(self, request: Request) -> Response:
        """northflank.md §4 Secrets."""
        if self.secrets.pop((self._enter(request), request.path_params["id"]), None) is None:
            raise Refused(404, error(404, "Secret not found"))
        return self._data({})

    async def add_credential(self, request: Request) -> Response:
        """northflank.md §5; a name that is taken is 400 (§2)."""
        self._enter(request)
        body = await self._body(request, 39)
        if body["name"] in self.credentials:
            raise Refused(400, error(400, "Registry credentials already exists"))
        self.credentials[body["name"]] = body
        refresh = {"failureCount": 0, "retryDelay": 0, "status": "healthy"}
        answer = {"id": body["name"], "name": body["name"], "provider": body["provider"]}
        return self._data({**answer, "registryCredentialRefresh": refresh})

    async def update_credential(self, request: Request) -> Response:
        """northflank.md §5."""
        self._enter(request)
        if request.path_params["id"] not in self.credentials:
            raise Refused(404, error(404, "Registry credentials not found"))
        self.credentials[request.path_params["id"]] |= await request.json()
        return self._data({})

    async def delete_credential(self, request: Request) -> Response:
        """northflank.md §5."""
        self._enter(request)
        if self.credentials.pop(request.path_params["id"], None) is None:
            raise Refused(404, error(404, "Registry credentials not found"))
        return self._data({})

    async def _pull(self, external: Mapping[str, Any]) -> Program:
        """Pull an image with the credential it names; the builder's image stands for the builder program (§3, §5)."""
        if external["imagePath"] == self.builder_image:
            return Program(tuple(self.builder), {})
        reference = parse_reference(external["imagePath"])
        login = (self.credentials.get(external.get("credentials", "")) or {}).get("credentials", {})
        url = self.registries.get(reference.host, f"https://{reference.host}")
        async with Registry(url, username=login.get("username"), password=login.get("password")) as registry:
            return await pull(registry, reference.repository, reference.digest, self.folder / "images")

    # ------------------------------------------------------------------------------------------------- the edge

    async def pick(self, label: str) -> str | None:
        """Choose where a request goes: nothing wakes a service at zero (northflank.md §0), and names can lag (§4 Status)."""
        service = next((s for s in self.services.values() if _dns(s).startswith(f"{label}.")), None)
        container = service.ready if service is not None else None
        if container is None or self.quirk("edge lags"):
            return None
        return f"http://127.0.0.1:{container.port}"


def _dns(service: Service) -> str:
    return f"{service.body['ports'][0]['name']}--{service.id}--{ACCOUNT}.localhost"


def _invalid(name: str) -> dict[str, Any]:
    message = "Request failed payload validation - see details."
    return error(400, message, id="nf-invalid-request-body", details={name: ["is not valid"]})


def _listed(project: str, nf_id: str, kind: str, value: str) -> dict[str, Any]:
    names = {"id": nf_id, "appId": f"/{ACCOUNT}/{project}/{nf_id}", "name": nf_id, "uid": nf_id, "projectId": project}
    return {**names, kind: value, "disabledCI": False, "disabledCD": False, "tags": []}


def _run_json(run: Run) -> dict[str, Any]:
    """Write a run: the counters are never right, and no end is told of one that has none (northflank.md §3 Run object)."""
    counters = {"active": 0, "failed": 0, "succeeded": 0, "completions": 1, "backoffLimit": 0}
    over = {"concludedAt": run.concluded} if run.concluded else {}
    names = {"id": run.id, "runName": f"{run.job.id}-{run.id[:5]}", "startedAt": run.started}
    return {**names, **counters, **over, "status": run.status, "concluded": run.concluded is not None}

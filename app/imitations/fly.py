"""Fly: apps, machines, secrets, addresses, the registry and the proxy, after fly.md (whose sections the docstrings name).

The API is at ``url``, the registry at ``url`` too, the services behind ``edge_url`` by host name ``<app>.localhost``.
"""
# Over 250 lines: one handler of the API after the other, over one table of apps.

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount

from app.images.client import Registry
from app.images.errors import ImageInvalid, ImageNotFound, RegistryDenied
from app.images.reference import parse_reference
from app.images.registry import create_registry
from app.images.tokens import Grants, Scope, TokenAuthority
from app.imitations.base import Fault, Imitation, Refused
from app.imitations.contracts import Amendments
from app.imitations.fly_machines import App, Host, Machine, reached
from app.imitations.programs import Program, Running, pull

ORG = "personal"
TOKEN = "fm2_imitation"  # noqa: S105 - opens nothing but this stand-in
START_SECONDS = 10.0
IDLE_SECONDS = 300.0
POLL_SECONDS = 0.01

#: Fields of a service block that the API knows; others are dropped without a word (fly.md §1 JSON).
_SERVICE = frozenset(
    {"autostart", "autostop", "checks", "concurrency", "internal_port", "min_machines_running"}
) | frozenset({"ports", "protocol", "force_instance_key", "force_instance_description"})
_CREATE = ("create machine",)


def _capacity(code: int, error: str, **more: str) -> Fault:
    return Fault(code, {"error": error, **more}, operations=_CREATE)


class FlyImitation(Imitation):
    """See the module. ``builder`` is the command that a machine of ``builder_image`` runs, ``builder_env`` its toolchain."""

    name = "fly"
    contract_file = "fly-machines.openapi.json"
    amendments = Amendments(
        # fly.md §5: null deletes a secret, though the schema says string.
        requests={
            "/components/schemas/AppSecretsUpdateRequest/properties/values/additionalProperties": {
                "type": ["string", "null"]
            }
        },
        # The schema's own description: answers keep booleans for "off" and "stop".
        answers={"/components/schemas/fly.MachineService/properties/autostop": {"type": ["string", "boolean"]}},
        # fly.md §2: not in the official file, in the guides.
        query={"DELETE /v1/apps/{app_name}": frozenset({"force"})},
    )
    misbehaviours: ClassVar[Mapping[str, Fault]] = {
        # fly.md §1 Errors, the capacity classifier's shapes
        "capacity: status": _capacity(422, "no room", status="insufficient_capacity"),
        "capacity: volume": _capacity(412, "no room", status="volume_placement_capacity"),
        "capacity: host": _capacity(
            409, "could not reserve resource for machine: insufficient memory available to fulfill request"
        ),
        "capacity: region": _capacity(409, "could not reserve resource for machine: no capacity"),
        "capacity: 400": _capacity(400, "no capacity"),
        "capacity: quota": _capacity(403, "organization is over the allowed quota for memory in region"),
        "capacity: 412": _capacity(412, "insufficient resources to create new machine with existing volume"),
        "capacity: host off": _capacity(500, "deploys to this host are temporarily disabled"),
        "429": Fault(429, {"error": "rate limit exceeded"}, headers={"retry-after": "0"}),
        "429 later": Fault(429, {"error": "rate limit exceeded"}, headers={"retry-after": "600"}),
        "lease held": Fault(409, {"error": "failed to get lease: lease currently held by ann@example.com"}),
        "secrets lag": Fault(412, {"error": "min_secrets_version not yet available"}, operations=_CREATE),
        "manifest unknown": Fault(
            400, {"error": "failed to get manifest registry.fly.io: MANIFEST_UNKNOWN"}, operations=_CREATE
        ),
        "404 after create": Fault(404, {"error": "machine not found"}, operations=("get machine",)),
        "app not visible": Fault(404, {"error": "app not found"}, operations=("get app",)),
        "app unauthorized": Fault(401, {"error": "unauthorized"}, operations=("get app",)),
        "wait runs out": Fault(408, {"error": "deadline_exceeded"}, operations=("wait",)),
        "unauthorized": Fault(401, {"error": "unauthorized"}),
    }
    quirks = frozenset({"oom", "flat exit event", "lost exit event", "empty page", "error region", "destroyed record"})

    def __init__(
        self,
        folder: Path,
        *,
        builder: Sequence[str],
        builder_image: str,
        token: str = TOKEN,
        page: int = 1000,
        **options: Any,
    ) -> None:
        super().__init__(folder, **options)
        self.apps: dict[str, App] = {}
        self.foreign: set[str] = set()
        """Names of apps that belong to somebody else."""
        self.host: Host = Host(quirk=self.quirk, builder=builder, outfit=self.outfit)
        self.token = token
        self.builder_image = builder_image
        self._page = page
        self._authority = TokenAuthority([b"the imitation's key: 32 bytes long"])

    @property
    def service_url(self) -> str:
        """Template of a service's address."""
        return f"http://{{app}}.localhost:{self.edge_url.rpartition(':')[2]}"

    @property
    def machines(self) -> list[Machine]:
        """All machines that are still there."""
        return [m for a in self.apps.values() for m in a.machines.values() if not m.gone]

    @property
    def things(self) -> list[str]:
        """See ``Imitation``."""
        return [
            name
            for app in self.apps.values()
            for name in (
                f"app {app.name}",
                *(f"machine {m.name}" for m in app.machines.values() if not m.gone),
                *(f"address {ip['ip']} of {app.name}" for ip in app.ips),
                *(f"secret {secret} of {app.name}" for secret in app.secrets),
            )
        ]

    @property
    def programs(self) -> list[Running]:
        """See ``Imitation``."""
        return [m.running for m in self.host.started if m.running is not None and m.running.code is None]

    async def rest(self, speed: float) -> None:
        """Be the proxy that looks every few minutes (fly.md §6)."""
        await self.idle_pass(IDLE_SECONDS / speed)

    def routes(self) -> Sequence[BaseRoute]:
        """See ``Imitation``."""
        app, machine = "/v1/apps/{app}", "/v1/apps/{app}/machines/{id}"
        registry = create_registry(
            self.folder / "registry", self._authority, authenticate=self._push_user, max_image_bytes=2**30
        )
        return [
            self.route("create app", "POST", "/v1/apps", self.create_app),
            self.route("list apps", "GET", "/v1/apps", self.list_apps),
            self.route("get app", "GET", app, self.get_app),
            self.route("delete app", "DELETE", app, self.delete_app),
            self.route("list ips", "GET", f"{app}/ip_assignments", self.list_ips),
            self.route("assign ip", "POST", f"{app}/ip_assignments", self.assign_ip),
            self.route("list secrets", "GET", f"{app}/secrets", self.list_secrets),
            self.route("set secrets", "POST", f"{app}/secrets", self.set_secrets),
            self.route("list machines", "GET", f"{app}/machines", self.list_machines),
            self.route("create machine", "POST", f"{app}/machines", self.create_machine),
            self.route("get machine", "GET", machine, self.get_machine),
            self.route("delete machine", "DELETE", machine, self.delete_machine),
            self.route("wait", "GET", f"{machine}/wait", self.wait),
            self.route("start", "POST", f"{machine}/start", self.start),
            self.route("stop", "POST", f"{machine}/stop", self.stop),
            self.route("cordon", "POST", f"{machine}/cordon", self.cordon),
            self.route("uncordon", "POST", f"{machine}/uncordon", self.uncordon),
            self.route("list org machines", "GET", "/v1/orgs/{org}/machines", self.list_org),
            self.route("current token", "GET", "/v1/tokens/current", self.current_token),
            self.unchecked("logs", "GET", "/api/v1/apps/{app}/logs", self.logs),
            Mount("/v2", registry),
        ]

    # ------------------------------------------------------------------------------------------------- who asks

    def _enter(self, request: Request) -> None:
        """Check the token (fly.md §1 Auth); a macaroon may go as either scheme."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        schemes = {"Bearer", "FlyV1"} if self.token.startswith(("fm2_", "fm1r_", "fm1a_")) else {"Bearer"}
        if scheme not in schemes or token != self.token:
            raise Refused(401, {"error": "unauthorized"})

    def _app(self, request: Request) -> App:
        self._enter(request)
        name = request.path_params["app"]
        if name in self.foreign:
            raise Refused(403, {"error": "app belongs to another organization"})
        if name not in self.apps:
            raise Refused(404, {"error": f"app {name} not found"})
        return self.apps[name]

    def _machine(self, request: Request, *, gone: bool = False) -> Machine:
        machine = self._app(request).machines.get(request.path_params["id"])
        if machine is None or (machine.gone and not gone):
            raise Refused(404, {"error": "machine not found"})
        return machine

    async def _push_user(self, username: str, password: str) -> Grants | None:
        """Let the token push and pull in the repositories of its apps, which exist only once the app does (fly.md §7)."""
        if password != self.token or not username:
            return None
        return Grants("x", tuple(Scope(a, frozenset({"pull", "push", "delete"})) for a in self.apps))

    async def current_token(self, request: Request) -> Response:
        """fly.md §1 Token handling."""
        self._enter(request)
        return JSONResponse({"tokens": [{"org_slug": ORG, "apps": [], "token_id": "1"}]})

    # ------------------------------------------------------------------------------------------------- apps

    async def create_app(self, request: Request) -> Response:
        """fly.md §2, and §1 Idempotency."""
        self._enter(request)
        body = await request.json()
        name, key = body["name"], body.get("idempotency_key")
        known = next((a for a in self.apps.values() if key and a.key == key), None)
        if known is not None and known.name == name:
            return JSONResponse({"id": known.name, "created_at": 0}, 201)
        if known is not None or name in self.apps or name in self.foreign:
            raise Refused(422, {"error": "Name has already been taken", "status": "name_taken"})
        self.apps[name] = App(name, body.get("network") or "default", key, body["org_slug"])
        return JSONResponse({"id": name, "created_at": int(time.time())}, 201)

    def _app_json(self, app: App) -> dict[str, Any]:
        count = sum(not m.gone for m in app.machines.values())
        organization = {"name": app.org, "slug": app.org}
        return {
            "id": app.name,
            "name": app.name,
            "status": "deployed" if count else "pending",
            "network": app.network,
            "organization": organization,
            "machine_count": count,
            "volume_count": 0,
        }

    async def get_app(self, request: Request) -> Response:
        """fly.md §2."""
        return JSONResponse(self._app_json(self._app(request)))

    async def list_apps(self, request: Request) -> Response:
        """fly.md §1 Pagination."""
        self._enter(request)
        found = [a for a in self.apps.values() if a.org == request.query_params["org_slug"]]
        rows, cursor = self._paged(request, found)
        return JSONResponse({"apps": [self._app_json(a) for a in rows], "total_apps": len(found), **cursor})

    async def delete_app(self, request: Request) -> Response:
        """fly.md §2: destroys machines, addresses, secrets."""
        app = self._app(request)
        for machine in list(app.machines.values()):
            await self.host.destroy(machine)
        self.apps.pop(app.name, None)
        return Response(status_code=202)

    def _paged(self, request: Request, rows: Sequence[Any]) -> tuple[Sequence[Any], dict[str, str]]:
        """Cut out one page; "empty page" puts one without rows, and with more to come, in front (fly.md §1 Pagination)."""
        offset = int(request.query_params.get("cursor") or 0)
        if self.quirk("empty page"):
            return [], {"next_cursor": str(offset) if offset else "0"}
        end = offset + min(self._page, int(request.query_params.get("limit", 1000)))
        return rows[offset:end], {"next_cursor": str(end)} if end < len(rows) else {}

    # ------------------------------------------------------------------------------------------------- addresses, secrets

    async def list_ips(self, request: Request) -> Response:
        """fly.md §6.2."""
        return JSONResponse({"ips": self._app(request).ips})

    async def assign_ip(self, request: Request) -> Response:
        """fly.md §6.2."""
        app, kind = self._app(request), (await request.json())["type"]
        ip = f"fdaa::{len(app.ips) + 1}" if kind.endswith("v6") else f"66.241.124.{len(app.ips) + 1}"
        app.ips.append({"ip": ip, "region": "global", "shared": kind.startswith("shared"), "egress": False})
        return JSONResponse(app.ips[-1])

    async def list_secrets(self, request: Request) -> Response:
        """fly.md §5: names and digests, never values."""
        return JSONResponse({"secrets": [{"name": n, "digest": "0"} for n in self._app(request).secrets]})

    async def set_secrets(self, request: Request) -> Response:
        """fly.md §5: null deletes; each change has a version."""
        app = self._app(request)
        for name, value in (await request.json())["values"].items():
            if value is None:
                app.secrets.pop(name, None)
            else:
                app.secrets[name] = value
        app.secrets_version += 1
        return JSONResponse({"version": app.secrets_version, "secrets": [{"name": n} for n in app.secrets]})

    # ------------------------------------------------------------------------------------------------- machines

    async def create_machine(self, request: Request) -> Response:
        """fly.md §3: a name is unique within its app; what is pulled is pulled with the app's own rights (§7)."""
        app, body = self._app(request), await request.json()
        if any(m.name == body.get("name") and not m.gone for m in app.machines.values()):
            raise Refused(409, {"error": f"already_exists: unique machine name violation, {body['name']} exists"})
        if body.get("min_secrets_version", 0) > app.secrets_version:
            raise Refused(412, {"error": "min_secrets_version not yet available"})
        config = dict(body["config"])
        config["services"] = [{k: v for k, v in s.items() if k in _SERVICE} for s in config.get("services") or ()]
        machine = Machine(
            app=app,
            name=body.get("name") or "nameless",
            region=body.get("region") or "iad",
            config=config,
            secrets={} if body.get("skip_secrets") else dict(app.secrets),
            cordoned=bool(body.get("skip_service_registration")),
            program=await self._pull(config["image"]),
            cwd=self.folder / "machines",
        )
        machine.cwd /= machine.id
        app.machines[machine.id] = machine
        machine.event("launch", "created", "user")
        if not body.get("skip_launch"):
            self.host.begin(machine)
        return JSONResponse(self._json(machine))

    async def _pull(self, image: str) -> Program:
        """Take the builder's image as a name for the builder program, and every other from our own registry only (§7)."""
        if image == self.builder_image:
            return Program(tuple(self.host.builder), {})
        try:
            reference = parse_reference(image)
            if reference.host not in self.url:
                raise ImageNotFound(f"{reference.host} wants a credential, and there is no field for one")
            async with Registry(self.url, username="x", password=self.token) as registry:
                return await pull(registry, reference.repository, reference.digest, self.folder / "images")
        except (ImageNotFound, RegistryDenied) as e:
            raise Refused(400, {"error": f"failed to get manifest {image}: MANIFEST_UNKNOWN: {e}"}) from e
        except (ImageInvalid, ValueError) as e:
            raise Refused(400, {"error": f"invalid image: {e}"}) from e

    def _json(self, machine: Machine) -> dict[str, Any]:
        services = [
            s
            | ({"autostop": {"off": False, "stop": True}.get(s["autostop"], s["autostop"])} if "autostop" in s else {})
            for s in machine.config["services"]
        ]
        return {
            "id": machine.id,
            "name": machine.name,
            "state": machine.state,
            "region": machine.region,
            "version": machine.version,
            "instance_id": machine.version,
            "config": machine.config | {"services": services},
            "created_at": machine.created_at,
            "updated_at": machine.updated_at,
            "events": machine.events[:20],
            "checks": machine.checks,
            "host_status": "ok",
            "cordoned": machine.cordoned,
        }

    async def list_machines(self, request: Request) -> Response:
        """fly.md §3 Listing: filters of metadata are ANDed; the next page's cursor is in a header."""
        app = self._app(request)
        query = parse_qsl(request.scope["query_string"].decode())
        wanted = {k.removeprefix("metadata."): v for k, v in query if k.startswith("metadata.")}
        every = request.query_params.get("include_deleted") == "true"
        found = [
            m
            for m in app.machines.values()
            if (every or not m.gone) and wanted.items() <= m.config.get("metadata", {}).items()
        ]
        rows, cursor = self._paged(request, found)
        headers = {"fly-next-cursor": cursor["next_cursor"]} if cursor else {}
        return JSONResponse([self._json(m) for m in rows], headers=headers)

    async def get_machine(self, request: Request) -> Response:
        """fly.md §4.7: what is destroyed answers 404, or with its record."""
        return JSONResponse(self._json(self._machine(request, gone=self.quirk("destroyed record"))))

    async def delete_machine(self, request: Request) -> Response:
        """fly.md §3 Control: a running one only with force."""
        machine = self._machine(request)
        if machine.state == "started" and request.query_params.get("force") != "true":
            raise Refused(412, {"error": "failed_precondition: machine is running"})
        await self.host.destroy(machine)
        return Response(status_code=200)

    async def wait(self, request: Request) -> Response:
        """fly.md §3 Wait: at most 60 seconds, 408 when the state was not reached."""
        machine = self._machine(request)
        seconds = int(request.query_params.get("timeout", 60))
        if not 1 <= seconds <= 60:
            raise Refused(400, {"error": "invalid timeout: must be between 1 and 60 seconds"})
        states = frozenset(",".join(request.query_params.getlist("state") or ["started"]).split(","))
        if not await reached(machine, states, seconds):
            raise Refused(408, {"error": "deadline_exceeded: machine did not reach the state in time"})
        return JSONResponse({"ok": True, "state": machine.state, "version": machine.version, "event_id": ""})

    async def start(self, request: Request) -> Response:
        """fly.md §3 Control."""
        self.host.begin(self._machine(request))
        return Response(status_code=200)

    async def stop(self, request: Request) -> Response:
        """fly.md §3 Control: the body must be a JSON object."""
        machine = self._machine(request)
        try:
            body = await request.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise Refused(400, {"error": "invalid_argument: unable to decode body"})
        if machine.state in {"started", "starting"}:
            machine.requested = True  # what is still being started ends once it has been
            if machine.running is not None:
                await self.host.end(machine)
        return Response(status_code=200)

    async def cordon(self, request: Request) -> Response:
        """fly.md §6: takes it out of the proxy's routing."""
        self._machine(request).cordoned = True
        return Response(status_code=200)

    async def uncordon(self, request: Request) -> Response:
        """fly.md §6: puts it into the proxy's routing."""
        self._machine(request).cordoned = False
        return Response(status_code=200)

    async def list_org(self, request: Request) -> Response:
        """fly.md §1 Pagination, org sweep: an answer with error_regions is only a part."""
        self._enter(request)
        rows, cursor = self._paged(request, [m for m in self.machines if m.app.org == request.path_params["org"]])
        machines = [
            {
                "app_name": m.app.name,
                "id": m.id,
                "name": m.name,
                "region": m.region,
                "state": m.state,
                "version": m.version,
                "created_at": m.created_at,
                "updated_at": m.updated_at,
                "config": {"image": m.config["image"], "metadata": m.config.get("metadata", {})},
            }
            for m in rows
        ]
        regions = ["ams"] if self.quirk("error region") else []
        return JSONResponse({"machines": machines, "error_regions": regions, **cursor})

    async def logs(self, request: Request) -> Response:
        """fly.md §4 Logs: not part of the official contract."""
        app, wanted = self._app(request), request.query_params.get("instance")
        found = [m for m in app.machines.values() if wanted in {None, m.id}]
        data = [
            {
                "id": f"{m.id}-{i}",
                "attributes": {
                    "timestamp": line.at.isoformat(),
                    "message": line.text,
                    "level": "info",
                    "instance": m.id,
                },
            }
            for m in found
            for i, line in enumerate(m.lines)
        ]
        return JSONResponse({"data": data[-100:], "meta": {"next_token": str(time.time_ns())}})

    # ------------------------------------------------------------------------------------------------- the proxy

    async def pick(self, label: str) -> str | None:
        """Choose where a request goes, starting a stopped machine where that is allowed (fly.md §6)."""
        app = self.apps.get(label)
        if app is None or not app.ips:
            return None  # fly.md §6.2: without an address the name leads nowhere
        routed = [m for m in app.machines.values() if m.service and not m.cordoned and not m.gone]
        chosen = next((m for m in routed if m.healthy), None)
        if chosen is None:
            idle = [m for m in routed if m.service.get("autostart") and m.state in {"stopped", "starting", "started"}]
            if not idle:
                return None
            chosen = idle[0]
            self.host.begin(chosen)
            if not await self._healthy(chosen):
                return None
        chosen.used_at = time.monotonic()
        return f"http://127.0.0.1:{chosen.port}"

    async def _healthy(self, machine: Machine) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while not machine.healthy and time.monotonic() < deadline:
            if not await reached(machine, frozenset({"started", "starting"}), 0.01):
                return False
            await asyncio.sleep(POLL_SECONDS)
        return machine.healthy

    async def idle_pass(self, idle_seconds: float = 0.0) -> list[str]:
        """Look once, as the proxy does every few minutes: stop at most one machine per app and region (fly.md §6).

        Only what says ``autostop`` is stopped, and never below ``min_machines_running``. Returns the names.
        """
        stopped: dict[tuple[str, str], str] = {}
        for machine in self.machines:
            service, at = machine.service, (machine.app.name, machine.region)
            up = sum(m.state == "started" and not m.cordoned for m in machine.app.machines.values())
            wanted = service.get("autostop") not in {None, False, "off"} and not machine.cordoned
            quiet = time.monotonic() - machine.used_at >= idle_seconds and not self.edge.busy[machine.app.name]
            spare = up > service.get("min_machines_running", 0)
            if machine.state == "started" and wanted and quiet and spare and at not in stopped:
                stopped[at] = machine.name
                await self.host.end(machine)
        return list(stopped.values())

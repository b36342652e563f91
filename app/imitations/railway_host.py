"""The deployments of the Railway imitation: state, and the programs that really run behind it.

What differs from the real thing: programs share this host's loopback, so each start gets a free ``PORT``; sizes are not
enforced; an old deployment ends as soon as the new one serves, without overlap.
"""
# Over 250 lines: what a deployment is and what may become of it are one thing.

import asyncio
import os
import re
import secrets
import signal
import socket
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from app.imitations.base import Refused
from app.imitations.programs import LINES, Line, Program, Running, start

CHECK_SECONDS = 0.01
RESTART_SECONDS = 0.01
PENDING = frozenset({"QUEUED", "WAITING", "NEEDS_APPROVAL", "INITIALIZING", "BUILDING"})
OVER = frozenset({"CRASHED", "FAILED", "SKIPPED", "REMOVED"})
Pull = Callable[["Service", str], Awaitable[Program]]


def now() -> str:
    """Return the time as the API writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def new_id() -> str:
    """Return an id as the API makes them."""
    return str(uuid.uuid4())


@dataclass
class Service:
    """One service in its project's one environment (railway.md §2): the configuration that the next deployment takes."""

    name: str
    project: str
    environment: str
    id: str = field(default_factory=new_id)
    created_at: str = field(default_factory=now)
    config: dict[str, Any] = field(default_factory=lambda: {"restartPolicyType": "ON_FAILURE"})
    variables: dict[str, str] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    domains: list[dict[str, Any]] = field(default_factory=list)
    deployments: list["Deployment"] = field(default_factory=list)

    @property
    def image(self) -> str | None:
        """The configured image."""
        image: str | None = (self.config.get("source") or {}).get("image")
        return image

    @property
    def active(self) -> list["Deployment"]:
        """Deployments that serve."""
        return [d for d in self.deployments if d.status in {"SUCCESS", "SLEEPING"} and not d.stopped]


@dataclass
class Deployment:
    """One attempt to run the configuration and the variables of its time (railway.md §3 Status reads)."""

    service: Service
    image: str
    config: dict[str, Any]
    variables: dict[str, str]
    cwd: Path
    id: str = field(default_factory=new_id)
    created_at: str = field(default_factory=now)
    status: str = "INITIALIZING"
    stopped: bool = False
    served: bool = False
    instance: str = ""
    instance_status: str = ""
    starts: int = 0
    used_at: float = field(default_factory=time.monotonic)
    port: int = 0
    asked_to_end: bool = False
    lines: deque[Line] = field(default_factory=lambda: deque(maxlen=LINES))
    events: list[dict[str, Any]] = field(default_factory=list)
    program: Program | None = None
    running: Running | None = None
    task: "asyncio.Task[None] | None" = None

    def event(self, step: str, error: str | None) -> None:
        """Write an event."""
        payload = {"error": error, "reason": None, "detail": None}
        self.events.append({"step": step, "createdAt": now(), "completedAt": now(), "payload": payload})

    def json(self) -> dict[str, Any]:
        """Return what a query may select of it."""
        instances = [{"id": self.instance, "status": self.instance_status}] if self.instance else []
        return {
            "id": self.id,
            "status": self.status,
            "deploymentStopped": self.stopped,
            "createdAt": self.created_at,
            "meta": {"image": self.image},
            "canRollback": self.served,
            "instances": instances,
        }


@dataclass(kw_only=True)
class Host:
    """Runs deployments. ``released`` is set unless starts are held back.

    ``outfit`` adds what the builder image brings to a builder's environment.
    """

    pull: Pull
    services: Mapping[str, Service]
    outfit: Callable[[Mapping[str, str]], dict[str, str]]
    released: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: "set[asyncio.Task[None]]" = field(default_factory=set)
    started: list[Deployment] = field(default_factory=list)

    def begin(self, deployment: Deployment) -> None:
        """Start a deployment's life."""
        deployment.task = asyncio.create_task(self._live(deployment), name=f"deployment {deployment.id}")
        self.tasks.add(deployment.task)
        deployment.task.add_done_callback(self.tasks.discard)

    async def end(self, deployment: Deployment, status: str | None = None) -> None:
        """Stop a deployment, with SIGTERM and at once SIGKILL, as there is no grace by default (railway.md §4 Facts)."""
        deployment.asked_to_end = True
        if deployment.task is not None and deployment.running is None:
            deployment.task.cancel()
        if deployment.running is not None:
            await deployment.running.stop(signal.SIGKILL)
        if deployment.task is not None:
            await asyncio.gather(deployment.task, return_exceptions=True)
        deployment.stopped = True
        deployment.instance_status = "STOPPED" if deployment.instance else ""
        deployment.status = status or deployment.status

    async def aclose(self) -> None:
        """End all that runs."""
        for deployment in list(self.started):
            deployment.asked_to_end = True
            if deployment.running is not None:
                await deployment.running.stop(signal.SIGKILL)
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def wake(self, deployment: Deployment) -> None:
        """Start a sleeping deployment again (railway.md §5.3), on a host that has no image of it."""
        deployment.status, deployment.program = "DEPLOYING", None
        self.begin(deployment)

    async def sleep(self, deployment: Deployment) -> None:
        """Put a deployment to sleep: no process, still healthy."""
        await self.end(deployment, "SLEEPING")
        deployment.stopped, deployment.asked_to_end, deployment.instance_status = False, False, "EXITED"

    async def _live(self, deployment: Deployment) -> None:
        await self.released.wait()
        if deployment.program is None:
            try:
                deployment.program = await self.pull(deployment.service, deployment.image)
            except Refused as e:
                # railway.md §4.7: nothing ran, so the log is empty; the events tell.
                deployment.event("CREATE_CONTAINER", str(e.body))
                deployment.status, deployment.stopped = "FAILED", True
                return
        deployment.status = "DEPLOYING"
        policy = deployment.config["restartPolicyType"]
        left = {"NEVER": 0, "ON_FAILURE": deployment.config.get("restartPolicyMaxRetries", 10)}.get(policy, 1_000_000)
        while True:
            await self._run_once(deployment)
            assert deployment.running is not None
            code = deployment.running.code or 0
            if deployment.asked_to_end:
                return
            if left <= 0 or (code == 0 and policy != "ALWAYS"):
                break
            left -= 1
            deployment.instance_status = "RESTARTING"
            await asyncio.sleep(RESTART_SECONDS)
        # railway.md §4 Facts: no exit code, but a status for each of the two ends.
        deployment.stopped = True
        deployment.instance_status = "EXITED" if code == 0 else "CRASHED"
        deployment.status = "SUCCESS" if code == 0 else "CRASHED"

    async def _run_once(self, deployment: Deployment) -> None:
        assert deployment.program is not None
        deployment.instance, deployment.instance_status = new_id(), "INITIALIZING"
        deployment.port = _free_port()
        await asyncio.to_thread((deployment.cwd / "work").mkdir, parents=True, exist_ok=True)
        deployment.running = await start(
            deployment.program.argv, self._environment(deployment), deployment.cwd, deployment.lines
        )
        deployment.starts += 1
        self.started.append(deployment)
        deployment.instance_status = "RUNNING"
        check = asyncio.create_task(self._check(deployment))
        await deployment.running.ended.wait()
        check.cancel()
        await asyncio.gather(check, return_exceptions=True)
        self.started.remove(deployment)

    def _environment(self, deployment: Deployment) -> dict[str, str]:
        service = deployment.service
        env = {
            "PATH": os.defpath,
            "HOME": str(deployment.cwd),
            **(deployment.program.env if deployment.program else {}),
        }
        env |= {n: self._render(service, v) for n, v in deployment.variables.items()}
        env |= {"RAILWAY_PROJECT_ID": service.project, "RAILWAY_ENVIRONMENT_ID": service.environment}
        env |= {"RAILWAY_SERVICE_ID": service.id, "RAILWAY_DEPLOYMENT_ID": deployment.id}
        env |= {"RAILWAY_REPLICA_ID": deployment.instance, "PORT": str(deployment.port)}
        if deployment.config["restartPolicyType"] == "NEVER":  # a builder: whatever serves is started again
            env = self.outfit(env) | {"SLIPWAY_WORK": str(deployment.cwd / "work")}
        return env

    def _render(self, service: Service, value: str) -> str:
        """Expand references, also those to other services of the project (railway.md §4.2)."""

        def found(match: re.Match[str]) -> str:
            owner, _, name = match[1].strip().rpartition(".")
            near = [s for s in self.services.values() if s.project == service.project]
            source = next((s for s in near if s.name == owner), None) if owner else service
            return source.variables.get(name, "") if source else ""

        return re.sub(r"\$\{\{(.*?)\}\}", found, value)

    async def _check(self, deployment: Deployment) -> None:
        """Hold the deployment back until its health check answers exactly 200 (railway.md §5.4), then let it serve."""
        path = deployment.config.get("healthcheckPath")
        end = datetime.now(UTC) + timedelta(seconds=deployment.config.get("healthcheckTimeout") or 300)
        async with httpx.AsyncClient(timeout=1.0, trust_env=False, verify=False) as client:  # noqa: S501 - plain http
            while path and not await _healthy(client, f"http://127.0.0.1:{deployment.port}{path}"):
                if datetime.now(UTC) > end:
                    deployment.event("HEALTHCHECK", "service unavailable")
                    deployment.asked_to_end, deployment.stopped, deployment.status = True, True, "FAILED"
                    assert deployment.running is not None
                    await deployment.running.stop(signal.SIGKILL)
                    return
                await asyncio.sleep(CHECK_SECONDS)
        deployment.status, deployment.served = "SUCCESS", True
        deployment.used_at = time.monotonic()
        for old in deployment.service.deployments:
            if old is not deployment and old.status not in OVER and old.created_at <= deployment.created_at:
                await self.end(old, "REMOVED")


async def _healthy(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).status_code == 200
    except httpx.HTTPError:
        return False


def domain_of(service: Service) -> str:
    """Return a fresh public host name."""
    return f"{service.name}-{secrets.token_hex(2)}.up.railway.app"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

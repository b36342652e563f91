"""The services of the Koyeb imitation: state, and the programs that really run behind it (sections are koyeb.md's).

A service of the builder image runs the builder program; every other image is pulled with the credential that its definition
names. What differs from the real thing: programs share this host's loopback, so each start gets a free ``PORT``; sizes are not
enforced; waits are milliseconds.
"""
# Over 250 lines: what a deployment is and what may become of it are one thing.

import asyncio
import contextlib
import os
import re
import signal
import socket
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from app.images.errors import RegistryError
from app.imitations.programs import LINES, Line, Program, Running, start

CHECK_SECONDS = 0.02
RESTART_SECONDS = 0.05
OPEN = frozenset({"PENDING", "PROVISIONING", "SCHEDULED", "ALLOCATING", "STARTING"})
_EXPANDED = re.compile(r"\{\{\s*(secret\.)?([\w.-]+)\s*\}\}")


def now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def new_id() -> str:
    """Return an id in the form that Koyeb's have."""
    return str(uuid.uuid4())


@dataclass(eq=False)
class Instance:
    """One start of a program."""

    region: str
    id: str = field(default_factory=new_id)
    status: str = "ALLOCATING"
    created_at: datetime = field(default_factory=now)
    messages: list[str] = field(default_factory=list)
    lines: deque[Line] = field(default_factory=lambda: deque(maxlen=LINES))
    starting: "asyncio.Task[Running] | None" = None
    running: Running | None = None
    port: int = 0


@dataclass(eq=False)
class Deployment:
    """One rollout. ``said`` is what the platform itself writes into the log."""

    service: "Service"
    definition: dict[str, Any]
    id: str = field(default_factory=new_id)
    status: str = "PENDING"
    created_at: datetime = field(default_factory=now)
    messages: list[str] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)
    said: list[Line] = field(default_factory=list)
    program: Program | None = None
    resumed: bool = False
    ending: bool = False
    used_at: float = field(default_factory=time.monotonic)
    task: "asyncio.Task[None] | None" = None

    @property
    def serving(self) -> Instance | None:
        """The instance that requests may go to."""
        return next((i for i in self.instances if i.status == "HEALTHY"), None)


@dataclass(eq=False)
class Service:
    """A service: its status is that of what serves."""

    app: "App"
    name: str
    kind: str
    life_cycle: dict[str, int]
    id: str = field(default_factory=new_id)
    status: str = "STARTING"
    created_at: datetime = field(default_factory=now)
    deployments: list[Deployment] = field(default_factory=list)
    active: Deployment | None = None

    @property
    def latest(self) -> Deployment:
        """What was asked for last."""
        return self.deployments[-1]


@dataclass(eq=False)
class App:
    """An app with the one domain that it was given."""

    name: str
    domain: str
    delete_when_empty: bool
    id: str = field(default_factory=new_id)
    created_at: datetime = field(default_factory=now)
    services: dict[str, Service] = field(default_factory=dict)


@dataclass(kw_only=True)
class Host:
    """Rolls deployments out and ends them. ``secrets`` are values by name, for references and expansion.

    ``outfit`` adds what the builder image brings to a builder's environment.
    """

    folder: Path
    pull: Callable[[dict[str, Any]], Awaitable[Program]]
    secrets: Callable[[str], str | None]
    outfit: Callable[[Mapping[str, str]], dict[str, str]]
    health_seconds: float
    released: asyncio.Event = field(default_factory=asyncio.Event)
    """Set unless starts are held back (slow start)."""
    tasks: "set[asyncio.Task[Any]]" = field(default_factory=set)
    starting: "set[asyncio.Task[Running]]" = field(default_factory=set)
    alive: list[Running] = field(default_factory=list)
    crashes: list[BaseException] = field(default_factory=list)
    """What went wrong in here, raised at the end: a stand-in that breaks proves nothing."""

    def spawn(self, work: "Any", name: str) -> "asyncio.Task[Any]":
        """Run something beside."""
        task = asyncio.create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.crashes.append(error)

    def begin(self, deployment: Deployment) -> None:
        """Start a rollout."""
        deployment.service.deployments.append(deployment)
        deployment.task = self.spawn(self._roll_out(deployment), f"deployment {deployment.id}")

    async def end(self, deployment: Deployment, status: str = "STOPPED") -> None:
        """Stop a deployment's program; returns when it is over."""
        deployment.ending = True
        if deployment.status not in {"ERROR", "CANCELED", "STOPPED"}:
            deployment.status = "STOPPING" if status == "STOPPED" else "CANCELING"
        task = deployment.task
        for instance in deployment.instances:
            if instance.running is not None and instance.running.code is None:
                await instance.running.stop(signal.SIGTERM, 3.0)
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for instance in deployment.instances:
            if instance.starting is not None:
                instance.running = await instance.starting
            if instance.running is not None and instance.running.code is None:
                await instance.running.stop(signal.SIGKILL)
            if instance.status != "ERROR":
                instance.status = "STOPPED"
        if deployment.status not in {"ERROR", "CANCELED"}:
            deployment.status = status

    async def aclose(self) -> None:
        """End all that runs; raises what went wrong in the stand-in itself."""
        half = set(self.starting)
        for task in self.tasks - half:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.alive += [task.result() for task in half]
        await asyncio.gather(*(r.stop(signal.SIGKILL) for r in self.alive if r.code is None))
        if self.crashes:
            raise self.crashes[0]

    async def _roll_out(self, deployment: Deployment, status: str = "PROVISIONING") -> None:
        deployment.status = status
        try:
            deployment.program = await self.pull(deployment.definition)
        except (RegistryError, ValueError) as e:
            self.fail(deployment, f"image pull failed: {e}")
            return
        await self.released.wait()
        await self.live(deployment)

    def fail(self, deployment: Deployment, message: str) -> None:
        """End a rollout badly; what served before goes on, and the service keeps saying that all is well (§2)."""
        deployment.status = "ERROR"
        deployment.messages.append(message)
        deployment.said.append(Line(now(), message))
        if deployment.service.active is None or deployment.service.active is deployment:
            deployment.service.status = "UNHEALTHY"

    async def live(self, deployment: Deployment) -> None:
        """Run instance after instance: whatever ends is started again, whatever its code was (§3)."""
        limit = deployment.definition["health_checks"][0]["restart_limit"] if _checked(deployment) else None
        ends = 0
        while True:
            if deployment.status != "HEALTHY":
                deployment.status = "STARTING"
            instance = Instance(deployment.definition["regions"][0])
            deployment.instances.append(instance)
            check = asyncio.create_task(self._start(deployment, instance))
            try:
                await check
                assert instance.running is not None
                if instance.status == "HEALTHY" or instance.running.code is not None:
                    await instance.running.ended.wait()
            finally:
                check.cancel()
                await asyncio.gather(check, return_exceptions=True)
            if deployment.ending:
                return
            if instance.running.code is None:
                await instance.running.stop(signal.SIGKILL)
                instance.status = "ERROR"
                self.fail(deployment, "health checks failed: nothing answers on the port")
                return
            instance.status = "STOPPED"
            instance.messages.append("instance terminated")
            ends += 1
            if limit is not None and ends > limit:
                self.fail(deployment, "instances keep ending")
                return
            await asyncio.sleep(RESTART_SECONDS)

    async def _start(self, deployment: Deployment, instance: Instance) -> None:
        assert deployment.program is not None
        instance.port = _free_port()
        cwd = self.folder / instance.id
        await asyncio.to_thread((cwd / "work").mkdir, parents=True, exist_ok=True)
        instance.status = "STARTING"
        env = self._env(deployment, instance, cwd)
        deployment.said.append(Line(now(), "instance allocated"))
        starting: asyncio.Task[Running] = self.spawn(
            start(deployment.program.argv, env, cwd, instance.lines), f"start {instance.id}"
        )
        instance.starting = starting
        self.starting.add(starting)
        # Never cut short: half of a start is a program that nobody knows of.
        running = instance.running = await asyncio.shield(starting)
        self.starting.discard(starting)
        self.alive.append(running)
        if _checked(deployment) and not await self._answers(deployment, instance):
            return
        if running.code is None:
            instance.status = "HEALTHY"
            self._serve(deployment)

    def _serve(self, deployment: Deployment) -> None:
        """Move the traffic over, and end what served before."""
        service, old = deployment.service, deployment.service.active
        deployment.status = "HEALTHY"
        service.status = service.status if service.status == "DELETING" else "HEALTHY"
        deployment.used_at = time.monotonic()
        service.active = deployment
        if old is not None and old is not deployment:
            self.spawn(self.end(old), f"superseded {old.id}")

    def _env(self, deployment: Deployment, instance: Instance, cwd: Path) -> dict[str, str]:
        service = deployment.service
        injected = {
            "KOYEB_APP_NAME": service.app.name,
            "KOYEB_SERVICE_ID": service.id,
            "KOYEB_SERVICE_NAME": service.name,
            "KOYEB_INSTANCE_ID": instance.id,
            "KOYEB_REGION": instance.region,
        }
        assert deployment.program is not None
        env = {"PATH": os.defpath, "HOME": str(cwd), **deployment.program.env, **injected}
        for one in deployment.definition.get("env", []):
            name = one.get("secret")
            env[one["key"]] = (self.secrets(name) or "") if name else self._expand(one.get("value", ""), injected)
        if service.kind == "WORKER":
            return self.outfit(env) | {"SLIPWAY_WORK": str(cwd / "work")}
        return env | {"PORT": str(instance.port)}

    def _expand(self, value: str, injected: Mapping[str, str]) -> str:
        """Put in what ``{{ NAME }}`` and ``{{ secret.NAME }}`` stand for, anybody's secret of the organisation (§4)."""
        return _EXPANDED.sub(lambda m: (self.secrets(m[2]) if m[1] else injected.get(m[2])) or "", value)

    async def _answers(self, deployment: Deployment, instance: Instance) -> bool:
        """Ask for the health path until it answers well, the program ends, or time is up."""
        path = deployment.definition["health_checks"][0]["http"]["path"]
        url, until = f"http://127.0.0.1:{instance.port}{path}", time.monotonic() + self.health_seconds
        assert instance.running is not None
        async with httpx.AsyncClient(timeout=1.0, trust_env=False, verify=False) as client:  # noqa: S501 - plain http
            while instance.running.code is None and time.monotonic() < until:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(url)).is_success:
                        return True
                await asyncio.sleep(CHECK_SECONDS)
        return False

    async def sleep(self, deployment: Deployment) -> None:
        """Release a deployment's instances; the service goes on saying HEALTHY (§5)."""
        await self.end(deployment, "SLEEPING")
        deployment.ending = False
        deployment.instances[-1].status = "SLEEPING"

    async def wake(self, deployment: Deployment, seconds: float) -> Instance | None:
        """Start a sleeping deployment again and wait until it answers; the request waits at the edge (§5).

        Its image is pulled again, as on a host that has none of it.
        """
        if deployment.status == "SLEEPING":
            deployment.status = "STARTING"
            deployment.task = self.spawn(self._roll_out(deployment, "STARTING"), f"wake {deployment.id}")
        until = time.monotonic() + seconds
        while deployment.serving is None and time.monotonic() < until and deployment.status in OPEN:  # noqa: ASYNC110
            await asyncio.sleep(CHECK_SECONDS)
        return deployment.serving


def _checked(deployment: Deployment) -> Sequence[Any]:
    """Return the health checks; a service without any is healthy once its process is up."""
    found: Sequence[Any] = deployment.definition.get("health_checks") or ()
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

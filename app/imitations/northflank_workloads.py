"""What runs on the Northflank imitation: runs of jobs and instances of services, as real programs.

What differs from the real thing: programs share this host's loopback, so each start gets a free ``PORT``; sizes are not enforced.
"""
# Over 250 lines: what runs there and what may become of it are one thing.

import asyncio
import contextlib
import os
import signal
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.imitations.programs import LINES, Line, Program, Running, start

CHECK_SECONDS = 0.01
BACK_OFF = (0.02, 0.1, 0.5, 1.0)


def now() -> str:
    """Return the time as the API writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@dataclass
class Container:
    """One instance, or one attempt of a run (northflank.md §3); ``port`` is where its program was told to listen."""

    name: str
    status: str = "TASK_STAGING"
    created: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)
    port: int = 0
    ready: bool = False
    running: Running | None = None

    def move(self, status: str) -> None:
        """Change the status."""
        self.status, self.updated = status, time.time()

    def json(self) -> dict[str, Any]:
        """Return it as the API writes it: times in whole Unix seconds."""
        times = {"createdAt": int(self.created), "updatedAt": int(self.updated)}
        return {"name": self.name, "status": self.status, **times}


@dataclass
class Run:
    """One run of a job."""

    job: "Job"
    program: Program | None
    env: Mapping[str, str]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: str = "RUNNING"
    started: str = field(default_factory=now)
    concluded: str | None = None
    attempts: int = 0
    aborted: bool = False
    container: Container | None = None
    lines: deque[Line] = field(default_factory=lambda: deque(maxlen=LINES))
    task: "asyncio.Task[None] | None" = None

    def conclude(self, status: str) -> None:
        """End it."""
        self.status, self.concluded = status, now()


@dataclass
class Job:
    """One job: its definition, and its runs, newest first."""

    id: str
    body: dict[str, Any]
    runs: list[Run] = field(default_factory=list)


@dataclass
class Service:
    """One deployment service. ``pausing`` and ``leaving`` count the looks until a pause or a deletion is done."""

    id: str
    body: dict[str, Any]
    program: Program
    env: Callable[[], Mapping[str, str]]
    paused: bool = False
    pausing: int = 0
    leaving: int | None = None
    rollout: str = "PENDING"
    transition: str = field(default_factory=now)
    created: str = field(default_factory=now)
    containers: list[Container] = field(default_factory=list)
    lines: deque[Line] = field(default_factory=lambda: deque(maxlen=LINES))
    task: "asyncio.Task[None] | None" = None

    @property
    def instances(self) -> int:
        """How many are asked for."""
        return 0 if self.paused else int(self.body["deployment"]["instances"])

    @property
    def ready(self) -> Container | None:
        """The instance that takes requests."""
        return next((c for c in self.containers if c.ready), None)

    @property
    def port(self) -> int:
        """The port that it promised to listen on."""
        return int(self.body["ports"][0]["internalPort"])

    def moved(self, rollout: str) -> None:
        """Change the rollout's status."""
        if self.rollout != rollout:
            self.rollout, self.transition = rollout, now()


@dataclass(kw_only=True)
class Host:
    """Starts and ends programs. ``released`` is set unless starts are held back (slow start).

    ``outfit`` adds what the builder image brings to a builder's environment.
    """

    folder: Path
    outfit: Callable[[Mapping[str, str]], dict[str, str]]
    released: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: "set[asyncio.Task[None]]" = field(default_factory=set)
    live: list[Running] = field(default_factory=list)

    def _spawn(self, work: Any, name: str) -> "asyncio.Task[None]":
        task = asyncio.create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def aclose(self) -> None:
        """End all that runs."""
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.gather(*(running.stop(signal.SIGKILL) for running in list(self.live)))

    async def _start(
        self, container: Container, program: Program, env: Mapping[str, str], lines: deque[Line]
    ) -> Running:
        await self.released.wait()
        container.move("TASK_STARTING")
        cwd = self.folder / container.name
        await asyncio.to_thread(cwd.mkdir, parents=True, exist_ok=True)
        basic = {"PATH": os.defpath, "HOME": str(cwd), **program.env}
        container.running = await start(program.argv, {**basic, **env, "HOSTNAME": container.name}, cwd, lines)
        self.live.append(container.running)
        container.move("TASK_RUNNING")
        return container.running

    # ------------------------------------------------------------------------------------------------- jobs

    def run(self, run: Run) -> None:
        """Start a run."""
        run.task = self._spawn(self._run(run), f"run {run.id}")

    async def abort(self, run: Run) -> None:
        """End a run."""
        run.aborted = True
        if run.container is not None and run.container.running is not None:
            run.container.move("TASK_KILLING")
            await run.container.running.stop(signal.SIGTERM)
        if run.task is not None:
            run.task.cancel()
            await asyncio.gather(run.task, return_exceptions=True)
        if run.concluded is None:
            run.conclude("FAILED")

    async def _run(self, run: Run) -> None:
        settings = run.job.body.get("settings") or {}
        deadline, retries = settings.get("activeDeadlineSeconds"), settings.get("backoffLimit", 3)
        try:
            async with asyncio.timeout(deadline):
                while True:
                    if await self._attempt(run) == 0:
                        run.conclude("SUCCESS")
                        return
                    if run.aborted or run.attempts > retries:
                        break
        except TimeoutError:  # northflank.md §3: the deadline beats the limit of attempts
            container = run.container
            if container is not None and container.running is not None:
                await container.running.stop(signal.SIGKILL)
                container.move("TASK_KILLED")
        run.conclude("FAILED")

    async def _attempt(self, run: Run) -> int | None:
        container = run.container = Container(f"{run.job.id}-{run.id[:8]}-{run.attempts}")
        run.attempts += 1
        if run.program is None:  # northflank.md §3: of an image that can't be pulled nothing is told
            await asyncio.Event().wait()
        assert run.program is not None
        work = self.folder / container.name / "work"
        await asyncio.to_thread(work.mkdir, parents=True, exist_ok=True)
        env = self.outfit(run.env) | {"SLIPWAY_WORK": str(work)}
        running = await self._start(container, run.program, env, run.lines)
        await running.ended.wait()
        self.live.remove(running)
        container.move("TASK_FINISHED" if running.code == 0 else "TASK_FAILED")
        return running.code

    # ------------------------------------------------------------------------------------------------- services

    def keep(self, service: Service) -> None:
        """Bring a service to what is asked of it: one instance or none."""
        if service.instances and (service.task is None or service.task.done()):
            service.task = self._spawn(self._serve(service), f"service {service.id}")

    async def halt(self, service: Service) -> None:
        """End a service's instance; its rollout's status stays what it was (northflank.md §4 Status)."""
        if service.task is not None:
            service.task.cancel()
            await asyncio.gather(service.task, return_exceptions=True)
        for container in service.containers:
            running = container.running
            if running is not None and running.code is None:
                container.ready = False
                container.move("TASK_KILLING")
                await running.stop(signal.SIGTERM, 1.0)
                self.live.remove(running)
                container.move("TASK_KILLED")
            elif container.status in {"TASK_STAGING", "TASK_STARTING"}:
                container.move("TASK_KILLED")

    async def _serve(self, service: Service) -> None:
        tries = 0
        while True:
            container = Container(f"{service.id}-{uuid.uuid4().hex[:10]}")
            service.containers.append(container)
            container.port = _free_port()
            running = await self._start(
                container, service.program, {**service.env(), "PORT": str(container.port)}, service.lines
            )
            check = asyncio.create_task(self._ready(service, container))
            try:
                await running.ended.wait()
            finally:
                check.cancel()
                await asyncio.gather(check, return_exceptions=True)
            container.ready = False
            self.live.remove(running)
            container.move("TASK_FAILED")
            service.moved("IN_PROGRESS")
            await asyncio.sleep(BACK_OFF[min(tries, len(BACK_OFF) - 1)])
            tries += 1

    async def _ready(self, service: Service, container: Container) -> None:
        """Be the readiness probe."""
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", container.port)
                writer.close()
                await writer.wait_closed()
                break
            await asyncio.sleep(CHECK_SECONDS)
        container.ready = True
        service.moved("COMPLETED")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

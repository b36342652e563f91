"""The machines of the Fly imitation: state, and the programs that really run behind it.

Over 250 lines: what a machine is and what may become of it are one thing.

A machine of the builder image runs the builder program; every other image is pulled from the imitation's own registry.
What differs from the real thing: programs share this host's loopback, so each start gets a free ``PORT``; sizes are not enforced.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from app.imitations.programs import LINES, Line, Program, Running, start

CHECK_SECONDS = 0.02
RESTART_SECONDS = 0.02


def now() -> str:
    """Return the time as the API writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@dataclass
class App:
    """One app: a name that is the only one on all of Fly, addresses, secrets, machines."""

    name: str
    network: str
    key: str | None
    org: str
    ips: list[dict[str, Any]] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict)
    secrets_version: int = 0
    machines: dict[str, "Machine"] = field(default_factory=dict)


@dataclass
class Machine:
    """One machine; ``events`` newest first (fly.md §3 Events)."""

    app: App
    name: str
    region: str
    config: dict[str, Any]
    secrets: dict[str, str]
    cordoned: bool
    program: Program
    cwd: Path
    id: str = field(default_factory=lambda: secrets.token_hex(7))
    version: str = field(default_factory=lambda: secrets.token_hex(13).upper())
    state: str = "created"
    created_at: str = field(default_factory=now)
    updated_at: str = field(default_factory=now)
    events: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    lines: deque[Line] = field(default_factory=lambda: deque(maxlen=LINES))
    running: Running | None = None
    port: int = 0
    starts: int = 0
    requested: bool = False
    starved: bool = False
    busy: int = 0
    used_at: float = field(default_factory=time.monotonic)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None

    @property
    def gone(self) -> bool:
        """Whether only its record is left."""
        return self.state == "destroyed"

    @property
    def service(self) -> Mapping[str, Any]:
        """The first service block, empty when it has none."""
        return next(iter(self.config.get("services") or ()), {})

    @property
    def healthy(self) -> bool:
        """Whether the proxy may send it requests."""
        return self.state == "started" and all(c["status"] == "passing" for c in self.checks)

    def move(self, state: str) -> None:
        """Change the state and tell whoever waits for it."""
        self.state, self.updated_at = state, now()
        self.changed.set()
        self.changed = asyncio.Event()

    def event(self, kind: str, status: str, source: str = "flyd", request: dict[str, Any] | None = None) -> None:
        """Write an event."""
        one = {"id": f"01{time.time_ns():022X}{len(self.events):02X}", "type": kind, "status": status, "source": source}
        stamp: dict[str, Any] = {"timestamp": time.time_ns() // 1_000_000}
        self.events.insert(0, one | stamp | ({"request": request} if request else {}))


@dataclass(kw_only=True)
class Host:
    """Starts and ends machines. ``quirk`` tells whether to misbehave; ``builder`` is the builder program's command.

    ``outfit`` adds what the builder image brings to a builder's environment.
    """

    quirk: Callable[[str], bool]
    builder: Sequence[str]
    outfit: Callable[[Mapping[str, str]], dict[str, str]]
    released: asyncio.Event = field(default_factory=asyncio.Event)
    """Set unless starts are held back (slow start)."""
    tasks: "set[asyncio.Task[None]]" = field(default_factory=set)
    started: list[Machine] = field(default_factory=list)

    def begin(self, machine: Machine) -> None:
        """Start a machine that isn't running; starting one that is changes nothing."""
        if machine.task is not None and not machine.task.done():
            return
        machine.requested = False
        machine.move("starting")
        machine.task = asyncio.create_task(self._live(machine), name=f"machine {machine.id}")
        self.tasks.add(machine.task)
        machine.task.add_done_callback(self.tasks.discard)

    async def end(self, machine: Machine, number: int = signal.SIGINT, grace: float = 5.0) -> None:
        """Stop a machine's program as asked by its owner; returns when it is over."""
        machine.requested = True
        if machine.running is not None:
            await machine.running.stop(number, grace)
        if machine.task is not None:
            await asyncio.gather(machine.task, return_exceptions=True)

    async def destroy(self, machine: Machine) -> None:
        """Kill it and leave only its record."""
        if machine.gone:
            return
        machine.move("destroying")
        await self.end(machine, signal.SIGKILL)
        machine.move("destroyed")

    async def aclose(self) -> None:
        """End all that runs."""
        for machine in list(self.started):
            machine.requested = True
            if machine.running is not None:
                await machine.running.stop(signal.SIGKILL)
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _live(self, machine: Machine) -> None:
        """Run the program, again after a failure as the restart policy says (fly.md §3 config.restart)."""
        policy = machine.config.get("restart") or {}
        left = policy.get("max_retries", 10) if policy.get("policy", "on-failure") == "on-failure" else 0
        while await self._run_once(machine):
            assert machine.running is not None
            failed = machine.running.code != 0
            again = not machine.requested and failed and left > 0
            self._ended(machine, again=again)
            if not again:
                break
            left -= 1
            machine.move("starting")
            await asyncio.sleep(RESTART_SECONDS)
        if machine.state == "destroying":
            return
        # fly.md §4.7: with auto_destroy it is gone as soon as its process is.
        machine.move("destroyed" if machine.config.get("auto_destroy") else "stopped")

    async def _run_once(self, machine: Machine) -> bool:
        await self.released.wait()
        if machine.requested:
            return False
        machine.port = _free_port()
        await asyncio.to_thread((machine.cwd / "work").mkdir, parents=True, exist_ok=True)
        machine.running = await start(machine.program.argv, self._env(machine), machine.cwd, machine.lines)
        if machine.requested:  # asked to end while it was being started
            await machine.running.stop(signal.SIGKILL)
        machine.starts += 1
        self.started.append(machine)
        machine.event("start", "started")
        machine.used_at = time.monotonic()
        blocks = machine.service.get("checks") or ()
        machine.checks = [{"name": f"servicecheck-{i:02}", "status": "critical"} for i in range(len(blocks))]
        machine.move("started")
        oom = asyncio.create_task(self._starve(machine)) if self.quirk("oom") else None
        checks = [asyncio.create_task(self._check(machine, i, block)) for i, block in enumerate(blocks)]
        await machine.running.ended.wait()
        for task in [*checks, *([oom] if oom else [])]:
            task.cancel()
        await asyncio.gather(*checks, *([oom] if oom else []), return_exceptions=True)
        machine.checks = []
        self.started.remove(machine)
        return True

    def _env(self, machine: Machine) -> dict[str, str]:
        env = {"PATH": os.defpath, "HOME": str(machine.cwd), **machine.program.env}
        env |= {**machine.config.get("env", {}), **machine.secrets, "PORT": str(machine.port)}
        env |= {"FLY_APP_NAME": machine.app.name, "FLY_MACHINE_ID": machine.id, "FLY_REGION": machine.region}
        if not machine.service:
            env = self.outfit(env) | {"SLIPWAY_WORK": str(machine.cwd / "work")}
        return env

    async def _starve(self, machine: Machine) -> None:
        """Be the kernel that ran out of memory."""
        running = machine.running
        assert running is not None
        machine.lines.append(Line(datetime.now(UTC), "Out of memory: Killed process"))
        machine.starved = True
        await running.stop(signal.SIGKILL)

    def _ended(self, machine: Machine, *, again: bool) -> None:
        """Write the exit event, in either of the places that it is seen in (fly.md §3 Events)."""
        assert machine.running is not None
        if self.quirk("lost exit event"):
            return
        code = machine.running.code or 0
        exited: dict[str, Any] = {
            "guest_exit_code": code if code >= 0 else 128 - code,
            "guest_signal": -code if code < 0 else -1,
            "signal": -code if code < 0 else -1,
            "oom_killed": machine.starved,
            "requested_stop": machine.requested,
            "restarting": again,
            "exited_at": now(),
        }
        # A code of 0 is left out: whoever reads it has to know what its absence means.
        exited |= {"exit_code": exited["guest_exit_code"]} if code else {}
        flat = self.quirk("flat exit event")
        request = {"exit_event": exited} if flat else {"MonitorEvent": {"exit_event": exited}}
        machine.event("exit", "stopped", request=request)

    async def _check(self, machine: Machine, index: int, block: Mapping[str, Any]) -> None:
        async with httpx.AsyncClient(timeout=1.0, trust_env=False, verify=False) as client:  # noqa: S501 - plain http
            while True:
                url = f"http://127.0.0.1:{machine.port}{block.get('path', '/')}"
                try:
                    answer = await client.request(block.get("method", "GET"), url)
                    good, output = answer.is_success, f"{answer.status_code} {answer.reason_phrase}"
                except httpx.HTTPError:
                    good, output = False, "connect: connection refused"
                machine.checks[index] |= {
                    "status": "passing" if good else "critical",
                    "output": output,
                    "updated_at": now(),
                }
                await asyncio.sleep(CHECK_SECONDS)


async def reached(machine: Machine, states: frozenset[str], seconds: float) -> bool:
    """Wait until a machine is in one of these states."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while machine.state not in states:
                await machine.changed.wait()
    return machine.state in states


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

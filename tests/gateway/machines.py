"""A platform where nothing wakes a service by itself, as a real server that several processes call.

``Machines`` is the platform: it runs in the test's process, starts upstreams on real ports and remembers what was done
to them. ``MachineServices`` is its client, and the ``Services`` of a gateway process. ``rows`` are what a service
needs in the database, ``manual_context`` is a process's context with this platform alone.
"""
# Over 250 lines: the platform, its client and the rows it needs are one stand-in.

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from app import db
from app.context import Context
from app.ids import new_id
from app.images.access import Images
from app.lifecycle import ReleaseStatus, ServiceStatus
from app.models import Artifact, Project, Release, Service
from app.platforms.base import (
    Address,
    Inspection,
    Phase,
    Platform,
    ServiceRef,
    StartFailed,
    Transient,
)
from app.platforms.catalog import Catalog, Entry
from app.secrets import Keyring
from app.settings import Settings
from benchmarks.noop import TRAITS, Services
from tests.gateway.support import Upstream, comes_true, upstream

NAME = "machines"
CALL_SECONDS = 10.0


@dataclass
class Machine:
    """One release on the platform, running or not."""

    running: Upstream | None = None
    instance_id: str = ""
    starts: int = 0
    sleeps: int = 0
    in_flight: int = 0
    cut_off: int = 0
    """Requests that were in flight when it was put to sleep: must stay 0."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


@dataclass
class Machines:
    """The platform. ``may_start`` holds starts up while cleared; ``events`` lets open streams go on."""

    port: int = 0
    machines: dict[str, Machine] = field(default_factory=dict)
    may_start: asyncio.Event = field(default_factory=asyncio.Event)
    events: asyncio.Event = field(default_factory=asyncio.Event)
    broken: bool = False

    @property
    def only(self) -> Machine:
        (machine,) = self.machines.values()
        return machine

    async def call(self, verb: str, release: str) -> dict[str, str]:
        machine = self.machines.setdefault(release, Machine())
        if verb == "wake":
            await self.may_start.wait()
            if self.broken:
                return {"error": "it crashed"}
            if machine.running is None:
                await self._start(release, machine)
        elif verb == "sleep" and machine.running is not None:
            machine.cut_off += machine.in_flight
            machine.sleeps += 1
            await self.kill(machine)
        if machine.running is None:
            return {}
        return {"url": machine.running.address.url, "instance_id": machine.instance_id}

    async def kill(self, machine: Machine) -> None:
        """End a machine as a crash would: nobody is told."""
        machine.stop.set()
        assert machine.task is not None
        await machine.task

    async def _start(self, release: str, machine: Machine) -> None:
        machine.starts += 1
        machine.instance_id = f"{release[-6:]}-{machine.starts}"
        machine.stop = asyncio.Event()
        up = asyncio.Event()

        async def run() -> None:
            async with upstream(lambda it: lambda r, w: self._serve(it, machine, r, w)) as it:
                machine.running = it
                up.set()
                await machine.stop.wait()
                machine.running = None

        machine.task = asyncio.create_task(run())
        await up.wait()

    async def _serve(
        self, it: Upstream, machine: Machine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            head = await it.head(reader)
            machine.in_flight += 1
            try:
                if head.startswith(b"GET /events"):
                    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
                    await self.events.wait()
                    writer.write(b"4\r\nlast\r\n0\r\n\r\n")
                else:
                    body = machine.instance_id.encode()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                await writer.drain()
            finally:
                machine.in_flight -= 1

    async def stop(self) -> None:
        for machine in self.machines.values():
            if machine.running is not None:
                await self.kill(machine)


@asynccontextmanager
async def platform() -> AsyncIterator[Machines]:
    """Serve the platform's API: one JSON line each way per connection."""
    machines = Machines()
    machines.may_start.set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            call = json.loads(await reader.readline())
            answer = await machines.call(call["verb"], call["release"])
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    machines.port = server.sockets[0].getsockname()[1]
    try:
        yield machines
    finally:
        server.close()
        await server.wait_closed()
        await machines.stop()


class MachineServices(Services):
    """The platform's client: the verbs a gateway comes by; the others do nothing."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    async def _call(self, verb: str, ref: ServiceRef) -> dict[str, str]:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    writer.write(json.dumps({"verb": verb, "release": ref.release}).encode() + b"\n")
                    answer: dict[str, str] = json.loads(await reader.readline())
                finally:
                    writer.close()
                    await writer.wait_closed()
        except (OSError, ValueError) as error:
            raise Transient(NAME, verb, f"no answer: {error}") from error
        return answer

    async def wake(self, ref: ServiceRef) -> Address:
        answer = await self._call("wake", ref)
        if "error" in answer:
            raise StartFailed(NAME, "wake", answer["error"], reason="crashed_at_start")
        return Address(**answer)

    async def sleep(self, ref: ServiceRef) -> None:
        await self._call("sleep", ref)

    async def inspect(self, ref: ServiceRef) -> Inspection:
        answer = await self._call("inspect", ref)
        if answer:
            return Inspection(phase=Phase.RUNNING, address=Address(**answer))
        return Inspection(phase=Phase.ASLEEP)


@asynccontextmanager
async def manual_context(database_url: str, home: Path, port: int) -> AsyncIterator[Context]:
    """A process's context: a real database and the one platform."""
    settings = Settings(home=home, database_url=SecretStr(database_url), local=None)
    keyring = Keyring(active="test", keys={"test": bytes(32)})
    engine = db.create_engine(database_url, pool_size=10)
    sessions = db.create_sessions(engine)
    images = Images(settings, [keyring.derive("registry-token")])
    held = Platform(name=NAME, traits=TRAITS, builders=None, services=MachineServices(port))
    try:
        async with sessions.begin() as session:
            installation = await db.installation(session, keyring)
        async with db.open_pool(database_url) as pool:
            yield Context(
                settings=settings,
                engine=engine,
                sessions=sessions,
                pool=pool,
                catalog=Catalog(
                    entries={NAME: Entry(name=NAME, traits=TRAITS, configured=True)},
                    held={NAME: held},
                ),
                keyring=keyring,
                images=images,
                installation=installation,
                process=new_id("prc"),
            )
    finally:
        await images.close()
        await engine.dispose()


async def add_service(
    context: Context, name: str, *, idle_seconds: int = 1, scale_min: int = 0, platform_name: str = NAME
) -> Service:
    """Write a sleeping service with a live release."""
    project = Project(id=new_id("prj"), name=new_id("prj")[-20:])
    artifact = Artifact(
        id=new_id("art"),
        project_id=project.id,
        repository="r",
        digest="sha256:" + "0" * 64,
        size_bytes=1,
        source_digest="sha256:" + "0" * 64,
        goarch="amd64",
        toolchain={},
    )
    service = Service(
        id=new_id("svc"),
        project_id=project.id,
        name=name,
        host=name,
        platform=platform_name,
        status=ServiceStatus.ASLEEP,
    )
    release = Release(
        id=new_id("rel"),
        project_id=project.id,
        service_id=service.id,
        number=1,
        status=ReleaseStatus.LIVE,
        kind="build",
        platform=platform_name,
        artifact_id=artifact.id,
        sequence=1,
        config_sequence=1,
        config={"scale": {"min": scale_min, "idle_seconds": idle_seconds}},
        secret_versions={},
    )
    service.live_release_id = release.id
    async with context.sessions.begin() as session:
        session.add(project)
        await session.flush()
        session.add_all([artifact, service])
        await session.flush()
        session.add(release)
    return service


async def reaches(context: Context, service: Service, *statuses: ServiceStatus, timeout: float = 20.0) -> None:
    """Wait until the row has one of these statuses."""

    async def reached() -> bool:
        return await status_of(context, service) in statuses

    await comes_true(reached, timeout)


async def status_of(context: Context, service: Service) -> ServiceStatus:
    async with context.sessions() as session:
        row = await session.get(Service, service.id)
        assert row is not None
        return row.status

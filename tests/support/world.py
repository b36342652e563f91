"""A control plane without its loops: real database, registry, API and yard, and a test that says what happens when.

Jobs run when the test says so (``jobs``), time passes when it says so (``ago``), and builders do what it makes them do.
One long file, since all of it is the one object that tests hold.
"""

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import uuid4

import asyncpg
import httpx
from fastapi import FastAPI
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job as QueueJob
from pgqueuer.ports.repository import EntrypointExecutionParameter
from pgqueuer.types import QueueEntrypoint, QueueManagerId
from pydantic import SecretStr
from sqlalchemy import CursorResult, select, text

from app import db, keys
from app import jobs as worker
from app.builds import archives
from app.context import Context
from app.main import create_app, open_context
from app.models import Base, Build, Project, Release, Run, Service
from app.platforms.base import Traits
from app.queue import Job, queries
from app.secrets import make_keys
from app.services.sleep_wake import WakeFailed
from app.settings import Settings
from tests.support import declared
from tests.support.builder import Builder
from tests.support.machines import Machine, Unit
from tests.support.platform import NAME, Yard
from tests.support.waiting import eventually

FILES = {"go.mod": "module agent\n\ngo 1.25\n", "main.go": "package main\n\nfunc main() {}\n"}
KEYS = make_keys()
API = "http://127.0.0.1:8080"
JOB_SECONDS = 60.0
MOST_JOBS = 1000

Json = dict[str, Any]
Row = TypeVar("Row", bound=Base)


@dataclass
class World:
    """One process of a control plane, and its only caller."""

    context: Context
    database_url: str
    yard: Yard
    app: FastAPI
    http: httpx.AsyncClient
    """With the API key of the default project."""
    key: str
    _connection: "asyncpg.Connection[asyncpg.Record]"
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)
    crashes: list[Exception] = field(default_factory=list)
    """What jobs raised; ``jobs`` raises it again unless told not to."""

    # ------------------------------------------------------------------------------------------------- what happens

    async def jobs(self, *, strict: bool = True) -> int:
        """Run every job that is due, and those that come of it, until none is left; return how many there were."""
        queue, count, crashes = queries(AsyncpgDriver(self._connection)), 0, len(self.crashes)
        limit = EntrypointExecutionParameter(concurrency_limit=0)
        entrypoints = {QueueEntrypoint(name): limit for name in worker.runners(self.context)}
        while True:
            async with self._one_at_a_time:
                batch = await queue.dequeue(
                    batch_size=50,
                    entrypoints=entrypoints,
                    queue_manager_id=QueueManagerId(uuid4()),
                    global_concurrency_limit=None,
                    heartbeat_timeout=timedelta(seconds=JOB_SECONDS),
                )
            if not batch:
                break
            async with asyncio.timeout(JOB_SECONDS):
                await asyncio.gather(*(self._run(job) for job in batch))
            async with self._one_at_a_time:
                await queue.log_jobs([(job, "successful", None) for job in batch])
            count += len(batch)
            assert count < MOST_JOBS, f"jobs without an end: {await self.waiting()}"
        if strict and len(self.crashes) > crashes:
            raise self.crashes[-1]
        return count

    async def _run(self, job: QueueJob) -> None:
        handler, _ = worker.HANDLERS[Job(job.entrypoint.partition(".")[0])]
        try:
            await handler(self.context, (job.payload or b"").decode().partition(":")[0])
        except WakeFailed:
            pass
        except Exception as e:  # noqa: BLE001 - the worker takes them all too
            self.crashes.append(e)

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator["asyncio.Task[int]"]:
        """Run the jobs beside the block; they have ended at its end."""
        task = asyncio.create_task(self.jobs())
        try:
            yield task
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def hurry(self) -> int:
        """Make every delayed job due, and run them all."""
        await self.sql("update pgqueuer.pgqueuer set execute_after = now() where status = 'queued'")
        return await self.jobs()

    async def forget_jobs(self) -> None:
        """Lose all jobs, as if every process had died and the queue with them."""
        await self.sql("delete from pgqueuer.pgqueuer")

    async def reconcile(self) -> int:
        """One pass of reconcile, and the jobs it asks for."""
        await worker.reconcile(self.context)
        return await self.jobs()

    async def sweep(self) -> None:
        """One pass of the sweep, with everything on the platform past the grace period."""
        self.yard.age = timedelta(days=1)
        await worker.sweep(self.context)

    async def ago(self, row: Base, column: str, seconds: float = 1) -> None:
        """Let a time of a row be so many seconds ago."""
        await self.sql(
            f"update {row.__tablename__} set {column} = now() - make_interval(secs => :seconds) where id = :id",
            seconds=seconds,
            id=row.id,  # type: ignore[attr-defined]
        )

    # ------------------------------------------------------------------------------------------------- rows

    async def sql(self, statement: str, **values: object) -> Sequence[Any]:
        async with self.context.sessions.begin() as session:
            result = cast("CursorResult[Any]", await session.execute(text(statement), values))
            return result.all() if result.returns_rows else ()

    async def one(self, model: type[Row], **values: object) -> Row:
        """Return the one row with these values, as it is now."""
        async with self.context.sessions() as session:
            return (await session.execute(select(model).filter_by(**values))).scalar_one()

    async def rows(self, model: type[Row], **values: object) -> list[Row]:
        async with self.context.sessions() as session:
            statement = select(model).filter_by(**values).order_by(text("id"))
            return list((await session.execute(statement)).scalars())

    async def kinds(self, **values: object) -> list[str]:
        """Return the kinds of the events about something, oldest first."""
        where = " and ".join(f"{k} = :{k}" for k in values)
        rows = await self.sql(f"select kind from event where {where} order by id", **values)
        return [r.kind for r in rows]

    async def settled(self) -> None:
        """Wait until every event can be read: transactions of other tests on the same server hold them back, too."""

        async def none_is_held_back() -> bool:
            held = "select count(*) from event where xid >= pg_snapshot_xmin(pg_current_snapshot())"
            return bool((await self.sql(held))[0].count == 0)

        await eventually(none_is_held_back, every=0.02)

    async def waiting(self, job: str | None = None) -> list[str]:
        """Return the row ids of the jobs on the queue, due or not."""
        rows = await self.sql("select entrypoint, payload from pgqueuer.pgqueuer order by id")
        return [bytes(r.payload).decode().partition(":")[0] for r in rows if job in {None, r.entrypoint}]

    async def project(self, name: str, limit: int | None = None) -> tuple[Project, httpx.AsyncClient]:
        """Make another project; returns it and a client with its key, for the caller to close."""
        async with self.context.sessions.begin() as session:
            project = Project(id=f"prj_{secrets.token_hex(13)}", name=name, max_concurrent_builds=limit)
            session.add(project)
            await session.flush()
            _, key = await keys.create(session, project, "test")
        return project, client(self.app, key)

    # ------------------------------------------------------------------------------------------------- builds

    def order(self, service: str | None = None, /, *, files: dict[str, str] | None = None, **config: Any) -> Json:
        """Return the body of a build, of a service with this config if it has a name."""
        body: Json = {"source": {"kind": "files", "files": files or FILES}, "platform": NAME}
        return body | ({"service": {"name": service, **config}} if service else {})

    async def submit(self, service: str | None = None, /, **config: Any) -> Build:
        return await self.send(self.order(service, **config))

    async def send(self, body: Json) -> Build:
        answer = await self.http.post("/v1/builds", json=body)
        assert answer.status_code == 202, answer.text
        return await self.one(Build, id=answer.json()["id"])

    async def run_of(self, build: Build) -> Run:
        """Return the build's newest run."""
        async with self.context.sessions() as session:
            statement = select(Run).where(Run.build_id == build.id).order_by(Run.attempt.desc()).limit(1)
            return (await session.execute(statement)).scalar_one()

    def machine(self, run: Run) -> Machine:
        return self.yard.machines[run.name]

    def unit(self, release: Release) -> Unit:
        return self.yard.units[f"slp-{self.context.installation}-{release.id.replace('_', '-')}"]

    async def builder(self, build: Build, instance: str = "machine-1") -> Builder:
        """Return the builder that was launched for the build's newest run."""
        machine = self.machine(await self.run_of(build))
        return Builder(self.http, machine.spec.env["SLIPWAY_RUN_ID"], machine.spec.env["SLIPWAY_RUN_TOKEN"], instance)

    async def built(self, service: str | None = None, /, **config: Any) -> Build:
        """Submit a build and take it through its builder; a release is then pending."""
        build = await self.submit(service, **config)
        await self.jobs()
        await (await self.builder(build)).finish()
        return await self.one(Build, id=build.id)

    async def built_beside(self, service: str, /, **config: Any) -> Build:
        """Submit a build and take it through its builder, while other jobs are held up."""
        build = await self.submit(service, **config)
        await self.jobs()
        await (await self.builder(build)).finish()
        await self.jobs()
        return await self.one(Build, id=build.id)

    async def deployed(self, service: str, /, **config: Any) -> tuple[Build, Service, Release]:
        """Take a build all the way to a live release."""
        build = await self.built(service, **config)
        await self.jobs()
        build = await self.one(Build, id=build.id)
        assert build.status == "succeeded", build.message
        return build, await self.service(service), await self.one(Release, id=build.release_id)

    async def service(self, name: str) -> Service:
        return await self.one(Service, name=name)

    async def live(self, name: str) -> Release:
        return await self.one(Release, id=(await self.service(name)).live_release_id)


def files_digest(files: dict[str, str]) -> str:
    return archives.tree_digest({p: (False, hashlib.sha256(t.encode()).hexdigest()) for p, t in files.items()})


def client(app: FastAPI, key: str | None) -> httpx.AsyncClient:
    """Return a caller of the app, as a load balancer in front of it would be."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    hooks = {"response": [declared.check]}
    return httpx.AsyncClient(transport=transport, base_url=API, headers=headers, timeout=30, event_hooks=hooks)


def test_settings(database_url: str, home: Path, **changes: Any) -> Settings:
    base: Json = {
        "home": home,
        "database_url": SecretStr(database_url),
        "secret_keys": SecretStr(KEYS),
        "local": None,
        "build_cache": False,
        "builder_fallback": (NAME,),
        "promote_timeout_seconds": 5.0,
        "wake_timeout_seconds": 5.0,
        "sweep_grace_seconds": 60.0,
    }
    return Settings(**base | changes)


test_settings.__test__ = False  # type: ignore[attr-defined]


@contextlib.asynccontextmanager
async def world(
    database_url: str, home: Path, *, yard: Yard | None = None, traits: Traits | None = None, **changes: Any
) -> AsyncIterator[World]:
    """Open a control plane over a database and a yard of its own, or over one that others use too."""
    yard, own = yard or Yard(), yard is None
    yard.traits = traits or yard.traits
    async with contextlib.AsyncExitStack() as stack:
        if own:
            stack.push_async_callback(yard.close)
        settings = test_settings(database_url, home, **changes)
        context = await stack.enter_async_context(open_context(settings, database_url, hold_local=False))
        context.catalog.entries = {NAME: yard.entry()}
        context.catalog.held[NAME] = yard.platform()
        async with context.sessions.begin() as session:
            project = (await session.execute(select(Project).where(Project.name == "default"))).scalar_one()
            _, key = await keys.create(session, project, "test")
        app = create_app(context)
        stack.push_async_callback(app.state.hub.close)
        http = await stack.enter_async_context(client(app, key))
        connection = await asyncpg.connect(db.plain_dsn(database_url), timeout=10)
        stack.push_async_callback(connection.close)
        yield World(context, database_url, yard, app, http, key, connection)

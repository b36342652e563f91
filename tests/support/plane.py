"""A whole control plane in this process, over real sockets: API, worker and gateway, with stand-ins for the cloud platforms.

What takes minutes on a real platform takes less here: the platforms' own code is told to wait less between looks.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import text

from app import jobs, keys
from app.context import Context
from app.gateway.run import serve_gateway
from app.imitate import REGISTRY_HOST, lead_to, make, reachable
from app.imitations.base import Imitation
from app.imitations.server import serving
from app.main import create_app, open_context
from app.platforms import fly, koyeb, northflank, railway
from app.platforms.address import request_for
from app.platforms.base import Platform
from app.platforms.budget import Unlimited
from app.platforms.catalog import entries
from app.settings import Settings
from tests.support import contracts
from tests.support.agents import Toolbox
from tests.support.waiting import eventually, free_port
from tests.support.world import test_settings

CLOUDS = ("fly", "koyeb", "northflank", "railway")
BUILD_SECONDS = 60.0
POLL_SECONDS = 0.05
TIMEOUT_SECONDS = 3.0
ENDED = {"succeeded", "failed", "canceled"}

Json = dict[str, Any]


@dataclass
class Plane:
    """One control plane, and its only caller."""

    context: Context
    http: httpx.AsyncClient
    """With the API key of the default project."""
    stand_ins: Mapping[str, Imitation]

    async def call(self, method: str, path: str, **options: Any) -> Json:
        """Call the API; AssertionError on anything but a 2xx."""
        answer = await self.http.request(method, path, **options)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return dict(answer.json()) if answer.content else {}

    async def send(self, files: dict[str, str], platform: str, service: str | None = None, **config: Any) -> str:
        """Send a build for this platform, with a service if it has a name; returns its id."""
        body: Json = {"source": {"kind": "files", "files": files}, "platform": platform, "strict": False}
        body["builder"] = {"cpus": 1, "memory_mb": 1024, **config.pop("builder", {})}
        body |= {"service": {"name": service, **config}} if service else {}
        return str((await self.call("POST", "/v1/builds", json=body))["id"])

    async def ended(self, build: str, status: str = "succeeded", seconds: float = BUILD_SECONDS) -> Json:
        """Wait for the end of a build, which must be this one; returns the build."""

        async def over() -> Json:
            seen = await self.call("GET", f"/v1/builds/{build}")
            assert seen["status"] in ENDED, (seen["status"], seen["message"], seen["runs"])
            return seen

        seen = await eventually(over, seconds, every=POLL_SECONDS)
        assert seen["status"] == status, (seen["status"], seen["reason"], seen["message"], await self.log(build))
        return seen

    async def build(self, files: dict[str, str], platform: str, service: str | None = None, **config: Any) -> Json:
        """Send a build and wait until it has succeeded."""
        return await self.ended(await self.send(files, platform, service, **config))

    async def log(self, build: str) -> str:
        """Return what was written about a build."""
        lines = (await self.call("GET", f"/v1/builds/{build}/logs"))["items"]
        return "\n".join(line["text"] for line in lines)

    async def service(self, name: str) -> Json:
        return await self.call("GET", f"/v1/services/{name}")

    async def live(self, name: str, release: str, seconds: float = BUILD_SECONDS) -> Json:
        """Wait until a release of a service is live; returns the service."""

        async def there() -> Json | None:
            seen = await self.service(name)
            of_it = next(r for r in (await self.releases(name)) if r["id"] == release)
            assert of_it["status"] != "failed", of_it
            return seen if seen["live_release"] and seen["live_release"]["id"] == release else None

        seen = await eventually(there, seconds, every=POLL_SECONDS)
        assert seen is not None
        return seen

    async def failed(self, name: str, release: str, seconds: float = BUILD_SECONDS) -> Json:
        """Wait until a release has failed, and return it."""

        async def there() -> Json | None:
            of_it = next(r for r in (await self.releases(name)) if r["id"] == release)
            assert of_it["status"] not in {"live", "superseded"}, of_it
            return of_it if of_it["status"] == "failed" else None

        seen = await eventually(there, seconds, every=POLL_SECONDS)
        assert seen is not None
        return seen

    async def releases(self, name: str) -> list[Json]:
        return list((await self.call("GET", f"/v1/services/{name}/releases"))["items"])

    async def idle(self) -> None:
        """Wait until no job is left, due or not."""

        async def none_left() -> bool:
            async with self.context.sessions() as session:
                return not (await session.execute(text("select count(*) from pgqueuer.pgqueuer"))).scalar_one()

        await eventually(none_left, BUILD_SECONDS, every=POLL_SECONDS)

    async def deleted(self, *names: str) -> None:
        """Delete services, and wait until they are gone from wherever they were."""
        for name in names:
            await self.call("DELETE", f"/v1/services/{name}")
        await eventually(self._none_left, BUILD_SECONDS, every=POLL_SECONDS)

    async def _none_left(self) -> bool:
        for name, one in self.stand_ins.items():
            left = leftovers(one)
            assert left == [], f"left on {name}: {left}"
        return True


def leftovers(one: Imitation) -> list[str]:
    """Return what is there of anybody; the builders' own app, which is kept for the next build, is none of it."""
    running = [f"program {running.pid}" for running in one.programs]
    return [thing for thing in one.things if not thing.endswith("-builders")] + running


async def ask(url: str, path: str = "/") -> Json:
    """GET a path of a service as its callers do, by its public address; AssertionError when the answer isn't 200."""
    base, headers = request_for(url)
    async with httpx.AsyncClient(timeout=20, trust_env=False, verify=False, headers=headers) as client:
        answer = await client.get(base + path)
    assert answer.status_code == 200, f"{url}: {answer.status_code} {answer.text}"
    return dict(answer.json())


async def nap(seconds: float) -> None:
    """Wait as a platform's code asks, but twenty times shorter."""
    await asyncio.sleep(min(seconds, 5.0) / 20)


@contextlib.asynccontextmanager
async def quick(name: str, settings: Settings) -> AsyncIterator[Platform]:
    """Open a platform's own code, told to wait less."""
    if name == "koyeb":
        async with koyeb.opened(settings, budget=Unlimited(), poll_seconds=0.05, sleep=nap) as platform:
            yield platform
        return
    made: fly.FlyPlatform | northflank.NorthflankPlatform | railway.RailwayPlatform
    if name == "fly":
        made = fly.create(
            settings, allowance=Unlimited(), settle_seconds=0.1, look_seconds=0.05, timeout=TIMEOUT_SECONDS
        )
    elif name == "northflank":
        services = {"look_seconds": 0.1, "settle_seconds": 5.0, "start_seconds": 10.0}
        made = northflank.create(
            settings,
            allowance=Unlimited(),
            client={"timeout": TIMEOUT_SECONDS},
            builders={"poll_seconds": 0.2},
            services=services,
            edge={"pause": 0.05},
        )
    else:
        made = railway.create(settings, budget=Unlimited(), poll_seconds=0.1, sleep=nap, timeout=TIMEOUT_SECONDS)
    try:
        yield made.platform
    finally:
        await made.aclose()


@contextlib.contextmanager
def settled(stand_ins: Mapping[str, Imitation]) -> Iterator[None]:
    """Fail on violations of a platform's contract at the end of the block."""
    yield
    for one in stand_ins.values():
        contracts.settle(one)


@dataclass(frozen=True)
class Ground:
    """What a control plane stands on: settings whose ports are free, and the builder image's toolchain."""

    settings: Settings
    env: Mapping[str, str]


def ground(database_url: str, home: Path, toolbox: Toolbox, **changes: Any) -> Ground:
    """Choose settings for a control plane that stand-ins can reach."""
    values: Json = {
        "port": free_port(),
        "gateway_port": free_port(),
        "reconcile_seconds": 0.3,
        "sweep_seconds": 3600.0,
        "drain_seconds": 0.2,
        "promote_timeout_seconds": 30.0,
        "wake_timeout_seconds": 15.0,
        "builder_fallback": (),
        "contracts": contracts.folder(),
    }
    settings = reachable(test_settings(database_url, home, **values | changes))
    return Ground(settings, {"SLIPWAY_GO": str(toolbox.go), "SLIPWAY_GOCACHE": str(toolbox.gocache)})


@contextlib.asynccontextmanager
async def platforms(at: Ground, folder: Path, *names: str, **options: Any) -> AsyncIterator[dict[str, Imitation]]:
    """Run the stand-ins of these names."""
    async with contextlib.AsyncExitStack() as stack:
        made = {name: make(name, at.settings, folder / name, at.env, **options) for name in names or CLOUDS}
        for one in made.values():
            await stack.enter_async_context(one)
        with settled(made):
            yield made


@contextlib.asynccontextmanager
async def plane(at: Ground, stand_ins: Mapping[str, Imitation], *, working: bool = True) -> AsyncIterator[Plane]:
    """Run a control plane whose cloud platforms are these stand-ins; ``working`` False leaves its worker out."""
    settings = at.settings.model_copy(update={name: lead_to(one) for name, one in stand_ins.items()})
    url = settings.database_url
    assert url is not None
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        bare = settings.model_copy(update=dict.fromkeys(CLOUDS))
        context = await enter(open_context(bare, url.get_secret_value(), hold_local=settings.local is not None))
        context = dataclasses.replace(context, settings=settings)
        context.catalog.entries = entries(settings)
        for name in stand_ins:
            held = await enter(quick(name, settings))
            traits = dataclasses.replace(held.traits, poll_seconds=0.1, list_seconds=0.0)
            context.catalog.held[name] = dataclasses.replace(held, traits=traits)
        async with context.sessions.begin() as session:
            project = await keys.project_named(session, keys.DEFAULT_PROJECT)
            _, key = await keys.create(session, project, "test")
        await enter(serving(create_app(context), port=settings.port))
        await enter(serve_gateway(context, host="127.0.0.1", port=settings.gateway_port))
        headers = {"Authorization": f"Bearer {key}"}
        http = await enter(httpx.AsyncClient(base_url=settings.api_url, headers=headers, timeout=30, trust_env=False))
        if working:
            await enter(_working(context, url.get_secret_value()))
        yield Plane(context, http, stand_ins)


@contextlib.asynccontextmanager
async def _working(context: Context, url: str) -> AsyncIterator[None]:
    ready = asyncio.Event()
    worker = asyncio.create_task(jobs.work(context, url, ready=ready))
    first = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait([worker, first], return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            yield
        if worker.done():
            worker.result()  # it never ends by itself: say why it did
    finally:
        for task in (worker, first):
            task.cancel()
        await asyncio.gather(worker, first, return_exceptions=True)


__all__ = ["REGISTRY_HOST", "Awaitable", "Callable"]

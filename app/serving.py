"""The processes: ``serve`` is all in one; ``api``, ``worker`` and ``gateway`` are its parts, any number of each."""
# Over 250 lines: four processes of the same few parts, side by side.

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import uvicorn
from fastapi import FastAPI

from app import db, jobs, scrape
from app.context import Context
from app.embedded.postgres import EmbeddedPostgres
from app.gateway.run import serve_gateway
from app.ground import SetupError, bind, check_schema, settle
from app.life import show_life
from app.main import create_app, ensure_key, open_context
from app.settings import Settings

if TYPE_CHECKING:
    from app.imitations.base import Imitation

log = structlog.get_logger()

RESTART_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0)
STEADY_SECONDS = 60.0
"""A worker that lived for longer did not leave because of how it was started."""
SHUTDOWN_SECONDS = 15


@dataclass(frozen=True)
class Started:
    """What ``serve`` tells its user once everything is up."""

    settings: Settings
    api_key: str | None
    database_url: str
    stand_ins: "tuple[Imitation, ...]" = ()


Announce = Callable[[Started], None]


@contextlib.asynccontextmanager
async def database(settings: Settings) -> AsyncIterator[tuple[str, Callable[[], Awaitable[None]] | None]]:
    """Give the database's URL and, for the embedded one, what to watch: it raises when the server dies."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value(), None
        return
    async with EmbeddedPostgres(settings.home) as server:
        assert server.url is not None
        yield server.url, server.watch


async def serve(settings: Settings, announce: Announce) -> None:
    """Run API, gateway and worker in this process, with the embedded database unless another is set."""
    with contextlib.ExitStack() as sockets:
        api_socket = sockets.enter_context(bind(settings.host, settings.port, "PORT"))
        gateway_socket = sockets.enter_context(bind(settings.gateway_host, settings.gateway_port, "GATEWAY_PORT"))
        ports = {"port": api_socket.getsockname()[1], "gateway_port": gateway_socket.getsockname()[1]}
        settings = settings.model_copy(update=ports)
        async with _stand_ins(settings) as (settings, stand_ins), database(settings) as (url, watch):
            await db.migrate(url)
            async with open_context(settings, url, hold_local=True) as context:
                async with context.sessions.begin() as session:
                    key = await ensure_key(session, settings)
                up = Up(3, lambda: announce(Started(settings, key.made, url, tuple(stand_ins.values()))))
                parts: dict[str, Awaitable[None]] = {
                    "api": api_part(create_app(context), api_socket, up),
                    "gateway": _gateway(context, gateway_socket, up),
                    "worker": supervised(context, url, up),
                    **scrape.part(context),
                }
                if watch is not None:
                    parts["database"] = watch()
                await until_stopped(parts)


def _stand_ins(settings: Settings) -> "AbstractAsyncContextManager[tuple[Settings, Mapping[str, Imitation]]]":
    """Open the stand-ins that were asked for; without any, their libraries are not loaded either: a fifth of a start."""
    if not settings.imitate:
        return contextlib.nullcontext((settings, {}))
    from app.imitate import imitated  # noqa: PLC0415 - see above

    return imitated(settings)


async def api(settings: Settings, announce: Announce) -> None:
    """Run the API alone."""
    with bind(settings.host, settings.port, "PORT") as listener:
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        async with _outside(settings) as (context, url):
            async with context.sessions.begin() as session:
                key = await ensure_key(session, settings)
            up = Up(1, lambda: announce(Started(settings, key.made, url)))
            served = api_part(create_app(context), listener, up)
            await until_stopped({"api": served, "registry": jobs.tidy_registry(context), **scrape.part(context)})


async def gateway(settings: Settings, announce: Announce) -> None:
    """Run the gateway alone."""
    with bind(settings.gateway_host, settings.gateway_port, "GATEWAY_PORT") as listener:
        settings = settings.model_copy(update={"gateway_port": listener.getsockname()[1]})
        async with _outside(settings) as (context, url):
            up = Up(1, lambda: announce(Started(settings, None, url)))
            await until_stopped({"gateway": _gateway(context, listener, up), **scrape.part(context)})


async def worker(settings: Settings, announce: Announce, *, hold_local: bool) -> None:
    """Run the worker alone; ``hold_local`` makes it the owner of this host's local platform. Leaves when its database does."""
    async with _outside(settings, hold_local=hold_local) as (context, url):
        ready = asyncio.Event()
        waiter = asyncio.create_task(ready.wait())
        waiter.add_done_callback(lambda t: None if t.cancelled() else announce(Started(settings, None, url)))
        try:
            work = jobs.work(context, url, ready=ready, host_bound_only=hold_local)
            await until_stopped({"worker": work, "sign of life": show_life(context, ready), **scrape.part(context)})
        finally:
            waiter.cancel()


@contextlib.asynccontextmanager
async def _outside(settings: Settings, *, hold_local: bool = False) -> AsyncIterator[tuple[Context, str]]:
    """Open a context on the outside database that the parts of a split installation share."""
    if settings.imitate:
        raise SetupError("SLIPWAY_IMITATE is for `slipway serve` alone: stand-ins live in one process")
    if settings.database_url is None:
        raise SetupError(
            "set DATABASE_URL: a split installation shares one PostgreSQL (`slipway serve` brings its own)"
        )
    url = settings.database_url.get_secret_value()
    await check_schema(url)
    async with open_context(settings, url, hold_local=hold_local) as context:
        yield context, url


class Up:
    """Counts the parts that are up and says so once when all are."""

    def __init__(self, parts: int, say: Callable[[], None]) -> None:
        self._left, self._say = parts, say

    def one(self) -> None:
        """Note that one more part is up."""
        self._left -= 1
        if self._left == 0:
            settle()  # what was made for the start stays, like what was imported
            self._say()


class _Server(uvicorn.Server):
    """Tells when it is up; the signals are ours."""

    def __init__(self, config: uvicorn.Config, up: Up) -> None:
        super().__init__(config)
        self._up = up

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        """Leave the signals to ``until_stopped``."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._up.one()


async def api_part(app: FastAPI, listener: socket.socket, up: Up) -> None:
    """Serve the API on a socket that is bound already, until canceled."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        timeout_keep_alive=75,
        server_header=False,
        ws="none",
        h11_max_incomplete_event_size=64 * 1024,
    )
    server = _Server(config, up)
    try:
        await server.serve(sockets=[listener])
    except asyncio.CancelledError:
        server.should_exit = True
        await app.state.hub.close()  # streams have no end of their own to wait for
        await server.shutdown(sockets=[listener])
        raise


async def _gateway(context: Context, listener: socket.socket, up: Up) -> None:
    host, port = context.settings.gateway_host, context.settings.gateway_port
    async with serve_gateway(context, host=host, port=port, listener=listener, grace_seconds=SHUTDOWN_SECONDS):
        up.one()
        await asyncio.Event().wait()


async def supervised(context: Context, database_url: str, up: Up | None = None) -> None:
    """Run a worker and start it again whenever it leaves, with a pause that grows while it keeps leaving."""
    failures, told = 0, False
    loop = asyncio.get_running_loop()
    while True:
        begun, ready = loop.time(), asyncio.Event()
        task = asyncio.create_task(jobs.work(context, database_url, ready=ready))
        try:
            if up is not None and not told:
                first = asyncio.create_task(ready.wait())
                await asyncio.wait([first, task], return_when=asyncio.FIRST_COMPLETED)
                first.cancel()
                if ready.is_set():
                    told = True
                    up.one()
            await task
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise
        except Exception as e:  # noqa: BLE001 - whatever it was, the answer is another worker
            log.error("the worker left and is started again", error=_root(e))
        failures, pause = after_its_end(failures, loop.time() - begun)
        await asyncio.sleep(pause)


def after_its_end(failures: int, lived: float) -> tuple[int, float]:
    """Return how often in a row workers have left early, one of them now after so many seconds, and the pause before the next."""
    failures = 1 if lived > STEADY_SECONDS else failures + 1
    return failures, RESTART_SECONDS[min(failures, len(RESTART_SECONDS)) - 1]


def _root(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


async def until_stopped(parts: dict[str, Awaitable[None]]) -> None:
    """Run the parts until SIGTERM or SIGINT, or until one of them ends; raises what it ended with."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tasks = {asyncio.ensure_future(part): name for name, part in parts.items()}
    stopper = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait([*tasks, stopper], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopper.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    for task, name in tasks.items():
        if task in done:
            if (error := task.exception()) is not None:
                raise error
            raise SetupError(f"the {name} ended by itself")

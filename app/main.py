"""Wiring: the context from the settings, and the API from the context. Nothing here decides anything."""

import contextlib
import secrets
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import structlog
from fastapi import APIRouter, FastAPI
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import __version__, db, events, faults, keys, leases, tracing
from app.api import (
    batches,
    builds,
    cors,
    description,
    health,
    once,
    platforms,
    problems,
    projects,
    runs,
    services,
    sources,
    stats,
    streams,
    webhooks,
)
from app.api import keys as key_routes
from app.api.access import Access
from app.api.guard import Guard
from app.api.hub import Hub
from app.budgets import SharedBudget
from app.context import Context
from app.gauges import Page
from app.images.access import Images
from app.keys import Doorman
from app.models import ApiKey
from app.platforms import local
from app.platforms.catalog import REMOTE, Catalog, entries
from app.secrets import Keyring, KeysError, home_keys, parse_keys
from app.services import pull
from app.settings import MIB, Settings

log = structlog.get_logger()

TAGS = [
    {"name": "builds", "description": "One request: a source and where it shall run."},
    {"name": "batches", "description": "Many builds in one request."},
    {"name": "events", "description": "What happened, and what happens."},
    {"name": "sources", "description": "Archives sent ahead of their builds."},
    {"name": "services", "description": "Named endpoints that sleep when nobody calls."},
    {"name": "webhooks", "description": "Endpoints that are told of events; see docs/webhooks.md."},
    {"name": "platforms", "description": "Where builders and services run."},
    {"name": "keys", "description": "Who may call, and what for."},
    {"name": "projects", "description": "Tenants; for the operator."},
    {"name": "runs", "description": "The builder's side; see docs/builder-protocol.md."},
    {"name": "health", "description": "For load balancers."},
]

ROUTERS = tuple(
    m.router
    for m in (
        builds,
        batches,
        streams,
        stats,
        sources,
        services,
        webhooks,
        platforms,
        key_routes,
        projects,
        runs,
        health,
    )
)
API = APIRouter(generate_unique_id_function=lambda route: route.name)
"""All routes, put together once per process: FastAPI takes a tenth of a second for it, which every app would pay again."""
for _router in ROUTERS:
    API.include_router(_router)


def described() -> FastAPI:
    """Make an app that knows its routes and their description, and nothing to serve them with."""
    app = FastAPI(
        title="Slipway",
        version=__version__,
        summary="Builds agents in ephemeral builders and runs them as services that scale to zero, on any platform.",
        openapi_tags=TAGS,
        routes=[*API.routes],
        webhooks=webhooks.sent,
    )
    description.install(app)
    return app


def create_app(context: Context) -> FastAPI:
    """Make the API over a context that somebody else opens and closes."""
    app = described()
    app.state.context = context
    app.state.hub = Hub(context)
    app.state.metrics = Page(context)
    problems.install(app)
    once.install(app)
    app.state.doorman = Doorman(context.sessions)
    app.mount("/v2", context.images.asgi)
    # JSON may write a byte as six.
    app.add_middleware(
        Guard,
        limit=6 * context.settings.max_inline_bytes + MIB,
        others={"/v1/batches": context.settings.max_batch_bytes},
    )
    app.add_middleware(Access)
    cors.install(app, context.settings.cors_origins)
    return app


def load_keyring(settings: Settings) -> Keyring:
    """Return the secret keys; with an outside database they must be given, since other processes need the same."""
    if settings.secret_keys is not None:
        return parse_keys(settings.secret_keys.get_secret_value())
    if settings.embedded_database:
        return home_keys(settings.home)
    raise KeysError(
        "set SLIPWAY_SECRET_KEYS for all processes of this installation; `slipway secret-keys` makes a value for it"
    )


def local_keys(keyring: Keyring) -> list[bytes]:
    """Return what the local platform seals with (the first) and opens with (all)."""
    others = [k for k in keyring.keys if k != keyring.active]
    return [keyring.derive("local-records", k) for k in (keyring.active, *others)]


@contextlib.asynccontextmanager
async def open_context(
    settings: Settings, database_url: str, *, hold_local: bool, pool_size: int | None = None
) -> AsyncIterator[Context]:
    """Open everything that lives as long as the process. ``hold_local``: this process owns the local platform."""
    faults.arm(settings.fault_point)
    keyring = load_keyring(settings)
    engine = db.create_engine(database_url, pool_size=pool_size or settings.database_pool)
    sessions = db.create_sessions(engine)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(tracing.exporting(settings.otlp_endpoint))
        stack.push_async_callback(engine.dispose)
        pool = await stack.enter_async_context(db.open_pool(database_url, size=pool_size or settings.database_pool))
        async with sessions.begin() as session:
            installation = await db.installation(session, keyring)
            if await events.after_restore(session):
                log.warning("events of another server are in order again; followers go on by their ids")
        keys = [keyring.derive("registry-token", k) for k in keyring.keys]
        images = Images(settings, keys, authenticate=pull.authenticator(sessions, keyring))
        stack.push_async_callback(images.close)
        catalog = Catalog(entries=entries(settings))
        if hold_local and catalog.usable("local"):
            await stack.enter_async_context(leases.held(sessions, "local"))
            owned = await stack.enter_async_context(local.create(settings, *local_keys(keyring), fault=faults.at))
            catalog.held["local"] = owned.platform
        for name, remote in REMOTE.items():
            if catalog.usable(name):
                budget = SharedBudget(sessions, remote.allowance(settings))
                catalog.held[name] = await stack.enter_async_context(remote.opened(settings, budget=budget))
        yield Context(
            settings=settings,
            engine=engine,
            sessions=sessions,
            pool=pool,
            catalog=catalog,
            keyring=keyring,
            images=images,
            installation=installation,
            process=f"{socket.gethostname()[:32]}-{secrets.token_hex(6)}",
        )


@dataclass
class FirstKey:
    """What became of the API keys at the start; ``made`` is shown once and kept nowhere."""

    made: str | None = field(default=None, repr=False)


async def ensure_key(session: AsyncSession, settings: Settings) -> FirstKey:
    """See to it that there is a key: the one of ``SLIPWAY_API_KEY``, else a fresh one when there is none at all."""
    project = await keys.project_named(session, keys.DEFAULT_PROJECT)
    if settings.api_key is not None:
        await keys.bring(session, project, "SLIPWAY_API_KEY", settings.api_key.get_secret_value())
        return FirstKey()
    count = (await session.execute(select(func.count(ApiKey.id)).where(*keys.valid()))).scalar_one()
    return FirstKey() if count else FirstKey((await keys.create(session, project, "first"))[1])

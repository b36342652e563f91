"""Wiring: the context from the settings, and the API from the context. Nothing here decides anything."""

import contextlib
import secrets
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from fastapi import FastAPI
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app import __version__, db, faults, leases
from app.api import builds, health, platforms, problems, runs, services, sources
from app.api.deps import hash_key
from app.api.guard import Guard
from app.context import Context
from app.ids import new_id
from app.images.access import Images
from app.models import ApiKey, Project
from app.platforms import local
from app.platforms.catalog import REMOTE, Catalog, entries
from app.secrets import Keyring, KeysError, home_keys, parse_keys
from app.settings import MIB, Settings

TAGS = [
    {"name": "builds", "description": "One request: a source and where it shall run."},
    {"name": "sources", "description": "Archives sent ahead of their builds."},
    {"name": "services", "description": "Named endpoints that sleep when nobody calls."},
    {"name": "platforms", "description": "Where builders and services run."},
    {"name": "runs", "description": "The builder's side; see docs/builder-protocol.md."},
    {"name": "health", "description": "For load balancers."},
]


def create_app(context: Context) -> FastAPI:
    """Make the API over a context that somebody else opens and closes."""
    app = FastAPI(
        title="Slipway",
        version=__version__,
        summary="Builds agents in ephemeral builders and runs them as services that scale to zero, on any platform.",
        openapi_tags=TAGS,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.context = context
    problems.install(app)
    for router in (builds.router, sources.router, services.router, platforms.router, runs.router, health.router):
        app.include_router(router)
    app.mount("/v2", context.images.asgi)
    # JSON may write a byte as six.
    app.add_middleware(Guard, limit=6 * context.settings.max_inline_bytes + MIB)
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
        stack.push_async_callback(engine.dispose)
        async with sessions.begin() as session:
            installation = await db.installation(session, keyring)
        keys = [keyring.derive("registry-token", k) for k in keyring.keys]
        images = Images(settings, keys)
        stack.push_async_callback(images.close)
        catalog = Catalog(entries=entries(settings))
        if hold_local and catalog.usable("local"):
            await stack.enter_async_context(leases.held(sessions, "local"))
            owned = await stack.enter_async_context(local.create(settings, *local_keys(keyring), fault=faults.at))
            catalog.held["local"] = owned.platform
        for name, remote in REMOTE.items():
            if catalog.usable(name):
                catalog.held[name] = await stack.enter_async_context(remote.opened(settings))
        yield Context(
            settings=settings,
            engine=engine,
            sessions=sessions,
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
    project = (await session.execute(select(Project).where(Project.name == "default"))).scalar_one()
    if settings.api_key is not None:
        await _insert_key(session, project, "SLIPWAY_API_KEY", settings.api_key.get_secret_value())
        return FirstKey()
    count = (await session.execute(select(func.count()).where(ApiKey.revoked_at.is_(None)))).scalar_one()
    return FirstKey() if count else FirstKey(await create_key(session, project, "first"))


async def create_key(session: AsyncSession, project: Project, name: str) -> str:
    """Make a key of a project and return it; only its hash is kept."""
    key = f"slp_{secrets.token_urlsafe(32)}"
    await _insert_key(session, project, name, key)
    return key


async def _insert_key(session: AsyncSession, project: Project, name: str, key: str) -> None:
    values = {"id": new_id("key"), "project_id": project.id, "name": name, "hash": hash_key(key)}
    await session.execute(insert(ApiKey).values(**values).on_conflict_do_nothing())

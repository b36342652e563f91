"""Engine, sessions and migrations.

A session is one transaction: ``async with sessions.begin() as session``. Nobody awaits the network inside one.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from pydantic_core import from_json
from sqlalchemy import ColumnElement, func, literal, select, text, update
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from app import outbox
from app.models import Installation
from app.outbox import OutboxSession
from app.secrets import Keyring, KeysError
from app.sql import Pool, Transaction

Sessions = async_sessionmaker[AsyncSession]

DATABASE_AWAY: tuple[type[Exception], ...] = (
    OSError,
    InterfaceError,
    OperationalError,
    PoolTimeout,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.AdminShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.TooManyConnectionsError,
)
"""What tells that the database can't be asked; asyncpg's own come from the making of a connection."""
DATABASE_ERRORS = (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
"""All that can come of asking the database, by either road."""
CONNECT_SECONDS = 10
STATEMENT_SECONDS = 60
ACQUIRE_SECONDS = 30
_SERVER_SETTINGS = {"application_name": "slipway", "jit": "off", "timezone": "UTC"}


def database_url(url: str) -> URL:
    """Return the URL for our driver; takes ``postgres://``, ``postgresql://`` and libpq's ``sslmode``."""
    parsed = make_url(url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url)
    if parsed.get_backend_name() != "postgresql":
        raise ValueError("DATABASE_URL must be a postgresql:// URL")
    query = dict(parsed.query)
    if sslmode := query.pop("sslmode", None):
        query.setdefault("ssl", sslmode)
    return parsed.set(drivername="postgresql+asyncpg", query=query)


def plain_dsn(url: str) -> str:
    """Return the URL as asyncpg itself takes it."""
    parsed = make_url(url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url)
    return parsed.set(drivername="postgresql").render_as_string(hide_password=False)


def create_engine(url: str, *, pool_size: int = 10) -> AsyncEngine:
    """Make the engine; a statement that takes over a minute is cut off, so that nothing waits for ever."""
    return create_async_engine(
        database_url(url),
        pool_size=pool_size,
        max_overflow=0,
        pool_pre_ping=False,
        pool_recycle=1800,
        hide_parameters=True,  # an error is logged, and a caller's values are nobody's business there
        connect_args={
            "timeout": CONNECT_SECONDS,
            "command_timeout": STATEMENT_SECONDS,
            "server_settings": _SERVER_SETTINGS,
        },
    )


@asynccontextmanager
async def open_pool(url: str, *, size: int = 10) -> AsyncIterator[Pool]:
    """Open the connections for plain SQL (``app.sql``); made as they are needed, with the engine's limits."""

    async def prepare(connection: asyncpg.Connection) -> None:
        # As on SQLAlchemy's connections: JSON goes in as text and comes back parsed.
        await connection.set_type_codec("jsonb", encoder=str, decoder=from_json, schema="pg_catalog")

    async def keep(_connection: object) -> None:
        """Reset nothing: what we run leaves nothing behind on a connection."""

    pool = asyncpg.create_pool(
        plain_dsn(url),
        min_size=0,
        max_size=size,
        max_cached_statement_lifetime=0,
        init=prepare,
        reset=keep,
        timeout=CONNECT_SECONDS,
        command_timeout=STATEMENT_SECONDS,
        # Our statements find rows by their keys: one plan for all values is as good, and made once on each connection.
        server_settings=_SERVER_SETTINGS | {"plan_cache_mode": "force_generic_plan"},
    )
    await pool
    try:
        yield pool
    finally:
        pool.terminate()


@asynccontextmanager
async def transaction(pool: Pool) -> AsyncIterator[Transaction]:
    """Run a transaction in plain SQL; its outbox is written right before the commit, as a session's is.

    Raises ``outbox.LostError`` when a row that was to be moved along with it has moved on; nothing was done then.
    """
    async with pool.acquire(timeout=ACQUIRE_SECONDS) as connection, Transaction(connection) as ours:
        yield ours
        await outbox.write(ours)
    outbox.committed(ours.info)


async def connect(engine: AsyncEngine, name: str) -> "asyncpg.Connection[asyncpg.Record]":
    """Open a connection beside the pool, for what lives long; ``name`` is how the server lists it."""
    query = dict(engine.url.query)
    if ssl := query.pop("ssl", None):
        query["sslmode"] = ssl
    url = engine.url.set(drivername="postgresql", query=query).render_as_string(hide_password=False)
    settings = {"application_name": name}
    return await asyncpg.connect(
        url, timeout=CONNECT_SECONDS, command_timeout=STATEMENT_SECONDS, server_settings=settings
    )


def create_sessions(engine: AsyncEngine) -> Sessions:
    """Make the session factory; rows stay readable after the commit and nothing loads lazily."""
    return async_sessionmaker(engine, expire_on_commit=False, sync_session_class=OutboxSession)


def is_away(error: BaseException | None) -> bool:
    """Tell whether the database could not be asked at all, looking through what SQLAlchemy wraps around it."""
    while error is not None and not isinstance(error, DATABASE_AWAY):
        error = error.__cause__
    return error is not None


@asynccontextmanager
async def alone(sessions: Sessions) -> AsyncIterator[AsyncSession]:
    """Open a session whose statements are each a transaction: no BEGIN and no ROLLBACK to wait for.

    For reading, and for a write that is one statement; nothing of an outbox is written here.
    """
    async with sessions() as session:
        await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        yield session


def moment(value: datetime | None) -> ColumnElement[datetime]:
    """Return a time read from a row, for use in SQL again (a bare value would be sent without its zone)."""
    return literal(value, TIMESTAMP(timezone=True))


async def now(session: AsyncSession) -> datetime:
    """Return the database's time: the one clock that all processes share."""
    value: datetime = (await session.execute(select(func.clock_timestamp()))).scalar_one()
    return value


# --------------------------------------------------------------------------------------------------- migrations


def migrations_path() -> Path:
    """Return the folder of the revisions: inside the installed package, or beside it in a source tree."""
    packaged = Path(__file__).parent / "_migrations"
    return packaged if packaged.exists() else Path(__file__).parent.parent / "migrations"


def alembic_config(url: str) -> Config:
    """Return Alembic's configuration for one database."""
    config = Config()
    config.set_main_option("script_location", str(migrations_path()).replace("%", "%%"))
    config.attributes["url"] = url
    return config


async def migrate(url: str, revision: str = "head") -> None:
    """Bring the schema to ``revision``; safe to call from many processes at once (an advisory lock orders them)."""
    await asyncio.to_thread(command.upgrade, alembic_config(url), revision)


async def schema_is_current(session: AsyncSession) -> bool:
    """Tell whether the database has our newest revision."""
    head = ScriptDirectory(str(migrations_path())).get_current_head()
    exists = (await session.execute(text("select to_regclass('alembic_version')"))).scalar_one()
    if exists is None:
        return False
    return (await session.execute(text("select version_num from alembic_version"))).scalar_one_or_none() == head


async def installation(session: AsyncSession, keyring: Keyring) -> str:
    """Return the installation's id; KeysError when this process holds other secret keys than the rest."""
    # Locked, so that of two processes that start at once with unlike keys the second one notices.
    row = (await session.execute(select(Installation).with_for_update())).scalar_one()
    ours = keyring.check_values()
    for key_id, fingerprint in row.key_check.items():
        if ours.get(key_id, fingerprint) != fingerprint:
            raise KeysError(
                f"secret key {key_id!r} differs from the one this database was made with: "
                "give every process the same SLIPWAY_SECRET_KEYS"
            )
    if row.key_check and not set(row.key_check) & set(ours):
        raise KeysError(
            f"none of the secret keys is known to this database (it has seen {', '.join(sorted(row.key_check))}): "
            "give every process the same SLIPWAY_SECRET_KEYS and keep the old keys behind a new one"
        )
    if missing := {k: v for k, v in ours.items() if k not in row.key_check}:
        await session.execute(update(Installation).values(key_check=row.key_check | missing))
    return row.id

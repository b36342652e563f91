"""Runs the revisions over an async engine. One process at a time: the rest wait for an advisory lock."""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.ext.asyncio import create_async_engine

from app.db import database_url
from app.models import Base, Xid8

LOCK = 0x736C6970  # "slip"
ischema_names["xid8"] = Xid8  # reflection does not know the type


def ours(name: str | None, kind: str, parent_names: object) -> bool:
    """PgQueuer's schema is frozen SQL in a revision of its own and no business of autogenerate."""
    return not (kind == "schema" and name not in {None, "public"})


def run(connection: Connection) -> None:
    connection.execute(text("select pg_advisory_lock(:key)"), {"key": LOCK})
    connection.commit()
    try:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            include_name=ours,
            compare_server_default=False,
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()
    finally:
        connection.execute(text("select pg_advisory_unlock(:key)"), {"key": LOCK})
        connection.commit()


async def main() -> None:
    url = context.config.attributes.get("url") or os.environ.get("DATABASE_URL")
    if not url:
        raise SystemExit("set DATABASE_URL, or use `slipway migrate`")
    engine = create_async_engine(database_url(url), poolclass=pool.NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(run)
    finally:
        await engine.dispose()


asyncio.run(main())

"""The schema: what the revisions make is what the models say, whoever runs them and however often."""

import asyncio

import asyncpg
import pytest
from alembic import command
from pgqueuer.db import AsyncpgDriver
from sqlalchemy import text

from app import db
from app.queue import queries
from tests.support.databases import database_in
from tests.support.processes import python, spawned


async def test_the_models_have_nothing_that_the_revisions_lack(database_url: str) -> None:
    await asyncio.to_thread(command.check, db.alembic_config(database_url))


async def test_the_queue_s_own_upgrade_would_change_nothing(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        plan = await queries(AsyncpgDriver(connection)).plan_upgrade()
    finally:
        await connection.close()
    assert (plan.statements, plan.notes) == ((), ())


async def test_the_queue_s_plan_can_tell(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("drop index pgqueuer.pgqueuer_log_created")
        plan = await queries(AsyncpgDriver(connection)).plan_upgrade()
    finally:
        await connection.close()
    assert len(plan.statements) == 1


LOCK = 0x736C6970
"""As in migrations/env.py, which only Alembic can import."""

MIGRATE = """
import asyncio, sys
from app import db
print("ready", flush=True)
asyncio.run(db.migrate(sys.argv[1]))
print("done", flush=True)
"""


def test_two_processes_migrate_at_once(empty_database_url: str) -> None:
    with spawned(*python(MIGRATE, empty_database_url)) as one, spawned(*python(MIGRATE, empty_database_url)) as two:
        for child in (one, two):
            child.line("done", timeout=60)
            assert child.wait() == 0


async def test_a_migration_waits_for_the_one_before(empty_database_url: str) -> None:
    connection = await asyncpg.connect(empty_database_url)
    try:
        await connection.execute("select pg_advisory_lock($1)", LOCK)
        task = asyncio.create_task(db.migrate(empty_database_url))
        async with asyncio.timeout(30):
            while not await connection.fetch("select 1 from pg_locks where locktype = 'advisory' and not granted"):
                assert not task.done()
        assert await connection.fetchval("select to_regclass('build')") is None
        await connection.execute("select pg_advisory_unlock($1)", LOCK)
        await task
        assert await connection.fetchval("select to_regclass('build')") is not None
    finally:
        await connection.close()


async def test_down_and_up_again(empty_database_url: str) -> None:
    await db.migrate(empty_database_url)
    await asyncio.to_thread(command.downgrade, db.alembic_config(empty_database_url), "base")
    connection = await asyncpg.connect(empty_database_url)
    try:
        left = await connection.fetch("select tablename from pg_tables where schemaname in ('public', 'pgqueuer')")
        assert [r["tablename"] for r in left] == ["alembic_version"]
    finally:
        await connection.close()
    await db.migrate(empty_database_url)
    engine = db.create_engine(empty_database_url, pool_size=1)
    async with db.create_sessions(engine)() as session:
        assert await db.schema_is_current(session)
        ids = (await session.execute(text("select id from installation"))).scalars().all()
    await engine.dispose()
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("postgres://u:p@h/d", "postgresql+asyncpg://u:***@h/d"),
        ("postgresql://u:p@h/d?sslmode=require", "postgresql+asyncpg://u:***@h/d?ssl=require"),
    ],
)
def test_urls_of_all_kinds(given: str, driver: str) -> None:
    assert db.database_url(given).render_as_string() == driver
    assert db.plain_dsn(given).startswith("postgresql://u:p@h/d")


def test_another_database_is_refused() -> None:
    with pytest.raises(ValueError, match="postgresql"):
        db.database_url("sqlite:///x")
    assert database_in("postgresql://h/a", "b") == "postgresql://h/b"

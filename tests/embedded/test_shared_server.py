"""The tests' own databases: each test has one, and a run leaves nothing behind."""

import asyncpg
import pytest

HOLD = """
import pathlib, sys, time
from tests.support.databases import shared_server
with shared_server(pathlib.Path(sys.argv[1])) as server:
    with server.database() as url:
        print("url", url, flush=True)
        sys.stdin.read() if len(sys.argv) > 2 else time.sleep(600)
"""


@pytest.mark.parametrize("again", [1, 2])
async def test_each_test_has_a_fresh_migrated_database(database_url: str, again: int) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        assert await connection.fetchval("select count(*) from alembic_version") == 1
        await connection.execute("create table only_here (a int)")
    finally:
        await connection.close()


async def test_an_empty_database_has_no_tables(empty_database_url: str) -> None:
    connection = await asyncpg.connect(empty_database_url)
    try:
        assert await connection.fetchval("select count(*) from pg_tables where schemaname = 'public'") == 0
    finally:
        await connection.close()

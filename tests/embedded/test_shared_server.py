"""The tests' own databases: each test has one, and a run leaves nothing behind."""

import asyncio
import os
from contextlib import AbstractContextManager
from pathlib import Path

import asyncpg
import psutil
import pytest
from sqlalchemy import make_url

from tests.embedded.support import rows
from tests.support.databases import SharedServer, keeper_name
from tests.support.processes import Child, assert_gone, python, spawned

HOLD = """
import pathlib, time
from tests.support.databases import shared_server
with shared_server(pathlib.Path(sys.argv[1])) as server, server.database() as url:
    print("url", url, flush=True)
    time.sleep(float(sys.argv[2]))
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


def hold(folder: Path, seconds: str) -> AbstractContextManager[Child]:
    """Run a process that uses a run's own server, whatever server this very run uses."""
    environment = {name: value for name, value in os.environ.items() if name != "TEST_DATABASE_URL"}
    return spawned(*python(HOLD, folder, seconds), env=environment)


def socket_in(line: str) -> Path:
    """Return the folder of the server's socket from a line of HOLD."""
    return Path(str(make_url(line.split()[1]).query["host"]))


def keepers_of(folder: Path) -> list[psutil.Process]:
    """Return the processes that keep the server of the run with this folder."""
    name = keeper_name(folder).removeprefix("\0")
    return [p for p in psutil.process_iter(["cmdline"]) if name in (p.info["cmdline"] or [])]


def test_a_run_has_one_server_until_its_last_process_is_killed(tmp_path: Path) -> None:
    with hold(tmp_path, "600") as first, hold(tmp_path, "600") as second:
        where = socket_in(first.line("url "))
        assert socket_in(second.line("url ")) == where
        (keeper,) = keepers_of(tmp_path)
        below = [keeper, *keeper.children(recursive=True)]
        first.kill()
        with hold(tmp_path, "0") as third:
            assert socket_in(third.line("url ")) == where
            assert third.wait() == 0
        second.kill()
        assert_gone(below)
    assert not where.exists()


def test_the_last_to_leave_waits_until_nothing_is_left(tmp_path: Path) -> None:
    with hold(tmp_path, "0") as only:
        where = socket_in(only.line("url "))
        assert only.wait() == 0
    assert not where.exists()
    assert_gone(keepers_of(tmp_path))


def test_a_server_from_outside_is_used_and_left_clean(postgres: SharedServer, tmp_path: Path) -> None:
    count = "select count(*) from pg_database"
    count += f" where not starts_with(datname, '{postgres.prefix}')"  # other tests of this run come and go
    before = asyncio.run(rows(postgres.url, count))
    environment = {**os.environ, "TEST_DATABASE_URL": postgres.url}
    with spawned(*python(HOLD, tmp_path, "600"), env=environment) as only:
        url = only.line("url ").split()[1]
        assert make_url(url).set(database="x") == make_url(postgres.url).set(database="x")
        assert asyncio.run(rows(url, "select count(*) from alembic_version")) == [(1,)]
        keepers = keepers_of(tmp_path)
        only.kill()
        assert_gone(keepers)
    assert asyncio.run(rows(postgres.url, count)) == before

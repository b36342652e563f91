"""The tests' own databases: each test has one, and a run leaves nothing behind."""

from pathlib import Path

import asyncpg
import psutil
import pytest

from tests.support.databases import keeper_name
from tests.support.processes import assert_gone, python, spawned

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


def keepers_of(folder: Path) -> list[psutil.Process]:
    """Return the processes that keep the server of the run with this folder."""
    name = keeper_name(folder).removeprefix("\0")
    return [p for p in psutil.process_iter(["cmdline"]) if name in (p.info["cmdline"] or [])]


def test_a_run_has_one_server_until_its_last_process_is_killed(tmp_path: Path) -> None:
    with spawned(*python(HOLD, tmp_path, "600")) as first, spawned(*python(HOLD, tmp_path, "600")) as second:
        where = first.line("url ").split("?")[1]
        assert second.line("url ").split("?")[1] == where
        (keeper,) = keepers_of(tmp_path)
        below = [keeper, *keeper.children(recursive=True)]
        first.kill()
        with spawned(*python(HOLD, tmp_path, "0")) as third:
            assert third.line("url ").split("?")[1] == where
            assert third.wait() == 0
        second.kill()
        assert_gone(below)
    assert not Path(where.removeprefix("host=")).exists()


def test_the_last_to_leave_waits_until_nothing_is_left(tmp_path: Path) -> None:
    with spawned(*python(HOLD, tmp_path, "0")) as only:
        where = only.line("url ").split("?")[1]
        assert only.wait() == 0
    assert not Path(where.removeprefix("host=")).exists()
    assert_gone(keepers_of(tmp_path))

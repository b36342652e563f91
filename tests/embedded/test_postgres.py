"""The embedded server in good times: it starts, keeps its data to itself, and leaves nothing but its home."""

import os
import stat
from pathlib import Path

import asyncpg
import psutil
import pytest
from sqlalchemy import text as sql

from app import db
from app.embedded.errors import EmbeddedError, HomeInUseError, ServerDiedError
from app.embedded.postgres import MAX_LOG_BYTES, EmbeddedPostgres
from app.embedded.reach import account
from tests.embedded.support import as_nobody, copy_of_wheel, needs_root, owner_of, rows, without_sys_admin
from tests.support.processes import descendants, interrupt, spawned


def server_of(child_pid: int) -> psutil.Process:
    """Return the postmaster below a process."""
    return next(p for p in descendants(child_pid) if p.name() == "postgres" and p.ppid() == child_pid)


async def test_data_outlives_a_restart_and_both_drivers_connect(home: Path) -> None:
    async with EmbeddedPostgres(home) as server:
        assert server.url is not None
        await rows(server.url, "create table kept as select 7 as a")
    async with EmbeddedPostgres(home) as server:
        assert server.url is not None
        engine = db.create_engine(server.url)
        async with engine.connect() as connection:
            assert (await connection.execute(sql("select a from kept"))).scalar_one() == 7
        await engine.dispose()
        assert await rows(server.url, "show synchronous_commit") == [("on",)]
        assert await rows(server.url, "show fsync") == [("on",)]


async def test_only_who_has_the_password_and_the_socket_gets_in(home: Path) -> None:
    async with EmbeddedPostgres(home) as server:
        assert server.url is not None
        assert server.sockets is not None
        assert await rows(server.url, "show listen_addresses") == [("",)]
        assert stat.S_IMODE(server.sockets.stat().st_mode) == 0o700
        assert stat.S_IMODE((home / "postgres.password").stat().st_mode) == 0o600
        password = (home / "postgres.password").read_text()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(server.url.replace(password, "0" * len(password)))
        stored = await rows(server.url, "select rolpassword from pg_authid where rolname = 'slipway'")
        assert str(stored[0][0]).startswith("SCRAM-SHA-256$")


async def test_stop_leaves_no_socket_and_no_process(home: Path) -> None:
    server = EmbeddedPostgres(home)
    await server.start()
    sockets, below = server.sockets, descendants(os.getpid())
    assert sockets is not None
    assert any(p.name() == "postgres" for p in below)
    await server.stop()
    await server.stop()
    assert not sockets.exists()
    assert not [p for p in below if p.is_running() and p.name() == "postgres"]
    assert not server.died.is_set()


@needs_root
async def test_root_runs_it_as_somebody_else(home: Path) -> None:
    who = account()
    assert who is not None
    async with EmbeddedPostgres(home):
        postmaster = server_of(os.getpid())
        assert set(postmaster.uids()) == {who.uid}
        assert set(postmaster.gids()) == {who.gid}


@needs_root
async def test_existing_data_keeps_its_account(open_folder: Path) -> None:
    """Made before there was an account `postgres`, say: PostgreSQL insists on the owner of its data."""
    home = open_folder / "home"
    async with EmbeddedPostgres(home):
        pass
    for path in (home / "postgres", *(home / "postgres").rglob("*")):
        os.chown(path, 65534, 65534)
    async with EmbeddedPostgres(home):
        assert server_of(os.getpid()).uids().real == 65534


async def test_a_second_owner_is_told_who_the_first_is(home: Path) -> None:
    with spawned(*owner_of(home)) as first:
        first.line("url ")
        with spawned(*owner_of(home)) as second:
            assert second.line("refused ").startswith(f"refused {home} is in use by process {first.pid};")
        with pytest.raises(HomeInUseError) as caught:
            await EmbeddedPostgres(home).start()
        assert (caught.value.pid, caught.value.home) == (first.pid, home)
        interrupt(first)
        assert "stopped\n" in first.output


async def test_the_death_of_the_server_is_told(home: Path) -> None:
    server = EmbeddedPostgres(home)
    await server.start()
    sockets = server.sockets
    try:
        server_of(os.getpid()).kill()
        with pytest.raises(ServerDiedError, match="ended unexpectedly"):
            await server.watch()
        assert server.url is None
    finally:
        await server.stop()
    assert sockets is not None
    assert not sockets.exists()
    async with EmbeddedPostgres(home) as again:  # with children of the dead one just ending
        assert again.url is not None
        assert await rows(again.url, "select 1") == [(1,)]


async def test_a_server_that_can_not_start_says_why_and_leaves_nothing(home: Path) -> None:
    server = EmbeddedPostgres(home, settings={"shared_buffers": "nonsense"})
    with pytest.raises(EmbeddedError, match="shared_buffers"):
        await server.start()
    assert server.sockets is None
    async with EmbeddedPostgres(home):
        pass


@pytest.mark.parametrize(("text", "said"), [(None, "is missing"), ("0" * 48, "does not let us in")])
async def test_data_without_its_password_is_refused(home: Path, text: str | None, said: str) -> None:
    async with EmbeddedPostgres(home):
        pass
    file = home / "postgres.password"
    kept = file.rename(home / "kept")
    if text:
        file.write_text(text)
    try:
        with pytest.raises(EmbeddedError, match=said):
            await EmbeddedPostgres(home).start()
    finally:
        kept.replace(file)
    async with EmbeddedPostgres(home):
        pass


async def test_the_log_is_put_aside_before_it_grows_large(home: Path) -> None:
    async with EmbeddedPostgres(home):
        pass
    (home / "postgres.log").write_text("x" * (MAX_LOG_BYTES + 1))
    async with EmbeddedPostgres(home):
        assert 0 < (home / "postgres.log").stat().st_size < 10_000
    assert (home / "postgres.log.1").stat().st_size > MAX_LOG_BYTES


async def test_a_home_with_a_very_long_path(open_folder: Path) -> None:
    home = open_folder.joinpath(*["a-rather-long-name-for-a-folder"] * 5)
    assert len(str(home)) > 120
    async with EmbeddedPostgres(home) as server:
        assert server.url is not None
        assert await rows(server.url, "select 1") == [(1,)]


async def test_a_temporary_folder_with_a_very_long_path(home: Path, open_folder: Path) -> None:
    long = open_folder / ("t" * 120)
    long.mkdir()
    with spawned(*owner_of(home), env={**os.environ, "TMPDIR": str(long)}) as owner:
        assert "host=/tmp/slp-pg-" in owner.line("url ")
        interrupt(owner)


@needs_root
def test_home_and_programs_below_a_closed_folder(closed_folder: Path) -> None:
    """A clone with its virtual environment and its state in root's own home."""
    site = copy_of_wheel(closed_folder / "clone" / "site")
    home = closed_folder / "clone" / "state"
    with spawned(*owner_of(home), env={**os.environ, "PYTHONPATH": str(site)}) as owner:
        owner.line("url ")
        assert server_of(owner.pid).cmdline()[0].startswith(str(site))
        assert server_of(owner.pid).uids().real != 0
        interrupt(owner)
    assert stat.S_IMODE(closed_folder.stat().st_mode) == 0o700


@needs_root
def test_a_container_copies_programs_it_can_not_reach(closed_folder: Path, open_folder: Path) -> None:
    site = copy_of_wheel(closed_folder / "site")
    home = open_folder / "home"
    programs = home / "postgres-programs"
    programs.mkdir(parents=True)
    (programs / ".half-made").mkdir()
    for _ in range(2):
        command = without_sys_admin(owner_of(home))
        with spawned(*command, env={**os.environ, "PYTHONPATH": str(site)}) as owner:
            owner.line("url ")
            assert server_of(owner.pid).cmdline()[0].startswith(str(programs))
            made = next(programs.iterdir()).stat().st_ctime_ns
            assert len(list(programs.iterdir())) == 1
            interrupt(owner)
    assert next(programs.iterdir()).stat().st_ctime_ns == made


@needs_root
def test_a_container_refuses_a_home_it_can_not_enter(closed_folder: Path) -> None:
    with spawned(*without_sys_admin(owner_of(closed_folder / "home"))) as owner:
        refusal = owner.line("refused ")
    assert "set SLIPWAY_HOME to a folder" in refusal
    assert "CAP_SYS_ADMIN" in refusal


def test_an_ordinary_user_needs_nothing_special(open_folder: Path) -> None:
    place = open_folder / "theirs"
    place.mkdir()
    if os.geteuid() == 0:
        os.chown(place, 65534, 65534)
    for _ in range(2):
        with spawned(*as_nobody(owner_of(place / "home"))) as owner:
            owner.line("url ")
            assert server_of(owner.pid).uids().real == (65534 if os.geteuid() == 0 else os.getuid())
            assert interrupt(owner) == 0
            assert "stopped\n" in owner.output
    assert stat.S_IMODE((place / "home").stat().st_mode) == 0o700


async def test_a_home_that_can_not_be_made_is_refused(open_folder: Path) -> None:
    (open_folder / "file").touch()
    with pytest.raises(EmbeddedError, match="set SLIPWAY_HOME to another folder"):
        await EmbeddedPostgres(open_folder / "file" / "home").start()

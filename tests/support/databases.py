"""A real database for each test: clones of a migrated template on one server that all processes of a run share."""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import make_url

from tests.support.processes import REPOSITORY

START_SECONDS = 120.0
STOP_SECONDS = 60.0
STATEMENT_SECONDS = 60.0


@dataclass(frozen=True)
class SharedServer:
    """The server of this run: ``url`` of a superuser there, ``prefix`` of all databases the run makes."""

    url: str
    prefix: str

    @contextlib.contextmanager
    def database(self, *, migrated: bool = True) -> Iterator[str]:
        """Make a database for the length of a ``with`` block, migrated or empty; yields its URL."""
        name = f"{self.prefix}_{secrets.token_hex(6)}"
        template = f"{self.prefix}_template" if migrated else "template0"
        blocking(_execute(self.url, f"create database {name} template {template} strategy file_copy"))
        try:
            yield database_in(self.url, name)
        finally:
            blocking(_execute(self.url, f"drop database if exists {name} with (force)"))


def database_in(url: str, name: str) -> str:
    """Return ``url`` with another database in it."""
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def blocking(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end on a loop in a thread of its own, so that no test's loop is touched."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(statement, timeout=STATEMENT_SECONDS)
    finally:
        await connection.close(timeout=10)


def keeper_name(folder: Path) -> str:
    """Return the abstract socket's name for the run with this folder."""
    return f"\0slipway-tests-{os.getuid()}-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:24]}"


@contextlib.contextmanager
def shared_server(folder: Path) -> Iterator[SharedServer]:
    """Use the run's server, starting it when this is the first process to ask; ``folder`` is one the run shares.

    The server is held by a connection to its keeper, so it lives exactly as long as somebody uses it; the last one
    waits here until everything is removed.
    """
    name = keeper_name(folder)
    with folder.joinpath("postgres.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = _ask(name)
        if held is None:
            _start_keeper(name)
            held = _ask(name)
    if held is None:
        raise RuntimeError("the keeper of the test server started, but does not answer")
    connection, server = held
    with connection:
        try:
            yield server
        finally:
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(STOP_SECONDS)
            while connection.recv(1024):
                pass


def _ask(name: str) -> tuple[socket.socket, SharedServer] | None:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    try:
        connection.connect(name)
        with connection.makefile("r") as lines:
            line = lines.readline()
    except ConnectionError:
        line = ""
    if not line:  # nobody is there, or is just about to leave
        connection.close()
        return None
    return connection, SharedServer(**json.loads(line))


def _start_keeper(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.postgres_keeper", name.removeprefix("\0")],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the test server did not start:\n{done.stderr}")

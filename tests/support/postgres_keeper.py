"""Keeps one PostgreSQL server, with a migrated template, for all the processes of one test run.

    python -m tests.support.postgres_keeper NAME

Listens on the abstract socket NAME and tells each client, as one line of JSON, the server's URL and the prefix of the
run's databases. A client is served for as long as it holds its connection; when the last one is gone, however it went,
the keeper removes everything and ends. So nothing outlives a test run, not even one ended by kill -9.
A client that closes its sending half sees the end of the stream only when its part of the work is done.

With TEST_DATABASE_URL it starts no server, and removes the run's databases from that one at the end.
"""

import asyncio
import contextlib
import json
import os
import secrets
import socket
import struct
import sys
import tempfile
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg

from app import db
from app.embedded.postgres import EmbeddedPostgres
from tests.support.databases import database_in

FIRST_CLIENT_SECONDS = 60.0
FAST = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off", "max_connections": "300"}
"""A server that nobody needs after a crash."""
MEMORY = Path("/dev/shm")
ROOM_BYTES = 2 * 1024**3


def in_memory() -> Path | None:
    """Return where files are kept in memory, if there is room: a clone is 300 files, ten times as dear on a disk."""
    try:
        found = os.statvfs(MEMORY)
    except OSError:
        return None
    usable = os.access(MEMORY, os.W_OK) and found.f_bavail * found.f_frsize >= ROOM_BYTES
    return MEMORY if usable else None


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[str]:
    """Bring a server for the length of the block; yields its URL."""
    if outside := os.environ.get("TEST_DATABASE_URL"):
        yield outside
        return
    with tempfile.TemporaryDirectory(prefix="slipway-tests-", dir=in_memory()) as folder:
        os.chmod(folder, 0o711)  # noqa: PTH101 - the server's own account has to pass
        async with EmbeddedPostgres(Path(folder) / "home", settings=FAST) as embedded:
            assert embedded.url is not None
            yield embedded.url


@contextlib.asynccontextmanager
async def template(url: str, prefix: str) -> AsyncIterator[None]:
    """Make the migrated template; at the end remove every database of this run."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"create database {prefix}_template")
        await db.migrate(database_in(url, f"{prefix}_template"))
        yield
    finally:
        for (name,) in await connection.fetch("select datname from pg_database where starts_with(datname, $1)", prefix):
            await connection.execute(f'drop database "{name}" with (force)')
        await connection.close()


class Clients:
    """Those who use the server. ``first`` is set by the first to come, ``none_left`` by the last to go."""

    def __init__(self, answer: bytes) -> None:
        self.first, self.none_left = asyncio.Event(), asyncio.Event()
        self.last: asyncio.StreamWriter | None = None
        self._answer, self._count = answer, 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hold one client's connection until it lets go; the last one's stays open for ``main`` to close."""
        peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", peer)[1] != os.getuid() or self.none_left.is_set():
            writer.close()
            return
        self._count += 1
        self.first.set()
        writer.write(self._answer)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        self._count -= 1
        if self._count:
            writer.close()
        else:
            self.last = writer
            self.none_left.set()


async def main(name: str, ready: int) -> None:
    """Keep the server; writes to the pipe ``ready`` when clients can come."""
    prefix = f"slptest{secrets.token_hex(4)}"
    async with server() as url, template(url, prefix):
        clients = Clients(json.dumps({"url": url, "prefix": prefix}).encode() + b"\n")
        listening = await asyncio.start_unix_server(clients.serve, path=f"\0{name}")
        os.write(ready, b"ready")
        os.close(ready)
        try:
            async with asyncio.timeout(FIRST_CLIENT_SECONDS):
                await clients.first.wait()
        except TimeoutError:
            pass
        else:
            await clients.none_left.wait()
        listening.close()
    if clients.last:
        clients.last.close()


def detached(name: str) -> int:
    """Go on in a process of its own, and return when that one is ready or has failed."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with os.fdopen(reader) as pipe:
            said = pipe.read()
        if said != "ready":
            sys.stderr.write(said)
        return int(said != "ready")
    os.setsid()
    os.close(reader)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # whoever started us waits for the end of these
        os.dup2(nowhere, stream)
    try:
        asyncio.run(main(name, writer))
    except Exception:  # noqa: BLE001 - told to whoever waits
        with contextlib.suppress(OSError):
            os.write(writer, traceback.format_exc().encode())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(detached(sys.argv[1]))

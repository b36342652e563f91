"""A PostgreSQL server of our own: a child of this process that nobody has to install, start, stop or look after.

It listens on a socket in a folder of its own and nowhere else, keeps its data in ``<home>/postgres`` and its log in
``<home>/postgres.log``, and ends when its owner does, however that ends. One process owns a home at a time.
"""

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import Process
from collections.abc import Mapping
from pathlib import Path
from typing import Self
from urllib.parse import quote

import asyncpg

from app import children
from app.embedded import cluster, sockets
from app.embedded.binaries import Binaries, usable_by
from app.embedded.errors import EmbeddedError, ServerDiedError
from app.embedded.owner import HomeLock
from app.embedded.reach import Account, account, launch_prefix

MAX_LOG_BYTES = 1024 * 1024
PREDECESSOR_SECONDS = 60.0
READY_SECONDS = 120.0
FAST_STOP, IMMEDIATE_STOP, KILLED = 30.0, 10.0, 10.0
"""Seconds that each way of ending the server gets."""
CONNECT_SECONDS = 10.0
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    # Small, quiet when idle, and quick to start.
    "shared_buffers": "64MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "512MB",
    "max_logical_replication_workers": "0",
    "max_parallel_workers_per_gather": "0",
    "autovacuum_naptime": "60s",
    "jit": "off",
    # What fails tells its client; the log is for the server's own life, so it stays small and free of statements.
    "log_min_messages": "log",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
    "log_timezone": "UTC",
    "timezone": "UTC",
    "cluster_name": "slipway",
}


class EmbeddedPostgres:
    """The server of one home. ``url`` is None unless it runs; ``died`` is set when it ended without being asked to."""

    def __init__(
        self, home: Path, *, settings: Mapping[str, str] | None = None, programs: Binaries | None = None
    ) -> None:
        """``settings`` go on top of ours; ``programs`` are others than the installed wheel's."""
        self.home = home.absolute()
        self.data = self.home / "postgres"
        self.log = self.home / "postgres.log"
        self.url: str | None = None
        self.died = asyncio.Event()
        self._settings = dict(settings or {})
        self._programs = programs
        self._lock = HomeLock(self.home, ".postgres.lock")
        self.sockets: Path | None = None
        self._process: Process | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> str:
        """Start the server, making its data first where there is none, and return its ``postgresql://`` URL.

        Call it in a thread that lives as long as the server shall (the main one): the server ends with that thread.
        Raises EmbeddedError, with a sentence that says what to do; nothing is left running then.
        """
        if self._process is not None:
            raise RuntimeError("started already")
        try:
            self.died.clear()
            cluster.make_home(self.home)
            await self._lock.acquire()
            self.url = await self._start()
        except BaseException:
            await self.stop()
            raise
        return self.url

    async def stop(self) -> None:
        """End the server, letting open transactions go, and remove its sockets; does nothing when it isn't running."""
        process, watcher, self._process, self._watcher, self.url = self._process, self._watcher, None, None, None
        try:
            if watcher:
                watcher.cancel()
                await asyncio.wait([watcher])
            if process:
                await _end(process)
        finally:
            if self.sockets:
                sockets.remove(self.sockets)
                self.sockets = None
            self._lock.release()

    async def watch(self) -> None:
        """Wait for the server's unexpected end and raise ServerDiedError; for a task beside what needs the server."""
        await self.died.wait()
        raise ServerDiedError(f"PostgreSQL ended unexpectedly; the end of {self.log}:\n{self._last_words()}")

    async def _start(self) -> str:
        await cluster.all_gone(self.data, PREDECESSOR_SECONDS)
        if isinstance(left := self._lock.previous.get("sockets"), str):
            sockets.remove(Path(left))
        who = cluster.owner(self.data, account())
        programs = self._programs
        if programs is None:
            programs = await asyncio.to_thread(usable_by, who, self.home)
        major = await cluster.major_version(who, programs)
        fresh = not cluster.exists(self.data)
        password = cluster.password(self.home, fresh=fresh)
        if not fresh:
            cluster.check_version(self.data, major)
        else:
            await cluster.create(self.data, who, programs, password)
        await cluster.check_reach(self.data, who)
        cluster.drop_stale_pid(self.data)
        self.sockets = sockets.new_name()
        self._lock.note({"sockets": str(self.sockets)})  # before it is there, so that a successor knows of it
        self.sockets.mkdir(mode=0o700)
        if who:
            os.chown(self.sockets, who.uid, who.gid)
        await self._spawn(who, programs, major)
        await self._ready()
        self._watcher = asyncio.create_task(self._watch())
        try:
            await _ensure_database(self.sockets, password)
        except (OSError, asyncpg.PostgresError) as error:
            raise EmbeddedError(f"PostgreSQL in {self.home} started, but does not let us in: {error}") from error
        return f"postgresql://{cluster.USER}:{password}@/{cluster.DATABASE}?host={quote(str(self.sockets), safe='/')}"

    async def _spawn(self, who: Account | None, programs: Binaries, major: str) -> None:
        assert self.sockets is not None
        settings = {**SETTINGS, "unix_socket_directories": str(self.sockets)}
        if int(major) >= 18:
            settings["io_method"] = "sync"  # no extra processes for reading ahead
        options = [word for name, value in (settings | self._settings).items() for word in ("-c", f"{name}={value}")]
        keep = [*programs.keep, self.data, self.sockets]
        command = [
            *launch_prefix(who, keep, die_with_parent=signal.SIGINT),
            *(str(programs.bin / "postgres"), "-D", str(self.data)),
            *options,
        ]
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > MAX_LOG_BYTES:
                self.log.replace(self.log.with_suffix(".log.1"))
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # A session of its own: a Ctrl-C at the terminal is for its owner, who stops it in good order.
            self._process = await children.start(*command, stdout=log, stderr=log, env=cluster.environment())
        finally:
            os.close(log)

    async def _ready(self) -> None:
        """Wait until the server takes connections, as it says itself in postmaster.pid."""
        process, file = self._process, self.data / "postmaster.pid"
        assert process is not None
        deadline = asyncio.get_running_loop().time() + READY_SECONDS
        while True:
            with contextlib.suppress(FileNotFoundError):
                lines = file.read_text().splitlines()
                if len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() == "ready":
                    return
            if process.returncode is not None:
                raise EmbeddedError(
                    f"PostgreSQL did not start ({process.returncode}); the end of {self.log}:\n{self._last_words()}"
                )
            if asyncio.get_running_loop().time() >= deadline:
                raise EmbeddedError(f"PostgreSQL was not ready after {READY_SECONDS:.0f} s; see {self.log}")
            await asyncio.sleep(cluster.POLL_SECONDS)

    async def _watch(self) -> None:
        assert self._process is not None
        await self._process.wait()
        self.url = None
        self.died.set()

    def _last_words(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-10:])
        return ""


async def _end(process: Process) -> None:
    """End the server: fast, then at once, then by force. Each step is bounded."""
    for number, seconds in ((signal.SIGINT, FAST_STOP), (signal.SIGQUIT, IMMEDIATE_STOP), (signal.SIGKILL, KILLED)):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await process.wait()


async def _ensure_database(folder: Path, password: str) -> None:
    """Connect once, and make our database where the server is new."""
    login = {"host": str(folder), "user": cluster.USER, "password": password, "timeout": CONNECT_SECONDS}
    try:
        connection = await asyncpg.connect(**login, database=cluster.DATABASE)
    except asyncpg.InvalidCatalogNameError:
        connection = await asyncpg.connect(**login, database="postgres")
        try:
            await connection.execute(f"create database {cluster.DATABASE}", timeout=CONNECT_SECONDS)
        finally:
            await connection.close(timeout=CONNECT_SECONDS)
    else:
        await connection.close(timeout=CONNECT_SECONDS)

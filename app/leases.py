"""Things that one process at a time may own, by a row in the database: the local platform of a host.

A holder names its host and process, so that a successor on the same host need not wait for the end of a dead one's lease.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import psutil
import structlog
from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from app.db import DATABASE_ERRORS, Sessions, moment
from app.models import Lease

log = structlog.get_logger()

LEASE_SECONDS = 30.0
RENEW_SECONDS = 10.0


class LeaseError(Exception):
    """Somebody else holds it."""


def me() -> str:
    """Return this process's name as a holder: host, pid and start time, so that a reused pid is another holder."""
    return f"{socket.gethostname()[:24]}:{os.getpid()}:{psutil.Process().create_time():.2f}"


def is_dead(holder: str) -> bool:
    """Tell whether the holder was a process of this host that lives no more; False when that can't be known."""
    host, _, rest = holder.partition(":")
    pid, _, started = rest.partition(":")
    if host != socket.gethostname()[:24] or not pid.isdigit():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" != started
    except psutil.NoSuchProcess:
        return True


@contextlib.asynccontextmanager
async def held(sessions: Sessions, name: str) -> AsyncIterator[None]:
    """Hold a lease while the block runs, renewing it; LeaseError when another live process holds it."""
    holder = me()
    await _take(sessions, name, holder)
    try:
        async with renewed(f"lease {name}", lambda: _renew(sessions, name, holder)):
            yield
    finally:
        with contextlib.suppress(Exception):  # the database may be gone already; the lease then ends by itself
            async with sessions.begin() as session:
                await session.execute(delete(Lease).where(Lease.name == name, Lease.holder == holder))


@contextlib.asynccontextmanager
async def renewed(
    what: str, renew: Callable[[], Awaitable[object]], *, every: float = RENEW_SECONDS
) -> AsyncIterator[None]:
    """Renew a claim each ``every`` seconds while the block runs. A database that does not answer is asked again then."""
    renewer = asyncio.create_task(_renewing(what, renew, every), name=f"renew {what}")
    try:
        yield
    finally:
        renewer.cancel()
        await asyncio.gather(renewer, return_exceptions=True)


async def _renewing(what: str, renew: Callable[[], Awaitable[object]], every: float) -> None:
    while True:
        await asyncio.sleep(every)
        try:
            await renew()
        except DATABASE_ERRORS as e:
            log.warning("a claim could not be renewed; trying again", claim=what, error=str(e) or type(e).__name__)


async def _take(sessions: Sessions, name: str, holder: str) -> None:
    expires = func.now() + timedelta(seconds=LEASE_SECONDS)
    async with sessions.begin() as session:
        new = insert(Lease).values(name=name, holder=holder, expires_at=expires).on_conflict_do_nothing()
        await session.execute(new)
        row = (await session.execute(select(Lease).where(Lease.name == name).with_for_update())).scalar_one()
        over = (await session.execute(select(moment(row.expires_at) < func.now()))).scalar_one()
        if row.holder != holder and not over and not is_dead(row.holder):
            raise LeaseError(f"{name} is held by {row.holder}; only one process may own it")
        await session.execute(update(Lease).where(Lease.name == name).values(holder=holder, expires_at=expires))


async def _renew(sessions: Sessions, name: str, holder: str) -> None:
    expires = func.now() + timedelta(seconds=LEASE_SECONDS)
    async with sessions.begin() as session:
        mine = update(Lease).where(Lease.name == name, Lease.holder == holder).values(expires_at=expires)
        if not (await session.execute(mine.returning(Lease.name))).first():
            log.critical("lease lost to another process; two owners are possible until one is stopped", lease=name)

"""Take a service off a platform where it no longer lives: after a migration's keeping time, or after one that failed.

Unlike ``retire`` this removes all there is of the service on that platform, its address and its pull credential too. While it is
at work no release of the service begins there: ``leaving_at`` without ``retired_at`` says so to ``promote``.
"""

import asyncio
from datetime import timedelta
from functools import partial
from typing import Any

import structlog
from sqlalchemy import ColumnElement, case, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import db, faults, sql, store
from app.context import Context
from app.leases import renewed
from app.lifecycle import ReleaseStatus
from app.models import Release, Service
from app.platforms.base import PlatformError
from app.services import pull
from app.services.release import next_pending, ref_of
from app.sql import Session, after

log = structlog.get_logger()

CALL_SECONDS = 80
CLAIM_SECONDS = 20
"""So long without a renewal, a removal was cut short: the next one may begin."""
RENEW_SECONDS = 5.0
AGAIN_SECONDS = 15
_COMING = frozenset({ReleaseStatus.PENDING, ReleaseStatus.DEPLOYING})
_ARRIVED = """
    update release set keep_until = null, next_check_at = now()
    where service_id = $1 and platform = $2 and keep_until is not null
"""


def on_platform(release: Release) -> tuple[ColumnElement[bool], ...]:
    """Match what the platform still has of the release's service."""
    return (
        Release.service_id == release.service_id,
        Release.platform == release.platform,
        Release.retired_at.is_(None),
    )


async def depart(
    context: Context, session: Session, service: Service, release: Release, old: Release
) -> dict[str, Any]:
    """Note that the service leaves ``old``'s platform for ``release``'s; return what to set of the old release.

    What the new platform kept from an earlier stay is an ordinary old release again.
    """
    await sql.fetch(session, _ARRIVED, service.id, release.platform)
    store.record(session, service, "service.moved", {"from": old.platform, "to": release.platform, "url": service.url})
    return {"keep_until": after(max(release.keep_seconds or 0, context.settings.drain_seconds))}


async def is_kept(session: AsyncSession, release: Release) -> bool:
    """Tell whether the platform, which the service has left, keeps it for a while yet."""
    statement = select(func.max(Release.keep_until) > func.clock_timestamp()).where(*on_platform(release))
    return bool((await session.execute(statement)).scalar_one())


async def leave(context: Context, release: Release, *, renew_seconds: float = RENEW_SECONDS) -> None:
    """Remove the service from the release's platform. Safe to repeat; reconcile repeats it."""
    platform = context.platform(release.platform)
    if platform is None or platform.services is None:
        return
    async with context.sessions.begin() as session:
        last = await _begin(session, release)
    if last is None:
        return
    faults.at("leave.begun")
    try:
        async with (
            asyncio.timeout(CALL_SECONDS),
            renewed(f"leave {last.id}", partial(_renew, context, last), every=renew_seconds),
        ):
            await platform.services.delete(ref_of(context, last))
    except (PlatformError, TimeoutError) as e:
        log.warning("leaving will be tried again", release_id=last.id, error=str(e) or type(e).__name__)
        async with context.sessions.begin() as session:
            # Over as a try, but begun: no release of the service begins there meanwhile.
            await _note(session, last, begun=timedelta(seconds=CLAIM_SECONDS), again=timedelta(seconds=AGAIN_SECONDS))
        return
    faults.at("leave.deleted")
    async with context.sessions.begin() as session:
        await session.get(Service, release.service_id, with_for_update=True)
        # Not what was asked for meanwhile, and waits to begin there.
        gone = update(Release).where(*on_platform(release), Release.leaving_at.is_not(None))
        await session.execute(gone.values(retired_at=func.now(), next_check_at=None))
        await pull.revoke(session, release.service_id, release.platform)
        await next_pending(context, session, release.service_id)
    faults.at("leave.recorded")


async def _begin(session: AsyncSession, release: Release) -> Release | None:
    """Return the newest release to remove, once nothing of the service is wanted there; None when that is not so (yet)."""
    service = await session.get_one(Service, release.service_id, with_for_update=True, populate_existing=True)
    rows = select(Release).where(*on_platform(release)).order_by(Release.number).with_for_update()
    there = (await session.execute(rows)).scalars().all()
    if not there or (service.platform == release.platform and service.deleted_at is None):
        return None
    left = [r for r in there if r.status not in _COMING]
    begun = max((r.leaving_at for r in left if r.leaving_at is not None), default=None)
    if len(left) < len(there) and begun is None:
        # It may come back; the outcome decides. Once the removal has begun it waits for its end instead.
        again = func.now() + timedelta(seconds=AGAIN_SECONDS)
        await session.execute(update(Release).where(Release.id == release.id).values(next_check_at=again))
        return None
    if service.deleted_at is None and await is_kept(session, release):
        return None
    if begun is not None and await db.now(session) < begun + timedelta(seconds=CLAIM_SECONDS):
        return None  # somebody is at it, who could still be when the service is back
    await _note(session, left[-1], begun=timedelta(0), again=timedelta(seconds=CLAIM_SECONDS))
    return left[-1]


async def _renew(context: Context, last: Release) -> None:
    async with context.sessions.begin() as session:
        await _note(session, last, begun=timedelta(0), again=timedelta(seconds=CLAIM_SECONDS))


async def _note(session: AsyncSession, last: Release, *, begun: timedelta, again: timedelta) -> None:
    """Write down how long ago a try to remove the service began, and that one release asks for the next."""
    check = case((Release.id == last.id, func.now() + again))
    tried = update(Release).where(*on_platform(last), Release.status.not_in(_COMING))
    await session.execute(tried.values(leaving_at=func.now() - begun, next_check_at=check))

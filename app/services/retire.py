"""Remove what a superseded or failed release left on its platform; the newest few superseded ones are only put to sleep.

Where its service no longer lives on that platform, all of the service is removed from it: see ``leave``.
"""

import asyncio

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import faults, outbox, queue
from app.context import Context
from app.lifecycle import ReleaseStatus
from app.models import Release, Service
from app.platforms.base import PlatformError, Traits
from app.services import leave
from app.services.release import ref_of
from app.sql import Session

log = structlog.get_logger()

CALL_SECONDS = 60


def nudge(context: Context, session: Session, release: Release, *, delay: float = 0) -> None:
    """Ask for a release to be retired, in the caller's transaction."""
    host_bound = context.catalog.host_bound(release.platform)
    outbox.enqueue(session, queue.Nudge(queue.Job.RETIRE, release.id, host_bound=host_bound, delay=delay))


async def retire(context: Context, release_id: str) -> None:
    """Stop an unwanted release; remove it unless it is kept for a quick rollback. Safe to repeat."""
    async with context.sessions() as session:
        release = await session.get(Release, release_id)
        if release is None or release.retired_at is not None:
            return
        if release.status not in {ReleaseStatus.SUPERSEDED, ReleaseStatus.FAILED}:
            return
        service = await session.get_one(Service, release.service_id)
        away = service.platform != release.platform or service.deleted_at is not None
        waits = away and service.deleted_at is None and await leave.is_kept(session, release)
        kept = release.status == ReleaseStatus.SUPERSEDED if waits else await _kept(context, session, release)
    if away and not waits:
        await leave.leave(context, release)
        return
    platform = context.platform(release.platform)
    if platform is None or platform.services is None:
        return
    ref = ref_of(context, release)
    faults.at("retire.begun")
    try:
        async with asyncio.timeout(CALL_SECONDS):
            if not kept:
                await platform.services.retire(ref)
            elif _runs_on(platform.traits, away=waits):
                await platform.services.sleep(ref)
    except (PlatformError, TimeoutError) as e:
        log.warning("retiring will be tried again", release_id=release.id, error=str(e) or type(e).__name__)
        return
    faults.at("retire.retired")
    await _record(context, release, kept=kept)
    faults.at("retire.recorded")


def _runs_on(traits: Traits, *, away: bool) -> bool:
    """Tell whether a superseded release runs until we put it to sleep; one of a service that moved ``away`` still has callers."""
    return traits.scale_to_zero == "manual" if away else not traits.rollout_replaces


async def _record(context: Context, release: Release, *, kept: bool) -> None:
    async with context.sessions.begin() as session:
        values = {"next_check_at": Release.keep_until} if kept else {"next_check_at": None, "retired_at": func.now()}
        await session.execute(update(Release).where(Release.id == release.id).values(**values))
        if not kept:
            return
        older = (
            select(Release)
            .where(
                Release.service_id == release.service_id,
                Release.status == ReleaseStatus.SUPERSEDED,
                Release.retired_at.is_(None),
            )
            .order_by(Release.number.desc())
            .offset(context.settings.keep_releases)
        )
        for surplus in (await session.execute(older)).scalars():
            nudge(context, session, surplus)


async def _kept(context: Context, session: AsyncSession, release: Release) -> bool:
    if release.status != ReleaseStatus.SUPERSEDED:
        return False
    newest = (
        select(Release.id)
        .where(Release.service_id == release.service_id, Release.status == ReleaseStatus.SUPERSEDED)
        .order_by(Release.number.desc())
        .limit(context.settings.keep_releases)
    )
    return release.id in (await session.execute(newest)).scalars().all()

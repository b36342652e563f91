"""What time and crashes leave behind of services: quiet releases, half-done sleeps and wakes, instances that died, orphans."""

import asyncio

import structlog
from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import outbox, queue, store
from app.context import Context
from app.lifecycle import BuildStatus, Reason, ReleaseStatus, ServiceStatus
from app.models import Build, Release, Service
from app.platforms.base import Phase, PlatformError
from app.services import delete, retire, sleep_wake
from app.services.release import nudge, ref_of

log = structlog.get_logger()

BATCH = 100
AGAIN_SECONDS = 15
CALL_SECONDS = 20
KEPT_UP_PAUSE_SECONDS = 10


async def reconcile(context: Context, session: AsyncSession) -> int:
    """Give every quiet row of a service its job again; returns how many. One transaction, one process at a time.

    Rows that somebody else has locked are left for the next pass: to wait for one while others are held could be for ever.
    """
    return (
        await _releases(context, session)
        + await _stuck_builds(session)
        + await _services(context, session)
        + await _kept_up(context, session)
    )


async def _releases(context: Context, session: AsyncSession) -> int:
    due = (
        select(Release)
        .where(Release.next_check_at <= func.now(), Release.retired_at.is_(None))
        .order_by(Release.next_check_at)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    rows = (await session.execute(due)).scalars().all()
    for release in rows:
        release.next_check_at = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, AGAIN_SECONDS)
        release.tries += 1
        if release.status in {ReleaseStatus.PENDING, ReleaseStatus.DEPLOYING}:
            nudge(context, session, release)
        elif release.status == ReleaseStatus.LIVE:
            release.next_check_at = None
        else:
            retire.nudge(context, session, release)
    return len(rows)


async def _stuck_builds(session: AsyncSession) -> int:
    """End promoting builds whose release has ended without them (a crash can't do that; a bug could)."""
    ago = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, AGAIN_SECONDS)
    ended = (
        select(Build, Release)
        .join(Release, Release.id == Build.release_id)
        .where(
            Build.status == BuildStatus.PROMOTING,
            Release.status.in_([ReleaseStatus.LIVE, ReleaseStatus.SUPERSEDED, ReleaseStatus.FAILED]),
            func.coalesce(Release.finished_at, Release.live_at) < ago,
        )
        .limit(BATCH)
        .with_for_update(of=Build, skip_locked=True)
    )
    rows = (await session.execute(ended)).all()
    for build, release in rows:
        if release.status == ReleaseStatus.FAILED:
            await store.fail(session, build, Reason(release.reason or Reason.INTERNAL_ERROR), release.message)
        else:
            await store.move(session, build, BuildStatus.SUCCEEDED)
    return len(rows)


async def _services(context: Context, session: AsyncSession) -> int:
    due = (
        select(Service)
        .where(Service.next_check_at <= func.now())
        .order_by(Service.next_check_at)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    rows = (await session.execute(due)).scalars().all()
    jobs = {
        ServiceStatus.WAKING: queue.Job.WAKE,
        ServiceStatus.SLEEPING: queue.Job.SLEEP,
        ServiceStatus.DELETING: queue.Job.DELETE,
    }
    for service in rows:
        job = jobs.get(service.status)
        again = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, AGAIN_SECONDS)
        service.next_check_at = again if job else None
        if job is queue.Job.DELETE:
            await delete.nudge(context, session, service)
        elif job:
            host_bound = context.catalog.host_bound(service.platform)
            outbox.enqueue(session, queue.Nudge(job, service.id, host_bound=host_bound, once=False))
    return len(rows)


async def _kept_up(context: Context, session: AsyncSession) -> int:
    """Wake services with ``scale.min`` 1 that are down, with a pause so that a crash loop is slow."""
    pause = func.make_interval(0, 0, 0, 0, 0, 0, KEPT_UP_PAUSE_SECONDS)
    down = (
        select(Service)
        .join(Release, Release.id == Service.live_release_id)
        .where(
            or_(
                Service.status == ServiceStatus.ASLEEP,
                and_(Service.status == ServiceStatus.FAILED, Service.status_at < func.now() - pause),
            ),
            Release.config[("scale", "min")].as_integer() >= 1,
            Service.platform.in_([n for n, e in context.catalog.entries.items() if e.traits.scale_to_zero == "manual"]),
        )
        .limit(BATCH)
        .with_for_update(of=Service, skip_locked=True)
    )
    rows = (await session.execute(down)).scalars().all()
    for service in rows:
        if await store.move(session, service, ServiceStatus.WAKING, next_check_at=func.now()):
            host_bound = context.catalog.host_bound(service.platform)
            outbox.enqueue(session, queue.Nudge(queue.Job.WAKE, service.id, host_bound=host_bound, once=False))
    return len(rows)


async def look_after(context: Context) -> None:
    """Compare running services with their platforms: an instance that died is noted, one that moved is found again.

    Only for platforms this process holds and whose instances we route to ourselves.
    """
    names = [n for n, p in context.catalog.held.items() if p.services and p.traits.scale_to_zero == "manual"]
    if not names:
        return
    async with context.sessions() as session:
        statement = (
            select(Service, Release)
            .join(Release, Release.id == Service.live_release_id)
            .where(Service.status == ServiceStatus.RUNNING, Service.platform.in_(names))
        )
        pairs = (await session.execute(statement)).all()
    for service, release in pairs:
        services = context.catalog.held[service.platform].services
        assert services is not None
        try:
            async with asyncio.timeout(CALL_SECONDS):
                seen = await services.inspect(ref_of(context, release))
        except (PlatformError, TimeoutError) as e:
            log.warning("service can't be looked at", service_id=service.id, error=str(e) or type(e).__name__)
            continue
        if seen.phase in {Phase.RUNNING, Phase.STARTING}:
            if seen.address and service.instance_id and seen.address.instance_id == service.instance_id:
                await _readdress(context, service, seen.address.url)
            continue
        if service.instance_id:
            code = f" with code {seen.exit_code}" if seen.exit_code is not None else ""
            message = seen.message or f"The instance ended by itself{code}."
            await sleep_wake.mark_down(context, service.id, service.instance_id, message)


async def _readdress(context: Context, service: Service, url: str) -> None:
    if url == service.address:
        return
    same = (Service.id == service.id, Service.instance_id == service.instance_id)
    async with context.sessions.begin() as session:
        await session.execute(update(Service).where(*same).values(address=url))

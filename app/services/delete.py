"""Remove a service with everything it has anywhere: from every state, once, and its secrets with it."""

import asyncio

import structlog
from sqlalchemy import delete as sql_delete
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import faults, outbox, queue, store
from app.builds.cancel import cancel
from app.context import Context
from app.ids import remote_name
from app.lifecycle import OPEN_BUILD, Reason, ReleaseStatus, ServiceStatus
from app.models import Build, GatewayLease, Release, SecretVersion, Service
from app.platforms.base import PlatformError, ServiceRef
from app.services import pull

log = structlog.get_logger()

CALL_SECONDS = 90
GONE = "The service was deleted."


async def request(context: Context, session: AsyncSession, service: Service) -> None:
    """Mark a locked service as going; its name is free from now on, and what was under way for it ends."""
    check = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, CALL_SECONDS + 10)
    await store.move(session, service, ServiceStatus.DELETING, deleted_at=func.now(), address=None, next_check_at=check)
    await nudge(context, session, service)
    outbox.mark(session, "delete.committed")
    builds = select(Build).where(Build.service_id == service.id, Build.status.in_(OPEN_BUILD)).with_for_update()
    for build in (await session.execute(builds)).scalars():
        await cancel(context, session, build, message=GONE)
    waiting = select(Release).where(
        Release.service_id == service.id, Release.status.in_([ReleaseStatus.PENDING, ReleaseStatus.DEPLOYING])
    )
    for release in (await session.execute(waiting)).scalars():
        await store.fail(session, release, Reason.CANCELED_BY_USER, GONE, next_check_at=None)


async def nudge(context: Context, session: AsyncSession, service: Service) -> None:
    """Ask for the deletion wherever a part of it can be done: at each owner of a host-bound platform, else anywhere."""
    platforms = select(Release.platform).where(Release.service_id == service.id, Release.retired_at.is_(None))
    names = set((await session.execute(platforms.distinct())).scalars()) or {service.platform}
    for bound in sorted({context.catalog.host_bound(name) for name in names}, key=str):
        outbox.enqueue(session, queue.Nudge(queue.Job.DELETE, service.id, host_bound=bound, once=False))


async def delete(context: Context, service_id: str) -> None:
    """Remove the service from each platform it has been on and this process may call; whoever does the last part forgets it.

    Safe to repeat; reconcile repeats it.
    """
    async with context.sessions() as session:
        service = await session.get(Service, service_id)
        if service is None or service.status != ServiceStatus.DELETING:
            return
        releases = select(Release).where(Release.service_id == service_id, Release.retired_at.is_(None))
        latest = {r.platform: r for r in (await session.execute(releases.order_by(Release.number))).scalars()}
    faults.at("delete.begun")
    done = []
    for name, release in latest.items():
        platform = context.platform(name)
        if platform is None or platform.services is None:
            continue
        ref = ServiceRef(
            service=remote_name(context.installation, service_id),
            release=remote_name(context.installation, release.id),
            handle=release.handle,
            region=release.region,
        )
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await platform.services.delete(ref)
        except (PlatformError, TimeoutError) as e:
            log.warning("deletion will be tried again", service_id=service_id, error=str(e) or type(e).__name__)
        else:
            done.append(name)
    faults.at("delete.deleted")
    async with context.sessions.begin() as session:
        # Locked, so that of two who do the last parts at once one sees that nothing is left.
        service = await session.get(Service, service_id, with_for_update=True)
        if service is None or service.status != ServiceStatus.DELETING:
            return
        gone = update(Release).where(Release.service_id == service_id, Release.retired_at.is_(None))
        await session.execute(gone.where(Release.platform.in_(done)).values(retired_at=func.now(), next_check_at=None))
        left = select(func.count()).where(Release.service_id == service_id, Release.retired_at.is_(None))
        if (await session.execute(left)).scalar_one():
            return
        live = await session.get(Release, service.live_release_id) if service.live_release_id else None
        if live is not None and live.status == ReleaseStatus.LIVE:
            await store.move(session, live, ReleaseStatus.SUPERSEDED, next_check_at=None)
        await session.execute(sql_delete(SecretVersion).where(SecretVersion.service_id == service_id))
        await pull.revoke(session, service_id)
        await session.execute(sql_delete(GatewayLease).where(GatewayLease.service_id == service_id))
        await store.move(session, service, ServiceStatus.DELETED, live_release_id=None, address=None, instance_id=None)
    faults.at("delete.recorded")

"""What a new owner of a platform does first: all that its predecessor was at when it died is due at once.

The jobs of a host-bound platform run in one process alone, and an embedded database has but one user. So what is under way
there while nobody works yet is what a dead process left. Without this it would be found too, but only time-out by time-out.
"""

from datetime import timedelta

from sqlalchemy import case, func, update

from app import queue
from app.context import Context
from app.lifecycle import BuildStatus, ReleaseStatus, ServiceStatus
from app.models import Build, Release, Service

LAUNCHING = (BuildStatus.DISPATCHING,)
DEPLOYING = (ReleaseStatus.PENDING, ReleaseStatus.DEPLOYING)
MOVING = (ServiceStatus.WAKING, ServiceStatus.SLEEPING, ServiceStatus.DELETING)
OVER = timedelta(hours=1)
"""Longer than a try to remove something takes: what began before is no longer at work."""


def owned(context: Context) -> list[str]:
    """Return the platforms that nobody but this process works on."""
    if context.settings.embedded_database:
        return list(context.catalog.entries)
    return [n for n, p in context.catalog.held.items() if p.traits.host_bound]


async def take_over(context: Context) -> None:
    """Make what was under way on our own platforms due now. Call it before the worker takes its first job; safe to repeat."""
    names = owned(context)
    if not names:
        return
    bound = {context.catalog.host_bound(name) for name in names}
    async with context.sessions.begin() as session:
        jobs = [queue.entrypoint(job, host) for job in queue.Job for host in bound]
        await session.execute(queue.orphan(jobs))
        # In the order in which all lock, so that an API that serves already does not meet us in a circle.
        for statement in (
            update(Service).where(Service.status.in_(MOVING), Service.platform.in_(names)),
            update(Build).where(Build.status.in_(LAUNCHING), Build.builder_platform.in_(names)),
            update(Release).where(Release.status.in_(DEPLOYING), Release.platform.in_(names)),
        ):
            await session.execute(statement.values(next_check_at=func.now()))
        leaving = Release.leaving_at.is_not(None) & Release.retired_at.is_(None) & Release.platform.in_(names)
        again = case((Release.next_check_at.is_not(None), func.now()))
        await session.execute(update(Release).where(leaving).values(leaving_at=func.now() - OVER, next_check_at=again))

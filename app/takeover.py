"""What a new owner of a platform does first: all that its predecessor was at when it died is due at once.

The jobs of a host-bound platform run in one process alone, and an embedded database has but one user. So what is under way
there while nobody works yet is what a dead process left. Without this it would be found too, but only time-out by time-out.
"""

import structlog
from sqlalchemy import func, select, update

from app import outbox, queue
from app.context import Context
from app.lifecycle import OPEN_RUN, BuildStatus, ReleaseStatus, ServiceStatus
from app.models import Build, Release, Run, Service

log = structlog.get_logger()

LAUNCHING = (BuildStatus.DISPATCHING,)
DEPLOYING = (ReleaseStatus.PENDING, ReleaseStatus.DEPLOYING)
MOVING = (ServiceStatus.WAKING, ServiceStatus.SLEEPING, ServiceStatus.DELETING)


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
        runs = select(Run.id, Run.platform).where(Run.status.in_(OPEN_RUN), Run.platform.in_(names))
        for run_id, platform in (await session.execute(runs)).all():
            # Its builder may be at work still, or may have ended while there was nobody to be told.
            host_bound = context.catalog.host_bound(platform)
            outbox.enqueue(session, queue.Nudge(queue.Job.CHECK, run_id, -1, host_bound=host_bound))

"""Slots: how many builders may run at once on a platform and in a project, and who is next.

One advisory lock per platform orders everybody who takes or frees a slot, so that limits hold over any number of workers. A
freed slot goes to the project with the fewest running builds, then to the oldest build. A build that finds no slot is *held*:
its ``next_check_at`` is NULL, so that a backlog makes no storm of checks; whoever frees a slot nudges one held build.
"""

from sqlalchemy import func, literal, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import outbox, queue
from app.context import Context
from app.lifecycle import BuildStatus
from app.models import Build, Project

IN_SLOT = (BuildStatus.DISPATCHING, BuildStatus.BUILDING)


async def lock(session: AsyncSession, platform: str) -> None:
    """Wait for the platform's slots; released at the end of the transaction."""
    await session.execute(text("select pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": f"slots:{platform}"})


async def pick(context: Context, session: AsyncSession, platform: str) -> Build | None:
    """Return the build that may take a free slot of the platform now, locked; None when there is no slot or no build.

    The caller moves it to dispatching in the same transaction.
    """
    await lock(session, platform)
    entry = context.catalog.entry(platform)
    if entry is None:
        return None
    running = (
        select(Build.project_id, func.count().label("n")).where(Build.status.in_(IN_SLOT)).group_by(Build.project_id)
    ).subquery()
    taken = select(func.count()).where(Build.status.in_(IN_SLOT), Build.builder_platform == platform).scalar_subquery()
    limit = func.coalesce(Project.max_concurrent_builds, literal(context.settings.project_concurrency))
    mine = func.coalesce(running.c.n, 0)
    statement = (
        select(Build)
        .join(Project, Project.id == Build.project_id)
        .outerjoin(running, running.c.project_id == Build.project_id)
        .where(
            Build.builder_platform == platform,
            Build.status == BuildStatus.QUEUED,
            (Build.not_before.is_(None)) | (Build.not_before <= func.now()),
            mine < limit,
            taken < entry.traits.max_builders,
        )
        .order_by(mine, Build.created_at, Build.id)
        .limit(1)
        .with_for_update(of=Build, skip_locked=True)
    )
    return (await session.execute(statement)).scalar_one_or_none()


async def hold(session: AsyncSession, build_id: str) -> None:
    """Mark a queued build as held by a limit; under the lock that ``pick`` took. Back-off is no hold.

    A build that somebody has locked is left as it is: they may be waiting for the lock that we have.
    """
    free = (
        select(Build.id)
        .where(
            Build.id == build_id,
            Build.status == BuildStatus.QUEUED,
            (Build.not_before.is_(None)) | (Build.not_before <= func.now()),
        )
        .with_for_update(skip_locked=True)
    )
    await session.execute(update(Build).where(Build.id.in_(free)).values(next_check_at=None))


async def freed(context: Context, session: AsyncSession, platform: str) -> None:
    """Nudge one held build, in the transaction that moved another out of its slot.

    Takes the lock first: a dispatch that still counted the old build as running has then marked its own as held.
    """
    await lock(session, platform)
    waiting = (
        select(Build.id)
        .where(Build.builder_platform == platform, Build.status == BuildStatus.QUEUED, Build.next_check_at.is_(None))
        .order_by(Build.created_at)
        .limit(1)
    )
    if build_id := (await session.execute(waiting)).scalar_one_or_none():
        host_bound = context.catalog.host_bound(platform)
        outbox.enqueue(session, queue.Nudge(queue.Job.DISPATCH, build_id, host_bound=host_bound, once=False))

"""Rows of builds that have gone quiet get their job again: lost jobs, silent builders, passed deadlines, machines to remove."""

from datetime import timedelta

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import outbox, queue, store
from app.builds import reuse, slots, targets
from app.context import Context
from app.lifecycle import OPEN_RUN, BuildStatus, Reason
from app.models import Build, Run

BATCH = 200
AGAIN = timedelta(seconds=20)
DEADLINE_GRACE = timedelta(seconds=8)
"""A builder reports its own time-out; this is how long its report may take."""


async def reconcile(context: Context, session: AsyncSession) -> int:
    """Give every quiet row of a build its job again; returns how many. One transaction, one process at a time."""
    return (
        await _expire(session)
        + await _quiet_builds(context, session)
        + await _held(context, session)
        + await reuse.reconcile(session)
        + await _silent_runs(context, session)
        + await _uncleaned(context, session)
    )


async def _expire(session: AsyncSession) -> int:
    late = (
        select(Build)
        .where(Build.status == BuildStatus.QUEUED, Build.deadline_at < func.now())
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    rows = (await session.execute(late)).scalars().all()
    for build in rows:
        last = build.tried[-1] if build.tried else None
        if last and last["reason"] == Reason.PLATFORM_MISCONFIGURED:
            await store.fail(session, build, Reason.PLATFORM_MISCONFIGURED, last["message"])
        elif any(t["reason"] == Reason.NO_CAPACITY for t in build.tried):
            message = f"No platform had room for a builder in time. Tried: {targets.story(build.tried)}"
            await store.fail(session, build, Reason.NO_CAPACITY, message)
        else:
            why = f" Last try: {last['message']}" if last else ""
            await store.fail(session, build, Reason.EXPIRED, f"No builder was free in time.{why}")
        await reuse.left(session, build)
    return len(rows)


async def _quiet_builds(context: Context, session: AsyncSession) -> int:
    due = (
        select(Build)
        .where(Build.status.in_([BuildStatus.QUEUED, BuildStatus.DISPATCHING]), Build.next_check_at <= func.now())
        .order_by(Build.next_check_at)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    rows = (await session.execute(due)).scalars().all()
    for build in rows:
        if build.status == BuildStatus.QUEUED:  # a launch that was cut short stays due until somebody takes it up
            build.next_check_at = func.now() + AGAIN
        _nudge(context, session, build)
    return len(rows)


async def _held(context: Context, session: AsyncSession) -> int:
    """Nudge the held builds for which there is a slot; the rule is ``slots.freed``, this is its safety net."""
    count = 0
    for platform in context.catalog.entries:
        for build_id in await slots.startable(context, session, platform):
            host_bound = context.catalog.host_bound(platform)
            outbox.enqueue(session, queue.Nudge(queue.Job.DISPATCH, build_id, -1, host_bound=host_bound))
            count += 1
    return count


async def _silent_runs(context: Context, session: AsyncSession) -> int:
    """Look at runs that are past their deadline, never claimed, or silent for too long."""
    silent = timedelta(seconds=context.settings.heartbeat_timeout_seconds)
    due = (
        select(Run)
        .where(
            Run.status.in_(OPEN_RUN),
            or_(Run.next_check_at.is_(None), Run.next_check_at <= func.now()),
            or_(
                Run.deadline_at < func.now() - DEADLINE_GRACE,
                func.coalesce(Run.heartbeat_at, Run.launched_at) < func.now() - silent,
            ),
        )
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    rows = (await session.execute(due)).scalars().all()
    for run in rows:
        entry = context.catalog.entry(run.platform)
        look = timedelta(seconds=entry.traits.look_seconds if entry else 0)
        run.next_check_at = func.now() + max(AGAIN, look)
        _nudge_run(context, session, run, queue.Job.CHECK)
    return len(rows)


async def _uncleaned(context: Context, session: AsyncSession) -> int:
    due = (
        select(Run)
        .where(Run.cleaned_at.is_(None), Run.next_check_at <= func.now(), Run.status.not_in(OPEN_RUN))
        .order_by(Run.next_check_at)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    rows = (await session.execute(due)).scalars().all()
    for run in rows:
        run.next_check_at = func.now() + AGAIN * 3
        _nudge_run(context, session, run, queue.Job.CLEANUP)
    return len(rows)


def _nudge(context: Context, session: AsyncSession, build: Build) -> None:
    if nudge := reuse.first_nudge(context, build, -1):
        outbox.enqueue(session, nudge)


def _nudge_run(context: Context, session: AsyncSession, run: Run, job: queue.Job) -> None:
    outbox.enqueue(session, queue.Nudge(job, run.id, -1, host_bound=context.catalog.host_bound(run.platform)))

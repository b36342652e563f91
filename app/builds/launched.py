"""Record what came of a launch: a machine, another try later, or the end of its run."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from sqlalchemy import func, update

from app import outbox, queue, sql, store
from app.builds import reuse, slots, targets
from app.builds.ending import end_run, lock, requeue
from app.builds.launch import Launch
from app.context import Context
from app.db import transaction
from app.lifecycle import BuildStatus, Reason, RunStatus
from app.models import Build, Run
from app.platforms.base import Launched
from app.sql import NOW, Expression, after

RUNNING_CHECK_SECONDS = 15


async def record(context: Context, build: Build, launch: Launch, launched: Launched) -> None:
    """Record the machine, and that the build is in its hands unless its own claim has said so already."""
    run = launch.run
    tried: dict[str, Any] = {"tried": targets.together(build.tried, launch.full)} if launch.full else {}
    found = {
        "handle": launched.handle,
        "region": launched.region,
        "effective": asdict(launched.effective),
        "launched_at": NOW,
        "cleaned_at": None,  # whatever a clean-up saw, it was before this
        "next_check_at": after(RUNNING_CHECK_SECONDS),
    }
    try:
        async with transaction(context.pool) as session:
            # Build before run, as everywhere.
            mine, open_still = Expression("attempt = ?", (run.attempt,)), Expression("finished_at is null")
            await store.move(
                session, build, BuildStatus.BUILDING, where=(mine,), along=True, next_check_at=None, **tried
            )
            outbox.write_along(session, Run, {"id": run.id}, (open_still,), found)
    except outbox.LostError:
        await _record_late(context, run, found)


async def _record_late(context: Context, run: Run, found: dict[str, Any]) -> None:
    """Record the machine of a run whose builder's own claim was faster, or whose build is over."""
    async with transaction(context.pool) as session:
        # Whatever the status is by now: without its handle the machine is harder to clean up.
        recorded = await sql.update(session, Run, {"id": run.id}, returning=("finished_at",), **found)
        if recorded is not None and recorded["finished_at"] is not None:
            # Over before the handle was known: the clean-up may have run too early.
            host_bound = context.catalog.host_bound(run.platform)
            outbox.enqueue(session, queue.Nudge(queue.Job.CLEANUP, run.id, 1, host_bound=host_bound))


async def again(context: Context, build: Build, seconds: float) -> None:
    """Have the same run tried once more in so many seconds: whether there is a machine is not known."""
    async with context.sessions.begin() as session:
        await session.execute(
            update(Build)
            .where(Build.id == build.id, Build.status == BuildStatus.DISPATCHING)
            .values(next_check_at=func.now() + timedelta(seconds=seconds))
        )
        slots.ask(context, session, build.id, build.builder_platform, delay=seconds)


async def give_up(
    context: Context,
    build: Build,
    run: Run,
    reason: Reason,
    message: str,
    retry_in: float | None,
    tried: Sequence[targets.Note] = (),
) -> None:
    """End this run; queue the build again in ``retry_in`` seconds, or fail it when that is None or attempts are used up."""
    async with transaction(context.pool) as session:
        pair = await lock(session, run.id)
        # Past dispatching there is a builder at work, whatever the launch came to, or the run has ended already.
        if pair is None or pair[0].attempt != run.attempt or pair[0].status != BuildStatus.DISPATCHING:
            return
        current, ended = pair
        await end_run(context, session, current, ended, RunStatus.FAILED, reason=reason, message=message)
        if retry_in is None:
            await store.fail(session, current, reason, message)
        else:
            await requeue(context, session, current, reason, message, delay=retry_in, tried=tried)
        await reuse.left(session, current)
        await slots.freed(context, session, run.platform, run.project_id)

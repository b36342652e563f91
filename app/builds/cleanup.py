"""Remove the machine of a run that is over, and look at the machine of one that has gone quiet."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import faults, logs, sql, store
from app.builds import reuse, slots
from app.builds.ending import end_run, lock, requeue
from app.context import Context
from app.db import moment
from app.lifecycle import OPEN_RUN, Reason, RunStatus, is_terminal
from app.models import Build, Run, RunLog
from app.platforms.base import Inspection, LogLine, Phase, PlatformError, Ref

log = structlog.get_logger()

CALL_SECONDS = 60
TAIL_LINES = 50
REPORTED = "reported"
"""The stage of a builder that was told that its completion was taken, and holds."""
OVERDUE_SECONDS = 120
"""Past a deadline, this long is left to look at the machine and to keep its last words."""
BATCH = 100


def ref_of(run: Run) -> Ref:
    """Return the run's machine as its platform knows it."""
    return Ref(name=run.name, handle=run.handle, region=run.region)


async def cleanup(context: Context, run_id: str) -> None:
    """Remove the machine of an ended run; safe to repeat, and repeated by reconcile until it was done."""
    row = await context.pool.fetchrow("select * from run where id = $1", run_id)
    if row is None or not is_terminal((run := sql.load(Run, row)).status):
        return
    logs.about(run)
    platform = context.platform(run.platform)
    if platform is None or platform.builders is None:
        return
    faults.at("cleanup.begun")
    try:
        async with asyncio.timeout(CALL_SECONDS):
            await platform.builders.stop(ref_of(run))
    except (PlatformError, TimeoutError) as e:
        log.warning("clean-up will be tried again", error=str(e) or type(e).__name__)
        return
    faults.at("cleanup.stopped")
    await context.pool.execute("update run set cleaned_at = now(), next_check_at = null where id = $1", run_id)
    faults.at("cleanup.recorded")


async def check(context: Context, run_id: str) -> None:
    """Ask the platform about a run that is silent or past its deadline, and end it when its machine is no longer at work."""
    async with context.sessions() as session:
        run = await session.get(Run, run_id)
        if run is None or is_terminal(run.status):
            return
        age = func.extract("epoch", func.now() - func.coalesce(moment(run.heartbeat_at), moment(run.launched_at)))
        past, silent = (
            await session.execute(select(moment(run.deadline_at) < func.now(), func.coalesce(age, 1e9)))
        ).one()
    logs.about(run)
    platform = context.platform(run.platform)
    if platform is None or platform.builders is None:
        return
    if not past and silent < platform.traits.look_seconds:
        return  # it has been heard since, and a look costs requests
    seen, tail = None, list[LogLine]()
    try:
        async with asyncio.timeout(CALL_SECONDS):
            seen = await platform.builders.inspect(ref_of(run))
            if past or seen.phase in {Phase.EXITED, Phase.FAILED}:
                tail = await platform.builders.logs(ref_of(run), limit=TAIL_LINES)
    except (PlatformError, TimeoutError) as e:
        log.warning("run can't be looked at", error=str(e) or type(e).__name__)
    # One that reported and holds runs, but not at anything: that the run is open means that its report was lost.
    if not past and (seen is None or (seen.phase in {Phase.STARTING, Phase.RUNNING} and run.stage != REPORTED)):
        return
    if not past and seen is not None and seen.phase is Phase.GONE and run.launched_at is None and run.instance is None:
        return  # perhaps not there yet: the launch itself, or the deadline, decides
    faults.at("check.inspected")
    async with context.sessions.begin() as session:
        await _lose(context, session, run, seen, tail, past=past)
    faults.at("check.recorded")


async def overdue(session: AsyncSession) -> Sequence[Run]:
    """Return runs that are long past their deadline: whoever could have looked at their machines is gone too."""
    late = func.now() - timedelta(seconds=OVERDUE_SECONDS)
    statement = select(Run).where(Run.status.in_(OPEN_RUN), Run.deadline_at < late).limit(BATCH)
    return (await session.execute(statement)).scalars().all()


async def end_overdue(context: Context, runs: Sequence[Run]) -> None:
    """End those runs, each in a transaction of its own, since that waits for locks."""
    for run in runs:
        async with context.sessions.begin() as session:
            await _lose(context, session, run, None, [], past=True)


async def _lose(
    context: Context, session: AsyncSession, run: Run, seen: Inspection | None, tail: list[LogLine], *, past: bool
) -> None:
    pair = await lock(session, run.id)
    if pair is None or is_terminal(pair[1].status):
        return
    build, run = pair
    reason, message = _why(build, run, seen, past=past)
    exit_code = seen.exit_code if seen else None
    oom = bool(seen and seen.out_of_memory)
    values: dict[str, Any] = {"reason": reason, "message": message, "exit_code": exit_code, "out_of_memory": oom}
    await end_run(
        context, session, build, run, RunStatus.LOST if reason is Reason.BUILDER_LOST else RunStatus.FAILED, **values
    )
    if tail and run.log_next == 0:  # the builder never got to send its own lines: the platform's are all there is
        lines = [
            {"t": t.at.timestamp(), "s": t.stream if t.stream != "platform" else "builder", "m": t.text} for t in tail
        ]
        await session.execute(insert(RunLog).values(run_id=run.id, number=0, lines=lines))
        await session.execute(update(Run).where(Run.id == run.id).values(log_next=len(lines)))
    if build.status not in slots.IN_SLOT or build.attempt != run.attempt:
        return
    if reason is Reason.BUILDER_LOST:
        await requeue(context, session, build, reason, message, delay=1)
    else:
        await store.fail(session, build, reason, message)
    await reuse.left(session, build)
    await slots.freed(context, session, run.platform, run.project_id)


def _why(build: Build, run: Run, seen: Inspection | None, *, past: bool) -> tuple[Reason, str]:
    if seen is not None and seen.out_of_memory:
        return (
            Reason.OUT_OF_MEMORY,
            f"The builder was ended for using more than {build.spec['builder']['memory_mb']} MB.",
        )
    stage = f" in stage {run.stage}" if run.stage else ""
    if past:
        return (
            Reason.TIMEOUT,
            f"The build was not done after {build.spec['builder']['timeout_seconds']} seconds{stage}.",
        )
    if run.stage == REPORTED:
        return (
            Reason.BUILDER_LOST,
            f"The builder on {run.platform} was told that its report was taken, and it never came.",
        )
    phase = seen.phase if seen else Phase.GONE
    code = f" with code {seen.exit_code}" if seen and seen.exit_code is not None else ""
    what = f"ended{code} without a report" if phase in {Phase.EXITED, Phase.FAILED} else "is gone from its platform"
    return Reason.BUILDER_LOST, f"The builder on {run.platform} {what}{stage}."

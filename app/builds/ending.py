"""How a run ends, and whether its build gets another: shared by every verb that ends one."""

from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import outbox, queue, store
from app.context import Context
from app.lifecycle import BuildStatus, Reason, RunStatus, is_terminal
from app.models import Build, Run

CLEANUP_CHECK_SECONDS = 60
ANOTHER_TRY = frozenset(
    {
        Reason.BUILDER_LOST,
        Reason.INTERNAL_ERROR,
        Reason.NO_CAPACITY,
        Reason.PLATFORM_MISCONFIGURED,
        Reason.REGISTRY_UNAVAILABLE,
    }
)
"""Reasons that another builder may not meet again. Everything else would only fail the same way twice."""


async def lock(session: AsyncSession, run_id: str) -> tuple[Build, Run]:
    """Return a run and its build, both locked and fresh.

    Everywhere rows are locked in the order service, build, run, release, so that nobody waits in a circle.
    """
    statement = select(Build, Run).join(Run, Run.build_id == Build.id).where(Run.id == run_id)
    pair = await session.execute(statement.with_for_update().execution_options(populate_existing=True))
    build, run = pair.one()
    return build, run


async def end_run(
    context: Context, session: AsyncSession, run: Run, to: RunStatus, *, message: str | None = None, **values: Any
) -> bool:
    """Move a run to a terminal status and ask for its machine to be removed; False when it had ended already."""
    if is_terminal(run.status):
        return False
    check = func.now() + timedelta(seconds=CLEANUP_CHECK_SECONDS)
    event = {"reason": str(values["reason"])} if values.get("reason") else None
    if not await store.move(session, run, to, message=message, next_check_at=check, event=event, **values):
        return False
    host_bound = context.catalog.host_bound(run.platform)
    outbox.enqueue(session, queue.Nudge(queue.Job.CLEANUP, run.id, host_bound=host_bound))
    return True


async def requeue(
    context: Context, session: AsyncSession, build: Build, reason: Reason, message: str, *, delay: float = 0
) -> None:
    """Put a build whose run failed back into the queue, or fail it when its attempts are used up or it makes no sense.

    A misconfigured platform does not use up attempts: the build waits, says so, and expires in the end.
    """
    spent = build.attempt >= context.settings.max_run_attempts and reason is not Reason.PLATFORM_MISCONFIGURED
    tried = [
        *build.tried,
        {"attempt": build.attempt, "platform": build.builder_platform, "reason": reason, "message": message},
    ]
    if spent or reason not in ANOTHER_TRY:
        await store.fail(session, build, reason, message, tried=tried[-20:])
        return
    # Who had a builder may wait for another as long as anybody; who found none has waited already.
    waited = reason in {Reason.NO_CAPACITY, Reason.PLATFORM_MISCONFIGURED}
    again = func.now() + timedelta(seconds=context.settings.max_queued_seconds)
    expiry: dict[str, Any] = {} if waited else {"deadline_at": again}
    moved = await store.move(
        session,
        build,
        BuildStatus.QUEUED,
        message=message,
        tried=tried[-20:],
        not_before=func.now() + timedelta(seconds=delay),
        **expiry,
        next_check_at=func.now() + timedelta(seconds=delay + 10),
        event={"reason": reason, "message": message},
    )
    if moved:
        host_bound = context.catalog.host_bound(build.builder_platform)
        nudge = queue.Nudge(queue.Job.DISPATCH, build.id, build.attempt, host_bound=host_bound, delay=delay, once=False)
        outbox.enqueue(session, nudge)

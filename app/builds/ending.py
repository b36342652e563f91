"""How a run ends, and whether its build gets another: shared by every verb that ends one."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from app import outbox, queue, sql, store, tracing
from app.builds import slots, targets
from app.context import Context
from app.ids import new_id
from app.lifecycle import BuildStatus, Reason, RunStatus, is_terminal
from app.models import Artifact, Build, Run, Service
from app.services.release import create_release
from app.sql import Pool, Session, after

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
WAITS = frozenset({Reason.NO_CAPACITY, Reason.PLATFORM_MISCONFIGURED})
"""Reasons that use up no attempts: no builder ran. The build waits, says so, and ends when its time in the queue is over."""


_LOOK = f"""
    select {sql.columns(Build, "build", "b_")}, {sql.columns(Run, "run", "r_")}, now() as now
    from build join run on run.build_id = build.id where run.id = $1
"""  # noqa: S608 - our own names
_LOCK = f"{_LOOK} for update of build, run"


async def look(pool: Pool, run_id: str) -> tuple[Build, Run, datetime] | None:
    """Return a run and its build as they are now, and the database's time; None when they are gone."""
    pair = await pool.fetchrow(_LOOK, run_id)
    return (sql.load(Build, pair, "b_"), sql.load(Run, pair, "r_"), pair["now"]) if pair else None


async def lock(session: Session, run_id: str) -> tuple[Build, Run] | None:
    """Return a run and its build, both locked and fresh; None when they are gone.

    Everywhere rows are locked in the order service, build, run, release, so that nobody waits in a circle.
    """
    pair = await sql.fetch_one(session, _LOCK, run_id)
    return (sql.load(Build, pair, "b_"), sql.load(Run, pair, "r_")) if pair else None


_LOCK_ALL = f"""
    select {sql.columns(Service, "service", "s_")}, {sql.columns(Build, "build", "b_")}, {sql.columns(Run, "run", "r_")}
    from run join build on build.id = run.build_id join service on service.id = build.service_id
    where run.id = $1 for update of service, build, run
"""  # noqa: S608 - our own names


async def lock_all(session: Session, run_id: str) -> tuple[Service | None, Build, Run] | None:
    """Do the same with the build's service, if it has one, first."""
    row = await sql.fetch_one(session, _LOCK_ALL, run_id)
    if row is None:
        pair = await lock(session, run_id)
        return (None, *pair) if pair else None
    return sql.load(Service, row, "s_"), sql.load(Build, row, "b_"), sql.load(Run, row, "r_")


async def end_run(
    context: Context,
    session: Session,
    build: Build,
    run: Run,
    to: RunStatus,
    *,
    message: str | None = None,
    along: bool = False,
    **values: Any,
) -> bool:
    """Move a run to a terminal status and ask for its machine to be removed; False when it had ended already."""
    if is_terminal(run.status):
        return False
    check = after(CLEANUP_CHECK_SECONDS)
    event = {"reason": str(values["reason"])} if values.get("reason") else None
    if not await store.move(session, run, to, message=message, next_check_at=check, event=event, along=along, **values):
        return False
    host_bound = context.catalog.host_bound(run.platform)
    outbox.enqueue(session, queue.Nudge(queue.Job.CLEANUP, run.id, host_bound=host_bound))
    outbox.afterwards(session, lambda: tracing.run(build, run))
    return True


async def go_on(
    context: Context, session: Session, service: Service | None, build: Build, artifact: Artifact, **values: Any
) -> None:
    """Move a build that has its artifact on: to a release, or to its end without a service. All rows are locked."""
    values |= {"artifact_id": artifact.id, "message": None}
    if service is None:
        await store.move(session, build, BuildStatus.SUCCEEDED, along=True, **values)
        return
    release_id = new_id("rel")
    values |= {"next_check_at": None, "release_id": release_id}
    await store.move(session, build, BuildStatus.PROMOTING, along=True, **values)
    await create_release(context, session, service, kind="build", artifact=artifact, build=build, release_id=release_id)


async def requeue(
    context: Context,
    session: Session,
    build: Build,
    reason: Reason,
    message: str,
    *,
    delay: float = 0,
    tried: Sequence[targets.Note] = (),
) -> None:
    """Put a build whose run failed back into the queue, or fail it when its attempts are used up or it makes no sense.

    Where there was no room it goes on to the next platform of its list. ``tried`` are the regions that had none.
    """
    losses = build.losses + (reason not in WAITS)
    notes = list(tried) or [targets.note(build, build.builder_platform, "", reason, message)]
    values: dict[str, Any] = {"losses": losses}
    if reason not in ANOTHER_TRY or losses >= context.settings.max_run_attempts:
        await store.fail(session, build, reason, message, tried=targets.together(build.tried, notes), **values)
        return
    if reason not in WAITS:
        # Who had a builder may wait for another as long as anybody; who found none has waited already.
        values["deadline_at"] = after(context.settings.max_queued_seconds)
    elif reason is Reason.NO_CAPACITY:
        place, more, delay = targets.move_on(context, build, delay)
        values, notes = values | place, notes + more
    moved = await store.move(
        session,
        build,
        BuildStatus.QUEUED,
        message=message,
        tried=targets.together(build.tried, notes),
        not_before=after(delay),
        **values,
        next_check_at=after(delay + 10),
        event={"reason": reason, "message": message} | {k: v for k, v in values.items() if k == "builder_platform"},
    )
    if moved:
        slots.ask(context, session, build.id, build.builder_platform, delay=delay)

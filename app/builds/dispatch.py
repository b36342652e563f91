"""Launch a builder: take a slot, write the run, call the platform; ``launched`` records what came of it.

The run is committed before the call and its name is the call's key, so a crash anywhere leaves at most one machine, whose
name we know. The completion may arrive before the launch call has returned: the handle is recorded whatever the status is then.
"""

from contextlib import AbstractAsyncContextManager
from functools import partial

import structlog

from app import breaker, faults, logs, sql, store, tracing
from app.builds import slots, targets
from app.builds.launch import Launch, somewhere
from app.builds.launched import again, give_up, record
from app.context import Context
from app.db import transaction
from app.ids import new_id, remote_name
from app.leases import renewed
from app.lifecycle import BuildStatus, Reason, RunStatus
from app.models import Build, Run
from app.platforms.base import (
    Misconfigured,
    NoCapacity,
    PlatformError,
    RateLimited,
    Rejected,
    Transient,
    Unsupported,
)
from app.sql import Expression, Session, after

log = structlog.get_logger()

LAUNCH_SECONDS = 280
"""Long, since the local platform's first launch on a machine compiles the standard library."""
LAUNCH_TRIES = 5
CLAIM_SECONDS = 20
"""For how long a launch belongs to whoever began it, unless renewed: until the build's ``next_check_at``."""
RENEW_SECONDS = 5.0
MISCONFIGURED_SECONDS = 60
PATIENCE_SECONDS = 30
"""A request budget that is empty for longer is no room: the build must not hold its slot until there is more."""


async def dispatch(context: Context, build_id: str) -> None:
    """Take up this build's launch if it was cut short; else launch the platform's next build, which need not be this one.

    Also when this build is past waiting: several slots that were freed at once may all have nudged the same build.
    """
    async with transaction(context.pool) as session:
        build = await slots.room(context, session, build_id)
        launch = await _claim(context, session, build) if build else None
    if build is None:
        build, launch = await _in_turn(context, build_id)
    if build is None or launch is None:
        return
    logs.about(build, launch.run)
    faults.at("dispatch.claimed")
    platform = launch.run.platform
    with tracing.span("dispatch", build, launch.run, platform=platform):
        async with claimed(context, launch.run), breaker.probing(context.sessions, launch.seen):
            await _launch(context, build, launch)


async def _in_turn(context: Context, build_id: str) -> tuple[Build | None, Launch | None]:
    """Claim the platform's next build, or what was cut short of this one; no launch when there is nothing to do."""
    async with transaction(context.pool) as session:
        row = await sql.fetch_one(session, "select * from build where id = $1", build_id)
        if row is None:
            return None, None
        build = sql.load(Build, row)
        launch = await _resume(context, session, build) if build.status == BuildStatus.DISPATCHING else None
        if launch is None:
            chosen = await slots.pick(context, session, build.builder_platform)
            if chosen is None:
                if build.status == BuildStatus.QUEUED:
                    await slots.hold(session, build_id)
                return None, None
            if build.status == BuildStatus.QUEUED and chosen.id != build.id and build.next_check_at is not None:
                # Another's turn: this one's nudge is used up, so unless it is held it gets one more, to be launched or held.
                slots.ask(context, session, build.id, build.builder_platform)
            build, launch = chosen, await _claim(context, session, chosen)
    return build, launch


async def _claim(context: Context, session: Session, build: Build) -> Launch | None:
    """Move the build into its slot and write the run; the row is locked, so the move can't lose.

    None when every region of the platform is to be left alone: the build goes on to its next platform. None too when it has gone
    on, since its job was made, to a platform that another process holds: that one gets a job of its own.
    """
    host_bound = context.catalog.host_bound(build.builder_platform)
    if host_bound and context.catalog.usable(host_bound) and context.platform(host_bound) is None:
        slots.ask(context, session, build.id, build.builder_platform)
        return None
    regions, seen = await targets.admitted(context, session, build)
    if not regions:
        await targets.pass_over(context, session, build, seen.shut)
        return None
    await store.move(
        session,
        build,
        BuildStatus.DISPATCHING,
        along=True,
        attempt=build.attempt + 1,
        not_before=None,
        next_check_at=after(CLAIM_SECONDS),
    )
    run_id = new_id("run")
    run = await sql.insert(
        session,
        Run,
        id=run_id,
        project_id=build.project_id,
        build_id=build.id,
        attempt=build.attempt,
        status=RunStatus.LAUNCHING,
        platform=build.builder_platform,
        name=remote_name(context.installation, run_id),
        key_id=context.keyring.active,
        toolchain=context.toolchain(build.builder_platform),
        launch_tries=1,
        deadline_at=after(LAUNCH_SECONDS + build.spec["builder"]["timeout_seconds"]),
    )
    store.record(session, run, "run.launching", {"platform": run.platform, "attempt": run.attempt})
    return Launch(run, regions, seen)


async def _resume(context: Context, session: Session, build: Build) -> Launch | None:
    """Return the run whose launch was cut short, counted as tried once more; None when somebody is still at it."""
    due = Expression("next_check_at <= now()")
    still = {"id": build.id, "status": BuildStatus.DISPATCHING}
    if await sql.update(session, Build, still, due, next_check_at=after(CLAIM_SECONDS)) is None:
        return None
    row = await sql.fetch_one(session, _CUT_SHORT, build.id, context.toolchain(build.builder_platform))
    if row is None:
        return None
    run = sql.load(Run, row)
    # No breaker is asked: there may be a machine already, in whichever region, and the launch finds it by its name.
    entry = context.catalog.entry(run.platform)
    regions = targets.regions(entry, build) if entry else ("",)
    return Launch(run, regions, breaker.Seen({}, frozenset(regions)))


_CUT_SHORT = """
    update run set launch_tries = launch_tries + 1,
        -- Another one by now: which of both the machine has is anybody's guess.
        toolchain = case when toolchain = $2 then toolchain end
    where build_id = $1 and status = 'launching' and handle is null
        and attempt = (select attempt from build where id = $1)
    returning *
"""


_RENEW = """
    update build set next_check_at = greatest(next_check_at, clock_timestamp() + make_interval(secs => $3))
    where id = $1 and attempt = $2 and status = 'dispatching'
"""


def claimed(context: Context, run: Run, *, every: float = RENEW_SECONDS) -> AbstractAsyncContextManager[None]:
    """Keep a launch ours while the block runs, so that nobody else takes it for one that was cut short."""
    renew = partial(context.pool.execute, _RENEW, run.build_id, run.attempt, float(CLAIM_SECONDS))
    return renewed(f"launch {run.id}", renew, every=every)


async def _launch(context: Context, build: Build, launch: Launch) -> None:
    run = launch.run
    platform = context.platform(run.platform)
    if platform is None or platform.builders is None:
        message = f"{run.platform} is not offered any more"
        await give_up(context, build, run, Reason.PLATFORM_MISCONFIGURED, message, MISCONFIGURED_SECONDS)
        return
    if run.launch_tries > LAUNCH_TRIES:
        message = f"The launch on {run.platform} was tried {LAUNCH_TRIES} times without an answer."
        await give_up(context, build, run, Reason.BUILDER_LOST, message, 5)
        return
    try:
        launched = await somewhere(context, platform, platform.builders, build, launch, LAUNCH_SECONDS)
    except (Rejected, Unsupported) as e:
        await give_up(context, build, run, Reason.PLATFORM_REJECTED, str(e), None)
    except NoCapacity:
        await give_up(context, build, run, Reason.NO_CAPACITY, targets.story(launch.full), 0, launch.full)
    except Misconfigured as e:
        log.error("platform misconfigured", platform=run.platform, error=str(e))
        await give_up(context, build, run, Reason.PLATFORM_MISCONFIGURED, str(e), MISCONFIGURED_SECONDS)
    except (PlatformError, TimeoutError) as e:
        if isinstance(e, RateLimited) and (e.retry_after or 0) > PATIENCE_SECONDS:
            await give_up(context, build, run, Reason.NO_CAPACITY, str(e), e.retry_after, launch.full)
            return
        # The outcome is unknown: the same run, under the same name, is tried again and finds what is there.
        wait = e.retry_after if isinstance(e, Transient) and e.retry_after else min(2.0**run.launch_tries, 60)
        log.warning("launch will be tried again", error=str(e) or type(e).__name__, seconds=wait)
        await again(context, build, wait)
    else:
        faults.at("dispatch.launched")
        await record(context, build, launch, launched)
        faults.at("dispatch.recorded")

"""Slots: how many builders may run at once on a platform and in a project, and who is next.

One advisory lock per platform orders everybody who takes or frees a slot, so that limits hold over any number of workers. A
freed slot goes to the project with the fewest running builds, then to the oldest build. A build that finds no slot is *held*:
its ``next_check_at`` is NULL, so that a backlog makes no storm of checks; whoever frees a slot nudges one held build.
"""

from app import outbox, queue, sql
from app.context import Context
from app.lifecycle import BuildStatus
from app.models import Build
from app.sql import Session

IN_SLOT = (BuildStatus.DISPATCHING, BuildStatus.BUILDING)


_PICK = """
    with running as (
        select project_id, count(*) as n, count(*) filter (where builder_platform = $1) as here
        from build where status in ('dispatching', 'building') group by project_id
    )
    select build.* from build
    join project on project.id = build.project_id
    left join running on running.project_id = build.project_id
    where build.builder_platform = $1
        and build.status = 'queued'
        and (build.not_before is null or build.not_before <= now())
        and coalesce(running.n, 0) < coalesce(project.max_concurrent_builds, $2)
        and (select coalesce(sum(here), 0) from running) < $3
    order by coalesce(running.n, 0), build.created_at, build.id
    limit 1
    for update of build skip locked
"""
_HOLD = """
    update build set next_check_at = null
    where id in (
        select id from build
        where id = $1 and status = 'queued' and (not_before is null or not_before <= now())
        for update skip locked
    )
"""
_HELD = """
    select id from build
    where builder_platform = $1 and status = 'queued' and next_check_at is null
    order by created_at limit 1
"""


async def lock(session: Session, platform: str) -> None:
    """Wait for the platform's slots; released at the end of the transaction."""
    await sql.fetch(session, "select pg_advisory_xact_lock(hashtextextended($1, 0))", f"slots:{platform}")


async def pick(context: Context, session: Session, platform: str) -> Build | None:
    """Return the build that may take a free slot of the platform now, locked; None when there is no slot or no build.

    The caller moves it to dispatching in the same transaction.
    """
    await lock(session, platform)
    entry = context.catalog.entry(platform)
    if entry is None:
        return None
    limits = context.settings.project_concurrency, entry.traits.max_builders
    row = await sql.fetch_one(session, _PICK, platform, *limits)
    return sql.load(Build, row) if row else None


async def hold(session: Session, build_id: str) -> None:
    """Mark a queued build as held by a limit; under the lock that ``pick`` took. Back-off is no hold.

    A build that somebody has locked is left as it is: they may be waiting for the lock that we have.
    """
    await sql.fetch(session, _HOLD, build_id)


async def freed(context: Context, session: Session, platform: str) -> None:
    """Nudge one held build, in the transaction that moved another out of its slot.

    Takes the lock first: a dispatch that still counted the old build as running has then marked its own as held.
    """
    await lock(session, platform)
    if held := await sql.fetch_one(session, _HELD, platform):
        host_bound = context.catalog.host_bound(platform)
        outbox.enqueue(session, queue.Nudge(queue.Job.DISPATCH, held["id"], host_bound=host_bound, once=False))

"""Slots: how many builders may run at once on a platform and in a project, and who is next.

One advisory lock per platform makes limits hold over any number of workers. While there is room for all that wait, their order
is of no matter: each takes its own slot under a share of the lock (``room``). Otherwise one at a time holds the lock alone
(``pick``): a slot goes to the project with the fewest running builds, then to the oldest build. A build that finds no slot is
*held*: its ``next_check_at`` is NULL, so that a backlog makes no storm of checks; whoever frees a slot nudges one held build.
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
_SHARE = """
    select builder_platform, pg_advisory_xact_lock_shared(hashtextextended('slots:' || builder_platform, 0))
    from build where id = $1 and status = 'queued'
"""
_ROOM = """
    select build.* from build
    join project on project.id = build.project_id
    where build.id = $1
        and build.builder_platform = $2
        and build.status = 'queued'
        and (build.not_before is null or build.not_before <= now())
        and (select count(*) from (
            select from build where builder_platform = $2 and status in ('queued', 'dispatching', 'building') limit $4 + 1
        ) as wanted) <= $4
        and (select count(*) from (
            select from build as other
            where other.project_id = build.project_id and other.status in ('queued', 'dispatching', 'building')
            limit coalesce(project.max_concurrent_builds, $3) + 1
        ) as wanted) <= coalesce(project.max_concurrent_builds, $3)
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


async def room(context: Context, session: Session, build_id: str) -> Build | None:
    """Return a queued build, locked, if there is a slot for it and for everything else that waits now; else None.

    The caller moves it to dispatching in the same transaction, or ends that and goes on to ``pick``. Whoever takes a slot
    at the same time was counted here as waiting, so all of them together stay within the limits.
    """
    row = await sql.fetch_one(session, _SHARE, build_id)
    entry = context.catalog.entry(row["builder_platform"]) if row else None
    if row is None or entry is None:
        return None
    limits = context.settings.project_concurrency, entry.traits.max_builders
    found = await sql.fetch_one(session, _ROOM, build_id, row["builder_platform"], *limits)
    return sql.load(Build, found) if found else None


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

    Takes a share of the lock first: a dispatch that still counted the old build as running has then marked its own as held.
    """
    await sql.fetch(session, "select pg_advisory_xact_lock_shared(hashtextextended($1, 0))", f"slots:{platform}")
    if held := await sql.fetch_one(session, _HELD, platform):
        host_bound = context.catalog.host_bound(platform)
        outbox.enqueue(session, queue.Nudge(queue.Job.DISPATCH, held["id"], host_bound=host_bound, once=False))

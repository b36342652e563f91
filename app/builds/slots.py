"""Slots: how many builders may run at once on a platform and in a project, and who is next.

One advisory lock per platform makes limits hold over any number of workers. While there is room for all that wait, their order
is of no matter: each takes its own slot under a share of the lock (``room``). Otherwise one at a time holds the lock alone
(``pick``): a slot goes to the project with the fewest running builds, then to the oldest build; so a project waits for nobody's
backlog but its own. A project's limit counts over all platforms: where there are several it has such a lock, too. A build that
finds no slot is *held*: its ``next_check_at`` is NULL, so that a backlog makes no storm of checks; whoever frees a slot nudges
one held build.
"""

from collections.abc import Sequence

from app import outbox, queue, sql
from app.context import Context
from app.lifecycle import BuildStatus
from app.models import Build
from app.sql import Session

IN_SLOT = (BuildStatus.DISPATCHING, BuildStatus.BUILDING)


AT_WORK = """
    select project_id, count(*) as n, count(*) filter (where builder_platform = $1) as here
    from build where status in ('dispatching', 'building') group by project_id
"""
# One look into the index for each project that has a queued build, however many it has.
WAITING = """
    (select project_id from build where builder_platform = $1 and status = 'queued' order by project_id limit 1)
    union all
    select (
        select project_id from build
        where builder_platform = $1 and status = 'queued' and project_id > waiting.project_id order by project_id limit 1
    ) from waiting where waiting.project_id is not null
"""
_DUE = """
    select {} from build
    where builder_platform = $1 and project_id = waiting.project_id and status = 'queued'
        and (not_before is null or not_before <= now())
"""
# A lateral join goes through the turns in their order, and the limit ends it at the first build that nobody has locked.
_PICK = f"""
    with recursive at_work as ({AT_WORK}), waiting (project_id) as ({WAITING})
    select next.* from (
        select waiting.project_id from waiting
        join project on project.id = waiting.project_id
        left join at_work on at_work.project_id = waiting.project_id
        cross join lateral ({_DUE.format("id")} order by id limit 1) as oldest
        where coalesce(at_work.n, 0) < coalesce(project.max_concurrent_builds, $2)
            and (select coalesce(sum(here), 0) from at_work) < $3
        order by coalesce(at_work.n, 0), oldest.id
    ) as waiting
    cross join lateral ({_DUE.format("*")} order by id limit 1 for update skip locked) as next
    limit 1
"""  # noqa: S608 - our own text
_SHARE = """
    select builder_platform, pg_advisory_xact_lock_shared(hashtextextended('slots:' || builder_platform, 0)),
        pg_advisory_xact_lock_shared(hashtextextended('slots:' || project_id, 0))
    from build where id = $1 and status = 'queued'
"""
_BELOW_LIMIT = """
    select from project where id = $1 and coalesce(max_concurrent_builds, $2) >
        (select count(*) from build where project_id = $1 and status in ('dispatching', 'building'))
"""
_ROOM = """
    select build.* from build
    join project on project.id = build.project_id
    where build.id = $1
        and build.builder_platform = $2
        and build.status = 'queued'
        and (build.not_before is null or build.not_before <= now())
        and (select count(*) from (
            select from build where builder_platform = $2 and status in ('queued', 'dispatching', 'building')
            order by status, created_at limit $4 + 1  -- as the index has them, whatever the planner believes
        ) as wanted) <= $4
        and (select count(*) from (
            select from build as other
            where other.project_id = build.project_id and other.status in ('queued', 'dispatching', 'building')
            order by other.status, other.id limit coalesce(project.max_concurrent_builds, $3) + 1
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
# Any one will do, since ``pick`` chooses. The second is for a limit of the project, which counts over all platforms. Their order
# is the index's, so that neither ended builds nor the rest of a backlog are gone through.
_HELD = """
    (select id, builder_platform from build
    where builder_platform = $1 and status = 'queued' and next_check_at is null
        and (not_before is null or not_before <= now()) order by project_id, id limit 1)
    union all
    select held.* from unnest($3::text[]) as other (name)
    cross join lateral (
        select id, builder_platform from build
        where builder_platform = other.name and project_id = $2 and status = 'queued' and next_check_at is null
            and (not_before is null or not_before <= now()) order by id limit 1
    ) as held
"""
_STARTABLE = f"""
    with recursive at_work as ({AT_WORK}), waiting (project_id) as ({WAITING}),
    able as (
        select held.id from waiting
        join project on project.id = waiting.project_id
        left join at_work on at_work.project_id = waiting.project_id
        cross join lateral (
            {_DUE.format("id")} and next_check_at is null order by id
            limit greatest(0, least($3::int, coalesce(project.max_concurrent_builds, $2::int)) - coalesce(at_work.n, 0))
        ) as held
    )
    select id from able limit greatest(0, $3::int - (select coalesce(sum(here), 0) from at_work))
"""  # noqa: S608 - our own text


async def _lock(session: Session, whose: str) -> None:
    """Wait for the slots of a platform or of a project; released at the end of the transaction."""
    await sql.fetch(session, "select pg_advisory_xact_lock(hashtextextended($1, 0))", f"slots:{whose}")


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
    await _lock(session, platform)
    entry = context.catalog.entry(platform)
    if entry is None:
        return None
    limits = context.settings.project_concurrency, entry.traits.max_builders
    others = any(e.configured and e.builders for e in context.catalog.entries.values() if e.name != platform)
    while True:
        if others:
            await sql.fetch(session, "savepoint chosen")
        row = await sql.fetch_one(session, _PICK, platform, *limits)
        if row is None or not others:
            break
        await _lock(session, row["project_id"])
        # A statement of its own: it has to see what was committed on another platform before the lock was ours.
        if await sql.fetch_one(session, _BELOW_LIMIT, row["project_id"], limits[0]) is not None:
            break
        # This lets go of the project, too: who held one and waited for another might meet somebody who does the reverse.
        await sql.fetch(session, "rollback to savepoint chosen")
    return sql.load(Build, row) if row else None


async def hold(session: Session, build_id: str) -> None:
    """Mark a queued build as held by a limit; under the lock that ``pick`` took. Back-off is no hold.

    A build that somebody has locked is left as it is: they may be waiting for the lock that we have.
    """
    await sql.fetch(session, _HOLD, build_id)


def ask(context: Context, session: Session, build_id: str, platform: str, *, delay: float = 0.0) -> None:
    """Ask for a builder for a queued build in so many seconds; never folded into a job for it that is running."""
    host_bound = context.catalog.host_bound(platform)
    outbox.enqueue(session, queue.Nudge(queue.Job.DISPATCH, build_id, host_bound=host_bound, delay=delay, once=False))


async def freed(context: Context, session: Session, platform: str, project_id: str) -> None:
    """Nudge who waits for the slot, in the transaction that moved a build of the project out of it.

    Takes a share of the lock first: a dispatch that still counted the old build as running has then marked its own as held.
    """
    await sql.fetch(session, "select pg_advisory_xact_lock_shared(hashtextextended($1, 0))", f"slots:{platform}")
    others = [name for name in context.catalog.entries if name != platform]
    for held in await sql.fetch(session, _HELD, platform, project_id, others):
        ask(context, session, held["id"], held["builder_platform"])


async def startable(context: Context, session: Session, platform: str) -> Sequence[str]:
    """Return as many held builds as could be launched now: their nudge was lost, or a limit was raised."""
    entry = context.catalog.entry(platform)
    if entry is None:
        return ()
    limits = context.settings.project_concurrency, entry.traits.max_builders
    return [row["id"] for row in await sql.fetch(session, _STARTABLE, platform, *limits)]

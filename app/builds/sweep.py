"""What time and crashes leave behind of builds: lost jobs, silent builders, passed deadlines, machines nobody owns."""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import structlog
from sqlalchemy import func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app import db, outbox, queue, store
from app.builds import reuse, slots, targets
from app.context import Context
from app.ids import made_at, parse_remote_name, remote_name
from app.lifecycle import OPEN_RUN, BuildStatus, Reason, ServiceStatus, is_terminal
from app.models import Build, Lease, Release, Run, Service
from app.platforms.base import Found, Platform, PlatformError, RateLimited, ServiceRef

log = structlog.get_logger()

BATCH = 200
AGAIN_SECONDS = 20
DEADLINE_GRACE_SECONDS = 8
"""A builder reports its own time-out; this is how long its report may take."""
ORPHANS_FLOOR = 5
ORPHANS_SHARE = 0.2


def seconds(value: float) -> object:
    """Return an interval for SQL."""
    return func.make_interval(0, 0, 0, 0, 0, 0, value)


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
            build.next_check_at = func.now() + seconds(AGAIN_SECONDS)
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
    silent = seconds(context.settings.heartbeat_timeout_seconds)
    due = (
        select(Run)
        .where(
            Run.status.in_(OPEN_RUN),
            or_(Run.next_check_at.is_(None), Run.next_check_at <= func.now()),
            or_(
                Run.deadline_at < func.now() - seconds(DEADLINE_GRACE_SECONDS),
                func.coalesce(Run.heartbeat_at, Run.launched_at) < func.now() - silent,
            ),
        )
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    rows = (await session.execute(due)).scalars().all()
    for run in rows:
        entry = context.catalog.entry(run.platform)
        pause = max(AGAIN_SECONDS, entry.traits.look_seconds) if entry else AGAIN_SECONDS
        run.next_check_at = func.now() + seconds(pause)
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
        run.next_check_at = func.now() + seconds(AGAIN_SECONDS * 3)
        _nudge_run(context, session, run, queue.Job.CLEANUP)
    return len(rows)


def _nudge(context: Context, session: AsyncSession, build: Build) -> None:
    if nudge := reuse.first_nudge(context, build, -1):
        outbox.enqueue(session, nudge)


def _nudge_run(context: Context, session: AsyncSession, run: Run, job: queue.Job) -> None:
    outbox.enqueue(session, queue.Nudge(job, run.id, -1, host_bound=context.catalog.host_bound(run.platform)))


# --------------------------------------------------------------------------------------------------- orphans


async def sweep(context: Context) -> None:
    """Remove from each platform what no open row owns; see the rules in ``orphans``."""
    for platform in list(context.catalog.held.values()):
        if not await _its_turn(context, platform):
            continue
        try:
            await _sweep_builders(context, platform)
            await _sweep_services(context, platform)
        except (PlatformError, TimeoutError) as e:
            log.warning("sweep skipped a platform", platform=platform.name, error=str(e) or type(e).__name__)


async def _its_turn(context: Context, platform: Platform) -> bool:
    """Tell whether to list a platform now; where that costs an account's requests, one worker does it, and seldom."""
    seconds = platform.traits.list_seconds
    if not seconds:
        return True
    until = func.now() + timedelta(seconds=seconds)
    turn = insert(Lease).values(name=f"sweep:{platform.name}", holder=context.process, expires_at=until)
    turn = turn.on_conflict_do_update(
        index_elements=["name"],
        set_={"holder": context.process, "expires_at": until},
        where=Lease.expires_at <= func.now(),
    )
    async with db.alone(context.sessions) as session:
        return (await session.execute(turn.returning(Lease.name))).first() is not None


def dated(found: Sequence[Found], ids: Mapping[str, str], given_up: Mapping[str, datetime | None]) -> list[Found]:
    """Return a listing with a time for what the platform gave none: its row's id is older than it, and so may be the row's end.

    A resource may come later than both, but not long: whoever makes one gives up by then.
    """
    return [
        item
        if item.created_at is not None or item.ref.name not in ids
        else replace(item, created_at=given_up.get(item.ref.name) or made_at(ids[item.ref.name]))
        for item in found
    ]


def orphans(
    found: Sequence[Found], owned: set[str], known: dict[str, str], now: datetime, grace: float
) -> tuple[list[Found], list[tuple[str, str]]]:
    """Split a listing into what to remove and what to spare, with the reason for sparing.

    ``owned`` are names with a live owner, ``known`` maps names to why they may go. What no row knows is spared too: after a
    database was restored from a backup it may be somebody's live service. Removing more than max(5, 20 %) of a
    listing at once means that something is wrong with us, not with them.
    """
    doomed, spared = [], []
    for item in found:
        name = item.ref.name
        if name in owned:
            continue
        if item.created_at is not None and (now - item.created_at).total_seconds() < grace:
            spared.append((name, "younger than the grace period"))
        elif name not in known:
            spared.append((name, "no row knows it: perhaps the database is older than it"))
        else:
            doomed.append(item)
    if len(doomed) > max(ORPHANS_FLOOR, ORPHANS_SHARE * len(found)):
        log.error("sweep refuses to remove so much at once", count=len(doomed), listed=len(found))
        spared += [(item.ref.name, "too many orphans in one listing") for item in doomed]
        doomed = []
    return doomed, spared


async def _sweep_builders(context: Context, platform: Platform) -> None:
    if platform.builders is None:
        return
    listing = await platform.builders.list_ours(context.installation)
    ids = _row_ids(context, [i.ref.name for i in listing.items], "run")
    async with context.sessions() as session:
        rows = (await session.execute(select(Run).where(Run.id.in_(ids.values())))).scalars().all()
        now = await db.now(session)
    owned = {r.name for r in rows if not is_terminal(r.status)}
    known = {r.name: str(r.status) for r in rows if is_terminal(r.status)}
    # A builder without a row can't be a live service, and it may cost money: the installation's name is in its name.
    old = [i for i in listing.items if i.ref.name in ids and i.ref.name not in owned | known.keys()]
    known |= {i.ref.name: "no row" for i in old}
    items = dated(listing.items, ids, {r.name: r.finished_at for r in rows})
    doomed, spared = orphans(items, owned, known, now, context.settings.sweep_grace_seconds)
    for item in doomed:
        await _remove(platform, item, platform.builders.stop(item.ref))
    _say_spared(platform.name, spared)


async def _sweep_services(context: Context, platform: Platform) -> None:
    if platform.services is None:
        return
    listing = await platform.services.list_ours(context.installation)
    names = [i.ref.name for i in listing.items]
    services, releases = _row_ids(context, names, "svc"), _row_ids(context, names, "rel")
    async with context.sessions() as session:
        svc = (await session.execute(select(Service).where(Service.id.in_(services.values())))).scalars().all()
        rel = (await session.execute(select(Release).where(Release.id.in_(releases.values())))).scalars().all()
        there = select(Release.service_id).where(
            Release.service_id.in_(services.values()), Release.platform == platform.name, Release.retired_at.is_(None)
        )
        kept = set((await session.execute(there)).scalars())
        now = await db.now(session)
    moved = {s.id for s in svc if s.platform != platform.name} - kept
    gone = {s.id for s in svc if s.status == ServiceStatus.DELETED} | {r.id for r in rel if r.retired_at is not None}
    gone |= moved
    by_id = {row_id: name for name, row_id in (services | releases).items()}
    known = {by_id[i]: "a row says it is gone" for i in gone}
    owned = {by_id[i] for i in ({s.id for s in svc} | {r.id for r in rel}) - gone}
    ended = {by_id[s.id]: s.status_at for s in svc} | {by_id[r.id]: r.retired_at for r in rel}
    items = dated(listing.items, services | releases, ended)
    doomed, spared = orphans(items, owned, known, now, context.settings.sweep_grace_seconds)
    parents = {by_id[r.id]: r.service_id for r in rel}
    for item in doomed:
        name, handle = item.ref.name, item.ref.handle
        if name in parents:
            parent = remote_name(context.installation, parents[name])
            removal = platform.services.retire(ServiceRef(service=parent, release=name, handle=handle))
        else:
            removal = platform.services.delete(ServiceRef(service=name, release="", handle=handle))
        await _remove(platform, item, removal)
    _say_spared(platform.name, spared)


async def _remove(platform: Platform, item: Found, removal: Awaitable[None]) -> None:
    """Remove what nobody owns; one that can't be removed keeps none of the others, and the next sweep meets it again."""
    log.warning("removing what nobody owns", platform=platform.name, name=item.ref.name)
    try:
        await removal
    except RateLimited:
        raise  # then none of the others can be either
    except (PlatformError, TimeoutError) as e:
        log.warning("it can't be removed", platform=platform.name, name=item.ref.name, error=str(e) or "no answer")


def _row_ids(context: Context, names: Sequence[str], prefix: str) -> dict[str, str]:
    """Return name → row id for the names that are ours and of this kind."""
    ids = {}
    for name in names:
        parsed = parse_remote_name(name)
        if parsed and parsed[0] == context.installation and parsed[1].startswith(f"{prefix}_"):
            ids[name] = parsed[1]
    return ids


def _say_spared(platform: str, spared: Sequence[tuple[str, str]]) -> None:
    for name, why in spared:
        log.info("sweep spared a resource", platform=platform, name=name, why=why)

"""What is on the platforms and no row owns is removed: what crashes and lost answers have left there."""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import structlog
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert

from app import db
from app.context import Context
from app.ids import made_at, parse_remote_name, remote_name
from app.lifecycle import ServiceStatus, is_terminal
from app.models import Lease, Release, Run, Service
from app.platforms.base import Found, Platform, PlatformError, RateLimited, ServiceRef

log = structlog.get_logger()

ORPHANS_FLOOR = 5
ORPHANS_SHARE = 0.2


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

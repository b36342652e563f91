"""Take many build requests at once: each is checked for itself, and all that are accepted are written by a few statements."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import outbox, sql, traces
from app.builds import cache, limits, reuse, sources
from app.builds.cancel import cancel
from app.builds.limits import Granted
from app.builds.submit import Plan, find, host, keep_sealed, no_source, plan, seal, stays_on, told
from app.context import Context
from app.errors import FieldError, Refusal, not_found
from app.ids import new_id
from app.lifecycle import OPEN_BUILD, BuildStatus
from app.models import Batch, BatchItem, Build, Project, Service
from app.requests import BuildRequest, UploadSource
from app.sql import Session

Json = dict[str, Any]


@dataclass
class Order:
    """One request of a batch on its way: a plan, then a build, or the refusal that is its outcome."""

    plan: Plan | None = None
    build: Build | None = None
    refusal: Refusal | None = None

    def refuse(self, refusal: Refusal) -> None:
        """Give it up."""
        self.plan, self.refusal = None, refusal


async def submit(
    context: Context,
    session: Session,
    project: Project,
    requests: Sequence[BuildRequest | Refusal],
    *,
    may: Callable[[BuildRequest], None],
    atomic: bool,
    describe: Callable[[Refusal], Json],
) -> tuple[Batch, list[Order], Granted]:
    """Write a batch and its builds; the caller commits. ``may`` raises Refusal for what the caller's key does not allow.

    ``describe`` makes the problem document that is kept of a refusal. With ``atomic`` one refusal is everybody's (422); so it is
    when there is not one build to accept.
    """
    orders = [Order(refusal=r) if isinstance(r, Refusal) else Order() for r in requests]
    # Packing hundreds of sources takes a while, and others want to be served meanwhile.
    await asyncio.to_thread(_plan, context, project, requests, orders, may)
    await _keep_sources(session, project, orders)
    batch_id = new_id("bat")
    rows = await _take_numbers(context, session, project, orders)
    granted = await _grant(context, session, project, orders, rows)
    if atomic or not rows:
        _all_or_none(orders)
    for row in rows.values():
        row |= {"id": new_id("bld"), "batch_id": batch_id, "status": BuildStatus.QUEUED, "traceparent": traces.here()}
        row["cache_key"] = cache.wanted(context, row)
    accepted = len(rows)
    batch = await sql.insert(
        session,
        Batch,
        id=batch_id,
        project_id=project.id,
        size=len(orders),
        accepted=accepted,
        unfinished=accepted,
    )
    builds = {b.id: b for b in await reuse.enter_all(context, session, list(rows.values()))}
    for number, row in rows.items():
        build = orders[number].build = builds[row["id"]]
        told(context, session, build)
    items = [
        {
            "batch_id": batch_id,
            "number": number,
            "build_id": order.build.id if order.build else None,
            "problem": describe(order.refusal) if order.refusal else None,
        }
        for number, order in enumerate(orders)
    ]
    await sql.insert_all(session, BatchItem, items)
    outbox.mark(session, "batch.committed")
    return batch, orders, granted


def _plan(
    context: Context,
    project: Project,
    requests: Sequence[BuildRequest | Refusal],
    orders: Sequence[Order],
    may: Callable[[BuildRequest], None],
) -> None:
    for request, order in zip(requests, orders, strict=True):
        if isinstance(request, Refusal):
            continue
        try:
            may(request)
            order.plan = plan(context, project, request)
        except Refusal as e:
            order.refuse(e)


async def _keep_sources(session: Session, project: Project, orders: Sequence[Order]) -> None:
    plans = [o.plan for o in orders if o.plan]
    await sources.save(session, project.id, {p.packed[0].digest: p.packed for p in plans if p.packed})
    uploads = {p.request.source.digest for p in plans if isinstance(p.request.source, UploadSource)}
    known = await sources.touch(session, project.id, uploads) if uploads else set()
    for order in orders:
        source = order.plan.request.source if order.plan else None
        if isinstance(source, UploadSource) and source.digest not in known:
            order.refuse(no_source())


_TAKE_NUMBERS = """
    insert into service (id, project_id, name, host, platform, status, sequence)
    select s.id, $1, s.name, s.host, s.platform, 'pending', s.number
    from unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[]) as s(id, name, host, platform, number)
    order by s.name  -- as everybody does, so that two batches don't wait for each other in a circle
    on conflict (project_id, name) where deleted_at is null do update set sequence = service.sequence + excluded.sequence
    returning *
"""
_COLUMNS: Json = dict.fromkeys(("service_id", "sequence", "service_platform", "config", "secret_versions"))


async def _take_numbers(
    context: Context, session: Session, project: Project, orders: Sequence[Order]
) -> dict[int, dict[str, Any]]:
    """Return place → row for every order that is still good, with its service's number and its secrets kept."""
    named = [
        (o.plan.request.service.name, o.plan.request.platform) for o in orders if o.plan and o.plan.request.service
    ]
    counts, first = Counter(name for name, _ in named), dict(reversed(named))
    services: dict[str, Service] = {}
    if counts:
        names = sorted(counts)
        about = ([new_id("svc") for _ in names], names, [host(project, n) for n in names], [first[n] for n in names])
        found = await sql.fetch(session, _TAKE_NUMBERS, project.id, *about, [counts[n] for n in names])
        services = {row["name"]: sql.load(Service, row) for row in found}
    following = {name: service.sequence - counts[name] for name, service in services.items()}
    rows, sealed = {}, []
    for number, order in enumerate(orders):
        if order.plan is None:
            continue
        row = rows[number] = _COLUMNS | order.plan.values
        block = order.plan.request.service
        if block is None:
            continue
        service = services[block.name]
        try:
            stays_on(service, order.plan.request.platform)
        except Refusal as e:
            order.refuse(e)
            del rows[number]
            continue
        following[block.name] += 1
        row |= {"service_id": service.id, "sequence": following[block.name]}
        if block.secrets is not None:
            row["secret_versions"], more = seal(context, service, block.secrets)
            sealed += more
    await keep_sealed(session, sealed)
    return rows


_UNUSED = """
    delete from service where id = any($1::text[]) and not exists (select from build where service_id = service.id)
        and not exists (select from release where service_id = service.id)
"""  # its secrets go with it


async def _grant(
    context: Context, session: Session, project: Project, orders: Sequence[Order], rows: dict[int, dict[str, Any]]
) -> Granted:
    """Count the builds against the project's limits; the last ones are refused when not all may be, and 429 when none."""
    new = any(row["sequence"] == 1 for row in rows.values())
    granted = await limits.grant(context, session, project, len(rows), new_service=new)
    if granted.refusal is None:
        return granted
    if not granted.builds:
        raise granted.refusal
    over = sorted(rows)[granted.builds :]
    unused = {rows.pop(number)["service_id"] for number in over} - {row["service_id"] for row in rows.values()} - {None}
    for number in over:
        orders[number].refuse(granted.refusal)
    if unused:  # made for these alone, a moment ago
        await sql.fetch(session, _UNUSED, sorted(unused))
    return granted


def _all_or_none(orders: Sequence[Order]) -> None:
    refused = [(n, o.refusal) for n, o in enumerate(orders) if o.refusal]
    if not refused:
        return
    errors = [
        FieldError(f"builds.{number}.{error.field}", error.message)
        for number, refusal in refused
        for error in refusal.errors or (FieldError("", refusal.detail),)
    ]
    number, first = refused[0]
    detail = f"builds.{number}: {first.detail} ({len(refused)} of {len(orders)} builds can't be accepted)"
    errors = [FieldError(e.field.rstrip("."), e.message) for e in errors[:50]]
    raise Refusal(422, "batch_refused", detail, tuple(errors))


async def find_batch(session: AsyncSession, project: Project, batch_id: str) -> Batch:
    """Return a batch of the project; Refusal (404) when it isn't there or isn't theirs."""
    statement = select(Batch).where(Batch.id == batch_id, Batch.project_id == project.id)
    batch = (await session.execute(statement)).scalar_one_or_none()
    if batch is None:
        raise not_found("batch", batch_id)
    return batch


async def counts(session: AsyncSession, batch_ids: Sequence[str]) -> dict[str, dict[BuildStatus, int]]:
    """Return for each batch how many of its builds have which status."""
    found: dict[str, dict[BuildStatus, int]] = {batch_id: {} for batch_id in batch_ids}
    statement = select(Build.batch_id, Build.status, func.count()).where(Build.batch_id.in_(batch_ids))
    for batch_id, status, count in (await session.execute(statement.group_by(Build.batch_id, Build.status))).all():
        found[str(batch_id)][status] = count
    return found


async def cancel_all(context: Context, project: Project, batch_id: str) -> None:
    """Cancel what has not ended of a batch, each build in a transaction of its own; safe to repeat.

    The last ones first: none shall lead only because the one that it waits for was canceled before it.
    """
    async with context.sessions() as session:
        await find_batch(session, project, batch_id)
        statement = select(Build.id).where(Build.batch_id == batch_id, Build.status.in_(OPEN_BUILD))
        ids = (await session.execute(statement.order_by(Build.id.desc()))).scalars().all()
    for build_id in ids:
        async with context.sessions.begin() as session:
            build = await find(session, project, build_id, lock=True)
            if build.status in OPEN_BUILD:
                await cancel(context, session, build, message="Its batch was canceled.")

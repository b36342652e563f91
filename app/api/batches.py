"""Batches: many builds in one request, each with its own outcome."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.api.deps import (
    BuildsRead,
    BuildsWrite,
    Ctx,
    Cursor,
    Db,
    KeyHolder,
    Limit,
    PlainDb,
    decode_cursor,
    encode_cursor,
    need,
)
from app.api.lists import NextPage, Since, Until, made
from app.api.once import OnceRoute, PlainOnce
from app.api.problems import document, from_validation
from app.api.reasons import limited, responses
from app.api.schemas import BatchDetail, BatchItemOut, BatchOut, Page, Problem
from app.builds import batch as batches
from app.builds.limits import headers
from app.errors import Refusal
from app.lifecycle import BuildStatus
from app.models import Batch, BatchItem, Build
from app.requests import BatchRequest, BuildRequest, Scope, Unfit

router = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=OnceRoute)


@router.post("", status_code=202, responses=limited(batch_refused=422))
async def create_batch(
    body: BatchRequest,
    context: Ctx,
    project: BuildsWrite,
    holder: KeyHolder,
    once: PlainOnce,
    session: PlainDb,
    request: Request,
    response: Response,
) -> BatchDetail:
    """Send up to 500 builds at once. Each item of the answer is a build's id or the problem why there is none.

    Builds with `service` need the scope `services:write` too. One `batch.ended` event tells when the last of them has ended.
    """

    def may(order: BuildRequest) -> None:
        if order.service is not None:
            need(holder, Scope.SERVICES_WRITE)

    given: list[BuildRequest | Unfit] = list(body.builds)
    batch, orders, granted = await batches.submit(
        context,
        session,
        project,
        [from_validation(order.errors) if isinstance(order, Unfit) else order for order in given],
        may=may,
        atomic=body.atomic,
        describe=_problem,
    )
    response.headers.update(headers(granted.quotas))
    response.headers["Location"] = f"{request.url.path.rstrip('/')}/{batch.id}"
    items = [
        BatchItemOut(
            index=number,
            build_id=order.build.id if order.build else None,
            status=order.build.status if order.build else None,
            problem=Problem(**_problem(order.refusal)) if order.refusal else None,
        )
        for number, order in enumerate(orders)
    ]
    return BatchDetail(**_fields(batch, {BuildStatus.QUEUED: batch.accepted}), items=items)


@router.get("", responses=responses())
async def list_batches(
    project: BuildsRead,
    session: Db,
    next_page: NextPage,
    limit: Limit = 50,
    cursor: Cursor = None,
    since: Since = None,
    until: Until = None,
) -> Page[BatchOut]:
    """List batches, newest first."""
    statement = select(Batch).where(Batch.project_id == project.id).order_by(Batch.id.desc())
    statement = statement.where(*made(Batch.created_at, "bat", [Batch.id], since, until))
    if cursor is not None:
        statement = statement.where(Batch.id < decode_cursor(cursor, str)[0])
    rows = (await session.execute(statement.limit(limit + 1))).scalars().all()
    counts = await batches.counts(session, [row.id for row in rows[:limit]])
    return Page(
        items=[BatchOut(**_fields(row, counts[row.id])) for row in rows[:limit]],
        next_cursor=next_page(encode_cursor(rows[limit - 1].id) if len(rows) > limit else None),
    )


@router.get("/{batch_id}", responses=responses(batch_not_found=404))
async def get_batch(
    batch_id: str, project: BuildsRead, session: Db, next_page: NextPage, limit: Limit = 50, cursor: Cursor = None
) -> BatchDetail:
    """Look at a batch: how many of its builds have which status, and a page of its items in the order of the request."""
    found = await _detail(session, await batches.find_batch(session, project, batch_id), limit, cursor)
    next_page(found.next_cursor)
    return found


@router.post("/{batch_id}/cancel", responses=responses(batch_not_found=404))
async def cancel_batch(batch_id: str, context: Ctx, project: BuildsWrite) -> BatchDetail:
    """End all builds of a batch that have not ended; the others stay as they are."""
    await batches.cancel_all(context, project, batch_id)
    async with context.sessions() as session:
        return await _detail(session, await batches.find_batch(session, project, batch_id), 50, None)


async def _detail(session: AsyncSession, batch: Batch, limit: int, cursor: str | None) -> BatchDetail:
    after = decode_cursor(cursor, int)[0] if cursor is not None else -1
    statement = (
        select(BatchItem.number, BatchItem.build_id, BatchItem.problem, Build.status)
        .outerjoin(Build, Build.id == BatchItem.build_id)
        .where(BatchItem.batch_id == batch.id, BatchItem.number > after)
        .order_by(BatchItem.number)
        .limit(limit + 1)
    )
    rows: Sequence[Any] = (await session.execute(statement)).all()
    items = [
        BatchItemOut(index=r.number, build_id=r.build_id, status=r.status, problem=r.problem and Problem(**r.problem))
        for r in rows[:limit]
    ]
    counts = (await batches.counts(session, [batch.id]))[batch.id]
    more = encode_cursor(rows[limit - 1].number) if len(rows) > limit else None
    return BatchDetail(**_fields(batch, counts), items=items, next_cursor=more)


def _fields(batch: Batch, counts: dict[BuildStatus, int]) -> dict[str, Any]:
    fields = {name: getattr(batch, name) for name in ("id", "size", "accepted", "created_at", "ended_at")}
    return fields | {"rejected": batch.size - batch.accepted, "builds": counts}


def _problem(refusal: Refusal) -> dict[str, Any]:
    return document(refusal.status, refusal.reason, refusal.detail, errors=refusal.errors)

"""Builds: send one, look at it, follow it, end it, try it again."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse
from sqlalchemy import select

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
from app.api.once import OnceOnly, OnceRoute, PlainOnce
from app.api.problems import responses
from app.api.schemas import BuildDetail, BuildOut, EventOut, LogLineOut, Page
from app.api.views import build_detail, build_out, detail
from app.builds import submit
from app.builds.cancel import cancel
from app.lifecycle import BuildStatus
from app.models import Build, Event, Run, RunLog, Service
from app.requests import BuildRequest, Scope

router = APIRouter(prefix="/v1/builds", tags=["builds"], route_class=OnceRoute)

MAX_LOG_LINES = 5000


@router.post("", status_code=202, responses=responses(409, 413))
async def create_build(
    body: BuildRequest,
    context: Ctx,
    project: BuildsWrite,
    holder: KeyHolder,
    once: PlainOnce,
    session: PlainDb,
    request: Request,
    response: Response,
) -> BuildDetail:
    """Build a source and, when `service` is given, promote it. Answers at once; follow the build at `Location`.

    A build with `service` needs the scope `services:write` too.
    """
    if body.service is not None:
        need(holder, Scope.SERVICES_WRITE)
    build = await submit.submit(context, session, project, body)
    response.headers["Location"] = f"{request.url.path.rstrip('/')}/{build.id}"
    return detail(build, body.service.name if body.service else None)


@router.get("", responses=responses())
async def list_builds(
    project: BuildsRead,
    session: Db,
    limit: Limit = 50,
    cursor: Cursor = None,
    status: Annotated[BuildStatus | None, Query()] = None,
    service: Annotated[str | None, Query(max_length=40)] = None,
    label: Annotated[list[str] | None, Query(description="`key=value`; all must match.", max_length=8)] = None,
) -> Page[BuildOut]:
    """List builds, newest first."""
    statement = (
        select(Build, Service.name)
        .outerjoin(Service, Service.id == Build.service_id)
        .where(Build.project_id == project.id)
    )
    if status is not None:
        statement = statement.where(Build.status == status)
    if service is not None:
        statement = statement.where(Service.name == service)
    for pair in label or ():
        key, _, value = pair.replace("\x00", "").partition("=")
        statement = statement.where(Build.labels.contains({key: value}))
    if cursor is not None:
        statement = statement.where(Build.id < decode_cursor(cursor, str)[0])
    rows = (await session.execute(statement.order_by(Build.id.desc()).limit(limit + 1))).all()
    more = len(rows) > limit
    return Page(
        items=[build_out(build, name) for build, name in rows[:limit]],
        next_cursor=encode_cursor(rows[limit - 1][0].id) if more else None,
    )


@router.get("/{build_id}", responses=responses(404))
async def get_build(build_id: str, project: BuildsRead, session: Db) -> BuildDetail:
    """Look at a build."""
    return await build_detail(session, await submit.find(session, project, build_id))


@router.get("/{build_id}/events", responses=responses(404))
async def list_build_events(
    build_id: str, project: BuildsRead, session: Db, limit: Limit = 100, cursor: Cursor = None
) -> Page[EventOut]:
    """List what happened to a build, oldest first."""
    build = await submit.find(session, project, build_id)
    statement = select(Event).where(Event.build_id == build.id)
    if cursor is not None:
        statement = statement.where(Event.id > decode_cursor(cursor, int)[0])
    rows = (await session.execute(statement.order_by(Event.id).limit(limit + 1))).scalars().all()
    items = [EventOut.model_validate(e, from_attributes=True) for e in rows[:limit]]
    return Page(items=items, next_cursor=encode_cursor(items[-1].id) if len(rows) > limit else None)


@router.get("/{build_id}/logs", responses=responses(404), response_model=Page[LogLineOut])
async def list_build_logs(
    build_id: str, project: BuildsRead, session: Db, request: Request, limit: Annotated[int, Query(ge=1, le=5000)] = 1000,
    cursor: Cursor = None,
) -> Page[LogLineOut] | Response:  # fmt: skip
    """List the build's log lines, oldest first; as plain text with `Accept: text/plain`."""
    build = await submit.find(session, project, build_id)
    after_attempt, after_number = decode_cursor(cursor, int, int) if cursor is not None else (0, -1)
    statement = (
        select(Run.attempt, RunLog)
        .join(Run, Run.id == RunLog.run_id)
        .where(Run.build_id == build.id, Run.attempt >= after_attempt)
        .order_by(Run.attempt, RunLog.number)
    )
    lines: list[tuple[int, LogLineOut]] = []
    async for attempt, batch in await session.stream(statement):
        for number, line in enumerate(batch.lines, batch.number):
            if (attempt, number) > (after_attempt, after_number):
                at = datetime.fromtimestamp(line["t"], UTC)
                lines.append(
                    (attempt, LogLineOut(at=at, stream=line["s"], text=line["m"], run_id=batch.run_id, number=number))
                )
        if len(lines) > limit:
            break
    if "text/plain" in request.headers.get("accept", ""):
        return PlainTextResponse("".join(f"{line.text}\n" for _, line in lines[:limit]))
    more = len(lines) > limit
    last = lines[min(limit, len(lines)) - 1] if lines else None
    return Page(
        items=[line for _, line in lines[:limit]],
        next_cursor=encode_cursor(last[0], last[1].number) if more and last else None,
    )


@router.post("/{build_id}/cancel", responses=responses(404, 409))
async def cancel_build(build_id: str, context: Ctx, project: BuildsWrite, session: Db) -> BuildDetail:
    """End a build; canceled already is fine, ended otherwise is 409."""
    build = await submit.find(session, project, build_id, lock=True)
    return await build_detail(session, await cancel(context, session, build))


@router.post("/{build_id}/retry", status_code=202, responses=responses(404, 409, 410))
async def retry_build(
    build_id: str,
    context: Ctx,
    project: BuildsWrite,
    holder: KeyHolder,
    once: OnceOnly,
    session: Db,
    response: Response,
) -> BuildDetail:
    """Send an ended build again: same source, same secret versions, a new build."""
    old = await submit.find(session, project, build_id, lock=True)
    if old.service_id is not None:
        need(holder, Scope.SERVICES_WRITE)
    build = await submit.retry(context, session, old)
    response.headers["Location"] = f"/v1/builds/{build.id}"
    return await build_detail(session, build)

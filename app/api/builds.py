"""Builds: send one, look at it, follow it, end it, try it again."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from app.api import lists, waiting
from app.api.deps import (
    BuildsRead,
    BuildsWrite,
    Ctx,
    Cursor,
    Db,
    KeyHolder,
    Limit,
    PlainDb,
    encode_cursor,
    need,
)
from app.api.hub import Streams
from app.api.once import OnceOnly, OnceRoute, PlainOnce
from app.api.reasons import limited, responses
from app.api.schemas import BuildDetail, BuildOut, Page
from app.api.views import build_detail, build_out, detail
from app.builds import forecast, submit
from app.builds.cancel import cancel
from app.builds.limits import headers
from app.db import alone
from app.lifecycle import BuildStatus, is_terminal
from app.requests import BuildRequest, Scope

router = APIRouter(prefix="/v1/builds", tags=["builds"], route_class=OnceRoute)


@router.post(
    "",
    status_code=202,
    responses=limited(cannot_honour=422, platform_differs=422, source_rejected=422, too_many_services=429),
)
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
    build, granted = await submit.submit(context, session, project, body)
    response.headers.update(headers(granted.quotas))
    response.headers["Location"] = f"{request.url.path.rstrip('/')}/{build.id}"
    place = await forecast.place(context, session, project, build, granted.ahead)
    return detail(build, body.service.name if body.service else None, place=place)


@router.get("", responses=responses())
async def list_builds(
    project: BuildsRead,
    session: Db,
    next_page: lists.NextPage,
    limit: Limit = 50,
    cursor: Cursor = None,
    status: Annotated[BuildStatus | None, Query()] = None,
    platform: Annotated[str | None, Query(max_length=32)] = None,
    service: Annotated[str | None, Query(max_length=40)] = None,
    label: Annotated[list[str] | None, Query(description="`key=value`; all must match.", max_length=8)] = None,
    since: lists.Since = None,
    until: lists.Until = None,
) -> Page[BuildOut]:
    """List builds, newest first."""
    statement = lists.builds(
        project, status=status, platform=platform, service=service, labels=label or [],
        since=since, until=until, cursor=cursor, limit=limit + 1,
    )  # fmt: skip
    rows = (await session.execute(statement)).all()
    after = encode_cursor(rows[limit - 1][0].id) if len(rows) > limit else None
    items = [build_out(build, name) for build, name in rows[:limit]]
    return Page(items=items, next_cursor=next_page(after))


@router.get("/{build_id}", responses=responses(build_not_found=404))
async def get_build(
    build_id: str,
    project: BuildsRead,
    context: Ctx,
    hub: Streams,
    caller: KeyHolder,
    response: Response,
    prefer: Annotated[
        str | None, Header(max_length=512, description="`wait=30`: answer once the build has ended.")
    ] = None,
) -> BuildDetail:
    """Look at a build. With `Prefer: wait=N` the answer comes when the build has ended, or after N seconds (at most 60)."""
    seconds = waiting.preferred(prefer)
    async with alone(context.sessions) as session:
        build = await submit.find(session, project, build_id)
        if seconds is None or is_terminal(build.status):
            waiting.applied(response, seconds)
            return await build_detail(session, build, await forecast.place(context, session, project, build))
    await waiting.for_end(hub, build.id, caller.key_id, seconds)
    waiting.applied(response, seconds)
    async with alone(context.sessions) as session:
        build = await submit.find(session, project, build_id)
        return await build_detail(session, build, await forecast.place(context, session, project, build))


@router.post("/{build_id}/cancel", responses=responses(build_not_found=404, build_ended=409))
async def cancel_build(build_id: str, context: Ctx, project: BuildsWrite, session: Db) -> BuildDetail:
    """End a build; canceled already is fine, ended otherwise is 409."""
    build = await submit.find(session, project, build_id, lock=True)
    return await build_detail(session, await cancel(context, session, build))


@router.post(
    "/{build_id}/retry",
    status_code=202,
    responses=limited(build_not_found=404, build_not_ended=409, service_deleted=409, source_gone=410),
)
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
    build, granted = await submit.retry(context, session, project, old)
    response.headers.update(headers(granted.quotas))
    response.headers["Location"] = f"/v1/builds/{build.id}"
    return await build_detail(session, build, await forecast.place(context, session, project, build, granted.ahead))

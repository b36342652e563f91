"""What lists can be narrowed by. Each filter has an index that ends in the id, so any page of any list is one short walk."""

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import Query, Request, Response
from pydantic import AwareDatetime
from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.api.deps import decode_cursor
from app.ids import first_id
from app.lifecycle import BuildStatus
from app.models import Build, BuildLabel, Project, Service

SKEW = timedelta(minutes=10)
"""Ids hold the time of the process that made them, rows that of the database: at most so far apart."""

Since = Annotated[AwareDatetime | None, Query(description="Made at this time or later.")]
Until = Annotated[AwareDatetime | None, Query(description="Made before this time.")]


async def builds(
    session: AsyncSession,
    project: Project,
    *,
    status: BuildStatus | None,
    platform: str | None,
    service: str | None,
    labels: list[str],
    since: datetime | None,
    until: datetime | None,
    cursor: str | None,
) -> Select[Build, str]:
    """Return the statement for a project's builds, newest first, each with its service's name."""
    statement = select(Build, Service.name).outerjoin(Service, Service.id == Build.service_id)
    statement, order = statement.where(Build.project_id == project.id), Build.id
    pairs = [pair.replace("\x00", "").partition("=")[::2] for pair in labels]
    if pairs:
        # The first label is walked in the order of ids, whatever share of the builds has it; the others are looked at.
        key, value = pairs[0]
        walked = (BuildLabel.project_id == project.id, BuildLabel.key == key, BuildLabel.value == value)
        statement, order = (
            statement.join(BuildLabel, BuildLabel.build_id == Build.id).where(*walked),
            BuildLabel.build_id,
        )
    for key, value in pairs[1:]:
        statement = statement.where(Build.labels.contains({key: value}))
    if status is not None:
        statement = statement.where(Build.status == status)
    if platform is not None:
        statement = statement.where(func.coalesce(Build.service_platform, Build.builder_platform) == platform)
    if service is not None:
        named = select(Service.id).where(Service.project_id == project.id, Service.name == service)
        ids = list((await session.execute(named)).scalars())  # more than one where a name was used again
        statement = statement.where(Build.service_id == ids[0] if len(ids) == 1 else Build.service_id.in_(ids))
    if since is not None:
        statement = statement.where(Build.created_at >= since, order >= first_id("bld", since - SKEW))
    if until is not None:
        statement = statement.where(Build.created_at < until, order < first_id("bld", until + SKEW))
    if cursor is not None:
        statement = statement.where(order < decode_cursor(cursor, str)[0])
    return statement.order_by(order.desc())


def link_next(request: Request, response: Response, cursor: str | None) -> str | None:
    """Say where the next page is (RFC 8288); returns its cursor."""
    if cursor is not None:
        url = request.url.include_query_params(cursor=cursor)
        response.headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
    return cursor

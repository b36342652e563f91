"""What lists can be narrowed by. Each filter has an index that ends in the id, so any page of any list is one short walk."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import Depends, Query, Request, Response
from sqlalchemy import ColumnElement, Select, func, select, true
from sqlalchemy.orm import InstrumentedAttribute, aliased

from app.api.deps import decode_cursor
from app.fields import Time
from app.ids import first_id
from app.lifecycle import BuildStatus
from app.models import Build, BuildLabel, Project, Service

SKEW = timedelta(minutes=10)
"""Ids hold the time of the process that made them, rows that of the database: at most so far apart."""

Since = Annotated[Time | None, Query(description="Made at this time or later.")]
Until = Annotated[Time | None, Query(description="Made before this time.")]


def made(
    at: InstrumentedAttribute[datetime],
    prefix: str,
    ids: Sequence[InstrumentedAttribute[str]],
    since: datetime | None,
    until: datetime | None,
) -> list[ColumnElement[bool]]:
    """Return the condition that rows were made within a time; bounds for all of ``ids`` keep a walk along them short."""
    found = []
    if since is not None:
        found += [at >= since, *(i >= first_id(prefix, since, skew=-SKEW) for i in ids)]
    if until is not None:
        found += [at < until, *(i < first_id(prefix, until, skew=SKEW) for i in ids)]
    return found


def builds(
    project: Project,
    *,
    status: BuildStatus | None,
    platform: str | None,
    service: str | None,
    labels: list[str],
    since: datetime | None,
    until: datetime | None,
    cursor: str | None,
    limit: int,
) -> Select[Build, str]:
    """Return the statement for a page of a project's builds, newest first, each with its service's name."""
    statement, order = select(Build).where(Build.project_id == project.id), Build.id
    bounds = [Build.id]
    for pair in labels:
        # A label is walked in the order of ids, whatever share of the builds has it; several are walked side by side.
        key, _, value = pair.replace("\x00", "").partition("=")
        label = aliased(BuildLabel)
        walked = (label.project_id == project.id, label.key == key, label.value == value)
        statement, order = statement.join(label, label.build_id == order).where(*walked), label.build_id
        bounds.append(order)
    if status is not None:
        statement = statement.where(Build.status == status)
    if platform is not None:
        statement = statement.where(func.coalesce(Build.service_platform, Build.builder_platform) == platform)
    statement = statement.where(*made(Build.created_at, "bld", bounds, since, until))
    if cursor is not None:
        after = decode_cursor(cursor, str)[0]
        statement = statement.where(*(b < after for b in bounds))
    statement = statement.order_by(order.desc()).limit(limit)
    if service is None:
        return statement.add_columns(Service.name).outerjoin(Service, Service.id == Build.service_id)
    # Names are used again: a page of each service that had this one, and of those the newest.
    walk = statement.where(Build.service_id == Service.id).correlate(Service).lateral()
    build = aliased(Build, walk)
    pages = select(build, Service.name).join_from(Service, walk, true())
    named = pages.where(Service.project_id == project.id, Service.name == service)
    return named.order_by(build.id.desc()).limit(limit)


def get_next_page(request: Request, response: Response) -> Callable[[str | None], str | None]:
    """Return what says where the next page is (RFC 8288) and returns its cursor."""

    def link(cursor: str | None) -> str | None:
        if cursor is not None:
            url = request.url.remove_query_params("after").include_query_params(cursor=cursor)
            response.headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
        return cursor

    return link


NextPage = Annotated[Callable[[str | None], str | None], Depends(get_next_page)]

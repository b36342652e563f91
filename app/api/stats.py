"""Figures for dashboards: how a project's builds of late have gone, and what waits now."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy import func, select

from app import sql
from app.api.deps import BuildsRead, Ctx
from app.api.reasons import responses
from app.api.schemas import BuildCount, QueueStats, SecondsOut, StatsOut
from app.db import alone
from app.ids import first_id
from app.lifecycle import OPEN_BUILD
from app.sql import Session

router = APIRouter(prefix="/v1/stats", tags=["builds"])

MOST_BUILDS = 20_000
"""The newest builds of a window are looked at, no more, so that no window costs more than a fraction of a second."""
STAGES = ("queued", "dispatching", "building", "promoting", "total")

# Ids begin with the time they were made, so the window is a piece of the index that lists go by.
_WINDOW = """
    select status, reason, coalesce(service_platform, builder_platform) as platform, waits.*
    from (
        select * from build where project_id = $1 and id >= $2 order by project_id desc, id desc limit $3
    ) build, lateral (select
        extract(epoch from coalesce(dispatched_at, finished_at) - created_at)::float as queued,
        extract(epoch from coalesce(building_at, promoting_at) - dispatched_at)::float as dispatching,
        extract(epoch from coalesce(promoting_at, finished_at) - building_at)::float as building,
        extract(epoch from finished_at - promoting_at)::float as promoting,
        extract(epoch from finished_at - created_at)::float as total
    ) waits
"""
_COUNTS = f"select status, reason, platform, count(*) as builds from ({_WINDOW}) w group by 1, 2, 3 order by 1, 2, 3"  # noqa: S608
_BOTH = ", ".join(f"percentile_cont(array[0.5, 0.95]) within group (order by {stage}) as {stage}" for stage in STAGES)
_SECONDS = f"select {_BOTH} from ({_WINDOW}) w where status = 'succeeded'"  # noqa: S608
_QUEUE = """
    select count(*) filter (where status = 'queued') as queued, count(*) filter (where status <> 'queued') as running,
        extract(epoch from clock_timestamp() - min(created_at) filter (where status = 'queued'))::float as oldest
    from build where project_id = $1 and status = any($2)
"""


@router.get("", responses=responses())
async def get_stats(
    context: Ctx,
    project: BuildsRead,
    window: Annotated[
        int, Query(ge=60, le=604_800, description="Seconds to look back; builds made since are counted.")
    ] = 3600,
) -> StatsOut:
    """Tell how the project's builds of a window have gone, and what waits now."""
    async with alone(context.sessions) as session:
        since: datetime = (
            await session.execute(select(func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, window)))
        ).scalar_one()
        where = (project.id, first_id("bld", since), MOST_BUILDS)
        counts = [BuildCount(**row) for row in await sql.fetch(session, _COUNTS, *where)]
        (seconds,) = await sql.fetch(session, _SECONDS, *where)
        queue = await _queue(session, project.id)
    builds = sum(count.builds for count in counts)
    return StatsOut(
        since=since,
        window_seconds=window,
        builds=builds,
        complete=builds < MOST_BUILDS,
        counts=counts,
        seconds={
            stage: _seconds(seconds[stage]) for stage in STAGES if seconds[stage] and seconds[stage][0] is not None
        },
        queue=queue,
    )


async def _queue(session: Session, project_id: str) -> QueueStats:
    (row,) = await sql.fetch(session, _QUEUE, project_id, [str(s) for s in OPEN_BUILD])
    return QueueStats(queued=row["queued"], running=row["running"], oldest_seconds=row["oldest"])


def _seconds(pair: Any) -> SecondsOut:
    return SecondsOut(p50=round(pair[0], 4), p95=round(pair[1], 4))

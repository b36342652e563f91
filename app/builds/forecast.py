"""Where a queued build stands, and about when it gets its builder.

Its position is among its own project's builds, since no project waits for another's. When it starts follows from how long
builds held a slot of late and how many slots the project can hope for: its limit, or its part of the platform's among all
that build there. That is a guess for people; it is made for all builds of a project together, every few seconds.
"""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from app import sql
from app.builds import slots
from app.builds.limits import AHEAD, limits
from app.context import Context
from app.lifecycle import BuildStatus
from app.models import Build, Project
from app.sql import Session

PACE_SECONDS = 5.0
KEPT_PACES = 4096

_SECONDS = "avg(extract(epoch from coalesce(promoting_at, finished_at) - dispatched_at))"
_PACE = f"""
    with recursive at_work as ({slots.AT_WORK}), waiting (project_id) as ({slots.WAITING}), theirs as (
        select * from build where project_id = $2 and status = 'succeeded' order by id desc limit 50
    ), lately as (
        select * from build where finished_at is not null order by finished_at desc limit 200
    )
    select coalesce(
            (select {_SECONDS} from theirs where builder_platform = $1),
            (select {_SECONDS} from lately where builder_platform = $1)
        ) as seconds,
        (select coalesce(sum(n), 0) from at_work where project_id = $2) as running,
        (select count(*) from (
            select project_id from waiting where project_id <> $2 union
            select project_id from at_work where project_id <> $2 and here > 0
        ) as others) as others
"""  # noqa: S608 - our own text
_AHEAD = f"""
    select count(*) as ahead, now() as now from build
    where project_id = $1 and status = 'queued' and id < $2 and {AHEAD}
"""  # noqa: S608 - our own text


@dataclass(frozen=True)
class Pace:
    """How a project's queue moves on one platform. ``seconds`` that a build holds a slot; None: nobody knows yet."""

    seconds: float | None
    running: int
    others: int
    """Projects that build there too."""

    def wait(self, position: int, most: int, builders: int) -> float | None:
        """Return in how many seconds the build at this position starts, of ``most`` at once on ``builders`` slots."""
        if self.seconds is None:
            return None
        share = max(1, min(most, builders // (1 + self.others)))
        behind = max(0, position - max(0, share - self.running))
        return self.seconds * behind / share


@dataclass(frozen=True)
class Place:
    """Where a build stands; ``starts_at`` None: nobody knows."""

    position: int
    starts_at: datetime | None


async def place(
    context: Context, session: Session, project: Project, build: Build, ahead: int | None = None
) -> Place | None:
    """Return where a build stands; None for one that waits for no slot. ``ahead``: how many do before it, if known."""
    if build.status != BuildStatus.QUEUED or build.waiting_for is not None or build.artifact_id is not None:
        return None
    now = build.created_at
    if ahead is None:
        seen = await sql.fetch_one(session, _AHEAD, project.id, build.id)
        assert seen is not None
        ahead, now = seen["ahead"], seen["now"]
    position = ahead + 1
    entry = context.catalog.entry(build.builder_platform)
    if entry is None:
        return Place(position, None)
    pace = await _pace(context, session, project, build.builder_platform)
    most = limits(context.settings, project).concurrent_builds
    seconds = pace.wait(position, most, entry.traits.max_builders)
    if seconds is None:
        return Place(position, None)
    return Place(position, max(now + timedelta(seconds=seconds), build.not_before or now))


async def _pace(context: Context, session: Session, project: Project, platform: str) -> Pace:
    key, now = (project.id, platform), time.monotonic()
    until, pace = context.paces.get(key, (now, None))
    if isinstance(pace, Pace) and until > now:
        return pace
    row = await sql.fetch_one(session, _PACE, platform, project.id)
    assert row is not None
    seconds = None if row["seconds"] is None else float(row["seconds"])
    if len(context.paces) >= KEPT_PACES:
        context.paces.clear()
    pace = Pace(seconds, int(row["running"]), row["others"])
    context.paces[key] = now + PACE_SECONDS, pace
    return pace

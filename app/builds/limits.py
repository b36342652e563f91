"""What a project may have: builds a day, builds in the queue, services, bytes of a source. Its builders are ``slots``' matter.

Every build counts in one row of its project, ``build_count``, which is locked from there to the end of the transaction. So two
requests at once never exceed a limit: what is counted after the lock holds whatever the one before it has made. It is
taken last, right before the build is written, so that nobody waits for it longer than an insert and a commit take.

A long queue is counted once a second and not for every build: in between, the row says how many there were and how many came
since, which is as many as there are or more. What is refused has been counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app import sql
from app.context import Context
from app.errors import Refusal
from app.models import Project
from app.settings import Settings
from app.sql import Session

DAY_SECONDS = 86_400
QUEUED_RETRY_SECONDS = 5
SERVICES_RETRY_SECONDS = 60
"""A service goes by somebody's hand, so nobody knows when."""


@dataclass(frozen=True)
class Limits:
    """What holds for one project: its own word, else the installation's."""

    concurrent_builds: int
    queued_builds: int
    builds_per_day: int
    services: int
    source_bytes: int


def limits(settings: Settings, project: Project) -> Limits:
    """Return a project's limits; nobody's source may be larger than the installation takes."""
    default = settings.max_source_bytes if settings.project_source_bytes is None else settings.project_source_bytes
    return Limits(
        concurrent_builds=_or(project.max_concurrent_builds, settings.project_concurrency),
        queued_builds=_or(project.max_queued_builds, settings.project_queued),
        builds_per_day=_or(project.max_builds_per_day, settings.project_builds_per_day),
        services=_or(project.max_services, settings.project_services),
        source_bytes=min(_or(project.max_source_bytes, default), settings.max_source_bytes),
    )


def _or(own: int | None, default: int) -> int:
    return default if own is None else own


@dataclass(frozen=True)
class Quota:
    """One limit and what is left of it. ``seconds``: when all of it is there again; None where that is no matter of time."""

    name: str
    limit: int
    left: int
    window: int | None = None
    seconds: int | None = None


@dataclass(frozen=True)
class Granted:
    """What became of a wish for builds: how many may be made, and, when that is not all, why; about ``ahead`` wait for a slot."""

    builds: int
    ahead: int
    quotas: tuple[Quota, ...]
    refusal: Refusal | None


def headers(quotas: Sequence[Quota]) -> dict[str, str]:
    """Return ``RateLimit-Policy`` and ``RateLimit``: draft-ietf-httpapi-ratelimit-headers-10, sections 3 and 4."""
    policies = (f'"{q.name}";q={q.limit}' + (f";w={q.window}" if q.window else "") for q in quotas)
    left = (f'"{q.name}";r={q.left}' + (f";t={q.seconds}" if q.seconds is not None else "") for q in quotas)
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(left)}


_TODAY = "(now() at time zone 'utc')::date"
_TOMORROW = f"ceil(extract(epoch from ({_TODAY} + 1) at time zone 'utc' - now()))::int"
LONG_QUEUE = 1000
"""From so many builds on a queue is not counted for each one: ten thousand take 2.6 ms, and the project's lock is held."""
_COUNT = f"""
    insert into build_count as c (project_id, day, builds, queued, ahead) values ($1, {_TODAY}, $2, $2, $2)
    on conflict (project_id) do update set
        builds = case when c.day = excluded.day then c.builds else 0 end + excluded.builds, day = excluded.day,
        queued = c.queued + excluded.queued, ahead = c.ahead + excluded.ahead
    returning builds, {_TOMORROW} as seconds, queued - $2 as queued, ahead - $2 as ahead,
        coalesce(counted_at > clock_timestamp() - interval '1 second', false) as fresh
"""  # noqa: S608 - our own text
_GIVE_BACK = (
    "update build_count set builds = builds - $2, queued = queued - $2, ahead = ahead - $2 where project_id = $1"
)
AHEAD = "waiting_for is null and artifact_id is null"
"""Which queued builds wait for a slot: not those that may take another's image."""
_QUEUED = "(select count(*) from build where project_id = $1 and status = 'queued')"
_QUEUE = f"""
    with seen as (
        select count(*) as queued, count(*) filter (where {AHEAD}) as ahead
        from build where project_id = $1 and status = 'queued'
    ), kept as (
        update build_count set queued = seen.queued + $2, ahead = seen.ahead + $2, counted_at = clock_timestamp()
        from seen where project_id = $1 and seen.queued >= {LONG_QUEUE}
    )
    select * from seen
"""  # noqa: S608 - our own text
_SERVICES = "(select count(*) from service where project_id = $1 and deleted_at is null)"


async def grant(context: Context, session: Session, project: Project, wanted: int, *, new_service: bool) -> Granted:
    """Count up to ``wanted`` builds that are about to be written, and as many as may be; locks the project's count.

    Rows of services are locked before, never after. ``new_service``: this transaction has made one, of which it is too late to
    make none.
    """
    allowed = limits(context.settings, project)
    counted = await sql.fetch_one(session, _COUNT, project.id, wanted)
    assert counted is not None
    # Statements of their own: they have to see what was committed before the lock was ours.
    seen = counted
    if not counted["fresh"] or counted["queued"] + wanted > allowed.queued_builds:
        (seen,) = await sql.fetch(session, _QUEUE, project.id, wanted)
    services = 0
    if new_service:
        (row,) = await sql.fetch(session, f"select {_SERVICES} as services", project.id)
        services = row["services"]
    before, seconds = counted["builds"] - wanted, counted["seconds"]
    day, room = allowed.builds_per_day - before, allowed.queued_builds - seen["queued"]
    builds = max(0, min(wanted, day, room))
    quotas = [
        Quota("builds-per-day", allowed.builds_per_day, max(0, day - builds), DAY_SECONDS, seconds),
        Quota("queued-builds", allowed.queued_builds, max(0, room - builds)),
    ]
    if new_service:
        quotas.append(Quota("services", allowed.services, max(0, allowed.services - services)))
    if services > allowed.services:
        builds, short, retry_after = 0, quotas[2], SERVICES_RETRY_SECONDS
    elif day < room:
        short, retry_after = quotas[0], seconds
    else:
        short, retry_after = quotas[1], QUEUED_RETRY_SECONDS
    if builds == wanted:
        return Granted(builds, seen["ahead"], tuple(quotas), None)
    await sql.fetch(session, _GIVE_BACK, project.id, wanted - builds)
    return Granted(builds, seen["ahead"], tuple(quotas), _refused(short, retry_after, quotas))


async def take(context: Context, session: Session, project: Project, *, new_service: bool) -> Granted:
    """Count one build that is about to be written; Refusal (429) when it is one too many."""
    granted = await grant(context, session, project, 1, new_service=new_service)
    if granted.refusal is not None:
        raise granted.refusal
    return granted


def _refused(short: Quota, seconds: int, quotas: Sequence[Quota]) -> Refusal:
    detail = f"This project may have {short.limit} {short.name.replace('-', ' ')}; try again in {seconds} seconds."
    return Refusal(429, _REASONS[short.name], detail, headers={"Retry-After": str(seconds), **headers(quotas)})


_REASONS = {
    "builds-per-day": "too_many_builds",
    "queued-builds": "too_many_queued",
    "services": "too_many_services",
}


_USED = f"""
    select coalesce((select builds from build_count where project_id = $1 and day = {_TODAY}), 0) as builds_today,
        {_QUEUED} as queued_builds,
        {_SERVICES} as services,
        (select count(*) from build where project_id = $1 and status in ('dispatching', 'building')) as concurrent_builds
"""  # noqa: S608 - our own text


async def usage(session: Session, project: Project) -> Mapping[str, Any]:
    """Return what a project has now of what ``limits`` limits."""
    found = await sql.fetch_one(session, _USED, project.id)
    assert found is not None
    return found

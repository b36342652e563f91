"""Write releases. A release is what should run; ``promote`` makes it so."""

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import outbox, queue, sql, store, traces
from app.context import Context
from app.errors import not_found
from app.ids import new_id, remote_name
from app.lifecycle import ReleaseStatus
from app.models import Artifact, Build, Project, Release, Service
from app.platforms.base import ServiceRef
from app.sql import Expression, Session, after

PENDING_CHECK_SECONDS = 15
MIGRATE = "migrate"
"""The kind of a release that is on another platform than the live one."""


async def create_release(
    context: Context,
    session: Session,
    service: Service,
    *,
    kind: str,
    artifact: Artifact,
    build: Build | None = None,
    release_id: str | None = None,
    config: dict[str, Any] | None = None,
    secret_versions: dict[str, Any] | None = None,
    patch: dict[str, Any] | None = None,
    sequence: int | None = None,
    config_sequence: int | None = None,
    platform: str | None = None,
    **more: Any,
) -> Release:
    """Write a pending release and its job; the caller holds the service's row.

    For a build, order and config are the build's; others pass their own. ``more`` are further columns.
    """
    following = "(select coalesce(max(number), 0) + 1 from release where service_id = ?)"
    if build is not None:
        assert build.sequence is not None
        sequence = config_sequence = build.sequence
        config, secret_versions = build.config, build.secret_versions
    assert sequence is not None
    assert config_sequence is not None
    release = await sql.insert(
        session,
        Release,
        id=release_id or new_id("rel"),
        project_id=service.project_id,
        service_id=service.id,
        number=Expression(following, (service.id,)),
        status=ReleaseStatus.PENDING,
        kind=kind,
        platform=platform or service.platform,
        artifact_id=artifact.id,
        build_id=build.id if build else None,
        sequence=sequence,
        config_sequence=config_sequence,
        config=config or {},
        patch=patch,
        secret_versions=secret_versions,
        next_check_at=after(PENDING_CHECK_SECONDS),
        traceparent=build.traceparent if build else traces.here(),
        **more,
    )
    if build is None:
        artifact.last_used_at = func.now()
        outbox.mark(session, "release.committed")
    store.record(session, release, "release.pending", {"number": release.number, "kind": kind})
    nudge(context, session, release)
    return release


def nudge(context: Context, session: Session, release: Release, *, delay: float = 0) -> None:
    """Ask for a release to be promoted."""
    host_bound = context.catalog.host_bound(release.platform)
    job = queue.Nudge(queue.Job.PROMOTE, release.id, release.tries, host_bound=host_bound, delay=delay, once=delay == 0)
    outbox.enqueue(session, job)


_NEXT = """
    update release set tries = tries + 1  -- a new attempt number, so that the job is not folded into an old one
    where id = (
        select id from release where service_id = $1 and status = 'pending' order by number desc limit 1
    )
    returning *
"""


async def next_pending(context: Context, session: Session, service_id: str) -> None:
    """Let the newest waiting release of a service begin, now that none is being deployed; older ones end superseded."""
    if waiting := await sql.fetch_one(session, _NEXT, service_id):
        nudge(context, session, sql.load(Release, waiting))


def gateway_url(context: Context, service: Service, platform: str, *, stable_name: bool) -> str | None:
    """Return the service's address behind our gateway, None where it is its platform's own."""
    if stable_name or context.catalog.entries[platform].traits.scale_to_zero == "manual":
        return context.settings.service_url(service.host)
    return None


async def follow(context: Context, session: Session, service: Service, release: Release) -> bool:
    """Send a waiting release after its service, which has moved since; False where it is on its platform."""
    if release.kind == MIGRATE or release.platform == service.platform:
        return False
    release.platform, release.config = service.platform, release.config | {"regions": []}
    release.tries += 1  # a new attempt, so that its job is not folded into the old platform's
    values: dict[str, Any] = {"platform": release.platform, "config": release.config, "tries": release.tries}
    await sql.update(session, Release, {"id": release.id}, **values)
    nudge(context, session, release)
    return True


def ref_of(context: Context, release: Release) -> ServiceRef:
    """Return the release as its platform knows it."""
    return ServiceRef(
        service=remote_name(context.installation, release.service_id),
        release=remote_name(context.installation, release.id),
        handle=release.handle,
        region=release.region,
    )


async def find(session: AsyncSession, project: Project, name: str, *, lock: bool = False) -> Service:
    """Return the project's service of this name; Refusal (404) when it isn't there or isn't theirs."""
    statement = select(Service).where(
        Service.project_id == project.id, Service.name == name, Service.deleted_at.is_(None)
    )
    service = (await session.execute(statement.with_for_update() if lock else statement)).scalar_one_or_none()
    if service is None:
        raise not_found("service", name)
    return service


async def live_release(session: Session, service: Service) -> Release | None:
    """Return the release that the service runs; None before the first."""
    if service.live_release_id is None:
        return None
    row = await sql.fetch_one(session, "select * from release where id = $1", service.live_release_id)
    return sql.load(Release, row) if row else None

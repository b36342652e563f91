"""Services: look at them, change them, step back, put them to sleep and wake them, remove them."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from sqlalchemy import select

from app.api.deps import Ctx, Cursor, Db, Limit, ServicesRead, ServicesWrite, decode_cursor, encode_cursor
from app.api.lists import NextPage, Since, Until, made
from app.api.once import OnceOnly, OnceRoute
from app.api.reasons import NOT_STARTED, responses
from app.api.schemas import LogLineOut, MigrationOut, Page, ReleaseOut, ServiceOut
from app.api.views import migration_out, release_out, service_out, service_with
from app.context import Context
from app.errors import Refusal, conflict, unavailable
from app.lifecycle import ReleaseStatus, ServiceStatus
from app.models import Artifact, Project, Release, Service
from app.platforms.base import PlatformError
from app.requests import MigrateRequest, ReleaseRequest, RollbackRequest, ServicePatch
from app.services import delete, migrate, rollback, sleep_wake
from app.services.release import find, gateway_url, live_release, ref_of

router = APIRouter(prefix="/v1/services", tags=["services"], route_class=OnceRoute)


@router.get("", responses=responses())
async def list_services(
    project: ServicesRead,
    session: Db,
    next_page: NextPage,
    limit: Limit = 50,
    cursor: Cursor = None,
    status: Annotated[ServiceStatus | None, Query()] = None,
    platform: Annotated[str | None, Query(max_length=32)] = None,
    since: Since = None,
    until: Until = None,
) -> Page[ServiceOut]:
    """List services, newest first."""
    statement = (
        select(Service, Release, Artifact.digest)
        .outerjoin(Release, Release.id == Service.live_release_id)
        .outerjoin(Artifact, Artifact.id == Release.artifact_id)
        .where(Service.project_id == project.id, Service.deleted_at.is_(None))
        .where(*made(Service.created_at, "svc", [Service.id], since, until))
    )
    if status is not None:
        statement = statement.where(Service.status == status)
    if platform is not None:
        statement = statement.where(Service.platform == platform)
    if cursor is not None:
        statement = statement.where(Service.id < decode_cursor(cursor, str)[0])
    rows = (await session.execute(statement.order_by(Service.id.desc()).limit(limit + 1))).all()
    after = encode_cursor(rows[limit - 1][0].id) if len(rows) > limit else None
    return Page(items=[service_with(*row) for row in rows[:limit]], next_cursor=next_page(after))


@router.get("/{name}", responses=responses(service_not_found=404))
async def get_service(name: str, project: ServicesRead, session: Db) -> ServiceOut:
    """Look at a service."""
    return await service_out(session, await find(session, project, name))


@router.patch(
    "/{name}", status_code=202, responses=responses(service_not_found=404, no_live_release=409, cannot_honour=422)
)
async def update_service(
    name: str, body: ServicePatch, context: Ctx, project: ServicesWrite, session: Db
) -> ReleaseOut:
    """Change a service's config; makes a new release, which goes live once it is healthy."""
    service = await find(session, project, name, lock=True)
    return release_out(await rollback.change(context, session, service, body))


@router.delete("/{name}", status_code=202, response_class=Response, responses=responses(service_not_found=404))
async def delete_service(name: str, context: Ctx, project: ServicesWrite, session: Db) -> Response:
    """Remove a service from every state; what is under way for it ends."""
    await delete.request(context, session, await find(session, project, name, lock=True))
    return Response(status_code=202)


@router.get("/{name}/releases", responses=responses(service_not_found=404))
async def list_releases(
    name: str,
    project: ServicesRead,
    session: Db,
    next_page: NextPage,
    limit: Limit = 50,
    cursor: Cursor = None,
    status: Annotated[ReleaseStatus | None, Query()] = None,
) -> Page[ReleaseOut]:
    """List a service's releases, newest first."""
    service = await find(session, project, name)
    statement = (
        select(Release, Artifact.digest)
        .join(Artifact, Artifact.id == Release.artifact_id)
        .where(Release.service_id == service.id)
    )
    if status is not None:
        statement = statement.where(Release.status == status)
    if cursor is not None:
        statement = statement.where(Release.number < decode_cursor(cursor, int)[0])
    rows = (await session.execute(statement.order_by(Release.number.desc()).limit(limit + 1))).all()
    items = [release_out(release, digest) for release, digest in rows[:limit]]
    return Page(items=items, next_cursor=next_page(encode_cursor(items[-1].number) if len(rows) > limit else None))


@router.post(
    "/{name}/releases",
    status_code=202,
    responses=responses(
        service_not_found=404, artifact_not_found=404, no_live_release=409, artifact_gone=409, cannot_honour=422
    ),
)
async def create_release(
    name: str, body: ReleaseRequest, context: Ctx, project: ServicesWrite, once: OnceOnly, session: Db
) -> ReleaseOut:
    """Promote an artifact again, with the live config."""
    service = await find(session, project, name, lock=True)
    return release_out(await rollback.promote_artifact(context, session, service, body))


@router.post(
    "/{name}/rollback",
    status_code=202,
    responses=responses(
        service_not_found=404,
        release_not_found=404,
        no_live_release=409,
        nothing_to_roll_back_to=409,
        already_live=409,
        artifact_gone=409,
    ),
)
async def rollback_service(
    name: str, context: Ctx, project: ServicesWrite, once: OnceOnly, session: Db, body: RollbackRequest | None = None
) -> ReleaseOut:
    """Go back to the release before the live one, or to the one named; makes a new release."""
    service = await find(session, project, name, lock=True)
    return release_out(await rollback.rollback(context, session, service, body or RollbackRequest()))


@router.post(
    "/{name}/migrate",
    status_code=202,
    responses=responses(
        service_not_found=404, no_live_release=409, already_there=409, migration_under_way=409, cannot_honour=422
    ),
)
async def migrate_service(
    name: str, body: MigrateRequest, context: Ctx, project: ServicesWrite, once: OnceOnly, session: Db
) -> MigrationOut:
    """Move a service to another platform: a new release there, which takes over once it is healthy.

    Until then, and when it fails, the old platform serves. Behind a stable name the address stays the same.
    """
    service = await find(session, project, name, lock=True)
    release = await migrate.migrate(context, session, service, body)
    stable = bool(release.config.get("stable_name"))
    new_url = gateway_url(context, service, release.platform, stable_name=stable)
    return migration_out(release, service.url, new_url)


@router.post(
    "/{name}/sleep",
    responses=responses(service_not_found=404, platform_decides=409, no_live_release=409, kept_up=409, not_running=409),
)
async def sleep_service(name: str, context: Ctx, project: ServicesWrite) -> ServiceOut:
    """Put a service to sleep now. Asleep already is fine."""
    service, release = await _manual(context, project, name)
    if service.status not in {ServiceStatus.ASLEEP, ServiceStatus.SLEEPING}:
        if release.config["scale"]["min"] > 0:
            raise conflict("kept_up", f"Service {name} has scale.min 1; change that first.")
        if not await sleep_wake.sleep(context, service.id):
            raise conflict(
                "not_running", f"Service {name} is {service.status}; only a running one can be put to sleep."
            )
    async with context.sessions() as session:
        return await service_out(session, await find(session, project, name))


@router.post(
    "/{name}/wake",
    responses=responses(
        service_not_found=404,
        platform_decides=409,
        no_live_release=409,
        not_awake=503,
        deleted=503,
        **dict.fromkeys(NOT_STARTED, 503),
    ),
)
async def wake_service(name: str, context: Ctx, project: ServicesWrite) -> ServiceOut:
    """Wake a service and answer once it listens. Awake already is fine."""
    service, _ = await _manual(context, project, name)
    try:
        await sleep_wake.wake(context, service.id)
    except sleep_wake.WakeFailed as e:
        raise unavailable(str(e), reason=e.reason or "not_awake", retry_after=max(1, round(e.retry_after))) from e
    async with context.sessions() as session:
        return await service_out(session, await find(session, project, name))


async def _manual(context: Context, project: Project, name: str) -> tuple[Service, Release]:
    """Return a service that we put to sleep and wake ourselves, with its live release; Refusal (409) otherwise."""
    async with context.sessions() as session:
        service = await find(session, project, name)
        release = await live_release(session, service)
    if context.catalog.entries[service.platform].traits.scale_to_zero != "manual":
        raise conflict("platform_decides", f"On {service.platform} the platform itself puts services to sleep.")
    if release is None:
        raise conflict("no_live_release", f"Service {name} has no live release yet.")
    return service, release


@router.get("/{name}/logs", responses=responses(service_not_found=404, logs_elsewhere=409, platform_unavailable=503))
async def list_service_logs(
    name: str, context: Ctx, project: ServicesRead, limit: Annotated[int, Query(ge=1, le=1000)] = 200
) -> Page[LogLineOut]:
    """List the last lines of the live release, or of the newest one while none is live; oldest first."""
    async with context.sessions() as session:
        service = await find(session, project, name)
        newest = select(Release).where(Release.service_id == service.id).order_by(Release.number.desc()).limit(1)
        release = await live_release(session, service) or (await session.execute(newest)).scalar_one_or_none()
    if release is None:
        return Page(items=[])
    platform = context.platform(release.platform)
    if platform is None or platform.services is None:
        raise Refusal(409, "logs_elsewhere", f"The logs of {release.platform} are kept by another process on its host.")
    try:
        lines = await platform.services.logs(ref_of(context, release), limit=limit)
    except PlatformError as e:
        raise unavailable(f"{release.platform} gave no logs: {e.message}", reason="platform_unavailable") from e
    return Page(items=[LogLineOut(at=line.at, stream=line.stream, text=line.text) for line in lines])

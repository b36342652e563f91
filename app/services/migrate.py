"""Move a service to another platform: a new release there like the live one, which ``promote`` brings up, gates and switches to.

Until the switch the old platform serves, and nothing of it is touched; a migration that fails leaves it as it is, and ``leave``
removes what was made on the new one. After the switch the old platform keeps the service for a while, then it is left as well.
"""

from sqlalchemy import exists, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.builds.checks import check_service
from app.context import Context
from app.errors import conflict, invalid
from app.lifecycle import ReleaseStatus
from app.models import Release, Service
from app.requests import MigrateRequest, ServiceConfig
from app.services.release import MIGRATE, create_release
from app.services.rollback import live_of, take_artifact


async def migrate(context: Context, session: AsyncSession, service: Service, request: MigrateRequest) -> Release:
    """Make a release on another platform, of the live artifact, config and secrets; the service's row is locked by the caller.

    Regions are a platform's own words, so those of the request count and not the live ones. Refusal: 409 while nothing is live,
    another migration is under way, or it lives there already; 422 when the platform can't have it.
    """
    live = await live_of(session, service)
    open_ = exists().where(
        Release.service_id == service.id,
        Release.kind == MIGRATE,
        Release.status.in_([ReleaseStatus.PENDING, ReleaseStatus.DEPLOYING]),
    )
    if (await session.execute(select(open_))).scalar_one():
        raise conflict("migration_under_way", f"Service {service.name} is on its way to another platform already.")
    if request.platform == service.platform:
        raise conflict("already_there", f"Service {service.name} lives on {service.platform} already.")
    config = ServiceConfig.model_validate(live.config | {"regions": request.regions})
    warnings = list[str]()
    check_service(context, request.platform, config, strict=request.strict, warnings=warnings, prefix="")
    artifact = await take_artifact(session, service, live.artifact_id)
    if artifact.goarch not in context.catalog.entries[request.platform].traits.goarch:
        raise invalid("platform", f"{request.platform} can't run {artifact.goarch} programs")
    if (left := live.config.get("regions")) and not request.regions:
        warnings.append(f"regions: {', '.join(left)} stay behind; {request.platform} chooses")
    patch = {"config": {"regions": list(request.regions)}, "secrets": {}}
    return await create_release(
        context, session, service, kind=MIGRATE, artifact=artifact, config=config.model_dump(mode="json"), patch=patch,
        secret_versions=live.secret_versions, sequence=live.sequence, config_sequence=live.config_sequence,
        platform=request.platform, warnings=warnings, keep_seconds=request.keep_seconds,
    )  # fmt: skip

"""New releases out of what is there: a config change, an artifact promoted again, a step back."""

from typing import Any

from pydantic import BaseModel
from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from app.builds.checks import check_service
from app.builds.submit import keep_secrets
from app.context import Context
from app.errors import conflict, invalid, not_found
from app.lifecycle import ReleaseStatus
from app.models import Artifact, Release, Service
from app.requests import ENV_BYTES, ENV_MAX, ReleaseRequest, RollbackRequest, ServiceConfig, ServicePatch
from app.services.claim import merge
from app.services.release import create_release, live_release


async def change(context: Context, session: AsyncSession, service: Service, patch: ServicePatch) -> Release:
    """Make a release with a changed config of the live one; the service's row is locked by the caller."""
    live = await live_of(session, service)
    given = patch.model_dump(mode="json", exclude_unset=True, exclude={"secrets", "strict"})
    secrets = (patch.secrets or {}) if "secrets" in patch.model_fields_set else {}
    for name in {k for k, v in given.items() if v is None and k != "env"}:
        raise invalid(name, "can't be null")
    if not given and not secrets:
        raise invalid("body", "changes nothing: name at least one field")
    if "env" in given and given["env"] is None:
        given["env"] = dict.fromkeys(live.config["env"])
    config = _config(merge(live.config, given))
    names = set(merge(live.secret_versions or {}, {k: (v and "kept") for k, v in secrets.items()}))
    if both := names & set(config.env):
        raise invalid(f"env.{min(both)}", "is a secret of this service too")
    if len(names) > ENV_MAX:
        raise invalid("secrets", f"a service has at most {ENV_MAX}")
    warnings = list[str]()
    check_service(context, service.platform, config, strict=patch.strict, warnings=warnings, prefix="")
    versions: dict[str, Any] = dict(
        await keep_secrets(context, session, service, {k: v for k, v in secrets.items() if v is not None})
    )
    versions |= {k: None for k, v in secrets.items() if v is None}
    service.sequence += 1
    artifact = await take_artifact(session, service, live.artifact_id)
    return await create_release(
        context, session, service, kind="config", artifact=artifact, config=config.model_dump(mode="json"),
        secret_versions=live.secret_versions, patch={"config": given, "secrets": versions},
        sequence=live.sequence, config_sequence=service.sequence, warnings=warnings,
    )  # fmt: skip


async def promote_artifact(
    context: Context, session: AsyncSession, service: Service, request: ReleaseRequest
) -> Release:
    """Make a release of an artifact with the live config."""
    live = await live_of(session, service)
    artifact = await take_artifact(session, service, request.artifact_id)
    _runnable(context, service, artifact)
    service.sequence += 1
    return await create_release(
        context, session, service, kind="promote", artifact=artifact, config=live.config,
        secret_versions=live.secret_versions, sequence=service.sequence, config_sequence=service.sequence,
    )  # fmt: skip


async def rollback(context: Context, session: AsyncSession, service: Service, request: RollbackRequest) -> Release:
    """Make a release like an earlier one: same artifact, config and secret versions, on the platform of the live one."""
    live = await live_of(session, service)
    statement = select(Release).where(Release.service_id == service.id, Release.live_at.is_not(None))
    if request.release_id is None:
        # Going back twice goes two steps back, not back and forth: from what the live one was made after.
        origin = await _origin(session, live)
        statement = statement.where(Release.number < origin.number, ~_like(live))
    else:
        statement = statement.where(Release.id == request.release_id)
    target = (await session.execute(statement.order_by(Release.number.desc()).limit(1))).scalar_one_or_none()
    if target is None:
        if request.release_id is not None:
            raise not_found("release", request.release_id)
        raise conflict("nothing_to_roll_back_to", f"Service {service.name} has no earlier release that was live.")
    if target.id == live.id:
        raise conflict("already_live", f"Release {target.id} is live already.")
    artifact = await take_artifact(session, service, target.artifact_id)
    _runnable(context, service, artifact)
    service.sequence += 1
    moved = target.platform != service.platform
    config = target.config | {"regions": live.config.get("regions", [])} if moved else target.config
    return await create_release(
        context, session, service, kind="rollback", artifact=artifact, config=config,
        secret_versions=target.secret_versions, sequence=service.sequence, config_sequence=service.sequence,
    )  # fmt: skip


def _like(release: Release) -> ColumnElement[bool]:
    """Match releases that run the same as this one; regions are a platform's own words."""
    rest = {k: v for k, v in release.config.items() if k != "regions"}
    elsewhere = and_(Release.platform != release.platform, Release.config.op("-", return_type=JSONB)("regions") == rest)
    return and_(
        Release.artifact_id == release.artifact_id,
        or_(Release.config == release.config, elsewhere),
        Release.secret_versions == release.secret_versions,
    )


async def _origin(session: AsyncSession, release: Release) -> Release:
    """Return the release that this one repeats, through any number of rollbacks and migrations; itself if it repeats none."""
    while release.kind in {"rollback", "migrate"}:
        earlier = select(Release).where(
            Release.service_id == release.service_id,
            Release.number < release.number,
            Release.live_at.is_not(None),
            _like(release),
        )
        found = (await session.execute(earlier.order_by(Release.number.desc()).limit(1))).scalar_one_or_none()
        if found is None:
            break
        release = found
    return release


async def live_of(session: AsyncSession, service: Service) -> Release:
    """Return the release that serves now; Refusal (409) when there is none."""
    live = await live_release(session, service)
    if live is None or live.status != ReleaseStatus.LIVE:
        raise conflict("no_live_release", f"Service {service.name} has no live release yet.")
    return live


async def take_artifact(session: AsyncSession, service: Service, artifact_id: str) -> Artifact:
    """Return the artifact, locked so that nobody collects it meanwhile."""
    statement = select(Artifact).where(Artifact.id == artifact_id, Artifact.project_id == service.project_id)
    artifact = (await session.execute(statement.with_for_update())).scalar_one_or_none()
    if artifact is None:
        raise not_found("artifact", artifact_id)
    if artifact.status != "available":
        raise conflict("artifact_gone", f"Artifact {artifact_id} is past its retention; build it again.")
    return artifact


def _runnable(context: Context, service: Service, artifact: Artifact) -> None:
    if artifact.goarch not in context.catalog.entries[service.platform].traits.goarch:
        raise invalid("artifact_id", f"{service.platform} can't run {artifact.goarch} programs")


def _config(merged: dict[str, Any]) -> ServiceConfig:
    size = sum(len(k) + len(v) for k, v in merged.get("env", {}).items())
    if len(merged.get("env", {})) > ENV_MAX or size > ENV_BYTES:
        raise invalid("env", f"a service has at most {ENV_MAX} variables with {ENV_BYTES} characters in all")
    model: type[BaseModel] = ServiceConfig
    config = model.model_validate(merged)
    assert isinstance(config, ServiceConfig)
    return config

"""Rows as the API shows them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app import events
from app.api.schemas import (
    ArtifactOut,
    BuildDetail,
    BuildOut,
    Diagnostic,
    EventOut,
    Failure,
    MigrationOut,
    ReleaseOut,
    RunOut,
    ServiceOut,
    SizeOut,
    Tried,
)
from app.builds.forecast import Place
from app.lifecycle import REASONS, BuildStatus, Reason
from app.models import Artifact, Build, Event, Release, Run, Service


def failure(reason: str | None, message: str | None) -> Failure | None:
    """Return what a reason means."""
    if reason is None:
        return None
    info = REASONS[Reason(reason)]
    return Failure(
        reason=Reason(reason),
        owner=info.owner,
        retryable=info.retryable,
        message=message or info.message,
        advice=info.message,
    )


def build_fields(build: Build, service: str | None) -> dict[str, Any]:
    """Return what lists and details have in common. What a queued build has found is a guess as yet, and not shown."""
    queued = build.status == BuildStatus.QUEUED
    return {
        "id": build.id,
        "status": build.status,
        "platform": build.service_platform or build.builder_platform,
        "builder_platform": build.builder_platform,
        "service": service,
        "source": {k: v for k, v in build.source.items() if v is not None},
        "source_digest": build.source_digest,
        "labels": build.labels,
        "warnings": build.warnings,
        "retry_of": build.retry_of,
        "waiting_for": build.waiting_for if queued else None,
        "reason": build.reason,
        "message": build.message,
        "failure": failure(build.reason, build.message),
        "artifact_id": None if queued else build.artifact_id,
        "release_id": build.release_id,
        "created_at": build.created_at,
        "updated_at": build.updated_at,
        "finished_at": build.finished_at,
    }


def build_out(build: Build, service: str | None) -> BuildOut:
    """Return a build as lists show it."""
    return BuildOut(**build_fields(build, service))


async def build_detail(session: AsyncSession, build: Build, place: Place | None = None) -> BuildDetail:
    """Return a build with everything that belongs to it; ``place`` while it waits for a builder."""
    runs = (await session.execute(select(Run).where(Run.build_id == build.id).order_by(Run.attempt))).scalars().all()
    guessed = build.status == BuildStatus.QUEUED
    artifact = await session.get(Artifact, build.artifact_id) if build.artifact_id and not guessed else None
    release = await session.get(Release, build.release_id) if build.release_id else None
    service = await session.get(Service, build.service_id) if build.service_id else None
    live = service is not None and release is not None and service.live_release_id == release.id
    url = service.url if service is not None and live else None
    name = service.name if service else None
    return detail(build, name, runs=runs, artifact=artifact, release=release, url=url, place=place)


def detail(
    build: Build,
    service: str | None,
    *,
    runs: Sequence[Run] = (),
    artifact: Artifact | None = None,
    release: Release | None = None,
    url: str | None = None,
    place: Place | None = None,
) -> BuildDetail:
    """Return a build with what belongs to it; a new one has nothing yet."""
    return BuildDetail(
        **build_fields(build, service),
        position=place.position if place else None,
        estimated_start_at=place.starts_at if place else None,
        spec=build.spec | ({"service": build.config} if build.config is not None else {}),
        diagnostics=[Diagnostic(**d) for d in build.diagnostics],
        tried=[Tried(**t) for t in build.tried],
        runs=[run_out(r) for r in runs],
        artifact=artifact_out(artifact, reused=artifact.run_id not in {r.id for r in runs}) if artifact else None,
        release=release_out(release, artifact.digest if artifact else None) if release else None,
        url=url,
        timings=timings(build, runs[-1] if runs else None),
    )


def timings(build: Build, run: Run | None) -> dict[str, float]:
    """Return seconds per stage as far as they are known: ours by the row's times, the builder's by its report."""
    marks = [
        ("queued", build.created_at, build.dispatched_at or build.promoting_at or build.finished_at),
        ("dispatching", build.dispatched_at, build.building_at or build.promoting_at),
        ("building", build.building_at, build.promoting_at or build.finished_at),
        ("promoting", build.promoting_at, build.finished_at),
        ("total", build.created_at, build.finished_at),
    ]
    seen = {name: round((end - start).total_seconds(), 4) for name, start, end in marks if start and end}
    return seen | {f"builder.{k}": round(float(v), 4) for k, v in (run.timings if run else {}).items()}


def run_out(run: Run) -> RunOut:
    """Return a run."""
    return RunOut.model_validate(run, from_attributes=True)


def artifact_out(artifact: Artifact, *, reused: bool) -> ArtifactOut:
    """Return an artifact."""
    fields = {c: getattr(artifact, c) for c in ArtifactOut.model_fields if hasattr(artifact, c)}
    return ArtifactOut(**fields, reused=reused)


def release_out(release: Release, digest: str | None = None) -> ReleaseOut:
    """Return a release; of its secrets only the names."""
    fields = {c: getattr(release, c) for c in ReleaseOut.model_fields if hasattr(release, c)}
    fields["effective"] = SizeOut(**release.effective) if release.effective else None
    fields["failure"] = failure(release.reason, release.message)
    return ReleaseOut(**fields, digest=digest, secrets=sorted(release.secret_versions or {}))


def event_out(event: Event) -> EventOut:
    """Return an event; its id is its place in the order of events."""
    fields = {c: getattr(event, c) for c in EventOut.model_fields}
    return EventOut(**fields | {"id": str(events.position(event))})


def migration_out(release: Release, old_url: str | None, new_url: str | None) -> MigrationOut:
    """Return a migration; ``new_url`` is None while only the platform can tell."""
    return MigrationOut(
        **release_out(release).model_dump(),
        url_changes=new_url is None or new_url != old_url,
        old_url=old_url,
        new_url=new_url,
        keep_seconds=release.keep_seconds or 0,
    )


async def service_out(session: AsyncSession, service: Service) -> ServiceOut:
    """Return a service with its live release."""
    statement = select(Release, Artifact.digest).join(Artifact, Artifact.id == Release.artifact_id)
    row = (await session.execute(statement.where(Release.id == service.live_release_id))).one_or_none()
    return service_with(service, *(row or (None, None)))


def service_with(service: Service, release: Release | None, digest: str | None) -> ServiceOut:
    """Return a service with the live release that was read beside it, if it has one."""
    fields = {c: getattr(service, c) for c in ServiceOut.model_fields if hasattr(service, c)}
    return ServiceOut(**fields, live_release=release_out(release, digest) if release else None)

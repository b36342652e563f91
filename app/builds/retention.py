"""What is past its keeping: removed in small batches, so that no pass holds locks for long.

Builds go last: a build keeps its runs, its logs keep their own shorter time, and an artifact lives as long as anything that
could still run refers to it.
"""

from datetime import timedelta

import structlog
from sqlalchemy import delete, exists, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.context import Context
from app.images.errors import RegistryError
from app.lifecycle import OPEN_BUILD, BuildStatus, ReleaseStatus
from app.models import Artifact, Build, Release, SecretVersion, Service, Source, Webhook

log = structlog.get_logger()

BATCH = 500


async def keep(context: Context) -> dict[str, int]:
    """Remove one batch of each kind; returns what was removed by table."""
    settings = context.settings
    removed = {}
    async with context.sessions.begin() as session:
        removed["run_log"] = await _old(session, "run_log", "created_at", settings.keep_logs_days)
        removed["webhook_delivery"] = await _old(session, "webhook_delivery", "created_at", settings.keep_events_days)
        removed["event"] = await _old(session, "event", "at", settings.keep_events_days)
        removed["idempotency_key"] = await _old(session, "idempotency_key", "created_at", 1)
        # After a day without a request a bucket is full, and what failed is worth another try.
        removed["budget"] = await _old(session, "budget", "refilled_at", 1)
        removed["breaker"] = await _old(session, "breaker", "failed_at", 1)
        removed["batch"] = await _old(session, "batch", "ended_at", settings.keep_builds_days)
        removed["build"] = await _builds(session, settings.keep_builds_days)
        removed["source"] = await _sources(session, settings.keep_unreferenced_days)
        removed["secret_version"] = await _secrets(session)
    removed["artifact"] = await _artifacts(context, settings.keep_unreferenced_days)
    if any(removed.values()):
        log.info("retention", removed={k: v for k, v in removed.items() if v})
    return removed


async def _old(session: AsyncSession, table: str, column: str, days: float) -> int:
    # Names are constants of this file; ctid keeps the batch small without an index on the whole condition.
    statement = text(
        f"delete from {table} where ctid in (select ctid from {table} "  # noqa: S608
        f"where {column} < now() - make_interval(secs => :seconds) limit :batch)"
    )
    result = await session.execute(statement, {"seconds": days * 86400, "batch": BATCH})
    return int(result.rowcount)  # type: ignore[attr-defined]


async def _builds(session: AsyncSession, days: float) -> int:
    """Remove ended builds that no live release came from; runs and logs go with them."""
    referred = exists().where(Release.build_id == Build.id, Release.status == ReleaseStatus.LIVE)
    old = (
        select(Build.id)
        .where(Build.finished_at < func.now() - timedelta(days=days), Build.status.not_in(OPEN_BUILD), ~referred)
        .limit(BATCH)
    )
    ids = (await session.execute(old)).scalars().all()
    if ids:
        await session.execute(delete(Build).where(Build.id.in_(ids)))
    return len(ids)


async def _sources(session: AsyncSession, days: float) -> int:
    """Remove sources that no open build needs and nobody used of late."""
    wanted = exists().where(
        Build.project_id == Source.project_id, Build.source_digest == Source.digest, Build.status.in_(OPEN_BUILD)
    )
    old = select(Source.project_id, Source.digest).where(
        Source.last_used_at < func.now() - timedelta(days=days), ~wanted
    )
    rows = (await session.execute(old.limit(BATCH).with_for_update(skip_locked=True))).all()
    for project_id, digest in rows:
        await session.execute(delete(Source).where(Source.project_id == project_id, Source.digest == digest))
    return len(rows)


async def _secrets(session: AsyncSession) -> int:
    """Remove secret versions that no release, no build (it may be sent again) and no webhook refers to."""
    release = exists().where(
        Release.service_id == SecretVersion.service_id,
        Release.secret_versions.op("@?")(text("'$.*'")),
        text("exists (select 1 from jsonb_each_text(release.secret_versions) v where v.value = secret_version.id)"),
    )
    patched = exists().where(
        Release.service_id == SecretVersion.service_id,
        Release.patch.is_not(None),
        text("release.patch::text like '%' || secret_version.id || '%'"),
    )
    build = exists().where(
        Build.service_id == SecretVersion.service_id,
        text("build.secret_versions::text like '%' || secret_version.id || '%'"),
    )
    signing = exists().where(
        Webhook.id == SecretVersion.webhook_id,
        (Webhook.secret_id == SecretVersion.id)
        | ((Webhook.old_secret_id == SecretVersion.id) & (Webhook.old_secret_until > func.now())),
    )
    old = (
        select(SecretVersion.id)
        .where(SecretVersion.created_at < func.now() - timedelta(days=1), ~release, ~patched, ~build, ~signing)
        .limit(BATCH)
    )
    ids = (await session.execute(old)).scalars().all()
    if ids:
        await session.execute(delete(SecretVersion).where(SecretVersion.id.in_(ids)))
    return len(ids)


async def _artifacts(context: Context, days: float) -> int:
    """Mark artifacts that nothing can run any more, remove their images, then their rows.

    A release refers to its artifact while it is live, deploying, pending, or one of those kept for a rollback; who makes a
    new reference locks the row and wants it ``available``, so marking by compare-and-set decides every race.
    """
    keep_releases = context.settings.keep_releases
    newer = (
        select(func.count())
        .select_from(Release.__table__.alias("r2"))
        .where(
            text("r2.service_id = release.service_id"),
            text("r2.number > release.number"),
            text("r2.live_at is not null"),
        )
        .scalar_subquery()
    )
    referred = (
        exists()
        .where(Release.artifact_id == Artifact.id, Service.id == Release.service_id, Service.deleted_at.is_(None))
        .where(
            Release.status.in_([ReleaseStatus.PENDING, ReleaseStatus.DEPLOYING, ReleaseStatus.LIVE])
            | ((Release.live_at.is_not(None)) & (newer <= keep_releases))
        )
    )
    building = exists().where(Build.artifact_id == Artifact.id, Build.status.in_(OPEN_BUILD))
    unwanted = (
        select(Artifact.id)
        .where(
            Artifact.status == "available",
            Artifact.last_used_at < func.now() - timedelta(days=days),
            ~referred,
            ~building,
        )
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    async with context.sessions.begin() as session:
        ids = (await session.execute(unwanted)).scalars().all()
        if ids:
            await session.execute(update(Artifact).where(Artifact.id.in_(ids)).values(status="deleting"))
    async with context.sessions() as session:
        # What a release's history still names keeps its row: its image is looked at again only after a whole term.
        due = select(Artifact).where(
            Artifact.status == "deleting", Artifact.last_used_at < func.now() - timedelta(days=days)
        )
        doomed = (await session.execute(due.order_by(Artifact.last_used_at).limit(50))).scalars().all()
    gone = []
    for artifact in doomed:
        try:
            await context.images.delete(artifact.repository, artifact.digest if context.settings.registry else None)
        except RegistryError as e:
            log.warning("image will be removed later", artifact_id=artifact.id, error=str(e))
            break
        gone.append(artifact.id)
    if gone:
        async with context.sessions.begin() as session:
            # A queued build that has found one of them is told by the row's status, and lets go of it by itself.
            named = (Build.artifact_id.in_(gone), Build.status != BuildStatus.QUEUED)
            await session.execute(update(Build).where(*named).values(artifact_id=None))
            still = select(Release.artifact_id).where(Release.artifact_id.in_(gone))
            found = select(Build.artifact_id).where(Build.artifact_id.in_(gone))
            kept = set((await session.execute(still.union(found))).scalars())
            await session.execute(update(Artifact).where(Artifact.id.in_(kept)).values(last_used_at=func.now()))
            await session.execute(delete(Artifact).where(Artifact.id.in_([g for g in gone if g not in kept])))
    return len(gone)


async def kept_images(session: AsyncSession) -> set[tuple[str, str]]:
    """Return (repository, digest) of every artifact: what the registry keeps beside what is younger than any run."""
    rows = await session.execute(select(Artifact.repository, Artifact.digest).where(Artifact.status == "available"))
    return {(repository, digest) for repository, digest in rows.all()}

"""Take a build request: once it is checked (``checks``), row, event and first job are written in one transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app import logs, outbox, sql, store, traces
from app.address import AddressError, check_url
from app.builds import archives, cache, limits, reuse, sources
from app.builds.checks import check_target
from app.builds.limits import Granted
from app.context import Context
from app.errors import Refusal, conflict, invalid, not_found, too_large
from app.ids import new_id
from app.lifecycle import BuildStatus, is_terminal
from app.models import Build, Project, Service
from app.requests import BuildRequest, FilesSource, GitSource, UploadSource
from app.sql import Session, after

FIRST_CHECK_SECONDS = 30
"""When reconcile looks at a queued build whose job may have been lost."""


@dataclass(frozen=True)
class Plan:
    """A request that has been checked as far as its own words go: the row to be, and its source if it came along."""

    request: BuildRequest
    values: dict[str, Any]
    packed: tuple[archives.Tree, bytes] | None


def plan(context: Context, project: Project, request: BuildRequest) -> Plan:
    """Check a request against what the platforms can do, and pack its files; Refusal says what can't be accepted."""
    (builder, *fallback), warnings = check_target(context, request)
    source, packed = _source(context, project, request)
    values: dict[str, Any] = {
        "project_id": project.id,
        "builder_platform": builder,
        "source": source,
        "source_digest": source["digest"],
        "spec": {
            "build": request.build.model_dump(mode="json"),
            "builder": request.builder.model_dump(mode="json") | {"platform": builder, "fallback": fallback},
            "strict": request.strict,
        },
        "labels": request.labels,
        "warnings": warnings,
    }
    if block := request.service:
        values |= {"service_platform": request.platform, "config": block.config()}
    return Plan(request, values, packed)


async def submit(context: Context, session: Session, project: Project, request: BuildRequest) -> tuple[Build, Granted]:
    """Write a build and all that belongs to it; Refusal says what can't be accepted. The caller commits."""
    planned = plan(context, project, request)
    values = planned.values
    if planned.packed is not None:
        await sources.save(session, project.id, {values["source_digest"]: planned.packed})
    elif isinstance(request.source, UploadSource) and not await sources.touch(
        session, project.id, [request.source.digest]
    ):
        raise no_source()
    if block := request.service:
        service = await take_number(session, project, block.name, request.platform)
        values |= {"service_id": service.id, "sequence": service.sequence}
        if block.secrets is not None:
            values["secret_versions"] = await keep_secrets(context, session, service, block.secrets)
    granted = await limits.take(context, session, project, new_service=values.get("sequence") == 1)
    return await enter(context, session, values), granted


def no_source() -> Refusal:
    """422: the digest names nothing of this project."""
    return invalid("source.digest", "there is no such source; send it by POST /v1/sources first")


async def enter(context: Context, session: Session, values: dict[str, Any]) -> Build:
    """Queue a new build: the row, its event and its job. One that may take another's artifact gets no builder for now."""
    values |= {
        "id": new_id("bld"),
        "status": BuildStatus.QUEUED,
        "deadline_at": after(context.settings.max_queued_seconds),
        "next_check_at": after(FIRST_CHECK_SECONDS),
        "traceparent": traces.here(),
    }
    key = cache.wanted(context, values)
    build = await (sql.insert(session, Build, **values) if key is None else reuse.enter(session, key, values))
    told(context, session, build)
    logs.about(build)
    outbox.mark(session, "submit.committed")
    return build


def told(context: Context, session: Session, build: Build) -> None:
    """Write a new build's event and its job."""
    about = {name: value for name in ("retry_of", "waiting_for", "batch_id") if (value := getattr(build, name))}
    store.record(session, build, "build.queued", about or None)
    if nudge := reuse.first_nudge(context, build):
        outbox.enqueue(session, nudge)


async def retry(context: Context, session: AsyncSession, project: Project, old: Build) -> tuple[Build, Granted]:
    """Write a new build like an ended one: same source, same secret versions, a new place in the service's order."""
    if not is_terminal(old.status):
        raise conflict("build_not_ended", f"Build {old.id} is {old.status}; only an ended build can be retried.")
    kept = (
        "project_id builder_platform service_platform source source_digest spec config secret_versions labels warnings"
    )
    values: dict[str, Any] = {name: getattr(old, name) for name in kept.split()} | {"retry_of": old.id}
    values["builder_platform"] = old.spec["builder"]["platform"]
    digest = old.source.get("digest")
    if old.source["kind"] == "archive" and not await sources.touch(session, old.project_id, [str(digest)]):
        raise Refusal(410, "source_gone", f"The source of build {old.id} is past its retention; send it again.")
    if old.service_id:
        service = (
            await session.execute(select(Service).where(Service.id == old.service_id).with_for_update())
        ).scalar_one()
        if service.deleted_at is not None:
            raise conflict(
                "service_deleted", f"Service {service.name} of build {old.id} was deleted; send a new build."
            )
        service.sequence += 1
        values |= {"service_id": service.id, "sequence": service.sequence}
    granted = await limits.take(context, session, project, new_service=False)
    return await enter(context, session, values), granted


def _source(
    context: Context, project: Project, request: BuildRequest
) -> tuple[dict[str, Any], tuple[archives.Tree, bytes] | None]:
    match request.source:
        case FilesSource(files=files):
            tree, archive = archives.pack_files(files, context.settings)
            if len(archive) > (most := limits.limits(context.settings, project).source_bytes):
                raise too_large(f"source.files: {len(archive)} bytes packed; this project may send {most}")
            return {"kind": "archive", "digest": tree.digest}, (tree, archive)
        case UploadSource(digest=digest):
            return {"kind": "archive", "digest": digest}, None
        case GitSource(url=url, ref=ref, subdir=subdir):
            try:
                check_url(url, context.settings.allow_hosts)
            except AddressError as e:
                raise invalid("source.url", str(e)) from None
            if subdir and (wrong := archives.check_path(subdir)):
                raise invalid("source.subdir", wrong)
            return {"kind": "git", "url": url, "ref": ref, "subdir": subdir, "commit": None, "digest": None}, None


_TAKE_NUMBER = """
    insert into service (id, project_id, name, host, platform, status, sequence)
    values ($1, $2, $3, $4, $5, 'pending', 1)
    on conflict (project_id, name) where deleted_at is null do update set sequence = service.sequence + 1
    returning *
"""


async def take_number(session: Session, project: Project, name: str, platform: str) -> Service:
    """Return the project's service of this name with its next number taken; made when it is new. Locks its row."""
    (row,) = await sql.fetch(session, _TAKE_NUMBER, new_id("svc"), project.id, name, host(project, name), platform)
    service = sql.load(Service, row)
    stays_on(service, platform)
    return service


def host(project: Project, name: str) -> str:
    """Return the first label of a service's address."""
    return name if project.name == "default" else f"{name}--{project.name}"


def stays_on(service: Service, platform: str) -> None:
    """Refusal (422) when a build for another platform names the service."""
    if service.platform != platform:
        raise invalid(
            "platform",
            f"service {service.name} lives on {service.platform}; a build can't move it",
            reason="platform_differs",
        )


_KEEP_SECRETS = """
    insert into secret_version (id, project_id, service_id, name, key_id, nonce, ciphertext)
    select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bytea[], $7::bytea[])
"""
Sealed = tuple[str, str, str, str, str, bytes, bytes]


def seal(context: Context, service: Service, secrets: Mapping[str, SecretStr]) -> tuple[dict[str, str], list[Sealed]]:
    """Encrypt secret values; return name → id of the version, and the rows to keep."""
    versions, rows = {name: new_id("sec") for name in secrets}, list[Sealed]()
    for name, row_id in versions.items():
        sealed = context.keyring.seal(secrets[name].get_secret_value(), about=row_id)
        about = (row_id, service.project_id, service.id, name)
        rows.append((*about, sealed.key_id, sealed.nonce, sealed.ciphertext))
    return versions, rows


async def keep_sealed(session: Session, rows: Sequence[Sealed]) -> None:
    """Keep encrypted values."""
    if rows:
        await sql.fetch(session, _KEEP_SECRETS, *map(list, zip(*rows, strict=True)))


async def keep_secrets(
    context: Context, session: Session, service: Service, secrets: Mapping[str, SecretStr]
) -> dict[str, str]:
    """Encrypt and keep secret values; return name → id of the version."""
    versions, rows = seal(context, service, secrets)
    await keep_sealed(session, rows)
    return versions


async def find(session: AsyncSession, project: Project, build_id: str, *, lock: bool = False) -> Build:
    """Return a build of the project, locked if asked; Refusal (404) when it isn't there or isn't theirs."""
    statement = select(Build).where(Build.id == build_id, Build.project_id == project.id)
    build = (await session.execute(statement)).scalar_one_or_none()
    if build is None:
        raise not_found("build", build_id)
    if lock:
        if build.service_id:
            await session.get(Service, build.service_id, with_for_update=True)
        await session.refresh(build, with_for_update=True)
    return build

"""Bring a release up, gate it from outside, and only then switch the service over.

A failed release leaves the old one serving. One release of a service deploys at a time; a release that is older than what is
live ends superseded. Every step may be repeated: the release's name is the platform's key.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import and_, exists, func, or_, select
from sqlalchemy.orm import aliased

from app import faults, sql, store
from app.context import Context
from app.db import transaction
from app.ids import remote_name
from app.images.errors import RegistryError
from app.lifecycle import BuildStatus, Reason, ReleaseStatus, ServiceStatus, is_terminal
from app.models import Artifact, Build, Release, Service
from app.platforms.base import (
    Address,
    ImageRef,
    Inspection,
    Launched,
    LogLine,
    Misconfigured,
    NoCapacity,
    Phase,
    Platform,
    PlatformError,
    Rejected,
    Services,
    ServiceSpec,
    Size,
    StartFailed,
    Transient,
    Unsupported,
)
from app.secrets import KeysError, Sealed
from app.services import deploy, leave, pull, retire
from app.services.last_words import keep, last_words
from app.services.probe import probe
from app.services.release import follow, gateway_url, next_pending, nudge, ref_of
from app.sql import NOW, Expression, Session, after

log = structlog.get_logger()

CALL_SECONDS = 60
DEPLOYING_CHECK_SECONDS = 20
OVERDUE_SECONDS = 180
"""So long past its deadline no worker is at a release any more: each call it may be in has a shorter time-out."""


@dataclass
class Gated(Exception):
    """The release can't go live; ``again`` seconds until the next try when it still might."""

    reason: Reason
    message: str
    again: float | None = None


@dataclass
class Claimed:
    """What promote works on, read in the claim's transaction; ``got`` is what the platform gave."""

    release: Release
    service: Service
    artifact: Artifact
    seconds_left: float
    got: Launched | None = None
    troubled: bool = True
    """Whether the breaker knows of failures there."""

    @property
    def found(self) -> dict[str, Any]:
        """Return what the release's row shall keep of what the platform gave."""
        if self.got is None:
            return {}
        got = self.got
        return {"handle": got.handle, "region": got.region, "url": got.url, "effective": asdict(got.effective)}


async def promote(context: Context, release_id: str) -> None:
    """Take one release as far as it can go now."""
    async with transaction(context.pool) as session:
        claimed = await _claim(context, session, release_id)
    if claimed is None:
        return
    faults.at("promote.claimed")
    release = claimed.release
    try:
        platform = context.platform(release.platform)
        if platform is None or platform.services is None:
            raise Gated(Reason.PLATFORM_MISCONFIGURED, f"{release.platform} is not offered any more")
        with _platform_errors(release):
            address = await _bring_up(context, claimed, platform, platform.services)
            faults.at("promote.gated")
            async with asyncio.timeout(CALL_SECONDS):
                await platform.services.activate(ref_of(context, release))
        faults.at("promote.activated")
    except Gated as e:
        words = await last_words(context, claimed.release, e.reason) if e.again is None else []
        await _not_live(context, claimed, e, words)
        faults.at("promote.failed")
    else:
        async with transaction(context.pool) as session:
            await _switch(context, session, claimed, address)
        faults.at("promote.recorded")


# --------------------------------------------------------------------------------------------------- claim


async def _claim(context: Context, session: Session, release_id: str) -> Claimed | None:
    locked = await _lock(session, release_id)
    if locked is None:
        return None
    service, build, release, artifact = locked
    if release.status == ReleaseStatus.DEPLOYING:  # a worker died over it: go on where it was
        return Claimed(release, service, artifact, await _seconds_left(session, release))
    if release.status != ReleaseStatus.PENDING or await follow(context, session, service, release):
        return None
    if service.deleted_at is not None:
        await _end(context, session, build, release, Reason.CANCELED_BY_USER, "The service was deleted.")
        return None
    live = await _live(session, service)
    settled = settle(release, live)
    if settled is None:
        await _end(context, session, build, release, Reason.SUPERSEDED, None)
        return None
    busy = (
        "exists (select from release where service_id = ? and (status = 'deploying' "
        "or platform = ? and leaving_at is not null and retired_at is null))"
    )
    seen = await deploy.look(context, session, release)
    if seen.shut:
        if not await deploy.wait(context, session, release, seen):
            message = f"{release.platform} had no room in time: {deploy.why(seen)}"
            await _end(context, session, build, release, Reason.NO_CAPACITY, message)
        return None
    seconds = context.promote_seconds(release.platform)
    moved = await store.move(
        session,
        release,
        ReleaseStatus.DEPLOYING,
        where=(Expression(f"not {busy}", (service.id, release.platform)),),
        deadline_at=after(seconds),
        next_check_at=after(DEPLOYING_CHECK_SECONDS),
        **settled,
    )
    if not moved:
        return None  # whoever deploys, or leaves the platform, nudges the next one at its end
    if release.artifact_id != artifact.id:
        (row,) = await sql.fetch(session, "select * from artifact where id = $1", release.artifact_id)
        artifact = sql.load(Artifact, row)
    return Claimed(release, service, artifact, seconds, troubled=bool(seen.troubled))


_RELEASE = f"""
    select {sql.columns(Service, "service", "s_")}, {sql.columns(Release, "release", "r_")},
        {sql.columns(Artifact, "artifact", "a_")}
    from release
    join service on service.id = release.service_id
    join artifact on artifact.id = release.artifact_id
    where release.id = $1
    for update of service, release
"""  # noqa: S608 - our own names
_RELEASE_OF_BUILD = f"""
    select {sql.columns(Service, "service", "s_")}, {sql.columns(Build, "build", "b_")},
        {sql.columns(Release, "release", "r_")}, {sql.columns(Artifact, "artifact", "a_")}
    from release
    join service on service.id = release.service_id
    join build on build.id = release.build_id
    join artifact on artifact.id = release.artifact_id
    where release.id = $1
    for update of service, build, release
"""  # noqa: S608 - our own names


async def _lock(session: Session, release_id: str) -> tuple[Service, Build | None, Release, Artifact] | None:
    """Return a release with what hangs on it; service, build and release are locked, in the order all lock in.

    PostgreSQL locks a row's parts in the order in which ``for update of`` names them.
    """
    row, build = await sql.fetch_one(session, _RELEASE_OF_BUILD, release_id), None
    if row is not None:
        build = sql.load(Build, row, "b_")
    elif (row := await sql.fetch_one(session, _RELEASE, release_id)) is None:
        return None
    return sql.load(Service, row, "s_"), build, sql.load(Release, row, "r_"), sql.load(Artifact, row, "a_")


async def _live(session: Session, service: Service) -> Release | None:
    if service.live_release_id is None:
        return None
    row = await sql.fetch_one(session, "select * from release where id = $1", service.live_release_id)
    return sql.load(Release, row) if row else None


async def _seconds_left(session: Session, release: Release) -> float:
    left = "select extract(epoch from $1::timestamptz - clock_timestamp())::float as seconds"
    (row,) = await sql.fetch(session, left, release.deadline_at)
    return float(row["seconds"])


def settle(release: Release, live: Release | None) -> dict[str, Any] | None:
    """Return what to fix of the release, given what is live now; None when all it brings is older than that.

    Artifact and config have an order each, so that a config change and a slow build don't undo one another.
    """
    if release.kind in {"config", "migrate"} and release.patch is not None and live is not None:
        return {
            "artifact_id": live.artifact_id,
            "sequence": live.sequence,
            "config_sequence": live.config_sequence if release.kind == "migrate" else release.config_sequence,
            "config": merge(live.config, release.patch["config"]),
            "secret_versions": merge(live.secret_versions or {}, release.patch["secrets"]),
        }
    if live is not None and release.sequence < live.sequence:
        return None
    if live is not None and release.kind == "build" and release.config_sequence < live.config_sequence:
        return {
            "config": live.config,
            "secret_versions": live.secret_versions,
            "config_sequence": live.config_sequence,
        }
    if release.secret_versions is None:
        return {"secret_versions": (live.secret_versions or {}) if live is not None else {}}
    return {}


def merge(base: dict[str, object], patch: dict[str, object]) -> dict[str, object]:
    """Apply a patch: nested objects are merged, null removes, everything else replaces."""
    merged = dict(base)
    for key, value in patch.items():
        known = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(known, dict):
            merged[key] = merge(known, value)
        else:
            merged[key] = value
    return merged


# --------------------------------------------------------------------------------------------------- bring up


@contextlib.contextmanager
def _platform_errors(release: Release) -> Iterator[None]:
    """Turn what a platform raises into what it means for the release."""
    try:
        yield
    except StartFailed as e:
        raise Gated(Reason(e.reason), e.message) from e
    except (Rejected, Unsupported) as e:
        raise Gated(Reason.PLATFORM_REJECTED, str(e)) from e
    except Misconfigured as e:
        log.error("platform misconfigured", platform=release.platform, release_id=release.id, error=str(e))
        raise Gated(Reason.PLATFORM_MISCONFIGURED, str(e)) from e
    except NoCapacity as e:
        raise Gated(Reason.NO_CAPACITY, str(e), again=15) from e
    except KeysError as e:
        raise Gated(Reason.INTERNAL_ERROR, str(e)) from e
    except RegistryError as e:
        raise Gated(Reason.REGISTRY_UNAVAILABLE, str(e), again=5) from e
    except Transient as e:
        raise Gated(Reason.INTERNAL_ERROR, str(e), again=e.retry_after or min(2.0**release.tries, 30)) from e
    except (PlatformError, TimeoutError) as e:
        raise Gated(
            Reason.INTERNAL_ERROR, str(e) or "the platform did not answer", again=min(2.0**release.tries, 30)
        ) from e


async def _bring_up(context: Context, claimed: Claimed, platform: Platform, services: Services) -> Address:
    """Deploy the release and wait until it answers its health check from outside."""
    spec = await _spec(context, claimed, platform, services)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + claimed.seconds_left
    seconds, troubled = max(claimed.seconds_left, 5) + CALL_SECONDS, claimed.troubled
    launched = await deploy.deploy(
        context, claimed.release, platform, services, spec, seconds=seconds, troubled=troubled
    )
    faults.at("promote.deployed")
    claimed.got = launched
    claimed.release.handle, claimed.release.region = launched.handle, launched.region
    host = f"{claimed.service.host}.{context.settings.gateway_domain}"
    ref, pause, last = ref_of(context, claimed.release), 0.005, "it never listened"
    reason = Reason.NOT_LISTENING
    while True:
        seen = await services.inspect(ref)
        if seen.phase in {Phase.FAILED, Phase.EXITED, Phase.GONE}:
            raise _died(seen)
        if seen.address is not None:
            reason = Reason.HEALTH_CHECK_FAILED
            if seen.healthy is None:
                healthy, last = await probe(seen.address.url, spec.health_path, host)
            else:  # checked from inside: where a proxy routes, the address still leads to the release before this one
                healthy, last = seen.healthy, seen.message or "its check does not pass"
            if healthy:
                return seen.address
        if loop.time() > deadline:
            raise Gated(reason, _too_late(reason, spec, last, context.promote_seconds(claimed.release.platform)))
        # Look often at first: a Go program is up in milliseconds, and a platform says how often it may be asked.
        await asyncio.sleep(max(pause, platform.traits.poll_seconds))
        pause = min(pause * 1.5, 1.0)


def _died(seen: Inspection) -> Gated:
    if seen.out_of_memory:
        return Gated(Reason.OUT_OF_MEMORY, seen.message or "The program used more memory than service.memory_mb.")
    code = f" with code {seen.exit_code}" if seen.exit_code is not None else ""
    return Gated(Reason.CRASHED_AT_START, seen.message or f"The program ended{code} right after its start.")


def _too_late(reason: Reason, spec: ServiceSpec, last: str, seconds: float) -> str:
    if reason is Reason.NOT_LISTENING:
        return f"The program did not listen on port {spec.port} ($PORT) within {seconds:g} seconds."
    return f"GET {spec.health_path} did not return a 2xx within {seconds:g} seconds: {last}."


async def _spec(context: Context, claimed: Claimed, platform: Platform, services: Services) -> ServiceSpec:
    release, artifact, config = claimed.release, claimed.artifact, claimed.release.config
    grant = await pull.grant(context, release, artifact, platform.traits)
    size = Size(cpus=config["cpus"], memory_mb=config["memory_mb"])
    with contextlib.suppress(Unsupported):  # a lenient request was warned of it at submit; deploy says no otherwise
        size = services.fit(size)
    return ServiceSpec(
        service=remote_name(context.installation, claimed.service.id),
        release=remote_name(context.installation, release.id),
        image=ImageRef(
            registry=grant.registry,
            repository=grant.repository,
            digest=grant.digest,
            username=grant.username,
            password=grant.password,
        ),
        port=config["port"],
        health_path=config["health_path"],
        env=config["env"],
        secrets=await _secrets(context, release),
        size=size,
        scale_min=config["scale"]["min"],
        idle_seconds=config["scale"]["idle_seconds"],
        regions=tuple(config.get("regions", ())),
        metadata={"service": claimed.service.id, "release": release.id, "project": release.project_id},
    )


async def _secrets(context: Context, release: Release) -> dict[str, str]:
    versions = release.secret_versions or {}
    if not versions:
        return {}
    rows = await context.pool.fetch("select * from secret_version where id = any($1)", list(versions.values()))
    sealed = {row["id"]: Sealed(row["key_id"], row["nonce"], row["ciphertext"]) for row in rows}
    return {name: context.keyring.open(sealed[row_id], about=row_id) for name, row_id in versions.items()}


# --------------------------------------------------------------------------------------------------- switch


async def _switch(context: Context, session: Session, claimed: Claimed, address: Address) -> None:
    """Make the release the live one, in one transaction with everything that follows from it."""
    locked = await _lock(session, claimed.release.id)
    if locked is None or locked[2].status != ReleaseStatus.DEPLOYING:
        # Or switched by somebody who did the same work.
        await _unwanted(context, session, locked and locked[2], claimed)
        return
    service, build, release, _ = locked
    if service.deleted_at is not None:
        gone = "The service was deleted."
        await _end(context, session, build, release, Reason.CANCELED_BY_USER, gone, **claimed.found)
        return
    old = await _live(session, service)
    if old is not None and old.status == ReleaseStatus.LIVE:
        check = after(context.settings.drain_seconds + 30)
        away = old.platform != release.platform
        kept = await leave.depart(context, session, service, release, old) if away else {}
        await store.move(session, old, ReleaseStatus.SUPERSEDED, next_check_at=check, **kept)
        retire.nudge(context, session, old, delay=context.settings.drain_seconds)
    event = {"number": release.number}
    await store.move(
        session, release, ReleaseStatus.LIVE, next_check_at=None, event=event, locked=True, **claimed.found
    )
    stable = bool(release.config.get("stable_name"))
    ours = gateway_url(context, service, release.platform, stable_name=stable)
    await store.move(
        session,
        service,
        ServiceStatus.RUNNING,
        locked=True,
        live_release_id=release.id,
        platform=release.platform,
        url=ours or release.url,
        address=address.url,
        instance_id=address.instance_id,
        starts=Expression("starts + 1"),
        last_request_at=NOW,
        reason=None,
        message=None,
        next_check_at=None,
        event={"release_id": release.id, "instance_id": address.instance_id},
    )
    if build is not None and build.status == BuildStatus.PROMOTING:
        await store.move(session, build, BuildStatus.SUCCEEDED, locked=True)
    await next_pending(context, session, service.id)


async def _not_live(context: Context, claimed: Claimed, problem: Gated, words: list[LogLine]) -> None:
    """Try again later when that may help and time is left; else end the release, which leaves the old one serving."""
    async with context.sessions.begin() as session:
        locked = await _lock(session, claimed.release.id)
        if locked is None or locked[2].status != ReleaseStatus.DEPLOYING:
            await _unwanted(context, session, locked and locked[2], claimed)
            return
        _, build, release, _ = locked
        if problem.again is not None and await _seconds_left(session, release) > 0:
            release.tries += 1
            again: dict[str, Any] = {"tries": release.tries, "message": problem.message}
            check = after(problem.again + DEPLOYING_CHECK_SECONDS)
            await sql.update(session, Release, {"id": release.id}, **again, next_check_at=check, **claimed.found)
            nudge(context, session, release, delay=problem.again)
            return
        await _end(context, session, build, release, problem.reason, problem.message, **claimed.found)
        if build is not None:
            await keep(session, build.id, words)


async def _unwanted(context: Context, session: Session, release: Release | None, claimed: Claimed) -> None:
    """Remove what came of a deploy whose release was canceled meanwhile: its removal may have come too early."""
    if release is None or release.status != ReleaseStatus.FAILED or claimed.got is None:
        return
    await sql.update(session, Release, {"id": release.id}, retired_at=None, next_check_at=after(5), **claimed.found)
    retire.nudge(context, session, release)


async def end_overdue(context: Context) -> int:
    """End releases that are long past their deadline: nobody can bring them up, or it fails in a way nobody foresaw.

    One whose turn did not come for as long as a build may wait is ended, too: whoever runs its platform is not there.
    """
    late = func.now() - timedelta(seconds=OVERDUE_SECONDS)
    long_ago = func.now() - timedelta(seconds=context.settings.max_queued_seconds)
    other = aliased(Release)
    busy = exists().where(other.service_id == Release.service_id, other.status == ReleaseStatus.DEPLOYING)
    overdue = and_(Release.status == ReleaseStatus.DEPLOYING, Release.deadline_at < late)
    forgotten = and_(Release.status == ReleaseStatus.PENDING, Release.created_at < long_ago, ~busy)
    async with context.sessions() as session:
        found = (
            await session.execute(select(Release.id, Release.status).where(or_(overdue, forgotten)).limit(100))
        ).all()
    for release_id, status in found:
        async with transaction(context.pool) as session:
            locked = await _lock(session, release_id)
            if locked is None or locked[2].status != status:
                continue
            _, build, release, _ = locked
            if status == ReleaseStatus.DEPLOYING:
                message = release.message or "It was not brought up in time, and nobody could say why."
                await _end(context, session, build, release, Reason.INTERNAL_ERROR, message)
            else:
                message = f"No process that runs services on {release.platform} took it up in time; start one and promote again."
                await _end(context, session, build, release, Reason.PLATFORM_MISCONFIGURED, message)
    return len(found)


async def _end(
    context: Context,
    session: Session,
    build: Build | None,
    release: Release,
    reason: Reason,
    message: str | None,
    **found: Any,
) -> None:
    """Fail a release and its build, remove what it left on the platform, and let the next one of the service begin."""
    check = after(30)
    if not await store.fail(session, release, reason, message, next_check_at=check, **found):
        return
    retire.nudge(context, session, release)
    if build is not None and not is_terminal(build.status):
        await store.fail(session, build, reason, message)
    await next_pending(context, session, release.service_id)

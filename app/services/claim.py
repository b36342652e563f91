"""Taking a release up: its row and what hangs on it, in the order all lock in, and what it brings given what is live now."""

from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import structlog

from app import breaker, logs, sql, store
from app.context import Context
from app.leases import renewed
from app.lifecycle import Reason, ReleaseStatus, is_terminal
from app.models import Artifact, Build, Release, Service
from app.platforms.base import Launched
from app.services import retire, targets
from app.services.release import follow, live_release, next_pending
from app.sql import Expression, Session, after

log = structlog.get_logger()

DEPLOYING_CHECK_SECONDS = 20
"""So long without a renewal, a claim was cut short: reconcile has it taken up again."""
RENEW_SECONDS = 5.0


@dataclass
class Claimed:
    """What promote works on, read in the claim's transaction; ``got`` is what the platform gave."""

    release: Release
    service: Service
    artifact: Artifact
    seconds_left: float
    got: Launched | None = None
    seen: breaker.Seen | None = None
    """What the breaker knew of its target; None: it was not asked, since a worker had died over the release."""
    build: Build | None = None
    """What it came from, unless it came from a release before it."""

    @property
    def found(self) -> dict[str, Any]:
        """Return what the release's row shall keep of what the platform gave."""
        if self.got is None:
            return {}
        got = self.got
        return {"handle": got.handle, "region": got.region, "url": got.url, "effective": asdict(got.effective)}


async def claim(context: Context, session: Session, release_id: str) -> Claimed | None:
    """Move a release to deploying and return it; None when it is not its turn, or it has none any more.

    One that a worker died over goes on where it was.
    """
    locked = await lock(session, release_id)
    if locked is None:
        return None
    service, build, release, artifact = locked
    logs.about(service, build, release)
    if release.status == ReleaseStatus.DEPLOYING:  # a worker died over it: go on where it was
        return Claimed(release, service, artifact, await seconds_left(session, release), build=build)
    if release.status != ReleaseStatus.PENDING or await follow(context, session, service, release):
        return None
    if service.deleted_at is not None:
        await end(context, session, build, release, Reason.CANCELED_BY_USER, "The service was deleted.")
        return None
    live = await live_release(session, service)
    settled = settle(release, live)
    if settled is None:
        await end(context, session, build, release, Reason.SUPERSEDED, None)
        return None
    busy = (
        "exists (select from release where service_id = ? and (status = 'deploying' "
        "or platform = ? and leaving_at is not null and retired_at is null))"
    )
    seen = await targets.look(context, session, release)
    if seen.shut:
        if not await targets.wait(context, session, release, seen):
            message = f"{release.platform} had no room in time: {targets.why(seen)}"
            await end(context, session, build, release, Reason.NO_CAPACITY, message)
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
        await breaker.let_go(session, seen)
        return None  # whoever deploys, or leaves the platform, nudges the next one at its end
    if release.artifact_id != artifact.id:
        (row,) = await sql.fetch(session, "select * from artifact where id = $1", release.artifact_id)
        artifact = sql.load(Artifact, row)
    return Claimed(release, service, artifact, seconds, seen=seen, build=build)


_RENEW = """
    update release set next_check_at = greatest(next_check_at, clock_timestamp() + make_interval(secs => $2))
    where id = $1 and status = 'deploying'
"""


def kept(context: Context, release: Release, *, every: float = RENEW_SECONDS) -> AbstractAsyncContextManager[None]:
    """Keep a claim ours while the block runs, which takes minutes on some platforms: a second one would ask it all again."""
    renew = partial(context.pool.execute, _RENEW, release.id, float(DEPLOYING_CHECK_SECONDS))
    return renewed(f"promote {release.id}", renew, every=every)


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


async def lock(session: Session, release_id: str) -> tuple[Service, Build | None, Release, Artifact] | None:
    """Return a release with what hangs on it; service, build and release are locked, in the order all lock in.

    PostgreSQL locks a row's parts in the order in which ``for update of`` names them.
    """
    row, build = await sql.fetch_one(session, _RELEASE_OF_BUILD, release_id), None
    if row is not None:
        build = sql.load(Build, row, "b_")
    elif (row := await sql.fetch_one(session, _RELEASE, release_id)) is None:
        return None
    return sql.load(Service, row, "s_"), build, sql.load(Release, row, "r_"), sql.load(Artifact, row, "a_")


async def seconds_left(session: Session, release: Release) -> float:
    """Return how long the release may still take to come up."""
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


async def end(
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

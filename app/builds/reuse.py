"""Take the artifact of an earlier build instead of a builder, or wait for the build under way that will make it.

Of the builds of a project with one key (``cache``) one *leads*: a partial unique index over those under way says which. The
others wait for it, without a slot and without a run, their ``waiting_for`` set. Whoever ends the leader nudges them, in the
transaction of the end, and each looks at what became of it: its artifact is theirs; a failure that the source itself is to
blame for is theirs too, since it would only happen again; after any other end the first one leads, and the rest wait for it.
``reconcile`` finds those whose leader is gone without a nudge.

A build that finds an artifact is queued with it, as a guess. Here the guess is checked: the registry has the manifest, and the
row, locked, is still available. So either the artifact gets another reference or it is collected, never both.
"""
# Over 250 lines: waiting, leading and taking are one agreement over the same three columns.

from typing import Any

import structlog
from asyncpg import UniqueViolationError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app import faults, outbox, queue, sql, store
from app.builds import slots
from app.builds.ending import go_on
from app.context import Context
from app.db import transaction
from app.errors import unavailable
from app.images.errors import RegistryError
from app.lifecycle import BuildStatus, Reason
from app.models import LEADS, Artifact, Build, Service
from app.sql import Expression, Session, after

log = structlog.get_logger()

TRIES = 5
BATCH = 200
CHECK_SECONDS = 30
"""When reconcile looks at a build that found an artifact and whose job may have been lost."""
UNDER_WAY = (BuildStatus.QUEUED, BuildStatus.DISPATCHING, BuildStatus.BUILDING)
SHARED = frozenset(
    {
        Reason.SOURCE_INVALID,
        Reason.SOURCE_REJECTED,
        Reason.NOT_A_PROGRAM,
        Reason.TOOLCHAIN_MISMATCH,
        Reason.COMPILE_ERROR,
    }
)
"""Failures that are the same whoever builds the source again."""

_NEVER = Expression("'infinity'")
_TAKEN = f"(project_id, cache_key) where {LEADS}"
_ARTIFACT = (
    "select id from artifact where project_id = ? and cache_key = ? and status = 'available' order by id desc limit 1"
)
_LEADER = f"select id from build where project_id = ? and cache_key = ? and {LEADS} for key share"  # noqa: S608 - our own names
# The share: a leader that is being ended right now is waited for, else its end would miss this follower.


async def enter(session: Session, key: str, values: dict[str, Any]) -> Build:
    """Insert a queued build: with an artifact to check, behind the build that leads, or as the one that leads."""
    about = (values["project_id"], key)
    artifact = Expression(f"({_ARTIFACT})", about)
    leader = Expression(f"case when not exists ({_ARTIFACT}) then ({_LEADER}) end", about * 2)
    for _ in range(TRIES):
        build = await sql.insert_unless(
            session, Build, _TAKEN, **values, cache_key=key, artifact_id=artifact, waiting_for=leader
        )
        if build is None:
            continue  # another began to lead meanwhile, and is to be seen now
        if build.waiting_for or build.artifact_id:
            await sql.update(session, Build, {"id": build.id}, **_aside(build.waiting_for))
        return build
    raise unavailable("Too many builds of the same source begin at once; try again.")


async def enter_all(context: Context, session: Session, rows: list[dict[str, Any]]) -> list[Build]:
    """Insert many queued builds, some of them perhaps with a ``cache_key``; each finds its place as in ``enter``."""
    artifact = _ARTIFACT.replace("?", "r.project_id", 1).replace("?", "r.cache_key", 1)
    leader = _LEADER.replace("?", "r.project_id", 1).replace("?", "r.cache_key", 1)
    computed = {
        "deadline_at": "now() + make_interval(secs => $2)",
        "next_check_at": "now() + make_interval(secs => $3)",
        "artifact_id": f"({artifact})",
        "waiting_for": f"case when not exists ({artifact}) then ({leader}) end",
    }
    # In the order of keys, so that two who do this at once don't wait for each other in a circle.
    left, builds = sorted(rows, key=lambda row: row["cache_key"] or ""), list[Build]()
    for _ in range(TRIES):
        seconds = (float(context.settings.max_queued_seconds), float(CHECK_SECONDS))
        found = await sql.insert_all(session, Build, left, taken=_TAKEN, computed=computed, values=seconds)
        builds += found
        ids = {build.id for build in found}
        if not (left := [row for row in left if row["id"] not in ids]):
            break
    else:
        raise unavailable("Too many builds of the same source begin at once; try again.")
    if aside := [build.id for build in builds if build.waiting_for or build.artifact_id]:
        await sql.fetch(session, _ASIDE, aside)
    return builds


_ASIDE = """
    update build set not_before = 'infinity',
        next_check_at = case when waiting_for is null then next_check_at else 'infinity' end,
        deadline_at = case when waiting_for is null then deadline_at end
    where id = any($1::text[])
"""


def _aside(waiting_for: str | None) -> dict[str, Any]:
    """Return what keeps a queued build away from builders; one that waits for another expires with that one."""
    if waiting_for is None:
        return {"not_before": _NEVER, "next_check_at": after(CHECK_SECONDS)}
    return {"not_before": _NEVER, "next_check_at": _NEVER, "deadline_at": None}


def first_nudge(context: Context, build: Build, attempt: int = 0) -> queue.Nudge | None:
    """Return the job of a queued build; None for one that waits for another, whose end makes its job."""
    if build.waiting_for is not None:
        return None
    if build.status == BuildStatus.QUEUED and build.artifact_id is not None:
        return queue.Nudge(queue.Job.REUSE, build.id, attempt)
    host_bound = context.catalog.host_bound(build.builder_platform)
    return queue.Nudge(queue.Job.DISPATCH, build.id, attempt, host_bound=host_bound)


async def left(session: Session, build: Build) -> None:
    """Nudge those that wait for a build, if it leads no more; called wherever one may have ended, with its row locked."""
    if build.cache_key is None or build.status in UNDER_WAY:
        return
    waiting = await sql.fetch(session, "select id from build where waiting_for = $1 and status = 'queued'", build.id)
    outbox.enqueue(session, *(queue.Nudge(queue.Job.REUSE, row["id"], once=False) for row in waiting))


_FORGOTTEN = text(f"""
    select id from build
    where waiting_for is not null and status = 'queued' and not exists (
        select from build as leader where leader.id = build.waiting_for and {LEADS}
    )
    limit :batch
""")  # noqa: S608 - our own names


async def reconcile(session: AsyncSession) -> int:
    """Nudge builds that wait for one that leads no more; returns how many."""
    rows = (await session.execute(_FORGOTTEN, {"batch": BATCH})).scalars().all()
    outbox.enqueue(session, *(queue.Nudge(queue.Job.REUSE, row, -1) for row in rows))
    return len(rows)


# --------------------------------------------------------------------------------------------------- the verb


async def reuse(context: Context, build_id: str) -> None:
    """Settle a queued build whose guess is to be checked, or whose leader has ended; safe to repeat."""
    build = await _read(context, build_id)
    if build is None or build.status != BuildStatus.QUEUED or not (build.artifact_id or build.waiting_for):
        return
    artifact_id = build.artifact_id
    if build.waiting_for is not None:
        leader = await _read(context, build.waiting_for)
        if leader is not None and leader.artifact_id is None:
            if leader.status in UNDER_WAY and leader.waiting_for is None:
                return
            if leader.reason in SHARED:
                await _fail_alike(context, build, leader)
                return
        artifact_id = leader.artifact_id if leader else None
    if artifact_id is not None:
        try:
            good = await _check(context, build, artifact_id)
        except RegistryError as e:
            log.warning("artifact can't be checked; reconcile tries again", build_id=build.id, error=str(e))
            return
        faults.at("reuse.checked")
        if good and await _take(context, build, artifact_id):
            return
    await _stand_up(context, build)


async def _read(context: Context, build_id: str) -> Build | None:
    row = await context.pool.fetchrow("select * from build where id = $1", build_id)
    return sql.load(Build, row) if row else None


_ALIKE = "select * from artifact where id = $1 and cache_key = $2 and status = 'available'"


async def _check(context: Context, build: Build, artifact_id: str) -> bool:
    """Tell whether an artifact is what the build would come to, and can still be pulled."""
    row = await context.pool.fetchrow(_ALIKE, artifact_id, build.cache_key)
    return row is not None and await context.images.has(row["repository"], row["digest"])


_LOCK = "select * from build where id = $1 and status = 'queued' for update"
_LOCK_SERVICE = "select * from service where id = $1 for update"
_REFER = "update artifact set last_used_at = now() where id = $1 and status = 'available' returning *"


async def _locked(session: Session, seen: Build) -> Build | None:
    """Return the build, locked, if it still is as it was seen."""
    row = await sql.fetch_one(session, _LOCK, seen.id)
    build = sql.load(Build, row) if row else None
    same = build is not None and (build.waiting_for, build.artifact_id) == (seen.waiting_for, seen.artifact_id)
    return build if same else None


async def _take(context: Context, seen: Build, artifact_id: str) -> bool:
    """Move a build on with the artifact; False when that is being collected."""
    async with transaction(context.pool) as session:
        service = None
        if seen.service_id is not None:
            (row,) = await sql.fetch(session, _LOCK_SERVICE, seen.service_id)
            service = sql.load(Service, row)
        build = await _locked(session, seen)
        if build is None:
            return True  # somebody was faster
        found = await sql.fetch_one(session, _REFER, artifact_id)
        if found is None:
            return False
        artifact = sql.load(Artifact, found)
        store.record(session, build, "build.reused", {"artifact_id": artifact.id, "waited_for": build.waiting_for})
        await go_on(context, session, service, build, artifact, waiting_for=None, not_before=None)
        outbox.mark(session, "reuse.committed")
    return True


async def _fail_alike(context: Context, seen: Build, leader: Build) -> None:
    async with transaction(context.pool) as session:
        build = await _locked(session, seen)
        if build is None:
            return
        message = (
            f"{leader.message} Build {leader.id}, whose source is the same, ended with this; it was not tried again."
        )
        values = {"diagnostics": leader.diagnostics, "waiting_for": None, "not_before": None}
        await store.fail(session, build, Reason(leader.reason or ""), message, **values)
        outbox.mark(session, "reuse.committed")


async def _stand_up(context: Context, seen: Build) -> None:
    """Let a build that took nothing lead, or wait for the one that leads by now."""
    for _ in range(TRIES):
        try:
            async with transaction(context.pool) as session:
                build = await _locked(session, seen)
                if build is not None:
                    await _lead(context, session, build)
        except UniqueViolationError:
            continue  # another began to lead meanwhile, and is to be seen now
        return
    log.warning("build neither leads nor waits; reconcile tries again", build_id=seen.id)


async def _lead(context: Context, session: Session, build: Build) -> None:
    leader = Expression(f"({_LEADER})", (build.project_id, build.cache_key))
    row = await sql.update(session, Build, {"id": build.id}, artifact_id=None, waiting_for=leader)
    assert row is not None
    if row["waiting_for"] is not None:
        await sql.update(session, Build, {"id": build.id}, **_aside(row["waiting_for"]))
    else:
        wait: dict[str, Any] = {
            "next_check_at": after(CHECK_SECONDS),
            "deadline_at": after(context.settings.max_queued_seconds),
        }
        await sql.update(session, Build, {"id": build.id}, not_before=None, **wait)
        slots.ask(context, session, build.id, build.builder_platform)
    store.record(session, build, "build.queued", {"waited_for": build.waiting_for, "waiting_for": row["waiting_for"]})
    outbox.mark(session, "reuse.committed")

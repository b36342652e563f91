"""The builder's side while it works: claim, orders, source, logs, heartbeats and the push grant.

A run token opens one run and nothing else. The first instance that claims a run holds it. Everything is safe to repeat: the
builder retries until it is told off. How a run ends is in ``complete``.
"""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from app import logs, outbox, sql, store
from app.builds import cache, sources
from app.builds.caller import Caller
from app.builds.ending import look
from app.builds.limits import limits
from app.context import Context
from app.db import moment, transaction
from app.errors import Refusal, conflict, unavailable
from app.images.errors import RegistryError
from app.images.grants import PushGrant
from app.lifecycle import BuildStatus, RunStatus, is_terminal
from app.models import Build, Project, Run, RunLog
from app.sql import NOW

log = structlog.get_logger()

HEARTBEAT_SECONDS = 10.0
LATE_LOG_SECONDS = 600
GRANT_TTL = timedelta(minutes=10)


def over(run: Run) -> Refusal:
    """410: the run has ended, so there is nothing left for its builder to do."""
    return Refusal(410, "run_over", f"Run {run.id} is {run.status}; stop and exit.")


def _holds(run: Run, instance: str) -> None:
    if is_terminal(run.status):
        raise over(run)
    if run.instance != instance:
        raise conflict("run_not_yours", f"Run {run.id} is held by another instance; exit without doing anything.")


# --------------------------------------------------------------------------------------------------- while it works


async def claim(context: Context, caller: Caller, instance: str) -> dict[str, Any]:
    """Give the run to the first instance that asks and return its orders; the same instance may ask again."""
    while True:
        build, run, now = await look(context.pool, caller.run_id) or (None, None, None)
        run = caller.is_of(run)
        assert build is not None
        assert now is not None
        logs.about(build, run)
        if is_terminal(run.status):
            raise over(run)
        if run.instance is None:
            try:
                await _give(context, build, run, instance, now)
            except outbox.LostError:
                continue  # a step further on than it was read, and there are few steps
        elif run.instance != instance:
            raise conflict("run_claimed", f"Run {run.id} is held by another instance; exit without doing anything.")
        return orders(context, build, run, await _most_bytes(context, build))


async def _give(context: Context, build: Build, run: Run, instance: str, now: datetime) -> None:
    """Give a run to an instance, by one statement; LostError when somebody else was faster."""
    # The caller's time-out begins now: pulling an image or making a seed is not the build's fault.
    until = min(run.deadline_at, now + timedelta(seconds=build.spec["builder"]["timeout_seconds"]))
    values: dict[str, Any] = {"instance": instance, "claimed_at": NOW, "heartbeat_at": NOW, "deadline_at": until}
    async with transaction(context.pool) as session:
        if build.status == BuildStatus.DISPATCHING:  # build before run, as everywhere
            await store.move(session, build, BuildStatus.BUILDING, next_check_at=None, along=True)
        await store.move(session, run, RunStatus.RUNNING, event={"instance": instance}, along=True, **values)
        outbox.mark(session, "claim.committed")


async def _most_bytes(context: Context, build: Build) -> int:
    """Return how large a source its builder may fetch; what is an archive was measured when it came."""
    if build.source["kind"] != "git":
        return context.settings.max_source_bytes
    row = await context.pool.fetchrow("select * from project where id = $1", build.project_id)
    assert row is not None
    return limits(context.settings, sql.load(Project, row)).source_bytes


def orders(context: Context, build: Build, run: Run, source_bytes: int) -> dict[str, Any]:
    """Return what the builder shall do; see ``docs/builder-protocol.md``."""
    settings = context.settings
    source = {k: v for k, v in build.source.items() if k != "files"}
    return {
        "run_id": run.id,
        "build_id": build.id,
        "kind": build.spec["build"]["kind"],
        "source": source,
        "build": {"package": build.spec["build"]["package"], "goarch": build.spec["build"]["goarch"]},
        "modules": {"goproxy": settings.goproxy, "gosumdb": settings.gosumdb},
        "image": {
            "repository": context.images.repository_for_run(run.id),
            "port": cache.image_port(build.config),
            "created": 0,
            "labels": {},
        },
        "limits": {
            "source_bytes": source_bytes,
            "unpacked_bytes": settings.max_unpacked_bytes,
            "files": settings.max_source_files,
            "image_bytes": settings.max_image_bytes,
            "log_bytes": settings.max_log_bytes,
            "log_line_bytes": settings.max_log_line_bytes,
            "completion_bytes": settings.max_completion_bytes,
            "diagnostics": 200,
        },
        "allow_hosts": list(settings.allow_hosts),
        "deadline": run.deadline_at.timestamp(),
        "heartbeat_seconds": HEARTBEAT_SECONDS,
    }


async def source(context: Context, session: AsyncSession, run: Run) -> AsyncIterator[bytes]:
    """Return the archive of the run's source, to be streamed after the session has ended."""
    if is_terminal(run.status):
        raise over(run)
    build = await session.get(Build, run.build_id)
    assert build is not None
    if build.source["kind"] != "archive":
        raise conflict("source_not_kept", "The source of this run comes from git; fetch it there.")
    return sources.read(context.sessions, build.project_id, build.source["digest"])


async def heartbeat(session: AsyncSession, run: Run, instance: str, stage: str | None) -> dict[str, Any]:
    """Note that the builder lives; tell it to stop when its build no longer wants it."""
    _holds(run, instance)
    values: dict[str, Any] = {"heartbeat_at": func.now()} | ({"stage": stage} if stage else {})
    await session.execute(update(Run).where(Run.id == run.id).values(**values))
    return {"cancel": False, "deadline": run.deadline_at.timestamp()}


async def add_logs(
    context: Context, session: AsyncSession, run: Run, instance: str, seq: int, lines: list[Any]
) -> None:
    """Keep a batch of lines; those already taken are dropped, and past the run's limit one mark is all that is added.

    After the end of the run the tail is still taken for ten minutes.
    """
    if run.finished_at is not None:
        closed = moment(run.finished_at) < func.now() - timedelta(seconds=LATE_LOG_SECONDS)
        if (await session.execute(select(closed))).scalar_one():
            raise over(run)
        if run.instance != instance:
            raise conflict("run_not_yours", f"Run {run.id} is held by another instance.")
    else:
        _holds(run, instance)
    await session.refresh(run, with_for_update=True)
    fresh = lines[max(0, run.log_next - seq) :]
    first = max(seq, run.log_next)
    kept: list[dict[str, Any]] = []
    size, limit = run.log_bytes, context.settings.max_log_bytes
    for line in fresh:
        text = _cut(line["m"], context.settings.max_log_line_bytes)
        if size > limit:
            break
        size += len(text.encode("utf-8", "replace"))
        if size > limit:
            kept.append({"t": line["t"], "s": "builder", "m": f"[the log is cut here: over {limit} bytes]"})
            break
        kept.append({"t": line["t"], "s": line["s"], "m": text})
    if kept:
        await session.execute(upsert(RunLog).values(run_id=run.id, number=first, lines=kept).on_conflict_do_nothing())
    run.log_bytes, run.log_next = size, max(run.log_next, seq + len(lines))
    run.heartbeat_at = func.now()


def _cut(text: str, limit: int) -> str:
    text = text.replace("\x00", "�").encode("utf-8", "replace").decode("utf-8")
    if len(text.encode()) <= limit:
        return text
    mark = " …[cut]"
    return text.encode()[: limit - len(mark.encode())].decode("utf-8", "ignore") + mark


async def push_grant(context: Context, run: Run, instance: str) -> PushGrant:
    """Return pull and push on the run's own repository, for minutes."""
    _holds(run, instance)
    remote = context.catalog.entries[run.platform].traits.remote
    repository = context.images.repository_for_run(run.id)
    try:
        return await context.images.push_grant(repository, remote=remote, ttl=GRANT_TTL)
    except RegistryError as e:
        log.warning("no push grant", error=str(e))
        raise unavailable("The registry does not answer; try again.", reason="registry_unavailable") from e

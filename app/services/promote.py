"""Bring a release up, gate it from outside, and only then switch the service over.

A failed release leaves the old one serving. One release of a service deploys at a time; a release that is older than what is
live ends superseded. Every step may be repeated: the release's name is the platform's key.
"""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import and_, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app import breaker, faults, sql, store, tracing
from app.context import Context
from app.db import transaction
from app.lifecycle import BuildStatus, Reason, ReleaseStatus, ServiceStatus
from app.models import Release
from app.platforms.base import Address, LogLine
from app.services import leave, retire
from app.services.bring_up import CALL_SECONDS, Gated, bring_up, platform_errors
from app.services.claim import (
    DEPLOYING_CHECK_SECONDS,
    RENEW_SECONDS,
    Claimed,
    claim,
    end,
    kept,
    lock,
    seconds_left,
)
from app.services.last_words import keep, last_words
from app.services.release import gateway_url, live_release, next_pending, nudge, ref_of
from app.sql import NOW, Expression, Session, after

log = structlog.get_logger()

OVERDUE_SECONDS = 180
"""So long past its deadline no worker is at a release any more: each call it may be in has a shorter time-out."""


async def promote(context: Context, release_id: str, *, renew_seconds: float = RENEW_SECONDS) -> None:
    """Take one release as far as it can go now."""
    async with transaction(context.pool) as session:
        claimed = await claim(context, session, release_id)
    if claimed is None:
        return
    faults.at("promote.claimed")
    with tracing.span("promote", claimed.release, platform=claimed.release.platform) as span:
        async with (
            breaker.probing(context.sessions, claimed.seen),
            kept(context, claimed.release, every=renew_seconds),
        ):
            await _promote(context, claimed, span)


async def _promote(context: Context, claimed: Claimed, span: tracing.Span) -> None:
    release = claimed.release
    try:
        platform = context.platform(release.platform)
        if platform is None or platform.services is None:
            raise Gated(Reason.PLATFORM_MISCONFIGURED, f"{release.platform} is not offered any more")
        with platform_errors(release):
            with tracing.span("bring-up"):
                address = await bring_up(context, claimed, platform, platform.services)
            faults.at("promote.gated")
            with tracing.span("activate"):
                async with asyncio.timeout(CALL_SECONDS):
                    await platform.services.activate(ref_of(context, release))
        faults.at("promote.activated")
    except Gated as e:
        span.note(reason=e.reason)
        words = await last_words(context, claimed.release, e.reason) if e.again is None else []
        await _not_live(context, claimed, e, words)
        faults.at("promote.failed")
    else:
        with tracing.span("switch"):
            async with transaction(context.pool) as session:
                await _switch(context, session, claimed, address)
        faults.at("promote.recorded")


async def _switch(context: Context, session: Session, claimed: Claimed, address: Address) -> None:
    """Make the release the live one, in one transaction with everything that follows from it."""
    locked = await lock(session, claimed.release.id)
    if locked is None or locked[2].status != ReleaseStatus.DEPLOYING:
        # Or switched by somebody who did the same work.
        await _unwanted(context, session, locked and locked[2], claimed)
        return
    service, build, release, _ = locked
    if service.deleted_at is not None:
        gone = "The service was deleted."
        await end(context, session, build, release, Reason.CANCELED_BY_USER, gone, **claimed.found)
        return
    old = await live_release(session, service)
    if old is not None and old.status == ReleaseStatus.LIVE:
        check = after(context.settings.drain_seconds + 30)
        away = old.platform != release.platform
        kept = await leave.depart(context, session, service, release, old) if away else {}
        await store.move(session, old, ReleaseStatus.SUPERSEDED, next_check_at=check, **kept)
        retire.nudge(context, session, old, delay=context.settings.drain_seconds)
    event = {"number": release.number}
    await store.move(session, release, ReleaseStatus.LIVE, next_check_at=None, event=event, along=True, **claimed.found)
    stable = bool(release.config.get("stable_name"))
    ours = gateway_url(context, service, release.platform, stable_name=stable)
    await store.move(
        session,
        service,
        ServiceStatus.RUNNING,
        along=True,
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
        await store.move(session, build, BuildStatus.SUCCEEDED, along=True)
    await next_pending(context, session, service.id)


async def _not_live(context: Context, claimed: Claimed, problem: Gated, words: list[LogLine]) -> None:
    """Try again later when that may help and time is left; else end the release, which leaves the old one serving."""
    async with context.sessions.begin() as session:
        locked = await lock(session, claimed.release.id)
        if locked is None or locked[2].status != ReleaseStatus.DEPLOYING:
            await _unwanted(context, session, locked and locked[2], claimed)
            return
        _, build, release, _ = locked
        if problem.again is not None and await seconds_left(session, release) > 0:
            release.tries += 1
            again: dict[str, Any] = {"tries": release.tries, "message": problem.message}
            check = after(problem.again + DEPLOYING_CHECK_SECONDS)
            await sql.update(session, Release, {"id": release.id}, **again, next_check_at=check, **claimed.found)
            nudge(context, session, release, delay=problem.again)
            return
        await end(context, session, build, release, problem.reason, problem.message, **claimed.found)
        if build is not None:
            await keep(session, build.id, words)


async def _unwanted(context: Context, session: Session, release: Release | None, claimed: Claimed) -> None:
    """Remove what came of a deploy whose release was canceled meanwhile: its removal may have come too early."""
    if release is None or release.status != ReleaseStatus.FAILED or claimed.got is None:
        return
    await sql.update(session, Release, {"id": release.id}, retired_at=None, next_check_at=after(5), **claimed.found)
    retire.nudge(context, session, release)


async def overdue(context: Context, session: AsyncSession) -> Sequence[tuple[str, ReleaseStatus]]:
    """Return releases that are long past their deadline: nobody can bring them up, or it fails in a way nobody foresaw.

    Those whose turn did not come for as long as a build may wait are among them: whoever runs their platform is not there.
    """
    late = func.now() - timedelta(seconds=OVERDUE_SECONDS)
    long_ago = func.now() - timedelta(seconds=context.settings.max_queued_seconds)
    other = aliased(Release)
    busy = exists().where(other.service_id == Release.service_id, other.status == ReleaseStatus.DEPLOYING)
    expired = and_(Release.status == ReleaseStatus.DEPLOYING, Release.deadline_at < late)
    forgotten = and_(Release.status == ReleaseStatus.PENDING, Release.created_at < long_ago, ~busy)
    statement = select(Release.id, Release.status).where(or_(expired, forgotten)).limit(100)
    return [(row.id, row.status) for row in await session.execute(statement)]


async def end_overdue(context: Context, found: Sequence[tuple[str, ReleaseStatus]]) -> None:
    """End those releases that are still as they were found, each in a transaction of its own, since that waits for locks."""
    for release_id, status in found:
        async with transaction(context.pool) as session:
            locked = await lock(session, release_id)
            if locked is None or locked[2].status != status:
                continue
            _, build, release, _ = locked
            if status == ReleaseStatus.DEPLOYING:
                message = release.message or "It was not brought up in time, and nobody could say why."
                await end(context, session, build, release, Reason.INTERNAL_ERROR, message)
            else:
                message = f"No process that runs services on {release.platform} took it up in time; start one and promote again."
                await end(context, session, build, release, Reason.PLATFORM_MISCONFIGURED, message)

"""Keep what a program wrote before its release failed: its platform forgets that with the release.

The lines go to the end of the build's log. A release without a build has the last of them in its message.
"""

import asyncio

import structlog
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.context import Context
from app.lifecycle import Reason
from app.models import Release, Run, RunLog
from app.platforms.base import LogLine, PlatformError
from app.services.release import ref_of

log = structlog.get_logger()

OF_THE_PROGRAM = frozenset(
    {Reason.NOT_LISTENING, Reason.CRASHED_AT_START, Reason.HEALTH_CHECK_FAILED, Reason.OUT_OF_MEMORY}
)
CALL_SECONDS = 20
LINES = 50
NUMBER = 1_000_000_000
"""Far past a builder's own lines, some of which may still be on their way."""


async def last_words(context: Context, release: Release, reason: Reason) -> list[LogLine]:
    """Return the last lines of a release that failed by its program's fault; empty when the platform has none."""
    platform = context.platform(release.platform)
    if reason not in OF_THE_PROGRAM or platform is None or platform.services is None:
        return []
    try:
        async with asyncio.timeout(CALL_SECONDS):
            return await platform.services.logs(ref_of(context, release), limit=LINES)
    except (PlatformError, TimeoutError) as e:
        log.warning("the last words are lost", release_id=release.id, error=str(e) or type(e).__name__)
        return []


async def keep(session: AsyncSession, build_id: str, words: list[LogLine]) -> None:
    """Put them at the end of the build's log; doing so twice changes nothing."""
    newest = select(Run.id).where(Run.build_id == build_id).order_by(Run.attempt.desc()).limit(1)
    run_id = (await session.execute(newest)).scalar_one_or_none()
    if run_id is None or not words:
        return
    lines = [{"t": w.at.timestamp(), "s": w.stream, "m": w.text.replace("\x00", "�")} for w in words]
    await session.execute(insert(RunLog).values(run_id=run_id, number=NUMBER, lines=lines).on_conflict_do_nothing())

"""Notice builders that ended without a word, on a platform of this very host.

Looking costs nothing there, so there is no reason to wait for a heartbeat that does not come: a builder that was ended for
its memory, or that died while nobody was there to be told.
"""

import structlog
from sqlalchemy import select

from app import outbox, queue
from app.context import Context
from app.lifecycle import OPEN_RUN
from app.models import Run
from app.platforms.base import Builders, Phase, Platform, PlatformError

log = structlog.get_logger()


async def look_after(context: Context) -> None:
    """Ask for a check of each open run whose builder is no longer at work; only on host-bound platforms that are held here."""
    for platform in list(context.catalog.held.values()):
        if platform.traits.host_bound and platform.builders is not None:
            try:
                await _look(context, platform, platform.builders)
            except PlatformError as e:
                log.warning("builders can't be looked at", platform=platform.name, error=str(e))


async def _look(context: Context, platform: Platform, builders: Builders) -> None:
    async with context.sessions() as session:
        statement = select(Run).where(Run.status.in_(OPEN_RUN), Run.platform == platform.name)
        runs = (await session.execute(statement)).scalars().all()
    if not runs:
        return
    listing = await builders.list_ours(context.installation)
    phases = {item.ref.name: item.phase for item in listing.items}
    nudges = []
    for run in runs:
        phase = phases.get(run.name, Phase.GONE)
        not_yet = phase is Phase.GONE and run.launched_at is None and run.instance is None
        if phase not in {Phase.STARTING, Phase.RUNNING} and not not_yet:
            nudges.append(
                queue.Nudge(queue.Job.CHECK, run.id, -1, host_bound=context.catalog.host_bound(platform.name))
            )
    if nudges:
        async with context.sessions.begin() as session:
            outbox.enqueue(session, *nudges)

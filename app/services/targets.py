"""Whether a release's target may be tried now: while its circuit breaker is open the release waits as *pending*."""

from app import breaker, sql
from app.context import Context
from app.models import Release
from app.services.release import nudge
from app.sql import Expression, Session


def region_of(context: Context, release: Release) -> str:
    """Return the region that it goes to first, as the breaker knows it."""
    entry = context.catalog.entry(release.platform)
    asked: tuple[str, ...] = tuple(release.config.get("regions") or ())
    return (*asked, *(entry.traits.default_regions if entry else ()), "")[0]


async def look(context: Context, session: Session, release: Release) -> breaker.Seen:
    """Return what the breaker knows of the release's target; of what runs on this machine nothing is asked."""
    entry = context.catalog.entry(release.platform)
    if entry is None or not entry.traits.remote:
        return breaker.Seen({}, frozenset())
    return await breaker.look(session, release.platform, [region_of(context, release)], breaker.DEPLOY)


def why(seen: breaker.Seen) -> str:
    """Return what a person is told of a target that is left alone."""
    return "; ".join(s.message for s in seen.shut.values())


async def wait(context: Context, session: Session, release: Release, seen: breaker.Seen) -> bool:
    """Let a pending release, whose row is locked, wait until its target may be tried; False when it has waited too long."""
    seconds = max(s.seconds for s in seen.shut.values())
    waits = await sql.update(
        session,
        Release,
        {"id": release.id},
        Expression("created_at > now() - make_interval(secs => ?)", (float(context.settings.max_queued_seconds),)),
        message=why(seen),
        next_check_at=sql.after(seconds + 10),
    )
    if waits is not None:
        nudge(context, session, release, delay=seconds)
    return waits is not None

"""End a build that nobody wants any more; its builder is told to stop and its machine removed."""

from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import outbox, store
from app.builds import reuse, slots
from app.builds.ending import end_run
from app.context import Context
from app.errors import conflict
from app.lifecycle import BuildStatus, Reason, ReleaseStatus, RunStatus, is_terminal
from app.models import Build, Release, Run
from app.services import retire
from app.services.release import next_pending


async def cancel(context: Context, session: AsyncSession, build: Build, *, message: str | None = None) -> Build:
    """Move a build, locked with its service, to canceled; so are its run and its release.

    Canceled already is success; ended otherwise is 409.
    """
    if build.status == BuildStatus.CANCELED:
        return build
    if is_terminal(build.status):
        raise conflict("build_ended", f"Build {build.id} is {build.status}; it can't be canceled any more.")
    before = build.status
    reason = Reason.CANCELED_BY_USER
    text = store.explain(reason, message)
    await store.move(session, build, BuildStatus.CANCELED, reason=reason, message=text, event={"reason": reason})
    await reuse.left(session, build)
    outbox.mark(session, "cancel.committed")
    open_runs = select(Run).where(Run.build_id == build.id, Run.finished_at.is_(None)).with_for_update()
    for run in (await session.execute(open_runs)).scalars():
        await end_run(context, session, build, run, RunStatus.CANCELED, reason=reason, message=text)
    if before in slots.IN_SLOT:
        await slots.freed(context, session, build.builder_platform, build.project_id)
    if before == BuildStatus.PROMOTING and build.release_id:
        release = await session.get(Release, build.release_id, with_for_update=True)
        if release is not None and release.status in {ReleaseStatus.PENDING, ReleaseStatus.DEPLOYING}:
            await store.fail(session, release, reason, text, next_check_at=func.now() + timedelta(seconds=30))
            retire.nudge(context, session, release)
            await next_pending(context, session, release.service_id)
    return build

"""Builders: one job per build, and one run of it.

A run carries nothing that it could be found by, so the job is made for one builder alone: whatever run it has is ours. Requests
are scarce (1,000 an hour for the account), so a builder at work is looked at once a minute at most; it reports by itself.
"""

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from app.platforms.base import (
    BuilderSpec,
    Found,
    Inspection,
    Launched,
    Listing,
    LogLine,
    Misconfigured,
    Phase,
    RateLimited,
    Ref,
    Size,
    Transient,
)
from app.platforms.failures import Missing
from app.platforms.locks import Locks
from app.platforms.northflank import names
from app.platforms.northflank.answers import Run
from app.platforms.northflank.client import NAME, Client
from app.settings import NorthflankSettings

POLL_SECONDS = 60.0
GRACE_SECONDS = 30
_REMEMBERED = 10_000


class NorthflankBuilders:
    """Fulfils ``Builders``. ``clock`` counts seconds; ``now`` is the time of day, which deadlines are in."""

    def __init__(
        self,
        client: Client,
        settings: NorthflankSettings,
        *,
        poll_seconds: float = POLL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._settings = settings
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._now = now
        self._seen: dict[str, tuple[float, Inspection]] = {}
        self._locks = Locks()

    def fit(self, size: Size) -> Size:
        """Return the smallest plan that is enough."""
        return names.fit(size, "fit")

    # ------------------------------------------------------------------------------------------------ launch

    async def launch(self, spec: BuilderSpec) -> Launched:
        """Put the job, then adopt its run or start one."""
        size = self.fit(spec.size)
        body = self._job(spec, size)
        # Two launches at once in two processes are kept apart by the builder's claim; here they are one.
        async with self._locks.of(spec.name):
            try:
                await self._client.put_job(body)
            except Missing as e:
                raise Misconfigured(NAME, "launch", f"there is no project {self._client.project}", e.request_id) from e
            run = await self._run(spec.name) or await self._start(spec.name)
        return Launched(handle=run.id, region=None, effective=size)

    async def _start(self, job: str) -> Run:
        try:
            return await self._client.start_run(job)
        except RateLimited:
            raise
        except Transient:
            # It may have started all the same, and no other call than this one has.
            run = await self._run(job)
            if run is None:
                raise
            return run

    async def _run(self, job: str) -> Run | None:
        runs = await self._client.runs(job)
        return runs[-1] if runs else None

    def _job(self, spec: BuilderSpec, size: Size) -> dict[str, Any]:
        if spec.image is None:
            raise Misconfigured(NAME, "launch", "SLIPWAY_BUILDER_IMAGE is needed: a job runs an image")
        external = {"imagePath": names.image_path(spec.image, "launch")}
        if self._settings.builder_credentials:
            external["credentials"] = self._settings.builder_credentials
        left = math.ceil((spec.deadline - self._now()).total_seconds())
        return {
            "name": spec.name,
            "billing": {"deploymentPlan": size.plan},
            "deployment": {
                "external": external,
                "docker": {"configType": "default"},
                # The default of 1 GB is too small for a compiler, and overrunning it evicts the container.
                "storage": {"ephemeralStorage": {"storageSize": self._settings.builder_disk_mb}},
                "gracePeriodSeconds": GRACE_SECONDS,
            },
            "runtimeEnvironment": dict(spec.env),
            # Both are needed: a failed builder must not be run again, and a hanging one must end without us.
            "settings": {"backoffLimit": 0, "activeDeadlineSeconds": max(1, left), "runOnSourceChange": "never"},
        }

    # ------------------------------------------------------------------------------------------------ look

    async def inspect(self, ref: Ref) -> Inspection:
        """Look at its run; an answer that is younger than a minute is given again while it was at work."""
        known = self._seen.get(ref.name)
        if known is not None and self._clock() - known[0] < self._poll_seconds:
            return known[1]
        seen = await self._look(ref)
        if seen.phase is Phase.RUNNING:
            if len(self._seen) >= _REMEMBERED:
                self._seen.clear()
            self._seen[ref.name] = (self._clock(), seen)
        else:
            self._seen.pop(ref.name, None)
        return seen

    async def _look(self, ref: Ref) -> Inspection:
        run = await self._client.run(ref.name, ref.handle) if ref.handle else None
        if run is None:
            # Without a handle, or a run that is not visible yet: the job's own list decides.
            runs = await self._client.runs(ref.name, kind="poll")
            run = next((r for r in runs if r.id == ref.handle), None) if ref.handle else (runs[-1] if runs else None)
        if run is None:
            return Inspection(phase=Phase.GONE)
        if not run.concluded:
            return Inspection(phase=Phase.RUNNING, handle=run.id)
        message = f"the run ended as {run.status}; Northflank tells no exit code"
        phase = Phase.EXITED if run.status == "SUCCESS" else Phase.FAILED
        return Inspection(phase=phase, handle=run.id, message=message)

    async def list_ours(self, installation: str) -> Listing:
        """List the jobs; whether one is at work is not in the listing."""
        jobs, complete = await self._client.jobs()
        ours = [j.id for j in jobs if j.id.startswith(f"slp-{installation}-")]
        items = [Found(ref=Ref(name=job), created_at=None, phase=Phase.RUNNING) for job in ours]
        return Listing(items=tuple(items), complete=complete)

    async def logs(self, ref: Ref, *, limit: int = 200) -> list[LogLine]:
        """Return the last lines of its run. Misconfigured when the token's role may not see logs."""
        return await self._client.logs("jobs", ref.name, limit, run=ref.handle)

    # ------------------------------------------------------------------------------------------------ end

    async def stop(self, ref: Ref) -> None:
        """Abort the run and remove the job with it."""
        self._seen.pop(ref.name, None)
        runs = [ref.handle] if ref.handle else [r.id for r in await self._client.runs(ref.name) if not r.concluded]
        for run in runs:
            await self._client.abort_run(ref.name, run)
        await self._client.delete_job(ref.name)

"""A hundred builds at once within an hour's thousand requests: the whole control plane on Northflank's adapter, time by hand.

The far end is a counter that knows what it must of jobs and runs, and of the account's window; the imitation would start a
hundred programs.
"""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from app.budgets import SharedBudget
from app.builds import sweep
from app.platforms import catalog, northflank
from app.settings import NorthflankSettings
from tests.support.world import Json, World, world

HOURLY = 1000
MINUTES = 15
STEP = 20
PAST = {
    "run": ("heartbeat_at", "launched_at", "next_check_at"),
    "build": ("next_check_at", "not_before"),
    "budget": ("refilled_at", "full_at", "closed_until"),
    "lease": ("expires_at",),
}


class Far:
    """Jobs and their runs, behind a window of an hour that opens with the first request."""

    def __init__(self) -> None:
        self.now = 0.0
        self.begun: float | None = None
        self.count: Counter[str] = Counter()
        self.refused = 0
        self.runs: dict[str, bool] = {}

    async def answer(self, request: httpx.Request) -> httpx.Response:
        if self.begun is None or self.now - self.begun >= 3600:
            self.begun, self.count = self.now, Counter()
        job, _, rest = request.url.path.partition("/jobs/")[2].partition("/")
        self.count[job or "listings and new jobs"] += 1
        used = self.count.total()
        left = {
            "x-ratelimit-remaining": str(max(0, HOURLY - used)),
            "x-ratelimit-reset": str(3600 - (self.now - self.begun)),
        }
        if used > HOURLY:
            self.refused += 1
            return httpx.Response(429, json={"error": {"status": 429, "message": "slow down"}}, headers=left)
        return httpx.Response(200, json={"data": self.data(request.method, job, rest)}, headers=left)

    def data(self, method: str, job: str, rest: str) -> Json:
        if method == "GET" and not job:
            return {"jobs": [{"id": j} for j in self.runs], "services": [], "secrets": []}
        if method == "POST":
            self.runs[job] = True
        if method == "DELETE" and not rest:
            self.runs.pop(job, None)
        run = {"id": "run-1", "status": "RUNNING", "concluded": False}
        return {"runs": [run] if job in self.runs else []} if rest == "runs" and method == "GET" else run


@pytest.fixture
async def far() -> Far:
    return Far()


@pytest.fixture
async def here(database_url: str, tmp_path: Path, far: Far) -> AsyncIterator[World]:
    image = f"ghcr.io/acme/builder@sha256:{'b' * 64}"
    values: Json = {"public_url": "https://slipway.test", "builder_image": image, "project_concurrency": 500}
    async with world(database_url, tmp_path / "home", **values) as it:
        own = NorthflankSettings(token=SecretStr("t"), project="p", max_builders=200)
        settings = it.context.settings.model_copy(update={"northflank": own})
        budget = SharedBudget(it.context.sessions, northflank.allowance_of(settings), clock=lambda: far.now)
        options = {"transport": httpx.MockTransport(far.answer)}
        clock = {"clock": lambda: far.now}
        made = northflank.create(settings, allowance=budget, client=options, builders=clock, services=clock)
        it.context.catalog.entries = {"northflank": catalog.entries(settings)["northflank"]}
        it.context.catalog.held = {"northflank": made.platform}
        yield it
        await made.aclose()


async def later(here: World, far: Far, seconds: float) -> None:
    far.now += seconds
    for table, columns in PAST.items():
        sets = ", ".join(f"{c} = {c} - make_interval(secs => {seconds})" for c in columns)
        await here.sql(f"update {table} set {sets}")


@pytest.mark.parametrize(("builds", "silent"), [(10, 3), pytest.param(100, 10, marks=pytest.mark.volume)], ids=str)
async def test_builds_of_a_quarter_of_an_hour_at_once(here: World, far: Far, builds: int, silent: int) -> None:
    for _ in range(builds):
        await here.send(here.order() | {"platform": "northflank"})
    await here.jobs()
    assert len(far.runs) == builds
    await here.sql("update run set status = 'running', claimed_at = now(), deadline_at = now() + interval '1 hour'")
    quiet = {r.name for r in await here.sql("select name from run order by id limit :n", n=silent)}
    for _ in range(MINUTES * 60 // STEP):
        await later(here, far, STEP)
        await here.sql("update run set heartbeat_at = now() where not name = any(:quiet)", quiet=list(quiet))
        await here.reconcile()
        await sweep.sweep(here.context)
    for row in await here.sql("select id from build"):
        await here.http.post(f"/v1/builds/{row.id}/cancel")
    await here.jobs()
    await later(here, far, 3600 - MINUTES * 60 - 1)
    await sweep.sweep(here.context)

    assert far.runs == {}
    assert far.refused == 0
    # Beside what counts for the job: the request that makes it, which has no job in its path.
    healthy = [far.count[name] + 1 for name in far.count if name.startswith("slp-") and name not in quiet]
    assert len(healthy) == builds - silent
    assert max(healthy) <= 8
    polls = [far.count[name] + 1 - min(healthy) for name in quiet]
    assert all(MINUTES - 2 <= n <= MINUTES for n in polls), polls
    assert far.count.total() <= 900, far.count.total()

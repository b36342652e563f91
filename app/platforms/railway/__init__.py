"""Railway: services behind a GraphQL API; builders are services that run once, and sleep is Railway's own.

What it can't do: show a builder's exit code, pull private images below its Pro plan, change how long it waits before a
service sleeps (some ten minutes without outbound packets).
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from app.platforms.base import Platform, Size, Traits
from app.platforms.budget import Allowance, Budget, Limit, in_memory
from app.platforms.railway.builders import RailwayBuilders
from app.platforms.railway.client import NAME, TIMEOUT_SECONDS, RailwayApi
from app.platforms.railway.objects import Objects
from app.platforms.railway.services import POLL_SECONDS, START_SECONDS, RailwayServices
from app.settings import Settings

__all__ = ["RailwayPlatform", "allowance_of", "create", "missing", "opened", "traits"]

IDLE_SECONDS = 600
TRAITS = Traits(
    scale_to_zero="automatic",
    idle_signal="outbound",
    exit_codes=False,
    private_registry=True,
    own_registry=None,
    remote=True,
    max_builders=20,
    min_idle_seconds=IDLE_SECONDS,
    max_idle_seconds=IDLE_SECONDS,
    goarch=("amd64",),
    regions=("us-west2", "us-east4-eqdc4a", "europe-west4-drams3a", "asia-southeast1-eqsg3a"),
    poll_seconds=5.0,
    promote_seconds=300.0,
    wake_seconds=START_SECONDS + 30,
    rollout_replaces=True,
)
#: Requests per hour and the largest service, by plan.
PLANS = {
    "hobby": (1_000, Size(cpus=8, memory_mb=8 * 1024)),
    "pro": (10_000, Size(cpus=32, memory_mb=32 * 1024)),
}


def traits(settings: Settings) -> Traits:
    """Return what holds under the plan that is set."""
    if settings.railway is None:
        return TRAITS
    chosen = settings.railway
    default = (chosen.region,) if chosen.region else ()
    requests, _ = PLANS[chosen.plan]
    return replace(
        TRAITS,
        private_registry=chosen.plan == "pro",
        max_builders=chosen.max_builders,
        default_regions=default,
        # Two listings each time: not more than a fiftieth of the account's requests.
        list_seconds=2 * 50 * 3600 / requests,
    )


def missing(settings: Settings) -> tuple[str, ...]:
    """Return the settings without which it is not offered."""
    needed = ("TOKEN", "PROJECT", "ENVIRONMENT", "BUILDERS_PROJECT", "BUILDERS_ENVIRONMENT")
    return () if settings.railway is not None else tuple(f"SLIPWAY_RAILWAY__{n}" for n in needed)


def allowance_of(settings: Settings) -> Allowance:
    """Return how the account's requests are counted: an hour's, by plan, of which a tenth may go at once."""
    railway = settings.railway
    assert railway is not None
    requests, _ = PLANS[railway.plan]
    # The reset header holds a time of day, which a bucket must not take for seconds.
    limit = Limit(limit=requests, window=3600, burst=requests / 10, reset="")
    return Allowance(platform=NAME, account=railway.account, limit=lambda _operation: limit)


class RailwayPlatform:
    """The two capabilities over one client. Close it with ``aclose``."""

    def __init__(self, api: RailwayApi, platform: Platform) -> None:
        self.api = api
        self.platform = platform

    async def aclose(self) -> None:
        """Close all connections."""
        await self.api.aclose()


def create(
    settings: Settings,
    *,
    budget: Budget | None = None,
    timeout: float = TIMEOUT_SECONDS,
    start_seconds: float = START_SECONDS,
    poll_seconds: float = POLL_SECONDS,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> RailwayPlatform:
    """Make the platform from ``settings.railway``; everything with a default is for tests and for imitations."""
    railway = settings.railway
    assert railway is not None
    _, most = PLANS[railway.plan]
    account = budget or in_memory(allowance_of(settings))
    api = RailwayApi(railway.api_url, railway.token.get_secret_value(), budget=account, timeout=timeout, sleep=sleep)
    ours = Objects(api, project=railway.project, environment=railway.environment, kind="svc", most=most)
    theirs = Objects(
        api, project=railway.builders_project, environment=railway.builders_environment, kind="run", most=most
    )
    services = RailwayServices(
        ours,
        service_url=railway.service_url,
        private=railway.plan == "pro",
        region=railway.region,
        start_seconds=start_seconds,
        poll_seconds=poll_seconds,
        clock=clock,
    )
    builders = RailwayBuilders(theirs, region=railway.region)
    return RailwayPlatform(api, Platform(name=NAME, traits=traits(settings), builders=builders, services=services))


@asynccontextmanager
async def opened(settings: Settings, *, budget: Budget | None = None) -> AsyncGenerator[Platform, None]:
    """Give the platform for as long as the process holds it."""
    made = create(settings, budget=budget)
    try:
        yield made.platform
    finally:
        await made.aclose()

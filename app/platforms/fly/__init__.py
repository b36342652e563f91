"""Fly: Machines as builders, an app with machines behind Fly's proxy as a service, images in Fly's own registry.

``client`` is the wire, ``errors`` says what refusals mean, ``places`` makes apps and machines once, ``phases`` reads their state.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import httpx

from app.platforms.base import Platform, Traits
from app.platforms.budget import Allowance, Budget
from app.platforms.fly import client as wire
from app.platforms.fly.builders import FlyBuilders
from app.platforms.fly.client import NAME, FlyClient
from app.platforms.fly.places import Sleep
from app.platforms.fly.services import LOOK_SECONDS, SETTLE_SECONDS, START_SECONDS, FlyServices
from app.settings import FlySettings, Settings

__all__ = ["FlyBuilders", "FlyPlatform", "FlyServices", "allowance_of", "create", "missing", "opened", "traits"]


def traits(settings: Settings) -> Traits:
    """Return what is special about Fly (fly.md §4 to §7)."""
    fly = settings.fly
    return Traits(
        scale_to_zero="automatic",
        idle_signal="requests",
        exit_codes=True,
        private_registry=False,
        own_registry=(fly.registry if fly else FlySettings.model_fields["registry"].default).split("://")[-1],
        remote=True,
        max_builders=fly.max_builders if fly else FlySettings.model_fields["max_builders"].default,
        # Fly's proxy decides, every few minutes; it can't be told a time.
        min_idle_seconds=300,
        max_idle_seconds=600,
        regions=fly.regions if fly else (),
        default_regions=fly.regions if fly else (),
        poll_seconds=1.0,
        # A digest just pushed may be unknown there for up to two minutes (fly.md §6).
        promote_seconds=180.0,
        wake_seconds=60.0,
        list_seconds=30.0,
    )


def missing(settings: Settings) -> tuple[str, ...]:
    """Return the settings without which Fly is not offered."""
    return () if settings.fly is not None else ("SLIPWAY_FLY__TOKEN",)


def allowance_of(settings: Settings) -> Allowance:
    """Return how the account's requests are counted."""
    assert settings.fly is not None
    return wire.allowance(settings.fly.account)


class FlyPlatform:
    """The two capabilities over one client. Close it with ``aclose``."""

    def __init__(self, settings: Settings, client: FlyClient, builders: FlyBuilders, services: FlyServices) -> None:
        self.client = client
        self.platform = Platform(name=NAME, traits=traits(settings), builders=builders, services=services)

    async def aclose(self) -> None:
        """Close all connections."""
        await self.client.aclose()


def create(
    settings: Settings,
    *,
    allowance: Budget | None = None,
    timeout: float = 30.0,
    settle_seconds: float = SETTLE_SECONDS,
    start_seconds: float = START_SECONDS,
    look_seconds: float = LOOK_SECONDS,
    transport: httpx.AsyncBaseTransport | None = None,
    sleep: Sleep = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> FlyPlatform:
    """Make the platform from ``settings.fly``; everything with a default is for tests and for imitations."""
    fly = settings.fly
    assert fly is not None
    client = FlyClient(
        fly, budget=allowance or wire.budget(), timeout=timeout, transport=transport, sleep=sleep, clock=clock
    )
    builders = FlyBuilders(client, fly.regions, sleep=sleep, clock=clock)
    services = FlyServices(
        client,
        fly,
        settle_seconds=settle_seconds,
        start_seconds=start_seconds,
        look_seconds=look_seconds,
        sleep=sleep,
        clock=clock,
    )
    return FlyPlatform(settings, client, builders, services)


@asynccontextmanager
async def opened(settings: Settings, *, budget: Budget | None = None) -> AsyncGenerator[Platform, None]:
    """Give the platform for as long as the process holds it."""
    made = create(settings, allowance=budget)
    try:
        yield made.platform
    finally:
        await made.aclose()

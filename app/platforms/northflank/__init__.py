"""Northflank: builders are runs of jobs, releases are deployment services that our gateway pauses and resumes.

``client`` is the wire, ``errors`` says what refusals mean, ``names`` our names and its plans, ``edge`` asks public addresses.
"""

import dataclasses
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from app.platforms.base import Platform, Traits
from app.platforms.budget import Allowance, Budget
from app.platforms.northflank import client as wire
from app.platforms.northflank import names
from app.platforms.northflank.builders import POLL_SECONDS, NorthflankBuilders
from app.platforms.northflank.client import NAME, Client
from app.platforms.northflank.edge import Edge
from app.platforms.northflank.services import START_SECONDS, NorthflankServices
from app.settings import Settings

__all__ = ["NorthflankPlatform", "allowance_of", "create", "missing", "opened", "problems", "traits"]

_TRAITS = Traits(
    scale_to_zero="manual",
    idle_signal="requests",
    exit_codes=False,
    private_registry=True,
    own_registry=None,
    remote=True,
    goarch=("amd64",),
    poll_seconds=5.0,
    # A host name and its certificate may lag minutes behind the rollout; a resume is as slow as a start.
    promote_seconds=300.0,
    wake_seconds=START_SECONDS + 30,
    look_seconds=POLL_SECONDS,
    # A sweep comes each half minute: it would eat a quarter of an hour's requests.
    list_seconds=600.0,
)
_NONE: Mapping[str, Any] = {}


def traits(settings: Settings) -> Traits:
    """Return what holds of Northflank under these settings; its region is the project's, once and for all."""
    own = settings.northflank
    return dataclasses.replace(_TRAITS, max_builders=own.max_builders) if own else _TRAITS


def problems(settings: Settings) -> dict[str, str]:
    """Return why no builders, or no services, can run there under these settings: images are pulled by their rules alone."""
    own, found = settings.northflank, {}
    pulled = (own.registry if own else None) or settings.registry_public or settings.registry or settings.public_url
    if pulled and not names.pullable(pulled):
        found["services"] = f"it can't pull from {pulled}: set SLIPWAY_NORTHFLANK__REGISTRY to {names.PULLABLE}"
    if settings.builder_image and not names.pullable(settings.builder_image):
        found["builders"] = f"it can't pull SLIPWAY_BUILDER_IMAGE: keep it on {names.PULLABLE}"
    return found


def missing(settings: Settings) -> tuple[str, ...]:
    """Return the settings without which Northflank is not offered."""
    return () if settings.northflank else ("SLIPWAY_NORTHFLANK__TOKEN", "SLIPWAY_NORTHFLANK__PROJECT")


def allowance_of(settings: Settings) -> Allowance:
    """Return how the account's requests are counted."""
    assert settings.northflank is not None
    return wire.allowance(settings.northflank.account, settings.northflank.requests_per_hour)


class NorthflankPlatform:
    """The two capabilities of one account. Close it with ``aclose``."""

    def __init__(
        self,
        settings: Settings,
        edge: Edge,
        clients: tuple[Client, ...],
        builders: NorthflankBuilders,
        services: NorthflankServices,
    ) -> None:
        self.clients = clients
        self.platform = Platform(name=NAME, traits=traits(settings), builders=builders, services=services)
        self._edge = edge

    async def aclose(self) -> None:
        """Close all connections."""
        await self._edge.aclose()
        for client in self.clients:
            await client.aclose()

    @property
    def requests(self) -> Counter[str]:
        """What was sent, by operation."""
        return sum((client.api.requests for client in self.clients), Counter[str]())


def create(
    settings: Settings,
    *,
    allowance: Budget | None = None,
    client: Mapping[str, Any] = _NONE,
    builders: Mapping[str, Any] = _NONE,
    services: Mapping[str, Any] = _NONE,
    edge: Mapping[str, Any] = _NONE,
) -> NorthflankPlatform:
    """Make the platform from ``settings.northflank``. The rest are options of its parts, for tests and for imitations.

    ``allowance`` is the account's budget, which everything of the account shares.
    """
    own = settings.northflank
    assert own is not None
    allowance = allowance or wire.budget(own.requests_per_hour)
    running = Client(own, own.project, budget=allowance, **client)
    building = Client(own, own.builders_project or own.project, budget=allowance, **client)
    asks = Edge(**edge)
    return NorthflankPlatform(
        settings,
        asks,
        (running, building),
        NorthflankBuilders(building, own, **builders),
        NorthflankServices(running, own, asks, **services),
    )


@asynccontextmanager
async def opened(settings: Settings, *, budget: Budget | None = None) -> AsyncGenerator[Platform, None]:
    """Give the platform for as long as the process holds it."""
    made = create(settings, allowance=budget)
    try:
        yield made.platform
    finally:
        await made.aclose()

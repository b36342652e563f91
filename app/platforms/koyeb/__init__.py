"""Koyeb: builders as WORKER services that hold, services as WEB services that sleep and wake by themselves.

It is for organisations that have an account: since its sale was signed (February 2026) new ones may get none, so it is offered
only when ``SLIPWAY_KOYEB__ENABLED`` says so.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx

from app.platforms.base import Platform, Traits
from app.platforms.budget import Allowance, Budget
from app.platforms.koyeb.builders import KoyebBuilders
from app.platforms.koyeb.client import NAME, Client, allowance
from app.platforms.koyeb.common import POLL_SECONDS, Account
from app.platforms.koyeb.services import KoyebServices
from app.settings import KoyebSettings, Settings


def traits(settings: Settings) -> Traits:
    """Return what holds of Koyeb under these settings; idle bounds are those of the account's plan."""
    koyeb = settings.koyeb or KoyebSettings()
    return Traits(
        scale_to_zero="automatic",
        idle_signal="requests",
        exit_codes=False,
        private_registry=True,
        own_registry=None,
        remote=True,
        max_builders=koyeb.max_builders,
        min_idle_seconds=koyeb.min_idle_seconds,
        max_idle_seconds=koyeb.max_idle_seconds,
        goarch=("amd64",),
        regions=koyeb.regions,
        default_regions=koyeb.regions,
        poll_seconds=koyeb.poll_seconds,
        # A fresh service takes up to a minute, and what never passes its checks is given up only after a quarter of an hour.
        promote_seconds=300.0,
        wake_seconds=koyeb.start_seconds + 30,
        list_seconds=60.0,
        rollout_replaces=True,
        remarks=("Since Koyeb's sale in 2026 new organizations may get no account: for those that have one.",),
    )


def missing(settings: Settings) -> tuple[str, ...]:
    """Return the settings to set before it is offered."""
    koyeb = settings.koyeb or KoyebSettings()
    needed = {"SLIPWAY_KOYEB__ENABLED": koyeb.enabled, "SLIPWAY_KOYEB__TOKEN": koyeb.token is not None}
    return tuple(name for name, there in needed.items() if not there)


def allowance_of(settings: Settings) -> Allowance:
    """Return how the account's requests are counted."""
    assert settings.koyeb is not None
    return allowance(settings.koyeb.account)


@asynccontextmanager
async def opened(
    settings: Settings,
    *,
    budget: Budget | None = None,
    poll_seconds: float = POLL_SECONDS,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[Platform]:
    """Open the account that the settings name; ``missing`` must be empty. ``poll_seconds`` is between looks at an end."""
    koyeb = settings.koyeb
    assert koyeb is not None
    assert koyeb.enabled
    assert koyeb.token is not None
    client = Client(koyeb.token.get_secret_value(), koyeb.api_url, budget=budget, sleep=sleep, transport=transport)
    account = Account(client=client, settings=koyeb, sleep=sleep, poll_seconds=poll_seconds)
    try:
        yield Platform(
            name=NAME, traits=traits(settings), builders=KoyebBuilders(account), services=KoyebServices(account)
        )
    finally:
        await client.aclose()

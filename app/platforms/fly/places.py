"""Apps and machines made once, whatever the network does: found by name and metadata before they are made again.

Machines have no idempotency key (fly.md §1 Idempotency). What stands for one is our own name, in the metadata, by which it is
looked up, and as the machine's name, which is unique within its app, so that a second create fails instead of doubling.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.platforms.base import Misconfigured, NoCapacity, RateLimited, Rejected, Transient
from app.platforms.failures import Conflict, Missing
from app.platforms.fly.answers import App, Machine
from app.platforms.fly.client import NAME, FlyClient
from app.platforms.fly.errors import Forbidden, HostFull, NameTaken, NotYet
from app.platforms.http import back_off

KEY = "slipway_name"
"""Metadata key of our own name."""
PATIENCE = 10
"""How often to try again while what was just made is not known everywhere."""
HOST_TRIES = 2

Sleep = Callable[[float], Awaitable[object]]


def candidates(org: str, name: str) -> tuple[str, str]:
    """Return the names an app of ours may have: app names are shared with all of Fly, so the first may be somebody else's."""
    return name, f"{name}-{hashlib.sha256(f'{org}/{name}'.encode()).hexdigest()[:6]}"


async def find_app(client: FlyClient, name: str) -> App | None:
    """Return our app of this name, or of its other name; None when there is none."""
    for candidate in candidates(client.org, name):
        found = await _ours(client, candidate)
        if isinstance(found, App):
            return found
        if found is None:
            return None
    return None


async def _ours(client: FlyClient, name: str) -> App | bool | None:
    """Return the app; None when nobody has it, False when somebody else has."""
    try:
        app = await client.get_app(name)
    except Missing:
        return None
    except Forbidden:
        return False
    return app if app.organization is None or app.organization.slug == client.org else False


async def ensure_app(client: FlyClient, name: str, *, sleep: Sleep = asyncio.sleep) -> str:
    """Return the name of our app, made if need be, in a private network of its own."""
    for candidate in candidates(client.org, name):
        found = await _ours(client, candidate)
        if isinstance(found, App):
            return candidate
        if found is False:
            continue
        try:
            await client.create_app(candidate, network=name)
        except NameTaken:
            # Made by another process of ours a moment ago, or not visible to us because it isn't ours.
            if not isinstance(await _ours(client, candidate), App):
                continue
        await _visible(client, candidate, sleep)
        return candidate
    raise Rejected(NAME, "create app", f"{name} and its other name are taken by somebody else on Fly")


async def _visible(client: FlyClient, name: str, sleep: Sleep) -> None:
    """Wait until a fresh app is known: for a while it answers 404, or 401 (fly.md §1 Errors)."""
    for attempt in range(1, PATIENCE + 1):
        try:
            await client.get_app(name)
        except (Missing, Misconfigured) as e:
            if attempt == PATIENCE:
                raise Transient(NAME, "create app", f"{name} was made and can't be seen: {e.message}") from e
            await sleep(back_off(attempt))
        else:
            return


@dataclass(frozen=True, kw_only=True)
class NewMachine:
    """A machine to make: ``body`` is the request without name and region."""

    app: str
    name: str
    body: Mapping[str, Any]
    regions: Sequence[str]


async def find_machine(client: FlyClient, app: str, name: str, *, include_deleted: bool = False) -> Machine | None:
    """Return the machine of this name; one that is alive goes before a record of the past."""
    found = await client.machines(app, {KEY: name}, include_deleted=include_deleted)
    return min(found, key=lambda m: m.gone, default=None)


async def make_machine(client: FlyClient, new: NewMachine, *, sleep: Sleep = asyncio.sleep) -> Machine:
    """Make a machine in the first region that has room; NoCapacity when none has.

    The caller has looked for it before. A create whose outcome is not known is looked up; when it isn't there, the error goes on.
    """
    last: NoCapacity | None = None
    for region in new.regions:
        try:
            return await _make_in(client, new, region, sleep)
        except NoCapacity as e:
            last = e
    tried = ", ".join(new.regions)
    raise NoCapacity(NAME, "create machine", f"no room in {tried}: {last.message if last else ''}", region=tried)


async def _make_in(client: FlyClient, new: NewMachine, region: str, sleep: Sleep) -> Machine:
    full = waits = 0
    while True:
        try:
            return await client.create_machine(new.app, {**new.body, "name": new.name, "region": region})
        except HostFull:
            # Another try lands on another host.
            full += 1
            if full >= HOST_TRIES:
                raise
        except RateLimited:
            raise
        except NotYet:
            waits += 1
            if waits >= PATIENCE:
                raise
            await sleep(back_off(waits + 2))
        except (Conflict, Transient):
            found = await find_machine(client, new.app, new.name)
            if found is None:
                raise
            return found

"""The platforms, by name. A new one is a folder and one line here; ``docs/adding-a-platform.md`` shows one.

``offered`` are the platforms this process can call. A platform that is configured but belongs to another process (the local
one in a split installation) is listed with its traits and no capabilities.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from app.platforms import fly, koyeb, local, northflank, railway
from app.platforms.base import Platform, Traits
from app.platforms.budget import Allowance, Budget
from app.settings import Settings


class Opened(Protocol):
    """Opens a platform for as long as the process holds it; ``budget`` is what its requests are asked of."""

    def __call__(self, settings: Settings, *, budget: Budget | None = None) -> AbstractAsyncContextManager[Platform]:
        """Open it; without a budget it has one of this process alone."""
        ...


@dataclass(frozen=True)
class Remote:
    """A platform that any process may call: what is known of it, what it lacks, how its requests are counted and it is opened."""

    traits: Callable[[Settings], Traits]
    missing: Callable[[Settings], tuple[str, ...]]
    allowance: Callable[[Settings], Allowance]
    opened: Opened
    problems: Callable[[Settings], Mapping[str, str]] = lambda _settings: {}
    """Why its ``builders`` or ``services`` can't be used under settings that are there, each with the setting's name."""
    builders: bool = True
    services: bool = True


#: The platforms that any process may call.
REMOTE: Mapping[str, Remote] = {
    "fly": Remote(fly.traits, fly.missing, fly.allowance_of, fly.opened),
    "koyeb": Remote(koyeb.traits, koyeb.missing, koyeb.allowance_of, koyeb.opened),
    "northflank": Remote(
        northflank.traits, northflank.missing, northflank.allowance_of, northflank.opened, northflank.problems
    ),
    "railway": Remote(railway.traits, railway.missing, railway.allowance_of, railway.opened),
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the catalog: what is known of a platform whether or not it can be used here."""

    name: str
    traits: Traits
    configured: bool
    missing: tuple[str, ...] = ()
    """Settings to set before it is offered."""
    imitated: bool = False
    """Whether a stand-in takes its place."""
    builders: bool = True
    services: bool = True
    problems: Mapping[str, str] = field(default_factory=dict)
    """Why ``builders`` or ``services`` can't be used as things are set."""


@dataclass(kw_only=True)
class Catalog:
    """All platforms of this installation and, of those, the ones this process holds."""

    entries: Mapping[str, Entry]
    held: dict[str, Platform] = field(default_factory=dict)

    def entry(self, name: str) -> Entry | None:
        """Return what is known of the platform, None when there is no such."""
        return self.entries.get(name)

    def usable(self, name: str) -> bool:
        """Tell whether requests may name it: configured somewhere in this installation."""
        entry = self.entries.get(name)
        return entry is not None and entry.configured

    def here(self, name: str) -> Platform | None:
        """Return the platform if this process may call it."""
        return self.held.get(name)

    def host_bound(self, name: str) -> str | None:
        """Return the platform's name if its jobs go to the one process that owns it."""
        entry = self.entries.get(name)
        return name if entry is not None and entry.traits.host_bound else None


def entries(settings: Settings) -> dict[str, Entry]:
    """Return what is known of each platform under these settings."""
    on = settings.local is not None and settings.local.enabled
    missing = () if on else ("SLIPWAY_LOCAL__ENABLED",)
    known = {"local": Entry(name="local", traits=local.traits(settings), configured=on, missing=missing)}
    for name, remote in REMOTE.items():
        lacks = remote.missing(settings)
        known[name] = Entry(
            name=name,
            traits=remote.traits(settings),
            configured=not lacks,
            missing=lacks,
            imitated=name in settings.imitate,
            problems={} if lacks else remote.problems(settings),
            builders=remote.builders,
            services=remote.services,
        )
    return known

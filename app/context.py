"""What a verb is given: everything that lives as long as the process. ``context`` in a signature means: I own my transactions."""

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import Sessions
from app.images.access import Images
from app.platforms.base import Platform, Traits
from app.platforms.catalog import Catalog
from app.secrets import Keyring
from app.settings import Settings
from app.sql import Pool


@dataclass(frozen=True, kw_only=True)
class Context:
    """Built once by ``app.main`` and passed on; tests build their own."""

    settings: Settings
    engine: AsyncEngine = field(repr=False)
    sessions: Sessions = field(repr=False)
    pool: Pool = field(repr=False)
    """For plain SQL: what every build goes through does without the sessions (``app.sql``)."""
    catalog: Catalog
    keyring: Keyring
    images: Images
    installation: str
    process: str
    """Random name of this process; leases are held under it."""
    paces: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)
    """What ``app.builds.forecast`` has found out of late, with the time until which it goes by it."""

    def promote_seconds(self, platform: str) -> float:
        """Return how long a release may take to come up there: the operator's word, else what the platform needs."""
        entry = self.catalog.entry(platform)
        return self.settings.promote_timeout_seconds or (entry.traits if entry else Traits).promote_seconds

    def wake_seconds(self, platform: str) -> float:
        """Return how long a sleeping service may take to listen there: the operator's word, else what the platform needs."""
        entry = self.catalog.entry(platform)
        return self.settings.wake_timeout_seconds or (entry.traits if entry else Traits).wake_seconds

    def toolchain(self, name: str) -> str | None:
        """Return what the builders of a platform build with; None when this process does not know.

        On other machines the builder image is all of it, if it is named by its digest: a tag may be another image tomorrow.
        """
        if (held := self.platform(name)) is not None and held.toolchain is not None:
            return held.toolchain
        entry, image = self.catalog.entry(name), self.settings.builder_image
        return image if entry is not None and entry.traits.remote and image and "@sha256:" in image else None

    def platform(self, name: str) -> Platform | None:
        """Return the platform if this process may call it."""
        return self.catalog.here(name)

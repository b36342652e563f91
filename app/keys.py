"""API keys: bearer secrets of a project, with scopes, an expiry and an end. Only their hash is kept.

A key is shown once. Rotation gives a second one and lets the first run out a little later, so that a caller can change over
without a gap. What a key may do is its scopes; ``admin`` may everything in its project, and an admin of the default project is
the operator, who also makes projects.
"""

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, event, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Sessions, alone
from app.errors import Refusal, conflict, invalid, not_found
from app.ids import new_id
from app.models import ApiKey, Project
from app.requests import Scope

CACHE_SECONDS = 2.0
"""How long a process goes on believing in a key that another process has revoked."""
CACHED_KEYS = 4096
USED_SECONDS = 60.0
"""``last_used_at`` is this exact."""
SHOWN = 12
"""Characters of a key that lists show, so that people can tell theirs apart; the rest still has over 200 random bits."""
DEFAULT_PROJECT = "default"


_INCLUDES = {
    Scope.BUILDS_WRITE: {Scope.BUILDS_READ},
    Scope.SERVICES_WRITE: {Scope.SERVICES_READ},
    Scope.ADMIN: set(Scope),
}


@dataclass(frozen=True)
class Holder:
    """Who is calling: the key, its project, and what the key may do there."""

    key_id: str
    project: Project
    scopes: frozenset[Scope]

    @property
    def operator(self) -> bool:
        """Tell whether this key may make projects and keys of any project."""
        return self.project.name == DEFAULT_PROJECT and Scope.ADMIN in self.scopes

    def may(self, scope: str) -> bool:
        """Tell whether this key may do what asks for ``scope``."""
        return scope in self.scopes


def hash_key(key: str) -> bytes:
    """Return what is stored of an API key. Plain SHA-256: a key has 256 random bits, so it can't be guessed back."""
    return hashlib.sha256(key.encode()).digest()


def expand(scopes: Iterable[str]) -> frozenset[Scope]:
    """Return scopes with all that they include."""
    said = {Scope(s) for s in scopes}
    return frozenset(said.union(*(_INCLUDES.get(s, set()) for s in said)))


def valid() -> tuple[ColumnElement[bool], ...]:
    """Return the conditions under which a key opens its project now."""
    return (ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now()))


# ------------------------------------------------------------------------------------------------------ who is calling


@dataclass
class _Seen:
    holder: Holder
    until: float
    """When the database has to be asked again."""
    noted: float | None = None
    """When ``last_used_at`` was written last."""


@dataclass
class Doorman:
    """Tells callers by their keys, and remembers them for ``CACHE_SECONDS``, so that a busy caller costs no query a request."""

    sessions: Sessions
    clock: Callable[[], float] = time.monotonic
    _seen: OrderedDict[bytes, _Seen] = field(default_factory=OrderedDict)

    async def admit(self, key: str) -> Holder | None:
        """Return who has this key; None when nobody has, or not any more."""
        hashed, now = hash_key(key), self.clock()
        seen = self._seen.get(hashed)
        if seen is None or seen.until <= now:
            seen = await self._look(hashed, seen, now)
        return seen.holder if seen is not None else None

    def forget_after(self, session: AsyncSession) -> None:
        """Ask the database about everybody anew once this transaction, which changes a key, is committed."""
        event.listen(session.sync_session, "after_commit", lambda _: self._seen.clear(), once=True)

    async def _look(self, hashed: bytes, before: _Seen | None, now: float) -> _Seen | None:
        left = func.extract("epoch", ApiKey.expires_at - func.now())
        statement = (
            select(ApiKey.id, ApiKey.scopes, left, Project)
            .join(Project, Project.id == ApiKey.project_id)
            .where(ApiKey.hash == hashed, *valid())
        )
        noted = before.noted if before is not None else None
        async with alone(self.sessions) as session:
            row = (await session.execute(statement)).one_or_none()
            if row is None:
                self._seen.pop(hashed, None)
                return None
            if noted is None or now - noted >= USED_SECONDS:
                old = or_(
                    ApiKey.last_used_at.is_(None),
                    ApiKey.last_used_at < func.now() - timedelta(seconds=USED_SECONDS / 2),
                )
                await session.execute(update(ApiKey).where(ApiKey.id == row[0], old).values(last_used_at=func.now()))
                noted = now
        key_id, scopes, seconds_left, project = row
        kept = CACHE_SECONDS if seconds_left is None else min(CACHE_SECONDS, float(seconds_left))
        self._seen[hashed] = seen = _Seen(Holder(key_id, project, expand(scopes)), now + kept, noted)
        self._seen.move_to_end(hashed)
        while len(self._seen) > CACHED_KEYS:
            self._seen.popitem(last=False)
        return seen


# ------------------------------------------------------------------------------------------------------ verbs


async def create(
    session: AsyncSession,
    project: Project,
    name: str,
    *,
    scopes: Iterable[Scope] = (Scope.ADMIN,),
    expires_at: datetime | None = None,
    key: str | None = None,
) -> tuple[ApiKey, str]:
    """Make a key and return it with its text, which nobody can show again. ``key`` is the text when the operator brought one.

    Raises Refusal (422) for an expiry that has passed.
    """
    text = key or f"slp_{secrets.token_urlsafe(32)}"
    if expires_at is not None and (await session.execute(select(func.now()))).scalar_one() >= expires_at:
        raise invalid("expires_at", "has passed")
    row = ApiKey(
        id=new_id("key"),
        project_id=project.id,
        name=name,
        hash=hash_key(text),
        # Of a key that somebody thought up nothing is shown: it may be short.
        prefix=text[:SHOWN] if key is None else None,
        scopes=sorted(set(scopes)),
        expires_at=expires_at,
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    return row, text


async def bring(session: AsyncSession, project: Project, name: str, key: str) -> None:
    """See to it that a key which the operator thought up is valid; one that is known is left as it is."""
    values = {
        "id": new_id("key"),
        "project_id": project.id,
        "name": name,
        "hash": hash_key(key),
        "scopes": [Scope.ADMIN],
    }
    await session.execute(insert(ApiKey).values(**values).on_conflict_do_nothing())


async def find(session: AsyncSession, project: Project, key_id: str, *, lock: bool = False) -> ApiKey:
    """Return a key of the project; Refusal (404) when it isn't there or isn't theirs."""
    statement = select(ApiKey).where(ApiKey.id == key_id, ApiKey.project_id == project.id)
    row = (await session.execute(statement.with_for_update() if lock else statement)).scalar_one_or_none()
    if row is None:
        raise not_found("key", key_id)
    return row


async def revoke(session: AsyncSession, row: ApiKey) -> None:
    """End a key now; one that has ended already is left as it is."""
    if row.revoked_at is None:
        row.revoked_at = (await session.execute(select(func.now()))).scalar_one()


async def rotate(session: AsyncSession, project: Project, row: ApiKey, overlap: timedelta) -> tuple[ApiKey, str]:
    """Make the key's successor, with its name and scopes; the old one is good for ``overlap`` more, never longer than it was.

    Raises Refusal (409) when it has ended already.
    """
    now = (await session.execute(select(func.now()))).scalar_one()
    if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now):
        raise conflict("key_ended", f"Key {row.id} has ended; make a new one.")
    expires_at = now + (row.expires_at - row.created_at) if row.expires_at is not None else None
    fresh, text = await create(session, project, row.name, scopes=[Scope(s) for s in row.scopes], expires_at=expires_at)
    row.expires_at = min(row.expires_at or now + overlap, now + overlap)
    row.replaced_by = fresh.id
    return fresh, text


async def project_named(session: AsyncSession, name: str) -> Project:
    """Return a project by its name; Refusal (404) when there is none."""
    project = (await session.execute(select(Project).where(Project.name == name))).scalar_one_or_none()
    if project is None:
        raise not_found("project", name)
    return project


async def create_project(session: AsyncSession, name: str, **limits: int | None) -> Project:
    """Make a project; Refusal (409) when the name is taken."""
    values = {"id": new_id("prj"), "name": name, **limits}
    made = insert(Project).values(**values).on_conflict_do_nothing(index_elements=["name"]).returning(Project)
    project = (await session.execute(made)).scalar_one_or_none()
    if project is None:
        raise Refusal(409, "project_exists", f"There is a project {name!r} already.")
    return project

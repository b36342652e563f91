"""What a platform pulls a service's images with: a name and a password of this service on this platform, good while it is there.

A sleeper pulls again weeks later, so a token of minutes won't do. In the embedded registry each service has a repository of its
own, into which its releases' images are mounted; the credential reads that one and nothing else. Its password is derived from
the secret keys and the row's id, so none is stored. Without the row it is worth nothing, and it ends with its service.
"""

import hmac
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.context import Context
from app.db import Sessions, alone
from app.ids import is_id, new_id
from app.images.grants import PullGrant
from app.images.guard import Authenticate
from app.images.tokens import Grants, Scope
from app.models import Artifact, PullCredential, Release, Service
from app.platforms.base import Traits
from app.secrets import Keyring, KeysError

DEPLOY_TTL = timedelta(hours=1)
"""For a platform that keeps what it was once given, or whose registry we fill ourselves."""


async def grant(context: Context, release: Release, artifact: Artifact, traits: Traits) -> PullGrant:
    """Return what the release's platform pulls its image with. Raises RegistryError."""
    images = context.images
    if not traits.pulls_itself:
        return await images.pull_ref(artifact.repository, artifact.digest, remote=traits.remote, ttl=DEPLOY_TTL)
    if images.is_outside:
        return images.lasting_pull(artifact.repository, artifact.digest)
    async with context.sessions.begin() as session:
        credential = await _ensure(context, session, release)
    await images.share(artifact.repository, artifact.digest, credential.repository)
    password = context.keyring.pull_password(credential.id, credential.key_id)
    return images.lasting_pull(credential.repository, artifact.digest, username=credential.id, password=password)


async def _ensure(context: Context, session: AsyncSession, release: Release) -> PullCredential:
    """Return the service's credential on this platform by the newest key; those of older keys go on for older releases."""
    key = (release.service_id, release.platform, context.keyring.active)
    columns = (PullCredential.service_id, PullCredential.platform, PullCredential.key_id)
    new = {"id": new_id("pul"), "project_id": release.project_id} | dict(
        zip([c.key for c in columns], key, strict=True)
    )
    repository = context.images.repository_for_service(release.service_id)
    await session.execute(insert(PullCredential).values(repository=repository, **new).on_conflict_do_nothing())
    found = select(PullCredential).where(*(c == value for c, value in zip(columns, key, strict=True)))
    return (await session.execute(found)).scalar_one()


async def revoke(session: AsyncSession, service_id: str, platform: str | None = None) -> None:
    """Take back a service's credentials on one platform, or on all."""
    statement = delete(PullCredential).where(PullCredential.service_id == service_id)
    await session.execute(statement if platform is None else statement.where(PullCredential.platform == platform))


def authenticator(sessions: Sessions, keyring: Keyring) -> Authenticate:
    """Return what tells the registry whose name and password these are; a deleted service's are nobody's at once."""

    async def authenticate(username: str, password: str) -> Grants | None:
        if not is_id(username, "pul"):
            return None
        statement = (
            select(PullCredential.repository, PullCredential.key_id)
            .join(Service, Service.id == PullCredential.service_id)
            .where(PullCredential.id == username, Service.deleted_at.is_(None))
        )
        async with alone(sessions) as session:
            row = (await session.execute(statement)).one_or_none()
        try:
            good = row and keyring.pull_password(username, row.key_id)
        except KeysError:  # its key was taken out of the ring
            return None
        if not row or not good or not hmac.compare_digest(good.encode(), password.encode()):
            return None
        return Grants(username, (Scope(row.repository, frozenset({"pull"})),))

    return authenticate


async def kept_images(session: AsyncSession) -> set[tuple[str, str]]:
    """Return (repository, digest) of every image that a platform may yet pull with a credential of ours."""
    statement = (
        select(PullCredential.repository, Artifact.digest)
        .join(Release, Release.service_id == PullCredential.service_id)
        .join(Artifact, Artifact.id == Release.artifact_id)
        .where(Release.platform == PullCredential.platform, Release.retired_at.is_(None))
    )
    return {(repository, digest) for repository, digest in (await session.execute(statement)).all()}

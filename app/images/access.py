"""``Images``: where this installation's images are, who may reach them how, and everything done to them.

Without ``SLIPWAY_REGISTRY`` that is the embedded registry under ``SLIPWAY_HOME``. With it, builders push to the outside
registry by a token of its token service, scoped to their repository. A registry that has none can't give a builder a
credential of small scope, so the builder pushes to our own ``/v2/`` and ``land`` carries the image on.
"""

import asyncio
import contextlib
from collections.abc import Collection, Sequence
from datetime import timedelta
from pathlib import Path

import httpx
from starlette.applications import Starlette

from app.images import blobs, collect, manifests
from app.images.client import Registry
from app.images.copy import copy
from app.images.errors import Fault, ImageNotFound, RegistryDenied, RegistryUnavailable
from app.images.grants import PullGrant, PushGrant
from app.images.guard import Authenticate
from app.images.inspect import ImageInfo, inspect
from app.images.reference import check_repository
from app.images.registry import create_registry
from app.images.share import share
from app.images.source import Disk, Source
from app.images.tokens import Grants, Scope, Token, TokenAuthority
from app.settings import PULL_SETTINGS, Settings

#: The user name that goes with a token as password, where a client only knows Basic credentials.
TOKEN_USER = "slipway"  # noqa: S105 - a name, not a password
LOOK_TTL = timedelta(minutes=1)


class Images:
    """The images of this installation.

    ``keys`` sign the embedded registry's tokens: the first signs, all verify. ``authenticate`` tells who else than the
    holder of a token may use the token endpoint. ``asgi`` is the registry, to be mounted at ``/v2``; it is there with
    an outside registry too, for images on their way.
    """

    def __init__(
        self,
        settings: Settings,
        keys: Sequence[bytes],
        *,
        authenticate: Authenticate | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = settings
        self._root: Path = settings.home / "registry"
        self._authority = TokenAuthority(keys)
        self._others = authenticate
        self._outside: Registry | None = None
        if settings.registry:
            password = settings.registry_password.get_secret_value() if settings.registry_password else None
            self._outside = Registry(
                settings.registry, username=settings.registry_username, password=password, transport=transport
            )
        own_public = settings.public_url if self._outside else settings.registry_public or settings.public_url
        self._own_public = own_public
        self.asgi: Starlette = create_registry(
            self._root,
            self._authority,
            authenticate=self._authenticate,
            max_image_bytes=settings.max_image_bytes,
            public_url=own_public,
        )

    @property
    def source(self) -> Source:
        """Where finished images are read from."""
        return self._outside or Disk(self._root)

    def repository_for_run(self, run_id: str) -> str:
        """Return the repository that a run's image goes to, and nothing else."""
        return check_repository(f"{self._settings.registry_repository}/{run_id.replace('_', '-')}")

    def repository_for_service(self, service_id: str) -> str:
        """Return the repository that a service's images are pulled from where its platform pulls by itself."""
        return self.repository_for_run(service_id)

    @property
    def is_outside(self) -> bool:
        """Whether finished images are in an outside registry."""
        return self._outside is not None

    async def push_grant(self, repository: str, *, remote: bool, ttl: timedelta) -> PushGrant:
        """Return what lets a builder push to ``repository``; ``remote`` for one on another machine.

        An outside token service decides itself how long its token lives, so ``ttl`` holds for our own.
        """
        check_repository(repository)
        if self._outside:
            token = await self._outside.token(repository, "pull", "push")
            if token:
                return self._grant(self._outside_address(remote=remote), repository, token)
        scope = Scope(repository, frozenset({"pull", "push"}))
        token = self._authority.mint("builder", [scope], ttl)
        return self._grant(self._own_address(remote=remote), repository, token)

    async def land(self, repository: str, digest: str) -> None:
        """See to it that a pushed image is in its final registry; safe to repeat. ImageNotFound: nobody pushed it.

        Nothing is done where the embedded registry is the final one: whoever inspects the image sees whether it is there.
        Where builders push by way of us to another one, it may lie on another API's disk, for all that we know. Then the
        error is a RegistryUnavailable, and whoever asks again may reach the right one.
        """
        if self._outside is not None and await self._outside.head_manifest(repository, digest) is None:
            try:
                await copy(Disk(self._root), repository, digest, self._outside, repository)
            except ImageNotFound as e:
                if await self._outside.token(repository, "pull", "push"):
                    raise
                raise RegistryUnavailable(
                    f"{repository} is neither in {self._outside.base_url} nor on this process's disk; several APIs with a "
                    "registry that has no token service have to share the folder `registry` of SLIPWAY_HOME"
                ) from e

    async def inspect(self, repository: str, digest: str) -> ImageInfo:
        """Read what the image is from the registry that it landed in."""
        return await inspect(self.source, repository, digest)

    async def has(self, repository: str, digest: str) -> bool:
        """Tell whether an image can still be pulled; RegistryError when nobody answers.

        The embedded registry may be on the disk of another process, so where it is not here it is asked.
        """
        if self._outside:
            return await self._outside.head_manifest(repository, digest) is not None
        with contextlib.suppress(ImageNotFound):
            return (await Disk(self._root).get_manifest(repository, digest)).digest == digest
        grant = await self.pull_ref(repository, digest, remote=False, ttl=LOOK_TTL)
        async with Registry(grant.registry, username=grant.username, password=grant.password) as registry:
            return await registry.head_manifest(repository, digest) is not None

    async def pull_ref(self, repository: str, digest: str, *, remote: bool, ttl: timedelta) -> PullGrant:
        """Return what lets this process pull the image for a platform, now; see ``lasting_pull`` for one that pulls itself.

        Ours is a token for this repository alone, good for ``ttl``. An outside registry is asked with the operator's own
        credential, which stays with us.
        """
        if self._outside:
            secret = self._settings.registry_password
            registry, username = self._outside_address(remote=remote), self._settings.registry_username
            password = secret.get_secret_value() if secret else None
        else:
            token = self._authority.mint("platform", [Scope(repository, frozenset({"pull"}))], ttl)
            registry, username, password = self._own_address(remote=remote), TOKEN_USER, token.value
        return PullGrant(registry=registry, repository=repository, digest=digest, username=username, password=password)

    def lasting_pull(
        self, repository: str, digest: str, *, username: str | None = None, password: str | None = None
    ) -> PullGrant:
        """Return what lets a platform pull this image whenever it pleases.

        An outside registry's token service makes no credential that lasts, so the operator gives one that may only read;
        the one that pushes never leaves us. Raises RegistryDenied when that is not set, or nobody else can reach ours.
        """
        if not self._outside:
            registry = self._own_address(remote=True)
        else:
            registry, settings = self._outside_address(remote=True), self._settings
            if settings.registry_username and not settings.registry_pull:
                raise RegistryDenied(
                    f"a platform can't be given the pushing credential: set {' and '.join(PULL_SETTINGS)}"
                )
            username, password = settings.registry_pull or (None, None)
        return PullGrant(registry=registry, repository=repository, digest=digest, username=username, password=password)

    async def share(self, repository: str, digest: str, to: str) -> None:
        """Give an image of the embedded registry to another repository of it; safe to repeat. Raises RegistryError."""
        await asyncio.to_thread(share, self._root, repository, digest, to)

    async def delete(self, repository: str, digest: str | None = None) -> None:
        """Remove a repository, or one image of it; absence is success.

        Outside, a repository can only be emptied of what tags and ``digest`` name: the API can't list the rest.
        """
        if digest is None:
            await asyncio.to_thread(blobs.delete_repository, self._root, repository)
        else:
            try:
                await asyncio.to_thread(manifests.delete_manifest, self._root, repository, digest)
            except Fault as fault:
                if fault.status != 404:
                    raise
        if self._outside is None:
            return
        if digest is not None:
            await self._outside.delete_manifest(repository, digest)
            return
        try:
            tags = await self._outside.tags(repository)
        except ImageNotFound:
            return
        for tag in tags:
            if found := await self._outside.head_manifest(repository, tag):
                await self._outside.delete_manifest(repository, found)

    async def collect(self, keep: Collection[tuple[str, str]], older_than: timedelta, limit: int) -> collect.Collected:
        """Collect garbage of the embedded registry, see ``collect``; with an outside one all here is on its way."""
        kept = () if self._outside else keep
        return await asyncio.to_thread(collect.collect, self._root, kept, older_than, limit)

    async def close(self) -> None:
        """Close all connections."""
        if self._outside:
            await self._outside.close()

    async def _authenticate(self, username: str, password: str) -> Grants | None:
        if username == TOKEN_USER and (grants := self._authority.verify(password)):
            return grants
        return await self._others(username, password) if self._others else None

    def _grant(self, registry: str, repository: str, token: Token) -> PushGrant:
        return PushGrant(registry=registry, repository=repository, token=token.value, expires_at=token.expires_at)

    def _own_address(self, *, remote: bool) -> str:
        if not remote:
            return self._settings.api_url
        if self._own_public is None:
            raise RegistryDenied("other machines can't reach our registry: set SLIPWAY_PUBLIC_URL")
        return self._own_public

    def _outside_address(self, *, remote: bool) -> str:
        assert self._settings.registry
        public = self._settings.registry_public
        return public if remote and public else self._settings.registry

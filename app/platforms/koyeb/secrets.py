"""A release's secrets: objects of the organisation that only its own definition names."""

from app.platforms.base import ServiceSpec, Transient
from app.platforms.failures import Conflict
from app.platforms.koyeb import definitions
from app.platforms.koyeb.client import NAME, Client, Json


class Secrets:
    """Makes and removes them. Koyeb refers to secrets by name and removes them by id."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def keep(self, spec: ServiceSpec) -> None:
        """Make what a release's definition names, and its pull credential; one that is there gets the value it is to have."""
        for key, value in spec.secrets.items():
            name = definitions.secret_name(spec.service, spec.release, key)
            await self._put({"name": name, "type": "SIMPLE", "value": value})
        if spec.image.username is not None:
            login = {"username": spec.image.username, "password": spec.image.password or "", "url": spec.image.registry}
            name = definitions.pull_secret(spec.service, spec.release)
            await self._put({"name": name, "type": "REGISTRY", "private_registry": login})

    async def _put(self, body: Json) -> None:
        try:
            await self._client.create_secret(body)
        except (Conflict, Transient) as e:
            found = await self._client.secrets(body["name"])
            if not found:
                raise Transient(NAME, e.operation, e.message, e.request_id) from None
            await self._client.update_secret(found[0].id, body)

    async def remove(self, service: str, release: str | None = None) -> None:
        """Remove a release's secrets, or all of a service; filters by name are no prefixes, so all names are looked at."""
        prefix = definitions.release_prefix(service, release) if release else f"{service}-"
        for secret in await self._client.secrets():
            if secret.name.startswith(prefix):
                await self._client.delete_secret(secret.id)

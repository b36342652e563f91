"""Koyeb's REST API, as far as we use it: one method per call.

Facts: https://www.koyeb.com/docs/reference/api and the published description at
https://api.prod.koyeb.com/public.swagger.json. Success is 200 with a wrapper object. There are no idempotency keys and no 409:
whoever creates reads back by name. Filters by name need not be exact, so names are compared here.
"""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, TypeVar

from app.platforms.base import Rejected
from app.platforms.budget import Allowance, Kind, Limit, in_memory
from app.platforms.failures import Missing
from app.platforms.http import JsonApi, Params
from app.platforms.koyeb.answers import (
    App,
    AppReply,
    AppsPage,
    Deployment,
    DeploymentReply,
    Entry,
    Instance,
    InstancesPage,
    Logs,
    OrganizationReply,
    Page,
    Quotas,
    QuotasReply,
    Secret,
    SecretReply,
    SecretsPage,
    Service,
    ServiceReply,
    ServicesPage,
)
from app.platforms.koyeb.errors import classify

NAME = "koyeb"
PAGE = 100
MOST_PAGES = 50
REQUESTS, WINDOW = 400, 60
"""What the answers' ``x-ratelimit-limit`` says; it seems to be counted per caller address."""

Json = dict[str, Any]

P = TypeVar("P", bound=Page)


def allowance(account: str) -> Allowance:
    """Return what an account may send; each answer tells what is left."""
    limit = Limit(limit=REQUESTS, window=WINDOW)
    return Allowance(platform=NAME, account=account, limit=lambda _operation: limit)


class Client:
    """One account. ``api.requests`` counts per operation."""

    def __init__(self, token: str, api_url: str, **options: Any) -> None:
        budget = options.pop("budget", None) or in_memory(allowance(""))
        self.api = JsonApi(
            NAME,
            api_url,
            headers={"Authorization": f"Bearer {token}"},
            classify=classify,
            budget=budget,
            **options,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self.api.aclose()

    async def quotas(self) -> Quotas:
        """Return what the token's organisation may have."""
        answer = await self.api.call("get organization", "GET", "/v1/account/organization")
        owner = answer.read(OrganizationReply).organization.id
        answer = await self.api.call("get quotas", "GET", f"/v1/organizations/{owner}/quotas")
        return answer.read(QuotasReply).quotas

    # --- apps

    async def apps(self, name: str | None = None) -> list[App]:
        """List apps, of this very name or all."""
        query = {"name": name} if name else {}
        return [
            a
            async for page in self._pages("list apps", "/v1/apps", query, AppsPage)
            for a in page.apps
            if name in {None, a.name}
        ]

    async def app(self, app_id: str) -> App:
        """Return one app with its domains."""
        return (await self.api.call("get app", "GET", f"/v1/apps/{app_id}", kind="poll")).read(AppReply).app

    async def create_app(self, name: str, *, delete_when_empty: bool) -> App:
        """Make an app; Conflict when the name is taken."""
        body = {"name": name, "life_cycle": {"delete_when_empty": True}} if delete_when_empty else {"name": name}
        return (await self.api.call("create app", "POST", "/v1/apps", json=body)).read(AppReply).app

    async def delete_app(self, app_id: str) -> None:
        """Ask for an app's end; it is not gone yet."""
        await self.api.call("delete app", "DELETE", f"/v1/apps/{app_id}", kind="stop")

    # --- services

    async def services(self, app_id: str, name: str | None = None) -> list[Service]:
        """List an app's services, of this very name or all."""
        query = {"app_id": app_id} | ({"name": name} if name else {})
        return [
            s
            async for page in self._pages("list services", "/v1/services", query, ServicesPage)
            for s in page.services
            if name in {None, s.name}
        ]

    async def service(self, service_id: str, *, kind: Kind = "poll") -> Service:
        """Return one service; Missing when there is none."""
        answer = await self.api.call("get service", "GET", f"/v1/services/{service_id}", kind=kind)
        return answer.read(ServiceReply).service

    async def create_service(self, body: Json) -> Service:
        """Make a service; Conflict when the name is taken in its app."""
        return (await self.api.call("create service", "POST", "/v1/services", json=body)).read(ServiceReply).service

    async def update_service(self, service_id: str, definition: Json) -> Service:
        """Replace the whole definition, which begins a rollout."""
        path, body = f"/v1/services/{service_id}", {"definition": definition}
        return (await self.api.call("update service", "PUT", path, json=body)).read(ServiceReply).service

    async def pause_service(self, service_id: str) -> None:
        """Take all instances away."""
        await self.api.call("pause service", "POST", f"/v1/services/{service_id}/pause", kind="stop", repeat=True)

    async def resume_service(self, service_id: str) -> None:
        """Bring a paused service back, as a new deployment of what it was."""
        await self.api.call("resume service", "POST", f"/v1/services/{service_id}/resume")

    async def delete_service(self, service_id: str) -> None:
        """Ask for a service's end; it is not gone yet."""
        await self.api.call("delete service", "DELETE", f"/v1/services/{service_id}", kind="stop")

    # --- deployments and instances

    async def deployment(self, deployment_id: str) -> Deployment:
        """Return one deployment with its definition."""
        answer = await self.api.call("get deployment", "GET", f"/v1/deployments/{deployment_id}", kind="poll")
        return answer.read(DeploymentReply).deployment

    async def cancel_deployment(self, deployment_id: str) -> None:
        """Stop a rollout that is under way; Rejected when it isn't any more."""
        path = f"/v1/deployments/{deployment_id}/cancel"
        await self.api.call("cancel deployment", "POST", path, kind="stop", repeat=True)

    async def instances(self, **of: str) -> list[Instance]:
        """List instances, ended ones too, oldest first; ``of`` is ``service_id`` or ``deployment_id``."""
        pages = self._pages("list instances", "/v1/instances", of, InstancesPage)
        found = [i async for page in pages for i in page.instances]
        return sorted(found, key=lambda i: i.created_at.timestamp() if i.created_at else 0.0)

    async def logs(self, *, start: datetime, limit: int, **of: str) -> list[Entry]:
        """Return the newest runtime lines since ``start``, oldest first.

        The start is always said: left out, it would be fifteen minutes ago.
        """
        query: dict[str, str] = {"type": "runtime", "start": start.isoformat().replace("+00:00", "Z"), **of}
        found: list[Entry] = []
        for _ in range(MOST_PAGES):
            params = {**query, "order": "desc", "limit": str(min(limit - len(found), 1000))}
            answer = await self.api.call("query logs", "GET", "/v1/streams/logs/query", params=params, kind="poll")
            page = answer.read(Logs)
            found += page.data
            more = page.pagination
            if not more.has_more or not page.data or len(found) >= limit:
                break
            query |= {k: v for k, v in (("start", more.next_start), ("end", more.next_end)) if v}
        return found[:limit][::-1]

    # --- secrets

    async def secrets(self, name: str | None = None) -> list[Secret]:
        """List secrets, of this very name or all."""
        query = {"name": name} if name else {}
        return [
            s
            async for page in self._pages("list secrets", "/v1/secrets", query, SecretsPage)
            for s in page.secrets
            if name in {None, s.name}
        ]

    async def create_secret(self, body: Json) -> Secret:
        """Make a secret; Conflict when the name is taken."""
        return (await self.api.call("create secret", "POST", "/v1/secrets", json=body)).read(SecretReply).secret

    async def update_secret(self, secret_id: str, body: Json) -> None:
        """Replace a secret; what uses it keeps the old value until its next start."""
        await self.api.call("update secret", "PUT", f"/v1/secrets/{secret_id}", json=body, repeat=True)

    async def delete_secret(self, secret_id: str) -> None:
        """Remove a secret; absence is success."""
        try:
            await self.api.call("delete secret", "DELETE", f"/v1/secrets/{secret_id}", kind="stop")
        except Missing:
            return

    async def _pages(self, operation: str, path: str, query: Params, model: type[P]) -> AsyncIterator[P]:
        """Yield all pages; instances and secrets have no ``has_next``, so the count tells, too."""
        for number in range(MOST_PAGES):
            params = {**query, "limit": str(PAGE), "offset": str(number * PAGE)}
            page = (await self.api.call(operation, "GET", path, params=params)).read(model)
            yield page
            more = page.has_next if page.has_next is not None else (page.count or 0) > (number + 1) * PAGE
            if not more:
                return
        raise Rejected(NAME, operation, f"there are more than {MOST_PAGES * PAGE}")

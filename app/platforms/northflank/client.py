"""Northflank's wire: one method per request, nothing decided here.

Paths are those of its public API, ``/v1`` or, for a token of an organization, ``/v1/teams/<team>``. Success is always 200 and
``{"data": …}``. No call has an idempotency key: what may be repeated is a PUT (create or update by name) or ends something.
"""
# Over 250 lines: one short method after the other, one for each request there is.

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import httpx

from app.platforms.base import LogLine, PlatformError, Transient
from app.platforms.budget import Allowance, Budget, Kind, Limit, in_memory
from app.platforms.failures import Conflict, Missing
from app.platforms.http import Answer, JsonApi, Params
from app.platforms.northflank.answers import (
    Container,
    Containers,
    Jobs,
    ListedService,
    Named,
    Port,
    Ports,
    Reply,
    Run,
    Runs,
    Secrets,
    Service,
    Services,
)
from app.platforms.northflank.errors import classify
from app.settings import NorthflankSettings

NAME = "northflank"
WINDOW = 3600.0
PAGE = 100
"""The most that a page may have; without it a page has 50, and what follows is cut off silently."""
_MAX_PAGES = 200
_LOG_DAYS = 3

T = TypeVar("T")


def allowance(account: str, requests_per_hour: int) -> Allowance:
    """Return one account's limit for all it does; each answer tells what is left."""
    limit = Limit(limit=requests_per_hour, window=WINDOW)
    return Allowance(platform=NAME, account=account, limit=lambda _operation: limit)


def budget(requests_per_hour: int) -> Budget:
    """Return a budget of this process alone."""
    return in_memory(allowance("", requests_per_hour))


class Client:
    """One account's project. Close it with ``aclose``."""

    def __init__(
        self,
        settings: NorthflankSettings,
        project: str,
        *,
        budget: Budget,
        timeout: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.project = project
        self.api = JsonApi(
            NAME,
            settings.api_url,
            headers={"Authorization": f"Bearer {settings.token.get_secret_value().strip()}"},
            classify=classify,
            budget=budget,
            timeout=httpx.Timeout(timeout, connect=min(10.0, timeout)),
            transport=transport,
            sleep=sleep,
        )
        self._root = f"/v1/teams/{settings.team}" if settings.team else "/v1"
        self._project = f"{self._root}/projects/{project}"

    async def aclose(self) -> None:
        """Close all connections."""
        await self.api.aclose()

    async def _pages(self, operation: str, path: str, model: type[T], kind: Kind = "poll") -> tuple[list[T], bool]:
        """Return all pages, and whether they were all there were: a page may promise more and not say where."""
        found: list[T] = []
        params: dict[str, str | int] = {"per_page": PAGE}
        for _ in range(_MAX_PAGES):
            reply = (await self.api.call(operation, "GET", path, params=params, kind=kind)).read(Reply[model])  # type: ignore[valid-type]
            found.append(reply.data)
            if not reply.pagination.has_next_page:
                return found, True
            if not reply.pagination.cursor:
                return found, False
            params["cursor"] = reply.pagination.cursor
        return found, False

    # ------------------------------------------------------------------------------------------------- jobs

    async def put_job(self, body: Mapping[str, Any]) -> None:
        """Make a job, or bring the one of this name in line; safe to repeat. Missing: there is no such project."""
        await self.api.call("put job", "PUT", f"{self._project}/jobs", json=body, repeat=True)

    async def delete_job(self, job: str) -> None:
        """Remove a job with its runs; absence is success."""
        await _absent(self.api.call("delete job", "DELETE", f"{self._project}/jobs/{job}", kind="stop"))

    async def jobs(self) -> tuple[list[Named], bool]:
        """Return all jobs of the project, and whether the listing is complete."""
        pages, complete = await self._pages("list jobs", f"{self._project}/jobs", Jobs)
        return [job for page in pages for job in page.jobs], complete

    async def start_run(self, job: str) -> Run:
        """Start a run. Not safe to repeat: look at ``runs`` first, and after a Transient again."""
        answer = await self.api.call("start run", "POST", f"{self._project}/jobs/{job}/runs", json={})
        return answer.read(Reply[Run]).data

    async def runs(self, job: str, *, kind: Kind = "call") -> list[Run]:
        """Return a job's runs, at most one page, newest first; empty when there is no such job."""
        path = f"{self._project}/jobs/{job}/runs"
        answer = await _found(self.api.call("list runs", "GET", path, params={"per_page": PAGE}, kind=kind))
        return answer.read(Reply[Runs]).data.runs if answer else []

    async def run(self, job: str, run: str) -> Run | None:
        """Return a run, None when it isn't there."""
        path = f"{self._project}/jobs/{job}/runs/{run}"
        answer = await _found(self.api.call("get run", "GET", path, kind="poll"))
        return answer.read(Reply[Run]).data if answer else None

    async def abort_run(self, job: str, run: str) -> None:
        """End a run; success when it is over or not there."""
        path = f"{self._project}/jobs/{job}/runs/{run}"
        await _absent(self.api.call("abort run", "DELETE", path, kind="stop"), Conflict)

    # ------------------------------------------------------------------------------------------------- services

    async def put_service(self, body: Mapping[str, Any]) -> None:
        """Make a deployment service, or bring the one of this name in line; safe to repeat."""
        await self.api.call("put service", "PUT", f"{self._project}/services/deployment", json=body, repeat=True)

    async def service(self, service: str, *, kind: Kind = "call") -> Service | None:
        """Return a service, None when it isn't there."""
        answer = await _found(self.api.call("get service", "GET", f"{self._project}/services/{service}", kind=kind))
        return answer.read(Reply[Service]).data if answer else None

    async def ports(self, service: str) -> list[Port]:
        """Return a service's ports, with host names where ``service`` tells none."""
        answer = await _found(self.api.call("get ports", "GET", f"{self._project}/services/{service}/ports"))
        return answer.read(Reply[Ports]).data.ports if answer else []

    async def containers(self, service: str) -> list[Container]:
        """Return a service's instances, past ones among them."""
        path = f"{self._project}/services/{service}/containers"
        answer = await _found(self.api.call("list containers", "GET", path, params={"per_page": PAGE}))
        return answer.read(Reply[Containers]).data.containers if answer else []

    async def pause(self, service: str) -> None:
        """Take a service to zero, which is not done when this returns; success when it is there or there is none."""
        path = f"{self._project}/services/{service}/pause"
        await _absent(self.api.call("pause", "POST", path, repeat=True, kind="stop"), Conflict)

    async def resume(self, service: str) -> None:
        """Bring a paused service back; success when it is not paused (409)."""
        path = f"{self._project}/services/{service}/resume"
        await _absent(self.api.call("resume", "POST", path, json={"instances": 1}, repeat=True), Conflict)

    async def delete_service(self, service: str) -> None:
        """Ask for a service to be removed, which is not done when this returns; absence is success."""
        path = f"{self._project}/services/{service}"
        params: Params = {"delete_child_objects": True}
        await _absent(self.api.call("delete service", "DELETE", path, params=params, kind="stop"))

    async def services(self, *, kind: Kind = "poll") -> tuple[list[ListedService], bool]:
        """Return all services of the project, and whether the listing is complete."""
        pages, complete = await self._pages("list services", f"{self._project}/services", Services, kind)
        return [service for page in pages for service in page.services], complete

    # ------------------------------------------------------------------------------------------------- secrets, credentials

    async def put_secret(self, body: Mapping[str, Any]) -> None:
        """Make a secret group, or bring the one of this name in line; safe to repeat."""
        await self.api.call("put secret", "PUT", f"{self._project}/secrets", json=body, repeat=True)

    async def delete_secret(self, secret: str) -> None:
        """Remove a secret group; absence is success."""
        await _absent(self.api.call("delete secret", "DELETE", f"{self._project}/secrets/{secret}", kind="stop"))

    async def secrets(self) -> tuple[list[Named], bool]:
        """Return all secret groups of the project, and whether the listing is complete."""
        pages, complete = await self._pages("list secrets", f"{self._project}/secrets", Secrets, "stop")
        return [secret for page in pages for secret in page.secrets], complete

    async def add_credential(self, body: Mapping[str, Any]) -> None:
        """Keep a registry credential for the account; Conflict when there is one of this name."""
        path = f"{self._root}/integrations/registries"
        # Repeated after an unknown outcome it says Conflict, which its caller answers by an update.
        await self.api.call("add credential", "POST", path, json=body, repeat=True)

    async def update_credential(self, credential: str, body: Mapping[str, Any]) -> None:
        """Change a registry credential; safe to repeat."""
        path = f"{self._root}/integrations/registries/{credential}"
        await self.api.call("update credential", "PATCH", path, json=body, repeat=True)

    async def delete_credential(self, credential: str) -> None:
        """Remove a registry credential; absence is success. Rejected where it is still in use."""
        path = f"{self._root}/integrations/registries/{credential}"
        await _absent(self.api.call("delete credential", "DELETE", path, kind="stop"))

    # ------------------------------------------------------------------------------------------------- logs

    async def logs(self, kind: str, owner: str, limit: int, *, run: str | None = None) -> list[LogLine]:
        """Return the last lines of ``jobs`` or ``services`` (``kind``), oldest first; empty when it isn't there."""
        since = datetime.fromtimestamp(time.time(), UTC) - timedelta(days=_LOG_DAYS)
        params: dict[str, str | int] = {
            "queryType": "range",
            "startTime": since.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lineLimit": limit,
            "direction": "backward",
        }
        if run:
            params["runId"] = run
        path = f"{self._project}/{kind}/{owner}/logs"
        answer = await _found(self.api.call("logs", "GET", path, params=params))
        lines = [_line(answer, entry) for entry in _entries(answer.content)] if answer else []
        return sorted(lines, key=lambda line: line.at)[-limit:]


async def _found(call: Awaitable[Answer]) -> Answer | None:
    try:
        return await call
    except Missing:
        return None


async def _absent(call: Awaitable[Answer], *fine: type[PlatformError]) -> None:
    try:
        await call
    except PlatformError as e:
        if not isinstance(e, (Missing, *fine)):
            raise


def _entries(content: Any) -> list[Any]:
    """Find the lines in an envelope that has been seen in three forms: ``data``, ``data.logs`` and ``data.data``."""
    while isinstance(content, dict):
        content = next((content[key] for key in ("data", "logs") if key in content), [])
    return content if isinstance(content, list) else []


def _line(answer: Answer, entry: Any) -> LogLine:
    try:
        at = datetime.fromisoformat(entry["ts"])
        said = entry["log"]
    except (KeyError, TypeError, ValueError):
        raise Transient(NAME, answer.operation, "a log line can't be read", answer.request_id) from None
    text = said if isinstance(said, str) else json.dumps(said)
    stderr = text.startswith(("stderr F ", "stderr P "))
    for prefix in ("stdout F ", "stderr F ", "stdout P ", "stderr P "):
        text = text.removeprefix(prefix)
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return LogLine(at=at, text=text.rstrip("\n"), stream="stderr" if stderr else "stdout")

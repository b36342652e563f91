"""Fly's wire: one method per request, nothing decided here (fly.md; the paths are those of the official contract)."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import httpx

from app.platforms.base import Transient
from app.platforms.budget import Allowance, Budget, Limit, in_memory
from app.platforms.failures import Missing
from app.platforms.fly.answers import App, Apps, Ip, Ips, Logs, Machine, OrgMachines, Secrets
from app.platforms.fly.errors import RanOut, classify
from app.platforms.http import JsonApi, Params
from app.settings import FlySettings

NAME = "fly"
WAIT_SECONDS = 60
"""The longest that one wait may be asked for; more is refused."""
_PAGE = 500
_MAX_PAGES = 200
_MACAROONS = ("fm1r_", "fm1a_", "fm2_")


def bare(token: str) -> str:
    """Return a token without the scheme word that ``fly tokens create`` prints before it."""
    word, _, rest = token.strip().partition(" ")
    return rest.strip() if rest and word.lower() in {"flyv1", "bearer"} else token.strip()


def authorization(token: str) -> str:
    """Return the header for a token: macaroons have a scheme of their own (fly.md §1 Token handling)."""
    token = bare(token)
    return f"{'FlyV1' if token.startswith(_MACAROONS) else 'Bearer'} {token}"


def allowance(account: str) -> Allowance:
    """Return Fly's limits: per action and object 1/s, burst 3; for a look at a machine 5/s, burst 10 (fly.md §1)."""

    def limit(operation: str) -> Limit:
        per_second, burst = (5, 10) if operation == "get machine" else (1, 3)
        return Limit(limit=per_second, window=1, burst=burst, remaining="", reset="")

    return Allowance(platform=NAME, account=account, limit=limit, per_object=True)


def budget() -> Budget:
    """Return a budget of this process alone."""
    return in_memory(allowance(""))


class FlyClient:
    """One organization. Close it with ``aclose``."""

    def __init__(
        self,
        settings: FlySettings,
        *,
        budget: Budget,
        timeout: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        headers = {"Authorization": authorization(settings.token.get_secret_value())}
        waits = httpx.Timeout(timeout, connect=min(10.0, timeout))

        def api(url: str, *, budget: Budget | None) -> JsonApi:
            return JsonApi(
                NAME,
                url,
                headers=headers,
                classify=classify,
                budget=budget,
                request_id="fly-request-id",
                timeout=waits,
                transport=transport,
                sleep=sleep,
            )

        self.org = settings.org
        self.api = api(settings.api_url, budget=budget)
        self._logs = api(settings.logs_url, budget=None)
        self._clock = clock

    async def aclose(self) -> None:
        """Close all connections."""
        await self.api.aclose()
        await self._logs.aclose()

    # ------------------------------------------------------------------------------------------------- apps

    async def create_app(self, name: str, network: str) -> None:
        """Make an app; safe to repeat under its own name."""
        body = {"name": name, "org_slug": self.org, "network": network, "idempotency_key": name}
        await self.api.call("create app", "POST", "/v1/apps", json=body, repeat=True, key=name)

    async def get_app(self, name: str) -> App:
        """Return an app; Missing, or Forbidden when it is somebody else's."""
        return (await self.api.call("get app", "GET", f"/v1/apps/{name}", key=name)).read(App)

    async def delete_app(self, name: str) -> None:
        """Remove an app with its machines, addresses and secrets."""
        await self.api.call("delete app", "DELETE", f"/v1/apps/{name}", params={"force": True}, kind="stop", key=name)

    async def apps(self) -> AsyncIterator[App]:
        """Yield all apps of the organization."""
        cursor: str | None = None
        for _ in range(_MAX_PAGES):
            params: dict[str, Any] = {"org_slug": self.org, "limit": _PAGE} | ({"cursor": cursor} if cursor else {})
            page = (await self.api.call("list apps", "GET", "/v1/apps", params=params, kind="poll")).read(Apps)
            for app in page.apps:
                yield app
            cursor = page.next_cursor
            if not cursor:
                return
        raise Transient(NAME, "list apps", "the pages have no end")

    async def ips(self, app: str) -> list[Ip]:
        """Return an app's addresses."""
        return (await self.api.call("list ips", "GET", f"/v1/apps/{app}/ip_assignments", key=app)).read(Ips).ips

    async def assign_ip(self, app: str, kind: str) -> None:
        """Give an app an address: ``shared_v4`` or ``v6``."""
        await self.api.call("assign ip", "POST", f"/v1/apps/{app}/ip_assignments", json={"type": kind}, key=app)

    async def secrets(self, app: str) -> Secrets:
        """Return the names of an app's secrets."""
        return (await self.api.call("list secrets", "GET", f"/v1/apps/{app}/secrets", key=app)).read(Secrets)

    async def set_secrets(self, app: str, values: Mapping[str, str | None]) -> Secrets:
        """Set secrets, or remove those that are None; the answer has the version to wait for. Repeating does no harm."""
        body = {"values": dict(values)}
        answer = await self.api.call("set secrets", "POST", f"/v1/apps/{app}/secrets", json=body, repeat=True, key=app)
        return answer.read(Secrets)

    # ------------------------------------------------------------------------------------------------- machines

    async def machines(self, app: str, metadata: Mapping[str, str], *, include_deleted: bool = False) -> list[Machine]:
        """Return an app's machines with this metadata; an app that isn't there has none."""
        params: dict[str, Any] = {f"metadata.{k}": v for k, v in metadata.items()} | {"limit": _PAGE}
        params |= {"include_deleted": True} if include_deleted else {}
        found: list[Machine] = []
        for _ in range(_MAX_PAGES):
            try:
                answer = await self.api.call("list machines", "GET", f"/v1/apps/{app}/machines", params=params, key=app)
            except Missing:
                return []
            found += answer.read(list[Machine])
            # A page can be short or empty while more remain: only the header tells.
            cursor = answer.headers.get("fly-next-cursor")
            if not cursor:
                return found
            params["cursor"] = cursor
        raise Transient(NAME, "list machines", "the pages have no end")

    async def create_machine(self, app: str, body: Mapping[str, Any]) -> Machine:
        """Make and start a machine. Not safe to repeat blindly: look it up by its metadata first."""
        answer = await self.api.call("create machine", "POST", f"/v1/apps/{app}/machines", json=body, key=app)
        return answer.read(Machine)

    async def get_machine(self, app: str, machine: str) -> Machine:
        """Return a machine with its events and checks."""
        answer = await self.api.call("get machine", "GET", f"/v1/apps/{app}/machines/{machine}", key=machine)
        return answer.read(Machine)

    async def delete_machine(self, app: str, machine: str) -> None:
        """Kill and remove a machine, whatever it is doing."""
        await self.api.call(
            "delete machine",
            "DELETE",
            f"/v1/apps/{app}/machines/{machine}",
            params={"force": True},
            kind="stop",
            key=machine,
        )

    async def act(self, app: str, machine: str, verb: str, body: Mapping[str, Any] | None = None) -> None:
        """``start``, ``stop`` (whose body must be an object), ``cordon`` or ``uncordon``; all safe to repeat."""
        path = f"/v1/apps/{app}/machines/{machine}/{verb}"
        kind = "stop" if verb == "stop" else "call"
        await self.api.call(verb, "POST", path, json=body, repeat=True, kind=kind, key=machine)  # type: ignore[arg-type]

    async def wait(self, app: str, machine: str, states: str, seconds: float) -> bool:
        """Wait for one of these comma separated states in rounds that Fly allows; False when ``seconds`` were not enough."""
        end = self._clock() + seconds
        while (left := end - self._clock()) > 0:
            # Whole seconds, at least one; the read time-out has to be longer than the wait itself.
            round_seconds = max(1, min(WAIT_SECONDS, int(left)))
            params: Params = {"state": states, "timeout": round_seconds}
            path = f"/v1/apps/{app}/machines/{machine}/wait"
            try:
                await self.api.call(
                    "wait", "GET", path, params=params, repeat=False, timeout=round_seconds + 15, key=machine
                )
            except RanOut:
                continue
            return True
        return False

    async def org_machines(self) -> tuple[list[Machine], bool]:
        """Return all machines of the organization, and whether every region answered."""
        found: list[Machine] = []
        complete, cursor = True, None
        for _ in range(_MAX_PAGES):
            params: dict[str, Any] = {"limit": _PAGE} | ({"cursor": cursor} if cursor else {})
            path = f"/v1/orgs/{self.org}/machines"
            page = (await self.api.call("list org machines", "GET", path, params=params, kind="poll")).read(OrgMachines)
            found += page.machines
            complete = complete and not page.error_regions
            cursor = page.next_cursor
            if not cursor:
                return found, complete
        return found, False

    async def logs(self, app: str, machine: str) -> Logs:
        """Return the newest lines of a machine, about 100; an interface without a promise (fly.md §4 Logs)."""
        answer = await self._logs.call("logs", "GET", f"/api/v1/apps/{app}/logs", params={"instance": machine})
        return answer.read(Logs)

"""The one agent that a check builds and runs: each step looks at how far it has come, from outside."""

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from app.checkup.client import Client, Json, ask, until
from app.checkup.report import Stuck, Trouble, because, operator
from app.demo import examples
from app.demo.client import inline
from app.ids import remote_name
from app.lifecycle import Owner, Reason
from app.platforms.base import Phase, Platform, ServiceRef, Traits


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How many seconds each thing may take."""

    launch: float = 300.0
    callback: float = 180.0
    build: float = 600.0
    service: float = 600.0
    sleep: float = 1500.0
    """Platforms that let services sleep by themselves take 5 to 15 minutes."""
    wake: float = 120.0
    gone: float = 180.0


class Trial:
    """The agent's way, step by step. ``public`` is where builders call us; ``platform`` is there once we could log in."""

    def __init__(self, name: str, traits: Traits, client: Client, public: str, patience: Patience) -> None:
        self.name, self.traits, self.client = name, traits, client
        self.platform: Platform | None = None
        self._public, self._patience = public, patience
        self._service = f"slipway-check-{secrets.token_hex(3)}"
        self._build: Json = {}
        self._answer: Json = {}
        self._service_id = ""
        self._sent: asyncio.Task[Json] | None = None

    async def builder(self) -> str:
        """A builder is launched: the token may create machines."""
        body = {
            "source": inline(examples() / "echo-agent"),
            "build": {"cache": False},
            "platform": self.name,
            "builder": {"platform": self.name, "cpus": 1, "memory_mb": 1024, "fallback": []},
            "service": {"name": self._service, "scale": {"min": 0, "idle_seconds": self.traits.min_idle_seconds}},
            "strict": False,
            "labels": {"from": "slipway check"},
        }
        # Whoever is interrupted here still has to learn what was made.
        self._sent = asyncio.create_task(self.client.call("POST", "/v1/builds", json=body))
        self._build = await asyncio.shield(self._sent)
        try:
            run = await self._until(lambda b: _run(b, "launched_at") or _run(b, "claimed_at"), self._patience.launch)
        except Stuck as e:
            if e.seen.startswith(Reason.PLATFORM_MISCONFIGURED):
                e.advice = "The token may list but not launch: give it the right to create and delete machines."
            raise
        return f"{run['name']} was launched" + (f" in {run['region']}" if run["region"] else "")

    async def callback(self) -> str:
        """The builder reached us at our public address, with the token of its run."""
        try:
            await self._until(lambda b: _run(b, "claimed_at"), self._patience.callback)
        except Stuck as e:
            from_here = await self._from_here()
            e.seen = f"a builder ran and did not reach {self._public}; from here {from_here} ({e.seen})"
            e.owner, e.advice = Owner.OPERATOR, "Let SLIPWAY_PUBLIC_URL lead to this Slipway from anywhere, by https."
            raise
        return f"the builder called {self._public} from the inside"

    async def _from_here(self) -> str:
        try:
            async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
                return f"it answers {(await client.get(f'{self._public}/healthz')).status_code}"
        except httpx.HTTPError as e:
            return f"nobody answers there ({str(e) or type(e).__name__})"

    async def push(self) -> str:
        """The builder compiled the agent and pushed its image, and we read the image back."""
        artifact = await self._until(lambda b: b["artifact"], self._patience.build)
        return f"built and pushed {artifact['digest'][:19]}…, {artifact['size_bytes']:,} bytes"

    async def service(self) -> str:
        """The platform pulled the image and runs it, and the service answers at its public address."""
        url = await self._until(lambda b: b["url"] if b["status"] == "succeeded" else None, self._patience.service)
        self._service_id = (await self.client.call("GET", f"/v1/services/{self._service}"))["id"]
        self._answer = await self._asked(self._patience.wake)
        digest = self._build["artifact"]["digest"]
        if self._answer.get("digest") not in {digest, None, ""}:
            raise Trouble(
                f"{url} answers for {self._answer.get('digest')}", Owner.US, "Report this: another image runs."
            )
        return f"{url} answers"

    # --------------------------------------------------------------------------------------------- scale to zero

    async def sleep(self) -> str:
        """Nobody calls, and the service goes to zero by itself."""
        begun = time.monotonic()

        async def asleep() -> bool | None:
            if self.traits.scale_to_zero == "manual":
                return (await self.client.call("GET", f"/v1/services/{self._service}"))["status"] == "asleep" or None
            assert self.platform is not None
            assert self.platform.services is not None
            return (await self.platform.services.inspect(self._ref())).phase is Phase.ASLEEP or None

        late = f"it did not sleep within {self._patience.sleep:.0f} s without a request"
        advice = "See whether something calls it: health checks of others, a crawler, an open connection."
        await until(asleep, self._patience.sleep, lambda: Trouble(late, Owner.PLATFORM, advice))
        return f"asleep after {time.monotonic() - begun:.0f} s without a request"

    async def wake(self) -> str:
        """A request wakes it: another instance answers."""
        begun = time.monotonic()
        answer = await self._asked(self._patience.wake)
        if answer["instance"] == self._answer["instance"]:
            raise Trouble("the instance that was asleep answered", Owner.US, "Report this: it had not been stopped.")
        return f"a request woke it; a new instance answered after {(time.monotonic() - begun) * 1000:.0f} ms"

    async def _asked(self, seconds: float) -> Json:
        said = ""

        async def answered() -> Json | None:
            nonlocal said
            try:
                return await ask(self._build["url"])
            except httpx.HTTPError as e:
                said = str(e) or type(e).__name__
                return None

        advice = "Let the address lead to the platform, or to our gateway: SLIPWAY_GATEWAY_DOMAIN and its DNS."
        return await until(answered, seconds, lambda: operator(f"{self._build['url']} does not answer: {said}", advice))

    def _ref(self) -> ServiceRef:
        """Return the release as the platform knows it."""
        return ServiceRef(
            service=self._remote_name(self._service_id), release=self._remote_name(self._build["release_id"])
        )

    def _remote_name(self, row_id: str) -> str:
        return remote_name(str(self._build["runs"][0]["name"]).split("-")[1], row_id)

    # --------------------------------------------------------------------------------------------- the end

    @property
    def begun(self) -> bool:
        """Whether anything may be there to clean up."""
        return self._sent is not None

    async def clean_up(self) -> str:
        """Nothing of it is left: neither with us nor on the platform."""
        assert self._sent is not None
        self._build = self._build or await self._sent
        await self.client.call("POST", f"/v1/builds/{self._build['id']}/cancel", absent=True)
        await self.client.call("DELETE", f"/v1/services/{self._service}", absent=True)
        left = ""

        async def gone() -> bool | None:
            nonlocal left
            self._build = await self.client.call("GET", f"/v1/builds/{self._build['id']}")
            service = await self.client.call("GET", f"/v1/services/{self._service}", absent=True)
            left = ", ".join([*([self._service] if service else []), *await self._remote()])
            return not left or None

        advice = "Wait for the sweep, or remove them by hand: all are named slp-<installation>-…."
        await until(gone, self._patience.gone, lambda: Trouble(f"still there: {left}", Owner.PLATFORM, advice))
        return "builder and service are gone"

    async def _remote(self) -> list[str]:
        """Return what the platform still lists of the build."""
        if self.platform is None or not self._build["runs"]:
            return []
        names = {run["name"] for run in self._build["runs"]}
        names |= {self._remote_name(i) for i in (self._service_id, self._build["release_id"]) if i}
        installation, found = next(iter(names)).split("-")[1], list[str]()
        for part in (self.platform.builders, self.platform.services):
            if part is not None:
                listing = await part.list_ours(installation)
                found += [i.ref.name for i in listing.items if i.ref.name in names]
                found += [] if listing.complete else ["what an incomplete listing does not show"]
        return found

    async def _until(self, look: Callable[[Json], Any], seconds: float) -> Any:
        """Look at the build until there is what ``look`` wants; the first thing that goes wrong with it is trouble."""

        async def once() -> Any:
            self._build = build = await self.client.call("GET", f"/v1/builds/{self._build['id']}")
            # First of all what was tried in vain: the build may have gone on to another platform.
            if wrong := next(iter(build["tried"]), None) or build["failure"]:
                raise because(wrong["reason"], wrong["message"])
            return look(build) or None

        advice = "See the log of the running Slipway, and the builder's by GET /v1/builds/{id}/logs."
        return await until(
            once,
            seconds,
            lambda: Stuck(f"it is still {self._build['status']} after {seconds:.0f} s", Owner.US, advice),
        )


def _run(build: Json, mark: str) -> Json | None:
    return next((run for run in reversed(build["runs"]) if run[mark]), None)

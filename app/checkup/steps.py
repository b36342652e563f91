"""The order of a check's steps, how each is judged, and those that come before anything is made."""

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from pydantic import BaseModel

from app.checkup.client import Client
from app.checkup.report import CODES, NOT_CONFIGURED, Report, Step, Trouble, operator
from app.checkup.trial import Patience, Trial
from app.images.client import Registry
from app.images.errors import RegistryDenied, RegistryError
from app.lifecycle import Owner
from app.platforms import catalog
from app.platforms.base import Misconfigured, Platform, PlatformError
from app.settings import Settings

Opened = Callable[[Settings], AbstractAsyncContextManager[Platform]]


def imitated(settings: Settings, name: str) -> bool:
    """Tell whether the settings lead to something else than the platform's own API."""
    own: BaseModel | None = getattr(settings, name)
    field = type(own).model_fields.get("api_url") if own else None
    return field is not None and getattr(own, "api_url", None) != field.default


class Checkup:
    """One check. ``say`` is told of each step as it ends; ``opened`` opens the platform with its own credentials.

    A step returns what it saw, or raises Trouble, or the platform's own error, when it did not see what it is about.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        client: Client,
        *,
        say: Callable[[Step], None] = lambda _: None,
        opened: Opened | None = None,
        patience: Patience | None = None,
        quick: bool = False,
    ) -> None:
        self.name, self.settings, self.client = name, settings, client
        self.traits = catalog.entries(settings)[name].traits
        self.steps: list[Step] = []
        self.imitated = imitated(settings, name)
        self._say, self._quick = say, quick
        self._opened = opened or (catalog.REMOTE[name].opened if name in catalog.REMOTE else None)
        self._stack = AsyncExitStack()
        self._code = 0
        public = (settings.public_url if self.traits.remote else None) or client.url
        self.trial = Trial(name, self.traits, client, public, patience or Patience())

    async def run(self) -> Report:
        """Take all steps, up to the first that fails; what was made is removed in any case, also when canceled."""
        trial = self.trial
        steps = [
            self.configured,
            self.credentials,
            self.registry,
            trial.builder,
            trial.callback,
            trial.push,
            trial.service,
        ]
        steps += [] if self._quick else [trial.sleep, trial.wake]
        async with self._stack:
            try:
                for step in steps:
                    if not await self._take(step.__name__, step):
                        break
            finally:
                if trial.begun:
                    await self._take("clean-up", trial.clean_up)
        return Report(platform=self.name, imitated=self.imitated, steps=tuple(self.steps), code=self._code)

    async def _take(self, name: str, act: Callable[[], Awaitable[str]]) -> bool:
        begun = time.monotonic()
        try:
            seen, trouble = await act(), None
        except Trouble as e:
            seen, trouble = e.seen, e
        except Misconfigured as e:
            variables = f"SLIPWAY_{self.name.upper()}__…"
            seen, trouble = str(e), operator(str(e), f"Correct {variables}: the platform refused what is set there.")
        except PlatformError as e:
            seen, trouble = str(e), Trouble(str(e), Owner.PLATFORM, "Try again later; its status page may say more.")
        if trouble is not None and not self._code:
            self._code = trouble.code or CODES[trouble.owner]
        step = Step(
            name=name,
            ok=trouble is None,
            seconds=round(time.monotonic() - begun, 2),
            seen=seen,
            owner=trouble.owner if trouble else None,
            advice=trouble.advice if trouble else None,
        )
        self.steps.append(step)
        self._say(step)
        return step.ok

    async def configured(self) -> str:
        """The settings are there, here and in the running Slipway."""
        entry = catalog.entries(self.settings)[self.name]
        lacks = list(entry.missing)
        if self.traits.remote:
            lacks += [] if self.settings.public_url else ["SLIPWAY_PUBLIC_URL"]
            lacks += [] if self.settings.builder_image else ["SLIPWAY_BUILDER_IMAGE"]
        if lacks:
            raise operator(
                f"not set: {', '.join(lacks)}", "Set them; docs/settings.md says what each is.", NOT_CONFIGURED
            )
        listed = (await self.client.call("GET", "/v1/platforms"))["items"]
        theirs = next((p for p in listed if p["name"] == self.name and p["configured"]), None)
        if theirs is None:
            text = f"the Slipway at {self.client.url} does not offer {self.name}"
            raise operator(text, "Start it again with the settings that are set here.", NOT_CONFIGURED)
        self.imitated = self.imitated or theirs["imitated"]
        return f"everything is set, and the Slipway at {self.client.url} offers it"

    async def credentials(self) -> str:
        """The platform takes our token and lets us list what is there."""
        if self._opened is None:
            return "this machine needs none"
        platform = self.trial.platform = await self._stack.enter_async_context(self._opened(self.settings))
        for part in (platform.builders, platform.services):
            if part is not None:
                await part.list_ours("000000")
        return "the token is good, and may list builders and services"

    async def registry(self) -> str:
        """The registry takes the operator's credential; builders are given a smaller one made of it."""
        settings = self.settings
        if settings.registry is None:
            return "the embedded one"
        secret = settings.registry_password.get_secret_value() if settings.registry_password else None
        repository = f"{settings.registry_repository}/check"
        async with Registry(settings.registry, username=settings.registry_username, password=secret) as registry:
            try:
                await registry.token(repository, "pull", "push")
                await registry.head_manifest(repository, "check")
            except RegistryDenied as e:
                names = "SLIPWAY_REGISTRY_USERNAME and SLIPWAY_REGISTRY_PASSWORD"
                raise operator(f"the registry refused us: {e}", f"Correct {names}, or what they may do there.") from e
            except RegistryError as e:
                raise operator(f"the registry does not answer: {e}", "Correct SLIPWAY_REGISTRY, or bring it up.") from e
        return f"{settings.registry} takes the credential"

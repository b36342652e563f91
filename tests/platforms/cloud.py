"""The contract suite on a cloud platform: on its imitation, or with ``--live NAME`` on a real account.

A platform's test subclasses ``Cloud`` beside each half of the contract and names its ``support`` module. Live, the settings
are those of the environment and nothing is made quick; all else is the same, down to the program that runs: ``agent.go`` in a
registry, which on a real account is ``SLIPWAY_REGISTRY``, in a repository that the platform may pull builder images from.
"""
# Over 250 lines: what the clouds' tests share, most of it one class of fixtures.

import asyncio
import contextlib
import dataclasses
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import httpx
import pytest

from app.images.client import Registry
from app.images.copy import copy
from app.images.source import Disk
from app.platforms import catalog
from app.platforms.address import request_for
from app.platforms.base import (
    Address,
    BuilderSpec,
    ImageRef,
    Inspection,
    Listing,
    Platform,
    Ref,
    ServiceRef,
    ServiceSpec,
    Size,
)
from app.settings import Settings
from tests.images.support import registry
from tests.platforms.contract import INSTALLATION, Restart, given, name, soon, until
from tests.support.agents import Toolbox, layer_of, push

BUILDER_IMAGE = f"ghcr.io/acme/builder@sha256:{'b' * 64}"
#: Stands in for the builder program: runs the Python that its orders hold.
PROGRAM = (sys.executable, "-B", "-u", "-c", "import os; exec(os.environ['SCRIPT'])")
STAYS = "print('hello', flush=True)\nimport time\ntime.sleep(600)"
LIVE_SECONDS = 300.0
TEST_SECONDS = 1800
#: What a live run needs besides what its platform misses.
REGISTRY = ("SLIPWAY_REGISTRY", "SLIPWAY_REGISTRY_USERNAME", "SLIPWAY_REGISTRY_PASSWORD")


class Naps:
    """Our platform's sleep and its clock, which only naps move on; it really waits a hundredth, so that others get on."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def now(self) -> float:
        return sum(self.asked)

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        await asyncio.sleep(min(seconds, 2.0) / 100)


def builder_spec(script: str = STAYS, env: Mapping[str, str] | None = None, **changes: Any) -> BuilderSpec:
    """Return a builder; ``script`` is what ``PROGRAM`` runs."""
    values: dict[str, Any] = {
        "name": name("run"),
        "env": {"SCRIPT": script, "SLIPWAY_RUN_TOKEN": "slr.token", **(env or {})},
        "image": BUILDER_IMAGE,
        "size": Size(cpus=1, memory_mb=1024),
        "deadline": soon(),
        "metadata": {"build": "bld_1"},
    }
    return BuilderSpec(**(values | changes))


def service_spec(image: ImageRef, **changes: Any) -> ServiceSpec:
    """Return a release of a service that nobody has had."""
    values: dict[str, Any] = {
        "service": name("svc"),
        "release": name("rel"),
        "image": image,
        "port": 8080,
        "health_path": "/",
        "env": {},
        "secrets": {},
        "size": Size(cpus=1, memory_mb=256),
    }
    return ServiceSpec(**(values | changes))


@dataclass(frozen=True)
class Stored:
    """A registry's folder with the agent's image in it: packing it takes longer than most tests."""

    root: Path
    image: ImageRef

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncGenerator[ImageRef, None]:
        """Serve the registry, and give the image as it is there."""
        async with registry(self.root) as place:
            yield dataclasses.replace(self.image, registry=place.url)


def stored(root: Path, toolbox: Toolbox) -> Stored:
    """Push the agent's image once."""

    async def pushed() -> ImageRef:
        async with registry(root) as place:
            return await push(place, layer_of({"app/agent": toolbox.agent.read_bytes()}))

    return Stored(root, asyncio.run(pushed()))


class Support(Protocol):
    """What a platform's ``*_support`` module gives."""

    def imitation(self, folder: Path, **options: Any) -> AbstractAsyncContextManager[Any]:
        """Serve an imitation; violations of its contract fail the test that made them."""

    def settings(self, place: Any, **changes: Any) -> Settings:
        """Return the settings that lead to an imitation."""

    def opened(self, settings: Settings, /) -> AbstractAsyncContextManager[Platform]:
        """Open our platform with its waits made short."""


Open = Callable[[Settings], AbstractAsyncContextManager[Platform]]


@dataclass
class Account:
    """Where the tests run: the platform now in use, how to open another on it, and its imitation unless it is real."""

    settings: Settings
    opened: Open
    imitation: Any
    image: ImageRef
    stack: contextlib.AsyncExitStack
    platform: Platform

    async def restart(self) -> Platform:
        self.platform = await self.stack.enter_async_context(self.opened(self.settings))
        return self.platform


def missing(platform: str) -> list[str]:
    """Return what to set before a live run on a platform; UsageError when there is no such."""
    if platform not in catalog.REMOTE:
        raise pytest.UsageError(f"--live takes one of {', '.join(catalog.REMOTE)}, not {platform}")
    settings = Settings()
    lacks = catalog.REMOTE[platform].missing(settings)
    return [*lacks, *(v for v in REGISTRY if not getattr(settings, v.removeprefix("SLIPWAY_").lower()))]


class Cloud:
    """Fixtures of the contract for a platform on other machines."""

    name: ClassVar[str]
    support: ClassVar[Support]
    instance: ClassVar[str]
    """The variable by which the platform tells a program which instance it is."""
    size: ClassVar[Size] = Size(cpus=1, memory_mb=256)

    account: Account
    seconds = 20.0

    def settings(self, imitation: Any, image: ImageRef, test: str) -> Settings:
        """Return the settings for a test on the imitation."""
        return self.support.settings(imitation)

    def named(self, image: ImageRef) -> str:
        """Return how an image of the tests' registry is written for this platform."""
        return image.reference

    def machines(self, imitation: Any, name: str) -> int:
        """Return how many machines the imitation started for a builder."""
        raise NotImplementedError

    @pytest.fixture
    async def image(self, request: pytest.FixtureRequest, stored: Stored) -> AsyncGenerator[ImageRef, None]:
        if not request.config.getoption("live"):
            async with stored.served() as served:
                yield served
            return
        settings = Settings()
        assert settings.registry
        assert settings.registry_password
        login: dict[str, Any] = {"username": settings.registry_username}
        login["password"] = settings.registry_password.get_secret_value()
        repository = f"{settings.registry_repository}/contract"
        async with Registry(settings.registry, **login) as outside:
            await copy(Disk(stored.root), stored.image.repository, stored.image.digest, outside, repository)
        where = settings.registry_public or settings.registry
        yield ImageRef(registry=where, repository=repository, digest=stored.image.digest, **login)

    @pytest.fixture
    async def platform(
        self, request: pytest.FixtureRequest, image: ImageRef, toolbox: Toolbox, tmp_path: Path
    ) -> AsyncGenerator[Platform, None]:
        async with contextlib.AsyncExitStack() as stack:
            imitation, settings = None, Settings()
            opened: Open = catalog.REMOTE[self.name].opened
            if request.config.getoption("live"):
                type(self).seconds = LIVE_SECONDS
            else:
                options = {"builder": (str(toolbox.agent),), "builder_image": self.named(image)}
                imitation = await stack.enter_async_context(self.support.imitation(tmp_path / self.name, **options))
                opened, settings = self.support.opened, self.settings(imitation, image, request.node.name)
            platform, before = await stack.enter_async_context(opened(settings)), len(given)
            self.account = Account(settings, opened, imitation, image, stack, platform)
            try:
                yield platform
            finally:
                await cleared(self.account.platform, given[before:])

    @pytest.fixture
    def restart(self, platform: Platform) -> Restart:
        return self.account.restart

    @pytest.fixture
    def builder_spec(self, platform: Platform, image: ImageRef) -> BuilderSpec:
        return self.builder("stays")

    @pytest.fixture
    def ending_spec(self, platform: Platform, image: ImageRef) -> BuilderSpec:
        return self.builder("ends")

    @pytest.fixture
    def service_spec(self, platform: Platform, image: ImageRef) -> ServiceSpec:
        # The program listens where only this machine can reach it, unless it has to be reached from elsewhere.
        env = {} if self.account.imitation else {"LISTEN": "0.0.0.0"}
        return service_spec(image, size=self.size, env=env)

    def builder(self, mode: str) -> BuilderSpec:
        return builder_spec(image=self.named(self.account.image), env={"MODE": mode})

    async def starts(self, spec: BuilderSpec) -> int:
        builders = self.account.platform.builders
        assert builders is not None

        async def whole() -> Listing | None:
            listing = await builders.list_ours(INSTALLATION)
            return listing if listing.complete else None

        listing = await until(whole, self.seconds)
        assert listing is not None
        listed = sum(item.ref.name == spec.name for item in listing.items)
        return max(listed, self.machines(self.account.imitation, spec.name) if self.account.imitation else 0)

    async def get(self, address: Address, path: str) -> str:
        return await get(address, path)

    async def idled(self) -> bool:
        imitation = self.account.imitation
        if imitation is not None and self.account.platform.traits.scale_to_zero == "automatic":
            await imitation.idle_pass()
        return imitation is not None

    async def ask(self, seen: Inspection) -> str:
        """Return the instance that answers, by what the platform tells its program."""
        assert seen.address is not None
        return await self.get(seen.address, f"/env?name={self.instance}")


async def get(address: Address, path: str) -> str:
    """Send a request as our gateway does; where the edge has nobody to send it to, nobody is there."""
    url, headers = request_for(address.url)
    async with httpx.AsyncClient(timeout=15, headers=headers) as client:
        answer = await client.get(url + path)
    if answer.status_code in {404, 502, 503, 504}:
        raise httpx.ConnectError(f"the edge says {answer.status_code}")
    return answer.text


async def cleared(platform: Platform, names: list[str]) -> None:
    """Remove all that may have been made under these names, and see that nothing is listed any more."""
    builders, services = platform.builders, platform.services
    assert builders is not None
    assert services is not None
    for one in names:
        if "-run-" in one:
            await builders.stop(Ref(name=one))
        elif "-svc-" in one:
            await services.delete(ServiceRef(service=one, release=""))
    assert (await builders.list_ours(INSTALLATION)).items == ()
    assert (await services.list_ours(INSTALLATION)).items == ()

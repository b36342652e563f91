"""``slipway serve --imitate fly,koyeb``: platforms without an account, each one's stand-in on a loopback port of this machine.

Settings that lead to a stand-in are all that differs: the platform's own code speaks to it as it would to the real one. What is
on a stand-in lives as long as this process, and runs without a sandbox: it is for one's own machine and one's own programs.
"""

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from app.ground import SetupError
from app.imitations import fly, koyeb, northflank, railway
from app.imitations.base import Imitation
from app.imitations.programs import end_left_over
from app.platforms.local import seed, toolchain
from app.settings import FlySettings, KoyebSettings, NorthflankSettings, RailwaySettings, Settings

BUILDER_IMAGE = f"builder.imitation.test/slipway/builder@sha256:{'0' * 64}"
"""What stands for the builder image: a stand-in that is told to run it runs the builder program of this installation."""
REGISTRY_HOST = "registry.imitation.test"
"""Our registry as Northflank's images are named: a host with a dot and without a port."""


@contextlib.asynccontextmanager
async def imitated(settings: Settings) -> AsyncIterator[tuple[Settings, Mapping[str, Imitation]]]:
    """Run the stand-ins of ``settings.imitate`` and give the settings that lead to them; SetupError for one that can't be."""
    names = settings.imitate
    if not names:
        yield settings, {}
        return
    for name in names:
        if getattr(settings, name) is not None:
            raise SetupError(
                f"{name} is configured, so it can't be imitated: unset SLIPWAY_{name.upper()}__… or leave it out"
            )
    settings = reachable(settings)
    tools = toolchain.find(settings)
    folder = settings.home / "imitations"
    await asyncio.to_thread(_clear, folder, names)
    env = await asyncio.to_thread(_builder_env, settings, tools, folder)
    async with contextlib.AsyncExitStack() as stack:
        made = {
            name: await stack.enter_async_context(
                make(name, settings, folder / name, env, speed=settings.imitate_speed)
            )
            for name in names
        }
        yield settings.model_copy(update={name: lead_to(one) for name, one in made.items()}), made


def reachable(settings: Settings) -> Settings:
    """Return the settings with what remote platforms need, as far as it is not set: our own address, and a builder image."""
    public = settings.public_url or settings.api_url
    return settings.model_copy(update={"public_url": public, "builder_image": settings.builder_image or BUILDER_IMAGE})


def make(name: str, settings: Settings, folder: Path, env: Mapping[str, str], **options: Any) -> Imitation:
    """Return the stand-in of this name, not yet started. ``settings`` have been through ``reachable``."""
    values: dict[str, Any] = {
        "builder": (sys.executable, "-P", "-m", "builder"),
        "builder_env": env,
        "builder_image": settings.builder_image,
        "contracts": settings.contracts,
        **options,
    }
    images = settings.registry_public or settings.registry or settings.public_url
    assert images is not None
    if name == "fly":
        return fly.FlyImitation(folder, **values)
    if name == "koyeb":
        return koyeb.KoyebImitation(folder, **values)
    if name == "northflank":
        return northflank.NorthflankImitation(folder, registries={REGISTRY_HOST: images}, **values)
    return railway.RailwayImitation(folder, registries={urlsplit(images).netloc: images}, **values)


def lead_to(one: Imitation) -> FlySettings | KoyebSettings | NorthflankSettings | RailwaySettings:
    """Return the platform's settings under which its own code finds this stand-in."""
    match one:
        case fly.FlyImitation():
            return FlySettings(
                token=SecretStr(one.token), org=fly.ORG, api_url=one.url, logs_url=one.url, registry=one.url,
                service_url=one.service_url,
            )  # fmt: skip
        case koyeb.KoyebImitation():
            return KoyebSettings(enabled=True, token=SecretStr(one.token), api_url=one.url, service_url=one.service_url)
        case northflank.NorthflankImitation():
            return NorthflankSettings(
                token=SecretStr(one.token), project=northflank.PROJECT, api_url=one.url, registry=REGISTRY_HOST,
                service_url=one.service_url,
            )  # fmt: skip
        case railway.RailwayImitation():
            services, builders = one.projects.items()
            return RailwaySettings(
                token=SecretStr(one.token), project=services[0], environment=services[1],
                builders_project=builders[0], builders_environment=builders[1],
                api_url=one.api_url, service_url=one.service_url,
            )  # fmt: skip
        case _:
            raise TypeError(f"nothing is known of {one.name}")


def _clear(folder: Path, names: Sequence[str]) -> None:
    """Remove what earlier stand-ins left, on disk and, when they were killed, running; only the compiler's cache is kept."""
    for name in names:
        end_left_over(folder / name)
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)


def _builder_env(settings: Settings, tools: toolchain.Toolchain, folder: Path) -> dict[str, str]:
    """Return what is in the real builder image: Go, the program's libraries, and a build cache, which begins as the seed."""
    go, cache = tools.need_go("imitate"), folder / "gocache"
    seeded = settings.home / "local/seed" / seed.name(tools)
    if not cache.exists() and seeded.is_dir():
        draft = cache.with_name(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        seed.copy(seeded, draft, None)
        draft.rename(cache)
    cache.mkdir(exist_ok=True)
    path = f"{toolchain.package_folder('builder').parent}:{toolchain.site_folder()}"
    return {"SLIPWAY_GO": str(go / "bin/go"), "SLIPWAY_GOCACHE": str(cache), "PYTHONPATH": path}

"""Launch one builder in the first region that has room, and let the circuit breakers know."""

import asyncio
from dataclasses import dataclass, field
from functools import partial

from app import breaker, store, tracing
from app.builds import targets
from app.context import Context
from app.db import transaction
from app.lifecycle import Reason
from app.models import Build, Run
from app.platforms.base import (
    Builders,
    BuilderSpec,
    Launched,
    NoCapacity,
    Platform,
    RateLimited,
    Size,
    Transient,
    Unsupported,
)


@dataclass
class Launch:
    """A run to launch: where, what the breakers know of these regions, and the regions that turned out to be full."""

    run: Run
    regions: tuple[str, ...]
    seen: breaker.Seen
    full: list[targets.Note] = field(default_factory=list)


async def somewhere(
    context: Context, platform: Platform, builders: Builders, build: Build, launch: Launch, seconds: float
) -> Launched:
    """Launch it, within ``seconds`` in all; NoCapacity when no region has room, and anything else as it comes."""
    deadline, last = asyncio.get_running_loop().time() + seconds, None
    for region in launch.regions:
        try:
            with tracing.span("launch", platform=platform.name, region=region or None):
                async with asyncio.timeout_at(deadline):
                    launched = await builders.launch(_spec(context, builders, build, launch.run, region))
        except NoCapacity as e:
            last = e
            launch.full.append(targets.note(build, platform.name, region, Reason.NO_CAPACITY, e.message))
            await _trouble(context, platform, region, e)
        except (Transient, TimeoutError) as e:
            await _trouble(context, platform, region, e)
            raise
        else:
            if region in launch.seen.troubled and platform.traits.remote:
                await breaker.succeeded(context.sessions, platform.name, region, breaker.LAUNCH)
            return launched
    assert last is not None
    raise last


async def _trouble(context: Context, platform: Platform, region: str, error: Exception) -> None:
    """Tell the breaker; not of what runs on this machine, nor of a request budget that is used up, which has its own rule."""
    if platform.traits.remote and not isinstance(error, RateLimited):
        message = str(error) or "no answer in time"
        await breaker.failed(context.sessions, platform.name, region, breaker.LAUNCH, message)


def _spec(context: Context, builders: Builders, build: Build, run: Run, region: str) -> BuilderSpec:
    wish = build.spec["builder"]
    entry = context.catalog.entries[run.platform]
    size = Size(cpus=wish["cpus"], memory_mb=wish["memory_mb"])
    url = context.settings.public_url if entry.traits.remote else context.settings.api_url
    assert url is not None  # refused at submit
    try:
        size = builders.fit(size)
    except Unsupported:
        if build.spec.get("strict", True):
            raise
    return BuilderSpec(
        name=run.name,
        image=context.settings.builder_image,
        size=size,
        deadline=run.deadline_at,
        regions=(region,) if region else (),
        metadata={"build": build.id, "run": run.id, "project": build.project_id},
        env={
            "SLIPWAY_URL": url,
            "SLIPWAY_RUN_ID": run.id,
            "SLIPWAY_RUN_TOKEN": context.keyring.run_token(run.id, run.key_id),
            "SLIPWAY_RUN_DEADLINE": str(int(run.deadline_at.timestamp())),
            **({"TRACEPARENT": build.traceparent} if build.traceparent else {}),
        },
        progress=partial(_tell, context, run),
    )


async def _tell(context: Context, run: Run, words: str) -> None:
    """Tell whoever follows the build why its builder takes so long to start."""
    async with transaction(context.pool) as session:
        store.record(session, run, "run.preparing", {"message": words})

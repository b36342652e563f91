"""Bringing a release up beside what serves: the platform's deploy, and looks until it answers its health check from outside."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from app import breaker, faults, tracing
from app.context import Context
from app.ids import remote_name
from app.images.errors import RegistryError
from app.lifecycle import Reason
from app.models import Release
from app.platforms.base import (
    Address,
    ImageRef,
    Inspection,
    Launched,
    Misconfigured,
    NoCapacity,
    Phase,
    Platform,
    PlatformError,
    RateLimited,
    Rejected,
    Services,
    ServiceSpec,
    Size,
    StartFailed,
    Transient,
    Unsupported,
)
from app.secrets import KeysError, Sealed
from app.services import pull, targets
from app.services.claim import Claimed
from app.services.probe import probe
from app.services.release import ref_of

log = structlog.get_logger()

CALL_SECONDS = 60


@dataclass
class Gated(Exception):
    """The release can't go live; ``again`` seconds until the next try when it still might."""

    reason: Reason
    message: str
    again: float | None = None


@contextlib.contextmanager
def platform_errors(release: Release) -> Iterator[None]:
    """Turn what a platform raises into what it means for the release."""
    try:
        yield
    except StartFailed as e:
        raise Gated(Reason(e.reason), e.message) from e
    except (Rejected, Unsupported) as e:
        raise Gated(Reason.PLATFORM_REJECTED, str(e)) from e
    except Misconfigured as e:
        log.error("platform misconfigured", platform=release.platform, error=str(e))
        raise Gated(Reason.PLATFORM_MISCONFIGURED, str(e)) from e
    except NoCapacity as e:
        raise Gated(Reason.NO_CAPACITY, str(e), again=15) from e
    except KeysError as e:
        raise Gated(Reason.INTERNAL_ERROR, str(e)) from e
    except RegistryError as e:
        raise Gated(Reason.REGISTRY_UNAVAILABLE, str(e), again=5) from e
    except Transient as e:
        raise Gated(Reason.INTERNAL_ERROR, str(e), again=e.retry_after or min(2.0**release.tries, 30)) from e
    except (PlatformError, TimeoutError) as e:
        raise Gated(
            Reason.INTERNAL_ERROR, str(e) or "the platform did not answer", again=min(2.0**release.tries, 30)
        ) from e


async def bring_up(context: Context, claimed: Claimed, platform: Platform, services: Services) -> Address:
    """Deploy the release and wait until it answers its health check from outside."""
    spec = await _spec(context, claimed, platform, services)
    deadline = asyncio.get_running_loop().time() + claimed.seconds_left
    launched = claimed.got = await _deploy(context, claimed, platform, services, spec)
    faults.at("promote.deployed")
    claimed.release.handle, claimed.release.region = launched.handle, launched.region
    with tracing.span("health gate"):
        return await _healthy(context, claimed, platform, services, spec, deadline)


async def _deploy(
    context: Context, claimed: Claimed, platform: Platform, services: Services, spec: ServiceSpec
) -> Launched:
    """Ask the platform for it, and let the breaker know how that went; what it raises is the platform's."""
    region = targets.region_of(context, claimed.release)
    try:
        with tracing.span("deploy", platform=platform.name, region=region or None):
            async with asyncio.timeout(max(claimed.seconds_left, 5) + CALL_SECONDS):
                launched = await services.deploy(spec)
    except (NoCapacity, Transient, TimeoutError) as e:
        if platform.traits.remote and not isinstance(e, RateLimited):
            await breaker.failed(context.sessions, platform.name, region, breaker.DEPLOY, str(e) or "no answer in time")
        raise
    if platform.traits.remote and (claimed.seen is None or claimed.seen.troubled):
        await breaker.succeeded(context.sessions, platform.name, region, breaker.DEPLOY)
    return launched


async def _healthy(
    context: Context, claimed: Claimed, platform: Platform, services: Services, spec: ServiceSpec, deadline: float
) -> Address:
    """Ask until it answers, or until ``deadline`` of the loop's clock."""
    host = f"{claimed.service.host}.{context.settings.gateway_domain}"
    ref, pause, last = ref_of(context, claimed.release), 0.005, "it never listened"
    reason = Reason.NOT_LISTENING
    while True:
        seen = await services.inspect(ref)
        if seen.phase in {Phase.FAILED, Phase.EXITED, Phase.GONE}:
            raise _died(seen)
        if seen.address is not None:
            reason = Reason.HEALTH_CHECK_FAILED
            if seen.healthy is None:
                healthy, last = await probe(seen.address.url, spec.health_path, host)
            else:  # checked from inside: where a proxy routes, the address still leads to the release before this one
                healthy, last = seen.healthy, seen.message or "its check does not pass"
            if healthy:
                return seen.address
        if asyncio.get_running_loop().time() > deadline:
            raise Gated(reason, _too_late(reason, spec, last, context.promote_seconds(claimed.release.platform)))
        # Look often at first: a Go program is up in milliseconds, and a platform says how often it may be asked.
        await asyncio.sleep(max(pause, platform.traits.poll_seconds))
        pause = min(pause * 1.5, 1.0)


def _died(seen: Inspection) -> Gated:
    if seen.out_of_memory:
        return Gated(Reason.OUT_OF_MEMORY, seen.message or "The program used more memory than service.memory_mb.")
    code = f" with code {seen.exit_code}" if seen.exit_code is not None else ""
    return Gated(Reason.CRASHED_AT_START, seen.message or f"The program ended{code} right after its start.")


def _too_late(reason: Reason, spec: ServiceSpec, last: str, seconds: float) -> str:
    if reason is Reason.NOT_LISTENING:
        return f"The program did not listen on port {spec.port} ($PORT) within {seconds:g} seconds."
    return f"GET {spec.health_path} did not return a 2xx within {seconds:g} seconds: {last}."


async def _spec(context: Context, claimed: Claimed, platform: Platform, services: Services) -> ServiceSpec:
    release, artifact, config = claimed.release, claimed.artifact, claimed.release.config
    grant = await pull.grant(context, release, artifact, platform.traits)
    size = Size(cpus=config["cpus"], memory_mb=config["memory_mb"])
    with contextlib.suppress(Unsupported):  # a lenient request was warned of it at submit; deploy says no otherwise
        size = services.fit(size)
    return ServiceSpec(
        service=remote_name(context.installation, claimed.service.id),
        release=remote_name(context.installation, release.id),
        image=ImageRef(
            registry=grant.registry,
            repository=grant.repository,
            digest=grant.digest,
            username=grant.username,
            password=grant.password,
        ),
        port=config["port"],
        health_path=config["health_path"],
        env=config["env"],
        secrets=await _secrets(context, release),
        size=size,
        scale_min=config["scale"]["min"],
        idle_seconds=config["scale"]["idle_seconds"],
        regions=tuple(config.get("regions", ())),
        metadata={"service": claimed.service.id, "release": release.id, "project": release.project_id},
    )


async def _secrets(context: Context, release: Release) -> dict[str, str]:
    versions = release.secret_versions or {}
    if not versions:
        return {}
    rows = await context.pool.fetch("select * from secret_version where id = any($1)", list(versions.values()))
    sealed = {row["id"]: Sealed(row["key_id"], row["nonce"], row["ciphertext"]) for row in rows}
    return {name: context.keyring.open(sealed[row_id], about=row_id) for name, row_id in versions.items()}

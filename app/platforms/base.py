"""What a platform is: the one contract that every folder beside this file fulfils.

A platform offers builders, services, or both. Both are plain objects with a few verbs; all they are given is frozen
data, and all they know of the outside is their own platform's API. They never see the database or the web framework.

Rules that hold for every verb:

- It is safe to repeat. A create is keyed by the name it is given, which is unique and was committed to our database
  before the call; whoever is not sure whether a create happened calls it again, or looks it up by that name.
- Absence is success for everything that ends something, and ``Phase.GONE`` for everything that looks.
- It has a timeout of its own and raises only the errors below, which say what the caller does next.
- No secret appears in an error, a log line or a process list.
"""
# Over 250 lines: the whole contract of a platform, to be read from top to bottom.

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal, Protocol

# --------------------------------------------------------------------------------------------------- errors


@dataclass
class PlatformError(Exception):
    """Base of all errors of a platform call; ``request_id`` is the platform's own, for its support."""

    platform: str
    operation: str
    message: str
    request_id: str | None = None

    def __str__(self) -> str:
        rid = f" (request {self.request_id})" if self.request_id else ""
        return f"{self.platform} {self.operation}: {self.message}{rid}"


@dataclass
class Transient(PlatformError):
    """Try again, after ``retry_after`` seconds when given. The call may have taken effect: look before repeating."""

    retry_after: float | None = None


@dataclass
class RateLimited(Transient):
    """The platform told us to slow down; the call did not take effect."""


@dataclass
class NoCapacity(PlatformError):
    """No room: try the next region, then the next platform. The call did not take effect."""

    region: str | None = None


@dataclass
class Rejected(PlatformError):
    """The request is at fault and will be refused again as it is."""


@dataclass
class Misconfigured(PlatformError):
    """The operator's credentials or set-up are at fault: long delay, loud."""


@dataclass
class Unsupported(PlatformError):
    """The platform can't do this at all."""


@dataclass
class StartFailed(PlatformError):
    """A service's own program did not come up; ``reason`` tells how. Final for this release as it is."""

    reason: Literal["not_listening", "crashed_at_start", "out_of_memory"] = "crashed_at_start"


# --------------------------------------------------------------------------------------------------- values


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What differs between platforms, as data that callers and our own code choose by."""

    scale_to_zero: Literal["automatic", "manual", "none"]
    """``manual``: nothing wakes a sleeping service but us, so the gateway stands in front of it."""
    idle_signal: Literal["requests", "outbound", "none"]
    """What keeps a service awake."""
    exit_codes: bool
    """Whether a builder's exit code can be seen after its end."""
    private_registry: bool
    """Whether it can pull private images from any registry, given credentials."""
    own_registry: str | None
    """Host of the only private registry it pulls from, when it has one."""
    remote: bool
    """Runs on other machines, so ``SLIPWAY_PUBLIC_URL`` and a builder image are needed."""
    host_bound: bool = False
    """Belongs to one process on one host (the local platform); its jobs go to that process alone."""
    max_builders: int = 20
    max_runtime_seconds: int | None = None
    min_idle_seconds: int = 1
    max_idle_seconds: int | None = None
    goarch: tuple[str, ...] = ("amd64",)
    regions: tuple[str, ...] = ()
    """Those that a request may name, as far as they are known."""
    default_regions: tuple[str, ...] = ()
    """Tried in this order when a request names none; empty: the platform chooses."""
    poll_seconds: float = 5.0
    """How often a promote may look at a deploying release."""
    promote_seconds: float = 60.0
    """How long a release may take to come up and pass its health check, unless the operator says otherwise."""
    wake_seconds: float = 30.0
    """How long a sleeping service may take to listen, unless the operator says otherwise."""
    look_seconds: float = 0.0
    """How long a builder must have been silent before it is looked at, and between two looks: each costs requests."""
    list_seconds: float = 0.0
    """How often a sweep may list what is there: each time costs requests of the account."""
    rollout_replaces: bool = False
    """Whether a release that goes live ends the one before it: nothing of that one is left to be put to sleep."""
    url_is_stable: bool = True
    remarks: tuple[str, ...] = ()
    """What a person should know before choosing it."""

    @property
    def pulls_itself(self) -> bool:
        """Whether it pulls from our registry, also long after a deploy; the others keep an image, or we fill their registry."""
        return self.remote and self.own_registry is None


@dataclass(frozen=True, kw_only=True)
class Size:
    """Compute of one machine: ``cpus`` in cores, ``memory_mb`` in MiB; ``plan`` is the platform's own name for it."""

    cpus: float
    memory_mb: int
    plan: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """An image by digest, as the platform reaches it, with a credential good for pulling just that."""

    registry: str
    """Base URL of the registry, for example ``https://registry.example.com``."""
    repository: str
    digest: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def reference(self) -> str:
        """``host/repository@digest``, the way platforms want it written."""
        return f"{self.registry.split('://', 1)[-1].rstrip('/')}/{self.repository}@{self.digest}"


@dataclass(frozen=True, kw_only=True)
class Ref:
    """Something of ours on a platform: the name we gave, and the platform's own handle once we know it."""

    name: str
    handle: str | None = None
    region: str | None = None


Progress = Callable[[str], Awaitable[None]]
"""Takes words for whoever waits, on what takes so long."""


@dataclass(frozen=True, kw_only=True)
class BuilderSpec:
    """One builder to launch. ``env`` holds its orders and its run token: nothing else secret goes in."""

    name: str
    env: Mapping[str, str] = field(repr=False)
    image: str | None
    """The builder image by digest; None where the platform brings the builder program itself."""
    size: Size
    deadline: datetime
    regions: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    progress: Progress | None = field(default=None, repr=False, compare=False)
    """For a launch that makes something first, once for all that follow."""


@dataclass(frozen=True, kw_only=True)
class ServiceSpec:
    """One release to bring up beside whatever serves now.

    ``service`` is the remote name of the service, ``release`` of this release; both are ours, unique and stable.
    """

    service: str
    release: str
    image: ImageRef
    port: int
    health_path: str
    env: Mapping[str, str]
    secrets: Mapping[str, str] = field(repr=False)
    size: Size
    scale_min: int = 0
    idle_seconds: int = 300
    regions: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ServiceRef:
    """A release on a platform: remote names of service and release, handle as ``deploy`` gave it."""

    service: str
    release: str
    handle: str | None = None
    region: str | None = None


@dataclass(frozen=True, kw_only=True)
class Launched:
    """What came of a launch or a deploy; ``effective`` is what was really got."""

    handle: str
    region: str | None
    effective: Size
    url: str | None = None
    """Public address of a service, where the platform gives one."""


class Phase(StrEnum):
    """Where a machine is; the same words for builders and services."""

    STARTING = "starting"
    RUNNING = "running"
    ASLEEP = "asleep"
    EXITED = "exited"
    FAILED = "failed"
    GONE = "gone"


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a running instance takes requests; ``instance_id`` is another one after every start."""

    url: str
    """``http://host:port``"""
    instance_id: str


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """One look at a machine. ``address`` is there only once its own process listens."""

    phase: Phase
    handle: str | None = None
    region: str | None = None
    exit_code: int | None = None
    out_of_memory: bool = False
    message: str | None = None
    address: Address | None = None
    healthy: bool | None = None
    """What the platform's own health check says of a service; None where we must ask the address ourselves."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One resource that ``list_ours`` saw; ``created_at`` is None where the platform does not tell."""

    ref: Ref
    created_at: datetime | None
    phase: Phase


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What is there of ours. ``complete`` False proves nothing about what is missing from it."""

    items: tuple[Found, ...]
    complete: bool


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One line a machine wrote; ``at`` in UTC."""

    at: datetime
    text: str
    stream: Literal["stdout", "stderr", "platform"] = "stdout"


# --------------------------------------------------------------------------------------------------- verbs


class Builders(Protocol):
    """Machines that live for one build."""

    def fit(self, size: Size) -> Size:
        """Return the nearest plan that is at least ``size``; raise Unsupported when there is none."""
        ...

    async def launch(self, spec: BuilderSpec) -> Launched:
        """Start a builder, or find the one already started under ``spec.name``: never two."""
        ...

    async def inspect(self, ref: Ref) -> Inspection:
        """Look at it; ``Phase.GONE`` when it isn't there."""
        ...

    async def stop(self, ref: Ref) -> None:
        """End and remove it, whatever it is doing; done when it isn't there any more."""
        ...

    async def list_ours(self, installation: str) -> Listing:
        """List builders whose name begins ``slp-<installation>-``."""
        ...

    async def logs(self, ref: Ref, *, limit: int = 200) -> list[LogLine]:
        """Return the platform's last lines about it, oldest first; empty when it keeps none."""
        ...


class Services(Protocol):
    """Named endpoints that run one live release and sleep when idle."""

    def fit(self, size: Size) -> Size:
        """Return the nearest plan that is at least ``size``; raise Unsupported when there is none."""
        ...

    async def deploy(self, spec: ServiceSpec) -> Launched:
        """Bring the release up beside the one that serves; returns when it was asked for, not when it is up.

        A second call for the same release finds the first. Raises StartFailed when the program is known to be broken.
        """
        ...

    async def inspect(self, ref: ServiceRef) -> Inspection:
        """Look at one release. RUNNING with an address means: the release's own process listens there."""
        ...

    async def activate(self, ref: ServiceRef) -> None:
        """Send the service's traffic to this release. Nothing to do where the gateway routes."""
        ...

    async def sleep(self, ref: ServiceRef) -> None:
        """Take the release to zero and keep what is needed to wake it; asleep already is success."""
        ...

    async def wake(self, ref: ServiceRef) -> Address:
        """Start a sleeping release and return once its own process listens; awake already is success.

        Raises StartFailed when it does not come up.
        """
        ...

    async def retire(self, ref: ServiceRef) -> None:
        """Remove one release and what only it used; absence is success. Other releases are not touched."""
        ...

    async def delete(self, ref: ServiceRef) -> None:
        """Remove the service with all its releases, secrets and addresses; absence is success."""
        ...

    async def list_ours(self, installation: str) -> Listing:
        """List services, or releases where those are the unit, whose name begins ``slp-<installation>-``."""
        ...

    async def logs(self, ref: ServiceRef, *, limit: int = 200) -> list[LogLine]:
        """Return the release's last lines, oldest first."""
        ...


@dataclass(frozen=True, kw_only=True)
class Platform:
    """A place to run things: its name, its traits, and up to two capabilities."""

    name: str
    traits: Traits
    builders: Builders | None
    services: Services | None
    ended: asyncio.Event | None = None
    """Set whenever an instance of a service ended by itself, by a platform that knows at once; whoever holds it clears it."""
    toolchain: str | None = None
    """What builders here build with, where no builder image says it: with the same words the same source becomes the same."""

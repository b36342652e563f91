"""What the API answers. Names are what a generated client calls its types."""
# Over 250 lines: one answer after the other, and nothing else.

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from app.lifecycle import BuildStatus, Owner, Reason, ReleaseStatus, RunStatus, ServiceStatus
from app.requests import Scope

T = TypeVar("T")


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


class Page(Answer, Generic[T]):
    """One page of a list, newest first unless said otherwise; `next_cursor` is null on the last."""

    items: list[T]
    next_cursor: str | None = None


class FieldProblem(Answer):
    """One wrong part of a request."""

    field: str
    message: str


class Problem(Answer):
    """RFC 9457 problem details; programs switch on `reason`."""

    type: str
    title: str
    status: int
    detail: str
    reason: str
    instance: str | None = None
    errors: list[FieldProblem] = Field(default_factory=list)


class SourceOut(Answer):
    """An uploaded source."""

    digest: str
    size_bytes: int
    files: int
    created_at: datetime


class Diagnostic(Answer):
    """One message of the compiler."""

    file: str = ""
    line: int | None = None
    column: int | None = None
    message: str = ""


class Tried(Answer):
    """A place that did not work out; `times` counts a wait for room that was in vain more than once."""

    attempt: int
    platform: str
    region: str | None = None
    reason: Reason
    message: str
    times: int = 1


class SizeOut(Answer):
    """What was really got."""

    cpus: float
    memory_mb: int
    plan: str | None = None


class RunOut(Answer):
    """One attempt of one builder."""

    id: str
    attempt: int
    status: RunStatus
    platform: str
    name: str = Field(description="The machine's name on its platform.")
    region: str | None
    stage: str | None
    exit_code: int | None
    out_of_memory: bool
    reason: Reason | None
    message: str | None
    effective: SizeOut | None
    isolation: str | None
    timings: dict[str, float]
    created_at: datetime
    launched_at: datetime | None
    claimed_at: datetime | None
    heartbeat_at: datetime | None
    deadline_at: datetime
    finished_at: datetime | None


class ArtifactOut(Answer):
    """An image by digest. `reused`: an earlier build made it, and this one needed no builder."""

    id: str
    reused: bool = False
    repository: str
    digest: str
    size_bytes: int
    source_digest: str
    source_commit: str | None
    goarch: str
    toolchain: dict[str, str]
    isolation: str | None
    sbom: dict[str, Any] | None = Field(None, description="CycloneDX 1.5.")
    created_at: datetime


class Failure(Answer):
    """Why it failed, whose move it is, and what to do."""

    reason: Reason
    owner: Owner
    retryable: bool
    message: str
    advice: str


class ReleaseOut(Answer):
    """One release of a service. Secrets are named, never shown."""

    id: str
    number: int
    status: ReleaseStatus
    kind: str
    platform: str
    url: str | None = Field(description="The address that its platform gave it, where it gives one.")
    artifact_id: str
    digest: str | None = None
    build_id: str | None
    config: dict[str, Any]
    secrets: list[str] = Field(default_factory=list)
    effective: SizeOut | None
    warnings: list[str]
    reason: Reason | None
    message: str | None
    failure: Failure | None = None
    created_at: datetime
    deploying_at: datetime | None
    live_at: datetime | None
    finished_at: datetime | None
    keep_until: datetime | None = Field(description="Until when its platform keeps it, after the service moved away.")
    retired_at: datetime | None = Field(description="When nothing of it was left on its platform.")


class MigrationOut(ReleaseOut):
    """A release on its way to another platform, and what becomes of the service's address once it is live."""

    url_changes: bool
    old_url: str | None
    new_url: str | None = Field(
        description="Null until the new platform has given one: then it is the service's `url`."
    )
    keep_seconds: int


class ServiceOut(Answer):
    """A service and its live release."""

    id: str
    name: str
    platform: str
    status: ServiceStatus
    url: str | None
    instance_id: str | None
    starts: int
    wake_ms: float | None
    reason: Reason | None
    message: str | None
    live_release: ReleaseOut | None = None
    last_request_at: datetime | None
    status_at: datetime
    created_at: datetime
    updated_at: datetime


class BuildOut(Answer):
    """A build as lists show it."""

    id: str
    status: BuildStatus
    platform: str
    builder_platform: str
    service: str | None = None
    source: dict[str, Any]
    source_digest: str | None
    labels: dict[str, str]
    warnings: list[str]
    retry_of: str | None
    waiting_for: str | None = Field(
        description="The build under way that makes the same image; this one takes it over."
    )
    reason: Reason | None
    message: str | None
    failure: Failure | None = None
    artifact_id: str | None
    release_id: str | None
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None


class BuildDetail(BuildOut):
    """A build with everything that is known of it. `timings` are seconds per stage, the builder's own among them."""

    position: int | None = Field(
        None, description="While it waits for a builder: its place among its project's builds; 1 is next."
    )
    estimated_start_at: datetime | None = Field(
        None, description="About when it gets its builder, by how long builds took of late; null while nobody knows."
    )
    spec: dict[str, Any]
    diagnostics: list[Diagnostic]
    tried: list[Tried]
    runs: list[RunOut]
    artifact: ArtifactOut | None = None
    release: ReleaseOut | None = None
    url: str | None = None
    timings: dict[str, float]


class BatchItemOut(Answer):
    """What became of one order: a build, or the problem why there is none."""

    index: int = Field(description="Its place in the request, from 0.")
    build_id: str | None
    status: BuildStatus | None
    problem: Problem | None


class BatchOut(Answer):
    """Builds that were sent together: `builds` counts those that were accepted by status. `ended_at` null: some go on."""

    id: str
    size: int
    accepted: int
    rejected: int
    builds: dict[BuildStatus, int]
    created_at: datetime
    ended_at: datetime | None


class BatchDetail(BatchOut):
    """A batch with a page of its items, in the order of the request."""

    items: list[BatchItemOut]
    next_cursor: str | None = None


class EventOut(Answer):
    """Something that happened. `id` is its place in the order of events: `after=<id>` goes on from it."""

    id: str = Field(examples=["7421-99"])
    kind: str
    build_id: str | None
    run_id: str | None
    service_id: str | None
    release_id: str | None
    data: dict[str, Any]
    at: datetime


class EventPage(Page[EventOut]):
    """Events, oldest first. A page may be short, or empty, and have a `next_cursor` all the same: go on until it is null."""

    after: str = Field(description="To ask for what comes later: `?after=`.", examples=["7421-99"])
    ended: bool = Field(description="Nothing will ever come after this page.")


class BuildEnd(Answer):
    """The last that is said of a build."""

    build_id: str
    status: BuildStatus


class LogLineOut(Answer):
    """One line; `stream` is `stdout`, `stderr`, `builder` or `platform`."""

    at: datetime
    stream: str
    text: str
    run_id: str | None = None
    number: int | None = None


class LogPage(Page[LogLineOut]):
    """Log lines, oldest first."""

    after: str = Field(description="To ask for what comes later: `?after=`.", examples=["1.120"])
    ended: bool = Field(description="The build has ended and all its lines were given.")


class TraitsOut(Answer):
    """What a platform is like."""

    scale_to_zero: str
    idle_signal: str
    exit_codes: bool
    private_registry: bool
    own_registry: str | None
    remote: bool
    host_bound: bool
    max_builders: int
    max_runtime_seconds: int | None
    min_idle_seconds: int
    max_idle_seconds: int | None
    goarch: list[str]
    regions: list[str]
    default_regions: list[str]
    promote_seconds: float
    wake_seconds: float
    url_is_stable: bool
    remarks: list[str]


class RequestLimit(Answer):
    """What the platform allows an account: `requests` per `seconds`, `burst` at once; each object apart if `per_object`."""

    requests: float
    seconds: float
    burst: float
    per_object: bool


class RequestBudget(Answer):
    """What is left of an account's requests, over all of our processes; of the emptiest where objects are counted apart."""

    account: str
    limit: RequestLimit
    left: float
    closed_seconds: float = Field(description="For how long the platform wants to hear nothing.")


class BreakerOut(Answer):
    """A region that has failed of late, for one operation; `seconds` until it is tried again. Closed ones still count."""

    region: str | None
    operation: str
    state: Literal["closed", "open", "half_open"]
    failures: int
    seconds: float
    message: str


class Capabilities(Answer):
    """What it can do for a build and a service."""

    ephemeral_builder: bool
    api_triggered_builds: bool
    deploy_from_image: bool
    scale_to_zero: Literal["automatic", "manual", "none"] = Field(
        description="`manual`: our gateway sleeps and wakes it."
    )
    idle_signal: Literal["requests", "outbound", "none"] = Field(description="What keeps a service awake.")
    exit_codes: bool
    private_registry: bool
    own_registry: str | None


class PlatformOut(Answer):
    """A platform: whether it is offered here, what it can do, and what is missing when it isn't."""

    name: str
    configured: bool
    missing: list[str]
    imitated: bool = Field(description="A stand-in on this machine takes its place: `slipway serve --imitate`.")
    builders: bool
    services: bool
    problems: dict[str, str] = Field(description="Why `builders` or `services` can't be used as things are set.")
    proof: str = Field(description="How it was shown to work: `native`, `imitated` or `live <date>`.")
    capabilities: Capabilities
    traits: TraitsOut
    budget: RequestBudget | None = Field(description="Null where nobody counts, or where it is not configured.")
    breakers: list[BreakerOut]


class ApiKeyOut(Answer):
    """An API key without its text. `prefix` is how it begins; `replaced_by` is the key that took over after a rotation."""

    id: str
    name: str
    prefix: str | None
    scopes: list[Scope]
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    replaced_by: str | None


class NewApiKey(ApiKeyOut):
    """A key that was just made; `key` is shown this once."""

    key: str


class ProjectOut(Answer):
    """A tenant: owns builds, services and keys. Null means the installation's default."""

    id: str
    name: str
    max_concurrent_builds: int | None
    max_queued_builds: int | None
    max_builds_per_day: int | None
    max_services: int | None
    max_source_bytes: int | None
    created_at: datetime


class ProjectLimits(Answer):
    """What holds for a project: its own word, else the installation's."""

    concurrent_builds: int
    queued_builds: int
    builds_per_day: int
    services: int
    source_bytes: int


class ProjectUsage(Answer):
    """What a project has now. The day is UTC's."""

    concurrent_builds: int
    queued_builds: int
    builds_today: int
    services: int


class ProjectDetail(ProjectOut):
    """A project with what it may have and what it has."""

    limits: ProjectLimits
    usage: ProjectUsage


class BuildCount(Answer):
    """How many builds of a window are in a status, for a reason, on a platform."""

    status: BuildStatus
    reason: Reason | None
    platform: str
    builds: int


class SecondsOut(Answer):
    """Half of the builds took no longer than `p50` seconds, 95 of 100 no longer than `p95`."""

    p50: float
    p95: float


class QueueStats(Answer):
    """What waits and what is at work now, whenever it was sent; `oldest_seconds` null: nothing waits."""

    queued: int
    running: int
    oldest_seconds: float | None


class StatsOut(Answer):
    """Figures of a project. `seconds` are of the builds that succeeded, by stage; a stage that none went through is left out."""

    since: datetime
    window_seconds: int
    builds: int
    complete: bool = Field(description="false: the window has more builds; these are the newest 20,000.")
    counts: list[BuildCount]
    seconds: dict[str, SecondsOut] = Field(examples=[{"queued": {"p50": 0.02, "p95": 0.4}}])
    queue: QueueStats


class Ready(Answer):
    """Whether this process can serve."""

    status: str
    version: str

"""What callers may ask for: the bodies of requests, with every bound that makes bad input a 422 naming the field."""
# Over 250 lines: one body after the other, and nothing else.

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    SecretStr,
    StrictBool,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from app.fields import STORABLE, Float, Int, Names, Received, Secret, Str, Time

ENV_MAX = 128
ENV_BYTES = 64 * 1024
RESERVED_ENV = re.compile(r"PORT|SLIPWAY_.*|KOYEB_.*|FLY_.*|RAILWAY_.*|NF_.*")
VARIABLES = Names(reserved=RESERVED_ENV.pattern, most=ENV_MAX)

PlatformName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
ServiceName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=40),
    Field(description="1 to 40 of `a-z`, `0-9` and single hyphens; begins with a letter.", examples=["echo"]),
]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class Body(Received):
    """A request body: unknown fields are refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FilesSource(Body):
    """Source given inline: path → content. For a handful of generated files."""

    kind: Literal["files"]
    files: Annotated[dict[Str, Str], Names()] = Field(
        min_length=1, examples=[{"go.mod": "module echo\n\ngo 1.25\n", "main.go": "package main\n"}]
    )


class UploadSource(Body):
    """Source sent before by `POST /v1/sources`."""

    kind: Literal["upload"]
    digest: Digest


class GitSource(Body):
    """Source fetched by the builder from a git server, over https."""

    kind: Literal["git"]
    url: Annotated[str, StringConstraints(max_length=2048, pattern=r"^https://[^\x00-\x20\x7f]+$"), STORABLE]
    ref: Annotated[
        str,
        StringConstraints(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9_][^\x00-\x20\x7f~^:?*\[\\]*$"),
        STORABLE,
    ] = "HEAD"
    subdir: Annotated[str, StringConstraints(max_length=512), STORABLE] | None = None


SourceSpec = Annotated[FilesSource | UploadSource | GitSource, Field(discriminator="kind")]


class BuildBlock(Body):
    """What to make of the source."""

    kind: Literal["go"] = "go"
    package: Annotated[
        str, StringConstraints(max_length=512, pattern=r"^[^-\x00-\x20\x7f][^\x00-\x20\x7f]*$"), STORABLE
    ] = "."
    goarch: Literal["amd64", "arm64"] = "amd64"
    cache: StrictBool = Field(
        True, description="false: build it, although the project may have the same image already."
    )


class BuilderBlock(Body):
    """Where and how large the builder is."""

    platform: PlatformName | None = None
    fallback: tuple[PlatformName, ...] | None = Field(
        None,
        max_length=8,
        description="Platforms to build on, in order, where the first has no room; null: the operator's.",
    )
    cpus: Float = Field(2, gt=0, le=64, allow_inf_nan=False)
    memory_mb: Int = Field(2048, ge=256, le=262144)
    timeout_seconds: Int = Field(900, ge=10, le=7200)
    regions: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{2,32}$")], ...] = Field((), max_length=8)


class Scale(Body):
    """`min` 1 keeps the service up, for agents that work on their own; 0 lets it sleep after `idle_seconds`."""

    min: Literal[0, 1] = 0
    idle_seconds: Int = Field(300, ge=1, le=86400)


def _check_env(env: dict[str, Any], what: str) -> None:
    if len(env) > ENV_MAX:
        raise ValueError(f"{what} may have at most {ENV_MAX} entries")
    size = sum(len(k) + len(v.get_secret_value() if isinstance(v, SecretStr) else v) for k, v in env.items() if v)
    if size > ENV_BYTES:
        raise ValueError(f"{what} may have at most {ENV_BYTES} characters in all")
    for key in env:
        if RESERVED_ENV.fullmatch(key):
            raise ValueError(f"{what}: {key} is set by Slipway or the platform")


class ServiceConfig(Body):
    """How a release runs; everything but its name, its image and its secrets."""

    port: Int = Field(8080, ge=1, le=65535)
    health_path: Annotated[str, StringConstraints(pattern=r"^/[^\x00-\x20\x7f#]*$", max_length=512), STORABLE] = (
        "/healthz"
    )
    env: Annotated[dict[EnvName, Str], VARIABLES] = Field(default_factory=dict)
    scale: Scale = Scale()
    cpus: Float = Field(1, gt=0, le=64, allow_inf_nan=False)
    memory_mb: Int = Field(256, ge=16, le=262144)
    regions: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{2,32}$")], ...] = Field((), max_length=8)
    stable_name: StrictBool = Field(
        False,
        description="Serve it through the gateway, under a name that stays the same on every platform. "
        "Where nothing else wakes a service it is always so.",
    )

    @model_validator(mode="after")
    def _env(self) -> "ServiceConfig":
        _check_env(self.env, "env")
        return self


class ServiceBlock(ServiceConfig):
    """The service a build is promoted to. Leaving `secrets` out keeps those of the live release."""

    name: ServiceName
    secrets: Annotated[dict[EnvName, Secret], VARIABLES] | None = Field(None, description="Write-only.")

    @model_validator(mode="after")
    def _secrets(self) -> "ServiceBlock":
        check_secrets(self.secrets, self.env)
        return self

    def config(self) -> dict[str, Any]:
        """Return the part that a release keeps."""
        return self.model_dump(mode="json", exclude={"name", "secrets"})


def check_secrets(secrets: dict[str, SecretStr] | None, env: dict[str, str]) -> None:
    """Raise ValueError when secrets are out of bounds or also named in ``env``."""
    _check_env(dict(secrets or {}), "secrets")
    for name in secrets or {}:
        if name in env:
            raise ValueError(f"secrets: {name} is in env too")


LabelName = Annotated[str, StringConstraints(min_length=1, max_length=63), STORABLE]
LabelValue = Annotated[str, StringConstraints(max_length=255), STORABLE]


class BuildRequest(Body):
    """One build: a source, how to build it and, when `service` is there, what to promote it to."""

    source: SourceSpec
    build: BuildBlock = BuildBlock()
    platform: PlatformName = Field("local", description="Where the service runs.")
    builder: BuilderBlock = BuilderBlock()
    service: ServiceBlock | None = None
    labels: Annotated[dict[LabelName, LabelValue], Names()] = Field(default_factory=dict, max_length=32)
    strict: StrictBool = Field(True, description="false: what can't be honoured becomes a warning instead of a 422.")


def _without_null(*names: str) -> Callable[[dict[str, Any]], None]:
    """Describe fields that may be left out and may not be null, which is their default in the code only."""

    def change(schema: dict[str, Any]) -> None:
        for name in names:
            field = schema["properties"][name]
            kinds = [kind for kind in field.pop("anyOf") if kind != {"type": "null"}]
            field.pop("default")
            field.update(kinds[0])

    return change


@dataclass(frozen=True)
class Unfit:
    """An order of a batch that can't be read: pydantic's errors, for the problem that is its outcome."""

    errors: Any


def _one_by_one(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    """Let one bad order be its own problem, and not that of the whole batch."""
    try:
        return read(value)
    except ValidationError as e:
        return Unfit(e.errors(include_url=False, include_context=False, include_input=False))


class BatchRequest(Body):
    """Many builds at once. Each has its own outcome, unless `atomic`: then one that can't be accepted refuses them all."""

    builds: list[Annotated[BuildRequest, WrapValidator(_one_by_one)]] = Field(min_length=1, max_length=500)
    atomic: StrictBool = Field(False, description="All or none.")


class ServicePatch(Body):
    """Changes of a service's config; what is left out stays. Makes a new release.

    In `env` and `secrets` a value sets, `null` removes, and names not given stay as they are.
    """

    model_config = ConfigDict(
        json_schema_extra=_without_null("port", "health_path", "scale", "cpus", "memory_mb", "stable_name")
    )

    port: Annotated[Int, Field(ge=1, le=65535)] | None = None
    health_path: (
        Annotated[str, StringConstraints(pattern=r"^/[^\x00-\x20\x7f#]*$", max_length=512), STORABLE] | None
    ) = None
    env: Annotated[dict[EnvName, Str | None], VARIABLES] | None = None
    secrets: Annotated[dict[EnvName, Secret | None], VARIABLES] | None = Field(None, description="Write-only.")
    scale: Scale | None = None
    cpus: Annotated[Float, Field(gt=0, le=64, allow_inf_nan=False)] | None = None
    memory_mb: Annotated[Int, Field(ge=16, le=262144)] | None = None
    stable_name: StrictBool | None = None
    strict: StrictBool = True

    @model_validator(mode="after")
    def _bounds(self) -> "ServicePatch":
        _check_env({k: v for k, v in (self.env or {}).items() if v is not None}, "env")
        check_secrets({k: v for k, v in (self.secrets or {}).items() if v is not None}, {})
        return self


class ReleaseRequest(Body):
    """Promote an artifact again."""

    artifact_id: Annotated[str, StringConstraints(pattern=r"^art_[0-9a-v]{26}$")]
    strict: StrictBool = True


class RollbackRequest(Body):
    """Go back to a release: the one before the live one, or the one named."""

    release_id: Annotated[str, StringConstraints(pattern=r"^rel_[0-9a-v]{26}$")] | None = None


ProjectName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=20),
    Field(description="1 to 20 of `a-z`, `0-9` and single hyphens; begins with a letter.", examples=["acme"]),
]


class Scope(StrEnum):
    """What a key may do; writing includes reading of the same kind, ``admin`` includes all."""

    BUILDS_READ = "builds:read"
    BUILDS_WRITE = "builds:write"
    SERVICES_READ = "services:read"
    SERVICES_WRITE = "services:write"
    ADMIN = "admin"


SCOPES = {
    Scope.BUILDS_READ: "look at builds, their events and logs",
    Scope.BUILDS_WRITE: "send, cancel and retry builds, and all of `builds:read`",
    Scope.SERVICES_READ: "look at services, their releases and logs",
    Scope.SERVICES_WRITE: "change, wake, roll back and delete services, and all of `services:read`",
    Scope.ADMIN: "everything in its project, its keys too",
}


class KeyRequest(Body):
    """A new API key. Without `scopes` it may do everything in its project."""

    name: Str = Field(min_length=1, max_length=100, description="What it is for.", examples=["ci"])
    scopes: list[Scope] = Field([Scope.ADMIN], min_length=1, max_length=len(Scope))
    expires_at: Time | None = Field(None, description="Null: it is good until it is revoked.")
    project: ProjectName | None = Field(None, description="Another project than the caller's; for the operator.")


class KeyRotation(Body):
    """How long the old key stays good beside the new one."""

    overlap_seconds: Int = Field(86_400, ge=0, le=30 * 86_400)


class ProjectPatch(Body):
    """What to change of a project; what is not given stays. Null means the installation's default."""

    max_concurrent_builds: Annotated[Int, Field(ge=1, le=100_000)] | None = None
    max_queued_builds: Annotated[Int, Field(ge=0, le=1_000_000)] | None = None
    max_builds_per_day: Annotated[Int, Field(ge=0, le=10_000_000)] | None = None
    max_services: Annotated[Int, Field(ge=0, le=1_000_000)] | None = None
    max_source_bytes: Annotated[Int, Field(ge=1, le=2**40)] | None = Field(
        None, description="The installation's own limit holds anyway."
    )


class ProjectRequest(ProjectPatch):
    """A new project. Of its limits null means the installation's default."""

    name: ProjectName


EventPattern = Annotated[
    str,
    StringConstraints(pattern=r"^(\*|(build|batch|run|release|service|webhook)\.(\*|[a-z_]{1,32}))$"),
    Field(description="A kind of event, all of a family (`build.*`), or `*` for all.", examples=["build.*"]),
]
EventPatterns = Annotated[tuple[EventPattern, ...], Field(min_length=1, max_length=50)]
WebhookUrl = Annotated[
    str,
    StringConstraints(max_length=2048, pattern=r"^https?://[^\x00-\x20\x7f@#\\]+$"),
    STORABLE,
    Field(
        description="https, at a public address; what is sent there is a POST. Redirects are not followed.",
        examples=["https://hooks.example.com/slipway"],
    ),
]


class WebhookRequest(Body):
    """An endpoint that shall be told of events."""

    url: WebhookUrl
    description: Annotated[str, StringConstraints(max_length=255), STORABLE] = ""
    events: EventPatterns = Field(("*",), description="Which kinds of events; all by default.")


class WebhookPatch(Body):
    """Changes of an endpoint; what is left out stays.

    While it is disabled nothing is sent: what was pending goes on once it is enabled, what happened meanwhile is not made up for.
    """

    url: WebhookUrl | None = None
    description: Annotated[str, StringConstraints(max_length=255), STORABLE] | None = None
    events: EventPatterns | None = None
    status: Literal["enabled", "disabled"] | None = None


class RotateRequest(Body):
    """A new signing secret. For `overlap_seconds` the one before it signs too, so that receivers can be changed in between."""

    overlap_seconds: Int = Field(86_400, ge=0, le=604_800)


class MigrateRequest(Body):
    """Move a service to another platform."""

    platform: PlatformName
    keep_seconds: Int = Field(
        3600, ge=0, le=30 * 86400, description="How long the old platform keeps it, for callers of its old address."
    )
    regions: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{2,32}$")], ...] = Field(
        (), max_length=8, description="Of the new platform; those of the old one mean nothing there."
    )
    strict: StrictBool = Field(True, description="false: what can't be honoured becomes a warning instead of a 422.")

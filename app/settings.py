"""Settings, read once from the environment and passed on; nothing reads the environment later.

Every variable is ``SLIPWAY_<FIELD>``; a field of a nested model is ``SLIPWAY_<MODEL>__<FIELD>``. The three that other
tools share keep their own names: ``DATABASE_URL``, ``GOPROXY`` and ``PORT``. Unset means the embedded default.
"""
# Over 250 lines: one setting after the other, with what makes it sound.

import ipaddress
import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Words = Annotated[tuple[str, ...], NoDecode]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode]

MIB = 1024 * 1024
PULL_SETTINGS = ("SLIPWAY_REGISTRY_PULL_USERNAME", "SLIPWAY_REGISTRY_PULL_PASSWORD")


def default_home() -> Path:
    """``~/.local/share/slipway``; as root ``/var/lib/slipway``, which a dropped account can enter."""
    if os.geteuid() == 0:
        return Path("/var/lib/slipway")
    return Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local/share")) / "slipway"


class LocalSettings(BaseModel):
    """The platform that is this machine. ``max_builders`` 0 means one per core."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = True
    max_builders: int = Field(0, ge=0, le=256)
    bwrap: Path | None = None
    go_root: Path | None = None


class FlySettings(BaseModel):
    """One Fly organization. ``token`` is an org token, with or without its scheme word; the URLs differ only under imitation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: SecretStr
    account: str = "main"
    """Names the account: the processes that use one account under one name share its request budget."""
    org: str = "personal"
    regions: Words = ("iad",)
    """Tried in this order when a request names none."""
    max_builders: int = Field(20, ge=1, le=1000)
    api_url: str = "https://api.machines.dev"
    logs_url: str = "https://api.fly.io"
    registry: str = "https://registry.fly.io"
    service_url: str = "https://{app}.fly.dev"
    """Template of a service's address."""

    @field_validator("regions", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return words(value)


class KoyebSettings(BaseModel):
    """One Koyeb organization. The idle bounds are its plan's; the URLs differ only under imitation.

    ``enabled`` has to be said: since Koyeb's sale new organizations may get no account, so it is for those that have one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = False
    token: SecretStr | None = None
    account: str = "main"
    """Names the account: the processes that use one account under one name share its request budget."""
    regions: Words = ("fra",)
    """Tried in this order when a request names none."""
    builder_registry_secret: str | None = None
    """Name of the organization's secret that pulls the builder image, when that is private."""
    max_builders: int = Field(20, ge=1, le=1000)
    min_idle_seconds: int = Field(60, ge=1)
    max_idle_seconds: int = Field(21_600, ge=1)
    start_seconds: float = Field(60.0, gt=0)
    """How long a service that is woken by us may take to listen."""
    poll_seconds: float = Field(10.0, gt=0)
    api_url: str = "https://app.koyeb.com"
    service_url: str = "https://{domain}"
    """Template of a service's address; the domain is the one that Koyeb gave."""

    @field_validator("regions", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return words(value)


class RailwaySettings(BaseModel):
    """One Railway workspace: ids of two projects, each with one environment; builders and services must not share one.

    The URLs differ only under imitation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: SecretStr
    """A workspace token: account and project tokens see too much or too little."""
    account: str = "main"
    """Names the account: the processes that use one account under one name share its request budget."""
    project: str
    environment: str
    builders_project: str
    builders_environment: str
    plan: Literal["hobby", "pro"] = "pro"
    """Decides on requests per hour, the largest service and whether private images can be pulled."""
    region: str | None = None
    max_builders: int = Field(20, ge=1, le=1000)
    api_url: str = "https://backboard.railway.com/graphql/v2"
    service_url: str = "https://{domain}"
    """Template of a service's address; the domain is the one that Railway gave."""

    @model_validator(mode="after")
    def _apart(self) -> "RailwaySettings":
        if self.project == self.builders_project:
            raise ValueError("builders need a project of their own: variables and the private network are a project's")
        return self


class NorthflankSettings(BaseModel):
    """One Northflank account and project. The URLs and ``registry`` differ only under imitation, or behind a proxy of yours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: SecretStr
    account: str = "main"
    """Names the account: the processes that use one account under one name share its request budget."""
    project: str
    """Where services run."""
    builders_project: str | None = None
    """Where builders run; one of their own shares no private network with services."""
    team: str | None = None
    """For a token that belongs to an organization."""
    builder_credentials: str | None = None
    """Id of the account's registry credential that pulls the builder image, when that is private."""
    builder_disk_mb: int = Field(8192, ge=1024)
    max_builders: int = Field(20, ge=1, le=1000)
    requests_per_hour: int = Field(1000, ge=10)
    """The account's limit; Northflank's support raises it."""
    api_url: str = "https://api.northflank.com"
    registry: str | None = None
    """The registry's address as Northflank pulls from it: a host with a dot, and no port."""
    service_url: str = "https://{dns}"
    """Template of a service's address; the host name is the one that Northflank gave."""


class Settings(BaseSettings):
    """All settings of all processes; see the field docstrings in ``docs/settings.md`` for the operator's view."""

    model_config = SettingsConfigDict(
        env_prefix="SLIPWAY_",
        env_nested_delimiter="__",
        frozen=True,
        extra="ignore",
        populate_by_name=True,
        env_ignore_empty=True,
    )

    # --- where things are
    home: Path = Field(default_factory=default_home)
    database_url: SecretStr | None = Field(None, validation_alias=AliasChoices("DATABASE_URL", "SLIPWAY_DATABASE_URL"))
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535, validation_alias=AliasChoices("SLIPWAY_PORT", "PORT"))
    gateway_host: str = "127.0.0.1"
    gateway_port: int = Field(8081, ge=0, le=65535)
    gateway_domain: str = "localhost"
    gateway_trusted_proxies: Networks = ()
    """Networks of proxies before the gateway: only what these say of a request's scheme and origin is believed."""
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """Where this process serves ``/metrics`` without a key; None: nowhere, and under the API's port with the operator's."""
    metrics_host: str = "127.0.0.1"
    otlp_endpoint: str | None = Field(None, validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_ENDPOINT"))
    """Base URL of an OpenTelemetry collector; the rest of what the specification has variables for its library reads."""
    public_url: str | None = None
    """How builders on other machines reach the API (https; plain http on loopback only)."""

    # --- who may come in
    api_key: SecretStr | None = None
    secret_keys: SecretStr | None = None
    """``id:base64 of 32 bytes``, comma separated; the first encrypts, all decrypt."""
    cors_origins: Words = ()
    """Origins whose pages may call the API from a browser."""

    # --- images
    registry: str | None = None
    """An outside registry's URL; unset means the embedded one under ``/v2/``."""
    registry_username: str | None = None
    registry_password: SecretStr | None = None
    registry_pull_username: str | None = None
    registry_pull_password: SecretStr | None = None
    """What platforms pull from an outside registry with; it may only read."""
    registry_public: str | None = None
    """The registry's address as other machines see it; defaults to ``registry`` or ``public_url``."""
    registry_repository: str = "slipway"
    """Prefix of our repositories in the registry."""
    builder_image: str | None = None
    builder_fallback: Words = ("local",)
    build_cache: bool = True
    """A build whose source was built before takes that artifact; false: every build gets a builder."""

    # --- bounds
    max_source_bytes: int = Field(50 * MIB, ge=1)
    max_source_files: int = Field(20_000, ge=1)
    max_unpacked_bytes: int = Field(500 * MIB, ge=1)
    max_image_bytes: int = Field(500 * MIB, ge=1)
    max_log_bytes: int = Field(10 * MIB, ge=1)
    max_log_line_bytes: int = Field(16 * 1024, ge=64)
    max_completion_bytes: int = Field(256 * 1024, ge=1024)
    max_inline_bytes: int = Field(1 * MIB, ge=1)
    max_inline_files: int = Field(500, ge=1)
    max_batch_bytes: int = Field(16 * MIB, ge=1)
    max_queued_seconds: int = Field(3600, ge=1)
    """A build that found no builder for so long ends ``failed(expired)``."""
    max_run_attempts: int = Field(3, ge=1, le=10)
    """How many builders may be lost or refused before a build ends."""
    project_concurrency: int = Field(50, ge=1)
    """This and what follows hold for each project whose row says nothing else."""
    project_queued: int = Field(10_000, ge=0)
    project_builds_per_day: int = Field(100_000, ge=0)
    project_services: int = Field(10_000, ge=0)
    project_source_bytes: int | None = Field(None, ge=1)
    """Unset: ``max_source_bytes``, which holds anyway."""
    max_streams: int = Field(2000, ge=1)
    """Streams and waiting GETs of one process at a time."""

    # --- retention, in days
    keep_logs_days: float = Field(14, gt=0)
    keep_events_days: float = Field(90, gt=0)
    keep_builds_days: float = Field(365, gt=0)
    keep_unreferenced_days: float = Field(7, gt=0)
    keep_releases: int = Field(2, ge=1)
    """Superseded releases a service keeps deployed for a quick rollback."""

    # --- sources and modules
    goproxy: str = Field("https://proxy.golang.org", validation_alias=AliasChoices("SLIPWAY_GOPROXY", "GOPROXY"))
    gosumdb: str | None = Field(None, validation_alias=AliasChoices("SLIPWAY_GOSUMDB", "GOSUMDB"))
    allow_hosts: Words = ()
    """Host names or networks in private ranges that git sources may be fetched from all the same."""
    webhook_allow_hosts: Words = ()
    """The same for webhooks; plain http is allowed to these alone."""

    # --- work
    worker_concurrency: int = Field(20, ge=1, le=200)
    database_pool: int = Field(24, ge=2, le=200)
    reconcile_seconds: float = Field(3.0, gt=0)
    sweep_seconds: float = Field(30.0, gt=0)
    sweep_grace_seconds: float = Field(120.0, ge=0)
    heartbeat_timeout_seconds: float = Field(60.0, gt=0)
    """A running builder that is silent for longer is looked at; gone on its platform means lost."""
    promote_timeout_seconds: float | None = Field(None, gt=0)
    """How long a release may take to come up and pass its health check; unset: as long as its platform usually needs."""
    wake_timeout_seconds: float | None = Field(None, gt=0, le=280)
    drain_seconds: float = Field(10.0, ge=0)
    """How long a superseded release may finish its requests before it is stopped."""
    sandbox: Literal["bubblewrap", "none"] = "bubblewrap"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "text"] = "auto"
    fault_point: str | None = None
    """Name of the one point at which this process kills itself; for crash tests."""

    # --- stand-ins for platforms, for whoever has no account
    imitate: Words = ()
    """Platforms that `serve` runs a stand-in of, on loopback; the same as its ``--imitate``."""
    imitate_speed: float = Field(1.0, gt=0)
    """How many times faster the minutes pass after which an imitated platform lets an idle service sleep."""
    contracts: Path | None = None
    """Folder with the platforms' official contracts: stand-ins then check each request and answer."""

    # --- platforms; None means not offered
    local: LocalSettings | None = LocalSettings()
    fly: FlySettings | None = None
    koyeb: KoyebSettings | None = None
    railway: RailwaySettings | None = None
    northflank: NorthflankSettings | None = None

    @field_validator(
        "builder_fallback",
        "allow_hosts",
        "cors_origins",
        "webhook_allow_hosts",
        "gateway_trusted_proxies",
        "imitate",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return words(value)

    @field_validator("imitate", mode="after")
    @classmethod
    def _imitable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = ("fly", "koyeb", "northflank", "railway")
        if unknown := [name for name in value if name not in known]:
            raise ValueError(f"there is no stand-in for {unknown[0]!r}, only for {', '.join(known)}")
        return tuple(dict.fromkeys(value))

    @field_validator("home", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("public_url", "registry", "registry_public", mode="after")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be an http(s) URL without query and fragment")
        return value.rstrip("/")

    @field_validator("cors_origins", mode="after")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parts = urlsplit(origin)
            if origin != "*" and (
                parts.scheme not in {"http", "https"} or origin != f"{parts.scheme}://{parts.netloc}"
            ):
                raise ValueError(f"{origin}: must be like https://dashboard.example.com, without a path, or *")
        return value

    @field_validator("goproxy", mode="after")
    @classmethod
    def _goproxy(cls, value: str) -> str:
        # `direct` would let a build talk to any version control server on the network.
        kept = [p for p in value.replace("|", ",").split(",") if p.strip() and p.strip() != "direct"]
        return ",".join(kept) or "off"

    @model_validator(mode="after")
    def _public_is_safe(self) -> "Settings":
        if self.public_url and self.public_url.startswith("http://") and not is_loopback(self.public_url):
            raise ValueError("SLIPWAY_PUBLIC_URL must be https: run tokens travel over it (http is for loopback only)")
        return self

    @property
    def api_url(self) -> str:
        """The API as processes on this machine reach it."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def registry_pull(self) -> tuple[str, str] | None:
        """What platforms pull from the outside registry with, None when it is not set."""
        if self.registry_pull_username is None or self.registry_pull_password is None:
            return None
        return self.registry_pull_username, self.registry_pull_password.get_secret_value()

    def service_url(self, host: str) -> str:
        """Return a service's address behind our gateway; ``host`` is its first label."""
        if self.gateway_domain == "localhost":
            return f"http://{host}.localhost:{self.gateway_port}"
        return f"https://{host}.{self.gateway_domain}"

    @property
    def embedded_database(self) -> bool:
        """True when this installation brings its own PostgreSQL."""
        return self.database_url is None


def words(value: object) -> object:
    """Split a comma separated setting; anything but a string is left as it is."""
    return tuple(w.strip() for w in value.split(",") if w.strip()) if isinstance(value, str) else value


def is_loopback(url: str) -> bool:
    """Tell whether the URL's host is this machine's loopback, by name or address."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

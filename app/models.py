"""The tables. The row is the truth; everything else in Slipway starts from it and is safe to repeat.

Ids are prefixed text (``app.ids``), times are UTC with zone; the statuses of builds, runs, releases and services are VARCHAR that
only ``app.store`` changes.
Every table that belongs to somebody has ``project_id``. Relations are read by explicit queries: nothing loads lazily.
"""
# Over 250 lines: one table after the other, each to be read beside those that it refers to.

from datetime import date, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

from app.lifecycle import OPEN_BUILD, OPEN_RUN, BuildStatus, ReleaseStatus, RunStatus, ServiceStatus

Json = dict[str, Any]

ID = String(32, collation="C")
"""Of ids; in the order of bytes, which is that of their times."""


class Xid8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id: events carry it, since ids don't commit in order."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the type's name in SQL."""
        return "xid8"


class Base(DeclarativeBase):
    """Names every constraint, so that migrations can refer to them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        datetime: TIMESTAMP(timezone=True),
        str: Text(),
        int: BigInteger(),
        Json: JSONB(),
        list[Any]: JSONB(),
        bytes: LargeBinary(),
    }


def _id() -> Mapped[str]:
    return mapped_column(ID, primary_key=True)


def _ref(target: str, *, nullable: bool = False, ondelete: str | None = None) -> Any:
    return mapped_column(ID, ForeignKey(target, ondelete=ondelete), nullable=nullable)


def _now() -> Any:
    return mapped_column(server_default=func.now())


def _status(words: type[StrEnum]) -> Any:
    return mapped_column(Enum(words, native_enum=False, length=16, values_callable=lambda e: [m.value for m in e]))


def _in(statuses: tuple[Any, ...]) -> Any:
    return text("status in ({})".format(", ".join(f"'{s}'" for s in statuses)))


class Installation(Base):
    """One row: who we are on every platform. ``key_check`` proves that all processes hold the same secret keys."""

    __tablename__ = "installation"
    id: Mapped[str] = mapped_column(String(6), primary_key=True)
    key_check: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    created_at: Mapped[datetime] = _now()


class Project(Base):
    """A tenant; owns everything below."""

    __tablename__ = "project"
    id: Mapped[str] = _id()
    name: Mapped[str] = mapped_column(String(32), unique=True)
    max_concurrent_builds: Mapped[int | None]
    """None, as in the others: what ``SLIPWAY_PROJECT_…`` says. See ``app.builds.limits``."""
    max_queued_builds: Mapped[int | None]
    max_builds_per_day: Mapped[int | None]
    max_services: Mapped[int | None]
    max_source_bytes: Mapped[int | None]
    created_at: Mapped[datetime] = _now()


class BuildCount(Base):
    """How many builds a project has sent on its last day with any. Its lock orders what counts against the project's limits."""

    __tablename__ = "build_count"
    project_id: Mapped[str] = mapped_column(ID, ForeignKey("project.id"), primary_key=True)
    day: Mapped[date]
    """In UTC."""
    builds: Mapped[int]
    queued: Mapped[int] = mapped_column(server_default="0")
    """How many were queued at ``counted_at``, and all that came since."""
    ahead: Mapped[int] = mapped_column(server_default="0")
    """Those of them that wait for a slot."""
    counted_at: Mapped[datetime | None]
    """When a long queue was counted; a short one is counted each time."""


class ApiKey(Base):
    """A bearer key of a project; only the SHA-256 of it is kept (the key itself has 256 random bits)."""

    __tablename__ = "api_key"
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _ref("project.id")
    name: Mapped[str]
    hash: Mapped[bytes] = mapped_column(unique=True)
    prefix: Mapped[str | None] = mapped_column(String(16))
    """Its first characters, so that people can tell theirs apart; NULL for a key that the operator thought up."""
    scopes: Mapped[list[Any]] = mapped_column(server_default=text("'[\"admin\"]'"))
    """Of ``app.keys.Scope``."""
    created_at: Mapped[datetime] = _now()
    last_used_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    replaced_by: Mapped[str | None] = mapped_column(ID)
    """The key that took over, after a rotation."""
    __table_args__ = (Index("ix_api_key_project_id_id", "project_id", "id"),)


class Source(Base):
    """Content-addressed input of a project, kept as a gzipped tar in ``source_chunk``."""

    __tablename__ = "source"
    project_id: Mapped[str] = mapped_column(ID, ForeignKey("project.id"), primary_key=True)
    digest: Mapped[str] = mapped_column(String(71), primary_key=True)
    size_bytes: Mapped[int]
    """Of the stored archive."""
    files: Mapped[int]
    created_at: Mapped[datetime] = _now()
    last_used_at: Mapped[datetime] = _now()


class SourceChunk(Base):
    """A piece of a source's archive. In Postgres, because processes share Postgres and nothing else."""

    __tablename__ = "source_chunk"
    project_id: Mapped[str] = mapped_column(ID, primary_key=True)
    digest: Mapped[str] = mapped_column(String(71), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[bytes]
    __table_args__ = (
        ForeignKeyConstraint(
            ["project_id", "digest"], ["source.project_id", "source.digest"], ondelete="CASCADE", deferrable=True
        ),
    )


LEADS = (
    "cache_key is not null and waiting_for is null and artifact_id is null "
    "and status in ('queued', 'dispatching', 'building')"
)
"""Which builds lead: one of each key is under way, and others with that key wait for it."""


class Build(Base):
    """One request: a source and where it shall run. Never changes its wish, only its progress."""

    __tablename__ = "build"
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _ref("project.id")
    status: Mapped[BuildStatus] = _status(BuildStatus)
    attempt: Mapped[int] = mapped_column(server_default="0")
    """Number of the current run; 0 before the first."""
    builder_platform: Mapped[str] = mapped_column(String(32))
    service_platform: Mapped[str | None] = mapped_column(String(32))
    source: Mapped[Json]
    """``{"kind": "archive", "digest"}`` or ``{"kind": "git", "url", "ref", "subdir", "commit", "digest"}``."""
    source_digest: Mapped[str | None] = mapped_column(String(71))
    spec: Mapped[Json]
    """``build`` and ``builder`` of the request, defaults filled in."""
    service_id: Mapped[str | None] = _ref("service.id", nullable=True)
    config: Mapped[Json | None]
    """The ``service`` block of the request without its secrets."""
    secret_versions: Mapped[Json | None]
    """Name of each secret → id in ``secret_version``; NULL keeps those of the live release."""
    sequence: Mapped[int | None]
    """Order among everything submitted for the service."""
    labels: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    warnings: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"))
    retry_of: Mapped[str | None] = _ref("build.id", nullable=True, ondelete="SET NULL")
    reason: Mapped[str | None] = mapped_column(String(32))
    message: Mapped[str | None]
    diagnostics: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"))
    tried: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"))
    """What was tried to get a builder and why it was given up."""
    losses: Mapped[int] = mapped_column(server_default="0")
    """How many builders were lost or refused; places without room don't count."""
    artifact_id: Mapped[str | None] = _ref("artifact.id", nullable=True)
    """While queued: an artifact that was found for it and is yet to be checked (``app.builds.reuse``)."""
    cache_key: Mapped[str | None] = mapped_column(String(71))
    """Digest of all that its image depends on; NULL: it gets a builder of its own."""
    waiting_for: Mapped[str | None] = mapped_column(ID)
    """While queued: the build with the same key that is under way."""
    batch_id: Mapped[str | None] = mapped_column(ID)
    release_id: Mapped[str | None] = mapped_column(ID)
    created_at: Mapped[datetime] = _now()
    updated_at: Mapped[datetime] = _now()
    dispatched_at: Mapped[datetime | None]
    building_at: Mapped[datetime | None]
    promoting_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    deadline_at: Mapped[datetime | None]
    """While queued: when it expires."""
    not_before: Mapped[datetime | None]
    """While queued: no builder is launched before this time (back-off after a lost or refused run); ``infinity`` while another
    build's artifact may do."""
    next_check_at: Mapped[datetime | None]
    """When reconcile looks again; NULL while a limit holds the build."""
    traceparent: Mapped[str | None] = mapped_column(String(55))
    """Of the request that made it; NULL: it is older than traces."""
    __table_args__ = (
        Index("ix_build_project_id_id", "project_id", "id"),
        Index("ix_build_project_id_status_id", "project_id", "status", "id"),
        Index("ix_build_platform", "project_id", text("coalesce(service_platform, builder_platform)"), "id"),
        Index("ix_build_service_id_id", "service_id", "id"),
        Index("ix_build_queue", "builder_platform", "project_id", "id", postgresql_where=_in((BuildStatus.QUEUED,))),
        Index("ix_build_open", "builder_platform", "status", "created_at", postgresql_where=_in(OPEN_BUILD)),
        Index("ix_build_next_check_at", "next_check_at", postgresql_where=_in(OPEN_BUILD)),
        Index("ix_build_service_id", "service_id", "sequence"),
        Index("ix_build_artifact_id", "artifact_id"),
        Index("ix_build_source_digest", "project_id", "source_digest"),
        Index("ix_build_finished_at", "finished_at"),
        Index("ix_build_retry_of", "retry_of"),
        Index("uq_build_leader", "project_id", "cache_key", unique=True, postgresql_where=text(LEADS)),
        Index("ix_build_batch_id", "batch_id", "status", postgresql_where=text("batch_id is not null")),
        Index("ix_build_waiting_for", "waiting_for", postgresql_where=text("waiting_for is not null")),
    )


class BuildLabel(Base):
    """An index and no more: labels in the order of builds, which no index over JSON has. Triggers of ``build`` keep it."""

    __tablename__ = "build_label"
    project_id: Mapped[str] = mapped_column(ID, primary_key=True)
    key: Mapped[str] = mapped_column(String(63, collation="C"), primary_key=True)
    value: Mapped[str] = mapped_column(String(255, collation="C"), primary_key=True)
    build_id: Mapped[str] = mapped_column(ID, primary_key=True)


class Batch(Base):
    """Builds that were sent together."""

    __tablename__ = "batch"
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _ref("project.id")
    size: Mapped[int]
    """How many were sent, those that were refused among them."""
    accepted: Mapped[int]
    unfinished: Mapped[int]
    """How many of its builds have not ended; counted down in the transaction of each end (``app.outbox``)."""
    created_at: Mapped[datetime] = _now()
    ended_at: Mapped[datetime | None]
    __table_args__ = (
        Index("ix_batch_project_id_id", "project_id", "id"),
        Index("ix_batch_ended_at", "ended_at"),
    )


class BatchItem(Base):
    """What became of one order of a batch: a build, or the problem document that says why there is none."""

    __tablename__ = "batch_item"
    batch_id: Mapped[str] = mapped_column(ID, ForeignKey("batch.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    """From 0, as they were sent."""
    build_id: Mapped[str | None] = mapped_column(ID)
    problem: Mapped[Json | None]


class Run(Base):
    """One attempt of one builder. Committed before the launch: the ledger of what may exist on a platform."""

    __tablename__ = "run"
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _ref("project.id")
    build_id: Mapped[str] = _ref("build.id", ondelete="CASCADE")
    attempt: Mapped[int]
    status: Mapped[RunStatus] = _status(RunStatus)
    platform: Mapped[str] = mapped_column(String(32))
    region: Mapped[str | None] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(64), unique=True)
    handle: Mapped[str | None]
    key_id: Mapped[str] = mapped_column(String(64))
    """Which secret key the run's token comes from."""
    instance: Mapped[str | None]
    """The machine that claimed the run; the first one wins."""
    stage: Mapped[str | None] = mapped_column(String(16))
    launch_tries: Mapped[int] = mapped_column(server_default="0")
    exit_code: Mapped[int | None]
    out_of_memory: Mapped[bool] = mapped_column(server_default=text("false"))
    reason: Mapped[str | None] = mapped_column(String(32))
    message: Mapped[str | None]
    effective: Mapped[Json | None]
    timings: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    isolation: Mapped[str | None] = mapped_column(String(16))
    toolchain: Mapped[str | None]
    """What its builder builds with, as far as that was known at its launch."""
    log_bytes: Mapped[int] = mapped_column(server_default="0")
    log_next: Mapped[int] = mapped_column(server_default="0")
    """Number of the next log line that is new."""
    completion_id: Mapped[str | None]
    completion_answer: Mapped[Json | None]
    created_at: Mapped[datetime] = _now()
    launched_at: Mapped[datetime | None]
    claimed_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    deadline_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    cleaned_at: Mapped[datetime | None]
    """When the platform's machine was seen to be gone."""
    next_check_at: Mapped[datetime | None]
    __table_args__ = (
        Index("ix_run_build_id", "build_id", "attempt", unique=True),
        Index("ix_run_open", "deadline_at", postgresql_where=_in(OPEN_RUN)),
        Index("ix_run_not_cleaned", "next_check_at", postgresql_where=text("cleaned_at is null")),
    )


class RunLog(Base):
    """A batch of log lines of a run: ``lines`` is ``[{"t", "s", "m"}, …]`` and ``number`` the number of the first."""

    __tablename__ = "run_log"
    run_id: Mapped[str] = mapped_column(ID, ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    lines: Mapped[list[Any]]
    created_at: Mapped[datetime] = _now()
    __table_args__ = (Index("ix_run_log_created_at", "created_at"),)


class Artifact(Base):
    """An OCI image by digest, without a host: that is chosen for each reader."""

    __tablename__ = "artifact"
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _ref("project.id")
    status: Mapped[str] = mapped_column(String(16), server_default="available")
    """``available``, then ``deleting`` when nothing refers to it any more."""
    repository: Mapped[str]
    digest: Mapped[str] = mapped_column(String(71))
    size_bytes: Mapped[int]
    source_digest: Mapped[str] = mapped_column(String(71))
    source_commit: Mapped[str | None] = mapped_column(String(64))
    goarch: Mapped[str] = mapped_column(String(16))
    toolchain: Mapped[Json]
    isolation: Mapped[str | None] = mapped_column(String(16))
    sbom: Mapped[Json | None]
    """CycloneDX 1.5."""
    run_id: Mapped[str | None] = mapped_column(ID)
    cache_key: Mapped[str | None] = mapped_column(String(71))
    """Digest of all that it depends on; NULL where the toolchain was not known."""
    created_at: Mapped[datetime] = _now()
    last_used_at: Mapped[datetime] = _now()
    __table_args__ = (
        CheckConstraint("status in ('available', 'deleting')", name="status"),
        Index("ix_artifact_cache_key", "project_id", "cache_key", "id", postgresql_where=text("status = 'available'")),
        Index("ix_artifact_project_id_id", "project_id", "id"),
        Index("ix_artifact_last_used_at", "last_used_at"),
        Index("ix_artifact_run_id", "run_id"),
    )


class Service(Base):
    """A named, persistent endpoint that runs one live release and sleeps when idle."""

    __tablename__ = "service"
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _ref("project.id")
    name: Mapped[str] = mapped_column(String(40))
    host: Mapped[str] = mapped_column(String(80))
    """First label under the gateway's domain."""
    platform: Mapped[str] = mapped_column(String(32))
    status: Mapped[ServiceStatus] = _status(ServiceStatus)
    sequence: Mapped[int] = mapped_column(server_default="0")
    """Last number given out by submit."""
    live_release_id: Mapped[str | None] = mapped_column(ID)
    url: Mapped[str | None]
    address: Mapped[str | None]
    """Where the running instance takes requests; NULL unless running behind our gateway."""
    instance_id: Mapped[str | None]
    starts: Mapped[int] = mapped_column(server_default="0")
    """How often it was woken; for people and tests."""
    wake_ms: Mapped[float | None]
    reason: Mapped[str | None] = mapped_column(String(32))
    message: Mapped[str | None]
    last_request_at: Mapped[datetime | None]
    status_at: Mapped[datetime] = _now()
    created_at: Mapped[datetime] = _now()
    updated_at: Mapped[datetime] = _now()
    deleted_at: Mapped[datetime | None]
    """When its deletion was asked for; the name is free from then on."""
    next_check_at: Mapped[datetime | None]
    __table_args__ = (
        Index("uq_service_name", "project_id", "name", unique=True, postgresql_where=text("deleted_at is null")),
        Index("uq_service_host", "host", unique=True, postgresql_where=text("deleted_at is null")),
        Index("ix_service_project_id_id", "project_id", "id", postgresql_where=text("deleted_at is null")),
        Index("ix_service_project_id_name", "project_id", "name"),
        Index("ix_service_next_check_at", "next_check_at", postgresql_where=text("next_check_at is not null")),
        Index("ix_service_running", "status_at", postgresql_where=text("status = 'running'")),
    )


class Release(Base):
    """Immutable: an artifact, a config and a platform. Rollback, config change and migration make new ones."""

    __tablename__ = "release"
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _ref("project.id")
    service_id: Mapped[str] = _ref("service.id", ondelete="CASCADE")
    number: Mapped[int]
    """1, 2, 3 … within the service."""
    status: Mapped[ReleaseStatus] = _status(ReleaseStatus)
    kind: Mapped[str] = mapped_column(String(16))
    """``build``, ``config``, ``promote``, ``rollback`` or ``migrate``."""
    platform: Mapped[str] = mapped_column(String(32))
    artifact_id: Mapped[str] = _ref("artifact.id")
    build_id: Mapped[str | None] = mapped_column(ID)
    sequence: Mapped[int]
    """Order of the wish to run this artifact; a lower one never replaces a higher one."""
    config_sequence: Mapped[int]
    """Order of the wish to run with this config."""
    patch: Mapped[Json | None]
    """For ``config`` and ``migrate``: what to change in the live release's config and secrets, applied at the claim."""
    config: Mapped[Json]
    secret_versions: Mapped[Json | None]
    handle: Mapped[str | None]
    region: Mapped[str | None] = mapped_column(String(64))
    url: Mapped[str | None]
    effective: Mapped[Json | None]
    warnings: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"))
    tries: Mapped[int] = mapped_column(server_default="0")
    reason: Mapped[str | None] = mapped_column(String(32))
    message: Mapped[str | None]
    created_at: Mapped[datetime] = _now()
    deploying_at: Mapped[datetime | None]
    live_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    """When it stopped being wanted: superseded or failed."""
    retired_at: Mapped[datetime | None]
    """When nothing of it was left on the platform."""
    keep_seconds: Mapped[int | None]
    """For ``migrate``: how long the platform before this one keeps the service."""
    keep_until: Mapped[datetime | None]
    """Set when its service moved away: until then its platform keeps it."""
    leaving_at: Mapped[datetime | None]
    """When the last try to remove its service from its platform began; longer ago than a try takes once it has failed."""
    deadline_at: Mapped[datetime | None]
    next_check_at: Mapped[datetime | None]
    traceparent: Mapped[str | None] = mapped_column(String(55))
    """Of its build, else of the request that made it; NULL: it is older than this column."""
    __table_args__ = (
        Index("uq_release_number", "service_id", "number", unique=True),
        Index("uq_release_deploying", "service_id", unique=True, postgresql_where=text("status = 'deploying'")),
        Index(
            "ix_release_next_check_at",
            "next_check_at",
            postgresql_where=text("status in ('pending', 'deploying') or retired_at is null"),
        ),
        Index("ix_release_artifact_id", "artifact_id"),
        Index("ix_release_build_id", "build_id"),
    )


class SecretVersion(Base):
    """One value of one secret of a service or a webhook, AES-256-GCM; the only place where secret values are kept."""

    __tablename__ = "secret_version"
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _ref("project.id")
    service_id: Mapped[str | None] = _ref("service.id", nullable=True, ondelete="CASCADE")
    webhook_id: Mapped[str | None] = _ref("webhook.id", nullable=True, ondelete="CASCADE")
    name: Mapped[str]
    key_id: Mapped[str] = mapped_column(String(64))
    nonce: Mapped[bytes]
    ciphertext: Mapped[bytes]
    created_at: Mapped[datetime] = _now()
    __table_args__ = (
        CheckConstraint("num_nonnulls(service_id, webhook_id) = 1", name="owner"),
        Index("ix_secret_version_service_id", "service_id"),
        Index("ix_secret_version_webhook_id", "webhook_id", postgresql_where=text("webhook_id is not null")),
    )


class PullCredential(Base):
    """A platform's right to pull one service's images; its password is derived from a secret key and ``id``. No row, no right."""

    __tablename__ = "pull_credential"
    id: Mapped[str] = _id()
    """Also its user name."""
    project_id: Mapped[str] = _ref("project.id")
    service_id: Mapped[str] = _ref("service.id", ondelete="CASCADE")
    platform: Mapped[str] = mapped_column(String(32))
    repository: Mapped[str]
    key_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = _now()
    __table_args__ = (Index("uq_pull_credential", "service_id", "platform", "key_id", unique=True),)


class Event(Base):
    """Append-only; written in the transaction of the change it tells of. Read in (xid, id) order."""

    __tablename__ = "event"
    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    xid: Mapped[int] = mapped_column(Xid8(), server_default=text("pg_current_xact_id()"))
    project_id: Mapped[str] = mapped_column(ID)
    kind: Mapped[str] = mapped_column(String(48))
    """Such as ``build.queued`` or ``service.asleep``."""
    build_id: Mapped[str | None] = mapped_column(ID)
    run_id: Mapped[str | None] = mapped_column(ID)
    service_id: Mapped[str | None] = mapped_column(ID)
    release_id: Mapped[str | None] = mapped_column(ID)
    data: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    __table_args__ = (
        Index("ix_event_project_id_xid_id", "project_id", "xid", "id"),
        Index("ix_event_build_id", "build_id", "xid", "id", postgresql_where=text("build_id is not null")),
        Index("ix_event_service_id", "service_id", "xid", "id", postgresql_where=text("service_id is not null")),
        Index("ix_event_at", "at"),
    )


class IdempotencyKey(Base):
    """What a POST with an ``Idempotency-Key`` was answered; written in the transaction of its effect, kept for a day."""

    __tablename__ = "idempotency_key"
    project_id: Mapped[str] = mapped_column(ID, ForeignKey("project.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255, collation="C"), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(64))
    """Which secret key the fingerprint comes from."""
    fingerprint: Mapped[bytes]
    status: Mapped[int]
    media_type: Mapped[str | None]
    location: Mapped[str | None]
    body: Mapped[Json | None]
    created_at: Mapped[datetime] = _now()
    __table_args__ = (Index("ix_idempotency_key_created_at", "created_at"),)


class Webhook(Base):
    """An endpoint that a project wants to be told at. ``xid`` and ``event_id`` are its position among the events."""

    __tablename__ = "webhook"
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _ref("project.id")
    url: Mapped[str]
    description: Mapped[str] = mapped_column(server_default="")
    events: Mapped[list[Any]] = mapped_column(server_default=text("'[\"*\"]'"))
    """Kinds it wants: ``build.failed``, ``build.*``, or ``*`` for all."""
    status: Mapped[str] = mapped_column(String(16), server_default="enabled")
    reason: Mapped[str | None] = mapped_column(String(32))
    """Why it is disabled: ``by_request``, ``gone`` or ``failing``."""
    secret_id: Mapped[str] = mapped_column(ID)
    old_secret_id: Mapped[str | None] = mapped_column(ID)
    """Signs too until ``old_secret_until``."""
    old_secret_until: Mapped[datetime | None]
    xid: Mapped[int] = mapped_column(Xid8())
    event_id: Mapped[int] = mapped_column(server_default="0")
    last_delivered_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = _now()
    updated_at: Mapped[datetime] = _now()
    disabled_at: Mapped[datetime | None]
    __table_args__ = (
        CheckConstraint("status in ('enabled', 'disabled')", name="status"),
        Index("ix_webhook_project_id_id", "project_id", "id"),
        Index("ix_webhook_enabled", "id", postgresql_where=text("status = 'enabled'")),
    )


class WebhookDelivery(Base):
    """One event for one endpoint, until it is delivered or given up."""

    __tablename__ = "webhook_delivery"
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _ref("project.id")
    webhook_id: Mapped[str] = _ref("webhook.id", ondelete="CASCADE")
    number: Mapped[int] = mapped_column(Identity(always=True))
    """Order of an endpoint's deliveries; given out under the lock on the endpoint."""
    event_id: Mapped[int | None]
    """NULL: a test."""
    kind: Mapped[str] = mapped_column(String(48))
    lane: Mapped[str | None] = mapped_column(ID)
    """What it waits in line for: the event's build, else its service; NULL: for nothing."""
    status: Mapped[str] = mapped_column(String(16), server_default="pending")
    next_attempt_at: Mapped[datetime | None]
    """While pending; NULL as long as an earlier one of its lane is pending. During an attempt: when that counts as cut short."""
    sender: Mapped[str | None] = mapped_column(String(64))
    """The process that is at it."""
    attempts: Mapped[int] = mapped_column(server_default="0")
    first_attempt_at: Mapped[datetime | None]
    last_attempt_at: Mapped[datetime | None]
    status_code: Mapped[int | None]
    ms: Mapped[int | None]
    error: Mapped[str | None]
    created_at: Mapped[datetime] = _now()
    ended_at: Mapped[datetime | None]
    __table_args__ = (
        CheckConstraint("status in ('pending', 'delivered', 'failed')", name="status"),
        Index("uq_webhook_delivery_event_id", "webhook_id", "event_id", unique=True),
        Index("ix_webhook_delivery_number", "webhook_id", "number"),
        Index("ix_webhook_delivery_created_at", "created_at"),
        Index(
            "ix_webhook_delivery_due",
            "webhook_id",
            "next_attempt_at",
            postgresql_where=text("status = 'pending' and next_attempt_at is not null"),
        ),
        Index("ix_webhook_delivery_lane", "webhook_id", "lane", "number", postgresql_where=text("status = 'pending'")),
    )


class GatewayLease(Base):
    """What one gateway process has open to one service. A service sleeps only when no live lease has any in flight."""

    __tablename__ = "gateway_lease"
    service_id: Mapped[str] = mapped_column(ID, ForeignKey("service.id", ondelete="CASCADE"), primary_key=True)
    process: Mapped[str] = mapped_column(String(64), primary_key=True)
    in_flight: Mapped[int]
    last_seen_at: Mapped[datetime] = _now()


class Lease(Base):
    """Something that one process at a time may own, such as the local platform of a host."""

    __tablename__ = "lease"
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    holder: Mapped[str] = mapped_column(String(64))
    expires_at: Mapped[datetime]


class Budget(Base):
    """A token bucket: how many requests may be sent, of one account or about one object. See ``app.budgets``."""

    __tablename__ = "budget"
    name: Mapped[str] = mapped_column(primary_key=True)
    tokens: Mapped[float]
    """As of ``refilled_at``."""
    granted: Mapped[float]
    """How many the last asker got; kept so that its statement can return it."""
    refilled_at: Mapped[datetime] = _now()
    full_at: Mapped[datetime | None]
    """When the platform said that its window ends: until then nothing is refilled, then all is."""
    closed_until: Mapped[datetime | None]
    """The platform refused a request and wants to hear nothing before."""
    # Unlogged: a grant need not wait for the disk, and after a crash the next answer's headers tell what is left.
    __table_args__ = ({"prefixes": ["UNLOGGED"]},)


class Breaker(Base):
    """A target that has failed of late: one region of a platform, for one operation. No row: all is well there."""

    __tablename__ = "breaker"
    platform: Mapped[str] = mapped_column(String(32), primary_key=True)
    region: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Empty where the platform chooses."""
    operation: Mapped[str] = mapped_column(String(16), primary_key=True)
    failures: Mapped[int]
    """In a row, none of them long before the next."""
    failed_at: Mapped[datetime] = _now()
    message: Mapped[str]
    """Of the last failure."""
    trips: Mapped[int] = mapped_column(server_default="0")
    """How often it was opened without a success since."""
    open_until: Mapped[datetime | None]
    """Nobody tries before; then one does. NULL while it is closed."""
    probe_until: Mapped[datetime | None]
    """Somebody is trying; from then on they count as dead."""

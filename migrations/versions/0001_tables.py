"""The tables

Revision: 0001, after:
"""

import base64
import secrets

import sqlalchemy as sa
import uuid_utils
from alembic import op
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import UserDefinedType

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


class Xid8(UserDefinedType[int]):
    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "xid8"


def upgrade() -> None:
    op.create_table(
        "event",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("xid", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.Column("project_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("kind", sa.String(length=48), nullable=False),
        sa.Column("build_id", sa.String(length=32, collation="C"), nullable=True),
        sa.Column("run_id", sa.String(length=32, collation="C"), nullable=True),
        sa.Column("service_id", sa.String(length=32, collation="C"), nullable=True),
        sa.Column("release_id", sa.String(length=32, collation="C"), nullable=True),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column(
            "at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event")),
    )
    op.create_index("ix_event_at", "event", ["at"], unique=False)
    op.create_index(
        "ix_event_build_id",
        "event",
        ["build_id", "xid", "id"],
        unique=False,
        postgresql_where=sa.text("build_id is not null"),
    )
    op.create_index("ix_event_project_id_xid_id", "event", ["project_id", "xid", "id"], unique=False)
    op.create_index(
        "ix_event_service_id",
        "event",
        ["service_id", "xid", "id"],
        unique=False,
        postgresql_where=sa.text("service_id is not null"),
    )
    op.create_table(
        "installation",
        sa.Column("id", sa.String(length=6), nullable=False),
        sa.Column("key_check", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_installation")),
    )
    op.create_table(
        "lease",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("expires_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_lease")),
    )
    op.create_table(
        "project",
        sa.Column("id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("max_concurrent_builds", sa.BigInteger(), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_project")),
        sa.UniqueConstraint("name", name=op.f("uq_project_name")),
    )
    op.create_table(
        "api_key",
        sa.Column("id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("project_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_api_key_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_key")),
        sa.UniqueConstraint("hash", name=op.f("uq_api_key_hash")),
    )
    op.create_table(
        "artifact",
        sa.Column("id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("project_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("status", sa.String(length=16), server_default="available", nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("source_digest", sa.String(length=71), nullable=False),
        sa.Column("source_commit", sa.String(length=64), nullable=True),
        sa.Column("goarch", sa.String(length=16), nullable=False),
        sa.Column("toolchain", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("isolation", sa.String(length=16), nullable=True),
        sa.Column("sbom", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("run_id", sa.String(length=32, collation="C"), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_used_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("status in ('available', 'deleting')", name=op.f("ck_artifact_status")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_artifact_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifact")),
    )
    op.create_index("ix_artifact_last_used_at", "artifact", ["last_used_at"], unique=False)
    op.create_index("ix_artifact_project_id_id", "artifact", ["project_id", "id"], unique=False)
    op.create_index("ix_artifact_run_id", "artifact", ["run_id"], unique=False)
    op.create_table(
        "service",
        sa.Column("id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("project_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("host", sa.String(length=80), nullable=False),
        sa.Column("platform", sa.String(length=32), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("sequence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("live_release_id", sa.String(length=32, collation="C"), nullable=True),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("instance_id", sa.Text(), nullable=True),
        sa.Column("starts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("wake_ms", sa.Double(), nullable=True),
        sa.Column("reason", sa.String(length=32), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("last_request_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("status_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("deleted_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("next_check_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_service_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_service")),
    )
    op.create_index(
        "ix_service_next_check_at",
        "service",
        ["next_check_at"],
        unique=False,
        postgresql_where=sa.text("next_check_at is not null"),
    )
    op.create_index(
        "ix_service_running", "service", ["status_at"], unique=False, postgresql_where=sa.text("status = 'running'")
    )
    op.create_index("uq_service_host", "service", ["host"], unique=True, postgresql_where=sa.text("deleted_at is null"))
    op.create_index(
        "uq_service_name",
        "service",
        ["project_id", "name"],
        unique=True,
        postgresql_where=sa.text("deleted_at is null"),
    )
    op.create_table(
        "source",
        sa.Column("project_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("files", sa.BigInteger(), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_used_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_source_project_id")),
        sa.PrimaryKeyConstraint("project_id", "digest", name=op.f("pk_source")),
    )
    op.create_table(
        "build",
        sa.Column("id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("project_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("builder_platform", sa.String(length=32), nullable=False),
        sa.Column("service_platform", sa.String(length=32), nullable=True),
        sa.Column("source", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("source_digest", sa.String(length=71), nullable=True),
        sa.Column("spec", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("service_id", sa.String(length=32, collation="C"), nullable=True),
        sa.Column("config", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("secret_versions", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("sequence", sa.BigInteger(), nullable=True),
        sa.Column("labels", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("warnings", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("retry_of", sa.String(length=32, collation="C"), nullable=True),
        sa.Column("reason", sa.String(length=32), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column(
            "diagnostics", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False
        ),
        sa.Column("tried", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("artifact_id", sa.String(length=32, collation="C"), nullable=True),
        sa.Column("release_id", sa.String(length=32, collation="C"), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("dispatched_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("building_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("promoting_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("finished_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("deadline_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("not_before", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("next_check_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["artifact_id"], ["artifact.id"], name=op.f("fk_build_artifact_id")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_build_project_id")),
        sa.ForeignKeyConstraint(["retry_of"], ["build.id"], name=op.f("fk_build_retry_of"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["service_id"], ["service.id"], name=op.f("fk_build_service_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_build")),
    )
    op.create_index("ix_build_artifact_id", "build", ["artifact_id"], unique=False)
    op.create_index("ix_build_finished_at", "build", ["finished_at"], unique=False)
    op.create_index(
        "ix_build_next_check_at",
        "build",
        ["next_check_at"],
        unique=False,
        postgresql_where=sa.text("status in ('queued', 'dispatching', 'building', 'promoting')"),
    )
    op.create_index(
        "ix_build_open",
        "build",
        ["builder_platform", "status", "created_at"],
        unique=False,
        postgresql_where=sa.text("status in ('queued', 'dispatching', 'building', 'promoting')"),
    )
    op.create_index("ix_build_project_id_id", "build", ["project_id", "id"], unique=False)
    op.create_index("ix_build_retry_of", "build", ["retry_of"], unique=False)
    op.create_index("ix_build_service_id", "build", ["service_id", "sequence"], unique=False)
    op.create_index("ix_build_source_digest", "build", ["project_id", "source_digest"], unique=False)
    op.create_table(
        "gateway_lease",
        sa.Column("service_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("process", sa.String(length=64), nullable=False),
        sa.Column("in_flight", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["service_id"], ["service.id"], name=op.f("fk_gateway_lease_service_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("service_id", "process", name=op.f("pk_gateway_lease")),
    )
    op.create_table(
        "release",
        sa.Column("id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("project_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("service_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("platform", sa.String(length=32), nullable=False),
        sa.Column("artifact_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("build_id", sa.String(length=32, collation="C"), nullable=True),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("config_sequence", sa.BigInteger(), nullable=False),
        sa.Column("patch", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("config", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("secret_versions", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("handle", sa.Text(), nullable=True),
        sa.Column("region", sa.String(length=64), nullable=True),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("effective", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("warnings", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("tries", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("deploying_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("live_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("finished_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("retired_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("deadline_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("next_check_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["artifact_id"], ["artifact.id"], name=op.f("fk_release_artifact_id")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_release_project_id")),
        sa.ForeignKeyConstraint(["service_id"], ["service.id"], name=op.f("fk_release_service_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_release")),
    )
    op.create_index("ix_release_artifact_id", "release", ["artifact_id"], unique=False)
    op.create_index("ix_release_build_id", "release", ["build_id"], unique=False)
    op.create_index(
        "ix_release_next_check_at",
        "release",
        ["next_check_at"],
        unique=False,
        postgresql_where=sa.text("status in ('pending', 'deploying') or retired_at is null"),
    )
    op.create_index(
        "uq_release_deploying", "release", ["service_id"], unique=True, postgresql_where=sa.text("status = 'deploying'")
    )
    op.create_index("uq_release_number", "release", ["service_id", "number"], unique=True)
    op.create_table(
        "secret_version",
        sa.Column("id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("project_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("service_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("nonce", sa.LargeBinary(), nullable=False),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_secret_version_project_id")),
        sa.ForeignKeyConstraint(
            ["service_id"], ["service.id"], name=op.f("fk_secret_version_service_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_secret_version")),
    )
    op.create_index("ix_secret_version_service_id", "secret_version", ["service_id"], unique=False)
    op.create_table(
        "source_chunk",
        sa.Column("project_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id", "digest"],
            ["source.project_id", "source.digest"],
            name=op.f("fk_source_chunk_project_id_digest"),
            ondelete="CASCADE",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("project_id", "digest", "number", name=op.f("pk_source_chunk")),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("project_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("build_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("platform", sa.String(length=32), nullable=False),
        sa.Column("region", sa.String(length=64), nullable=True),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("handle", sa.Text(), nullable=True),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("instance", sa.Text(), nullable=True),
        sa.Column("stage", sa.String(length=16), nullable=True),
        sa.Column("launch_tries", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("exit_code", sa.BigInteger(), nullable=True),
        sa.Column("out_of_memory", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("effective", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("timings", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("isolation", sa.String(length=16), nullable=True),
        sa.Column("log_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("log_next", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("completion_id", sa.Text(), nullable=True),
        sa.Column("completion_answer", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("launched_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("claimed_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("heartbeat_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("deadline_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("finished_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("cleaned_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("next_check_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["build_id"], ["build.id"], name=op.f("fk_run_build_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_run_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run")),
        sa.UniqueConstraint("name", name=op.f("uq_run_name")),
    )
    op.create_index("ix_run_build_id", "run", ["build_id", "attempt"], unique=True)
    op.create_index(
        "ix_run_not_cleaned", "run", ["next_check_at"], unique=False, postgresql_where=sa.text("cleaned_at is null")
    )
    op.create_index(
        "ix_run_open",
        "run",
        ["deadline_at"],
        unique=False,
        postgresql_where=sa.text("status in ('launching', 'running')"),
    )
    op.create_table(
        "run_log",
        sa.Column("run_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("lines", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_run_log_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "number", name=op.f("pk_run_log")),
    )
    op.create_index("ix_run_log_created_at", "run_log", ["created_at"], unique=False)

    # Who this installation is on every platform: random, so that two never meet.
    alphabet = "0123456789abcdefghijklmnopqrstuvwxyz"
    installation = "".join(secrets.choice(alphabet) for _ in range(6))
    op.execute(sa.text("INSERT INTO installation (id) VALUES (:id)").bindparams(id=installation))
    project = base64.b32hexencode(uuid_utils.uuid7().bytes).decode().rstrip("=").lower()
    op.execute(sa.text("INSERT INTO project (id, name) VALUES (:id, 'default')").bindparams(id=f"prj_{project}"))


def downgrade() -> None:
    op.drop_index("ix_run_log_created_at", table_name="run_log")
    op.drop_table("run_log")
    op.drop_index("ix_run_open", table_name="run", postgresql_where=sa.text("status in ('launching', 'running')"))
    op.drop_index("ix_run_not_cleaned", table_name="run", postgresql_where=sa.text("cleaned_at is null"))
    op.drop_index("ix_run_build_id", table_name="run")
    op.drop_table("run")
    op.drop_table("source_chunk")
    op.drop_index("ix_secret_version_service_id", table_name="secret_version")
    op.drop_table("secret_version")
    op.drop_index("uq_release_number", table_name="release")
    op.drop_index("uq_release_deploying", table_name="release", postgresql_where=sa.text("status = 'deploying'"))
    op.drop_index(
        "ix_release_next_check_at",
        table_name="release",
        postgresql_where=sa.text("status in ('pending', 'deploying') or retired_at is null"),
    )
    op.drop_index("ix_release_build_id", table_name="release")
    op.drop_index("ix_release_artifact_id", table_name="release")
    op.drop_table("release")
    op.drop_table("gateway_lease")
    op.drop_index("ix_build_source_digest", table_name="build")
    op.drop_index("ix_build_service_id", table_name="build")
    op.drop_index("ix_build_retry_of", table_name="build")
    op.drop_index("ix_build_project_id_id", table_name="build")
    op.drop_index(
        "ix_build_open",
        table_name="build",
        postgresql_where=sa.text("status in ('queued', 'dispatching', 'building', 'promoting')"),
    )
    op.drop_index(
        "ix_build_next_check_at",
        table_name="build",
        postgresql_where=sa.text("status in ('queued', 'dispatching', 'building', 'promoting')"),
    )
    op.drop_index("ix_build_finished_at", table_name="build")
    op.drop_index("ix_build_artifact_id", table_name="build")
    op.drop_table("build")
    op.drop_table("source")
    op.drop_index("uq_service_name", table_name="service", postgresql_where=sa.text("deleted_at is null"))
    op.drop_index("uq_service_host", table_name="service", postgresql_where=sa.text("deleted_at is null"))
    op.drop_index("ix_service_running", table_name="service", postgresql_where=sa.text("status = 'running'"))
    op.drop_index(
        "ix_service_next_check_at", table_name="service", postgresql_where=sa.text("next_check_at is not null")
    )
    op.drop_table("service")
    op.drop_index("ix_artifact_run_id", table_name="artifact")
    op.drop_index("ix_artifact_project_id_id", table_name="artifact")
    op.drop_index("ix_artifact_last_used_at", table_name="artifact")
    op.drop_table("artifact")
    op.drop_table("api_key")
    op.drop_table("project")
    op.drop_table("lease")
    op.drop_table("installation")
    op.drop_index("ix_event_service_id", table_name="event", postgresql_where=sa.text("service_id is not null"))
    op.drop_index("ix_event_project_id_xid_id", table_name="event")
    op.drop_index("ix_event_build_id", table_name="event", postgresql_where=sa.text("build_id is not null"))
    op.drop_index("ix_event_at", table_name="event")
    op.drop_table("event")

"""Webhooks, their deliveries, and secrets that belong to one

Revision: 0007, after: 0006
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import UserDefinedType

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


class Xid8(UserDefinedType[int]):
    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "xid8"


def upgrade() -> None:
    op.create_table(
        "webhook",
        sa.Column("id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("project_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "events", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[\"*\"]'"), nullable=False
        ),
        sa.Column("status", sa.String(length=16), server_default="enabled", nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=True),
        sa.Column("secret_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("old_secret_id", sa.String(length=32, collation="C"), nullable=True),
        sa.Column("old_secret_until", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("xid", Xid8(), nullable=False),
        sa.Column("event_id", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("last_delivered_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("disabled_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("status in ('enabled', 'disabled')", name=op.f("ck_webhook_status")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_webhook_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook")),
    )
    op.create_index(
        "ix_webhook_enabled", "webhook", ["id"], unique=False, postgresql_where=sa.text("status = 'enabled'")
    )
    op.create_index("ix_webhook_project_id_id", "webhook", ["project_id", "id"], unique=False)
    op.create_table(
        "webhook_delivery",
        sa.Column("id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("project_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("webhook_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("number", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("event_id", sa.BigInteger(), nullable=True),
        sa.Column("kind", sa.String(length=48), nullable=False),
        sa.Column("lane", sa.String(length=32, collation="C"), nullable=True),
        sa.Column("status", sa.String(length=16), server_default="pending", nullable=False),
        sa.Column("next_attempt_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("sender", sa.String(length=64), nullable=True),
        sa.Column("attempts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("first_attempt_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("last_attempt_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("status_code", sa.BigInteger(), nullable=True),
        sa.Column("ms", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("status in ('pending', 'delivered', 'failed')", name=op.f("ck_webhook_delivery_status")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_webhook_delivery_project_id")),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhook.id"], name=op.f("fk_webhook_delivery_webhook_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_delivery")),
    )
    op.create_index("ix_webhook_delivery_created_at", "webhook_delivery", ["created_at"], unique=False)
    op.create_index(
        "ix_webhook_delivery_due",
        "webhook_delivery",
        ["webhook_id", "next_attempt_at"],
        unique=False,
        postgresql_where=sa.text("status = 'pending' and next_attempt_at is not null"),
    )
    op.create_index(
        "ix_webhook_delivery_lane",
        "webhook_delivery",
        ["webhook_id", "lane", "number"],
        unique=False,
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index("ix_webhook_delivery_number", "webhook_delivery", ["webhook_id", "number"], unique=False)
    op.create_index("uq_webhook_delivery_event_id", "webhook_delivery", ["webhook_id", "event_id"], unique=True)
    op.add_column("secret_version", sa.Column("webhook_id", sa.String(length=32, collation="C"), nullable=True))
    op.alter_column("secret_version", "service_id", existing_type=sa.VARCHAR(length=32, collation="C"), nullable=True)
    op.create_index(
        "ix_secret_version_webhook_id",
        "secret_version",
        ["webhook_id"],
        unique=False,
        postgresql_where=sa.text("webhook_id is not null"),
    )
    op.create_check_constraint(
        op.f("ck_secret_version_owner"), "secret_version", "num_nonnulls(service_id, webhook_id) = 1"
    )
    op.create_foreign_key(
        op.f("fk_secret_version_webhook_id"), "secret_version", "webhook", ["webhook_id"], ["id"], ondelete="CASCADE"
    )


def downgrade() -> None:
    op.execute("delete from secret_version where webhook_id is not null")
    op.drop_constraint(op.f("ck_secret_version_owner"), "secret_version", type_="check")
    op.drop_constraint(op.f("fk_secret_version_webhook_id"), "secret_version", type_="foreignkey")
    op.drop_index(
        "ix_secret_version_webhook_id", table_name="secret_version", postgresql_where=sa.text("webhook_id is not null")
    )
    op.alter_column("secret_version", "service_id", existing_type=sa.VARCHAR(length=32, collation="C"), nullable=False)
    op.drop_column("secret_version", "webhook_id")
    op.drop_index("uq_webhook_delivery_event_id", table_name="webhook_delivery")
    op.drop_index("ix_webhook_delivery_number", table_name="webhook_delivery")
    op.drop_index(
        "ix_webhook_delivery_lane", table_name="webhook_delivery", postgresql_where=sa.text("status = 'pending'")
    )
    op.drop_index(
        "ix_webhook_delivery_due",
        table_name="webhook_delivery",
        postgresql_where=sa.text("status = 'pending' and next_attempt_at is not null"),
    )
    op.drop_index("ix_webhook_delivery_created_at", table_name="webhook_delivery")
    op.drop_table("webhook_delivery")
    op.drop_index("ix_webhook_project_id_id", table_name="webhook")
    op.drop_index("ix_webhook_enabled", table_name="webhook", postgresql_where=sa.text("status = 'enabled'"))
    op.drop_table("webhook")

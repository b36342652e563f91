"""Builds that take the artifact of an earlier one, or wait for it

Revision: 0010, after: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("artifact", sa.Column("cache_key", sa.String(length=71), nullable=True))
    op.create_index(
        "ix_artifact_cache_key",
        "artifact",
        ["project_id", "cache_key", "id"],
        unique=False,
        postgresql_where=sa.text("status = 'available'"),
    )
    op.add_column("build", sa.Column("cache_key", sa.String(length=71), nullable=True))
    op.add_column("build", sa.Column("waiting_for", sa.String(length=32, collation="C"), nullable=True))
    op.create_index(
        "uq_build_leader",
        "build",
        ["project_id", "cache_key"],
        unique=True,
        postgresql_where=sa.text(
            "cache_key is not null and waiting_for is null and artifact_id is null "
            "and status in ('queued', 'dispatching', 'building')"
        ),
    )
    op.create_index(
        "ix_build_waiting_for",
        "build",
        ["waiting_for"],
        unique=False,
        postgresql_where=sa.text("waiting_for is not null"),
    )
    op.add_column("run", sa.Column("toolchain", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("run", "toolchain")
    op.drop_index("ix_build_waiting_for", table_name="build", postgresql_where=sa.text("waiting_for is not null"))
    op.drop_index("uq_build_leader", table_name="build")
    op.drop_column("build", "waiting_for")
    op.drop_column("build", "cache_key")
    op.drop_index("ix_artifact_cache_key", table_name="artifact")
    op.drop_column("artifact", "cache_key")

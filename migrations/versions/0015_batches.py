"""Batches of builds

Revision: 0015, after: 0014
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "batch",
        sa.Column("id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("project_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("accepted", sa.BigInteger(), nullable=False),
        sa.Column("unfinished", sa.BigInteger(), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_batch_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batch")),
    )
    op.create_index("ix_batch_ended_at", "batch", ["ended_at"], unique=False)
    op.create_index("ix_batch_project_id_id", "batch", ["project_id", "id"], unique=False)
    op.create_table(
        "batch_item",
        sa.Column("batch_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("build_id", sa.String(length=32, collation="C"), nullable=True),
        sa.Column("problem", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.id"], name=op.f("fk_batch_item_batch_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("batch_id", "number", name=op.f("pk_batch_item")),
    )
    op.add_column("build", sa.Column("batch_id", sa.String(length=32, collation="C"), nullable=True))
    op.create_index(
        "ix_build_batch_id",
        "build",
        ["batch_id", "status"],
        unique=False,
        postgresql_where=sa.text("batch_id is not null"),
    )


def downgrade() -> None:
    op.drop_index("ix_build_batch_id", table_name="build", postgresql_where=sa.text("batch_id is not null"))
    op.drop_column("build", "batch_id")
    op.drop_table("batch_item")
    op.drop_table("batch")

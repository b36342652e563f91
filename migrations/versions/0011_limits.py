"""Limits of a project, and the count that they are held to

Revision: 0011, after: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

LIMITS = ("max_queued_builds", "max_builds_per_day", "max_services", "max_source_bytes")


def upgrade() -> None:
    for name in LIMITS:
        op.add_column("project", sa.Column(name, sa.BigInteger(), nullable=True))
    op.create_table(
        "build_count",
        sa.Column("project_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("builds", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_build_count_project_id")),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_build_count")),
    )


def downgrade() -> None:
    op.drop_table("build_count")
    for name in LIMITS:
        op.drop_column("project", name)

"""Request budgets and circuit breakers, which all processes share; lost builders are counted

Revision: 0005, after: 0004
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TIME = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "budget",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("tokens", sa.Float(), nullable=False),
        sa.Column("granted", sa.Float(), nullable=False),
        sa.Column("refilled_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("full_at", TIME, nullable=True),
        sa.Column("closed_until", TIME, nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_budget")),
        prefixes=["UNLOGGED"],
    )
    op.create_table(
        "breaker",
        sa.Column("platform", sa.String(length=32), nullable=False),
        sa.Column("region", sa.String(length=64), nullable=False),
        sa.Column("operation", sa.String(length=16), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("failed_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("trips", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("open_until", TIME, nullable=True),
        sa.Column("probe_until", TIME, nullable=True),
        sa.PrimaryKeyConstraint("platform", "region", "operation", name=op.f("pk_breaker")),
    )
    op.add_column("build", sa.Column("losses", sa.BigInteger(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("build", "losses")
    op.drop_table("breaker")
    op.drop_table("budget")

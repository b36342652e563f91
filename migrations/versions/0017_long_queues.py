"""How long a project's queue was when it was counted

Revision: 0017, after: 0016
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("build_count", sa.Column("queued", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("build_count", sa.Column("ahead", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("build_count", sa.Column("counted_at", postgresql.TIMESTAMP(timezone=True), nullable=True))


def downgrade() -> None:
    for column in ("counted_at", "ahead", "queued"):
        op.drop_column("build_count", column)

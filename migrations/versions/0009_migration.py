"""A service may go to another platform, and the one before keeps it for a while

Revision: 0009, after: 0008
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("release", sa.Column("keep_seconds", sa.BigInteger(), nullable=True))
    op.add_column("release", sa.Column("keep_until", postgresql.TIMESTAMP(timezone=True), nullable=True))
    op.add_column("release", sa.Column("leaving_at", postgresql.TIMESTAMP(timezone=True), nullable=True))


def downgrade() -> None:
    for column in ("leaving_at", "keep_until", "keep_seconds"):
        op.drop_column("release", column)

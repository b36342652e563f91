"""Jobs are no longer logged by the queue, so nothing has to keep its log from growing

Revision: 0016, after: 0015
"""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("truncate pgqueuer.pgqueuer_log, pgqueuer.pgqueuer_statistics")


def downgrade() -> None:
    """What was logged is gone, and an older version logs anew."""

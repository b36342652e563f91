"""Which projects wait for a platform is read off an index, however many builds they have queued

Revision: 0012, after: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    queued = sa.text("status in ('queued')")
    op.create_index("ix_build_queue", "build", ["builder_platform", "project_id", "id"], postgresql_where=queued)


def downgrade() -> None:
    op.drop_index("ix_build_queue", table_name="build")

"""Builds are listed by a service's name, which deleted services had too

Revision: 0013, after: 0012
"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_service_project_id_name", "service", ["project_id", "name"])


def downgrade() -> None:
    op.drop_index("ix_service_project_id_name", table_name="service")

"""Keys have scopes, an expiry and a successor, and say when they were used last

Revision: 0003, after: 0002

Every key there is may do everything, as before.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_key", sa.Column("prefix", sa.String(length=16), nullable=True))
    scopes = postgresql.JSONB(astext_type=sa.Text())
    op.add_column("api_key", sa.Column("scopes", scopes, server_default=sa.text("'[\"admin\"]'"), nullable=False))
    op.add_column("api_key", sa.Column("last_used_at", postgresql.TIMESTAMP(timezone=True), nullable=True))
    op.add_column("api_key", sa.Column("expires_at", postgresql.TIMESTAMP(timezone=True), nullable=True))
    op.add_column("api_key", sa.Column("replaced_by", sa.String(length=32, collation="C"), nullable=True))
    op.create_index("ix_api_key_project_id_id", "api_key", ["project_id", "id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_api_key_project_id_id", table_name="api_key")
    for column in ("replaced_by", "expires_at", "last_used_at", "scopes", "prefix"):
        op.drop_column("api_key", column)

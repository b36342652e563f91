"""What a platform pulls a service's images with

Revision: 0004, after: 0003
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pull_credential",
        sa.Column("id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("project_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("service_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("platform", sa.String(length=32), nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_pull_credential_project_id")),
        sa.ForeignKeyConstraint(
            ["service_id"], ["service.id"], name=op.f("fk_pull_credential_service_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pull_credential")),
    )
    op.create_index("uq_pull_credential", "pull_credential", ["service_id", "platform", "key_id"], unique=True)


def downgrade() -> None:
    op.drop_table("pull_credential")

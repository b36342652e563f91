"""What lists of builds are narrowed by has an index in their order; labels get a table that serves as one

Revision: 0008, after: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

KEEP = """create function build_label_keep() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' then
        insert into build_label (project_id, key, value, build_id)
        select new.project_id, l.key, l.value, new.id from jsonb_each_text(new.labels) l;
    else
        delete from build_label b using jsonb_each_text(old.labels) l
        where b.project_id = old.project_id and b.key = l.key and b.value = l.value and b.build_id = old.id;
    end if;
    return null;
end $$"""


def upgrade() -> None:
    op.create_index("ix_build_project_id_status_id", "build", ["project_id", "status", "id"])
    op.create_index("ix_build_service_id_id", "build", ["service_id", "id"])
    platform = sa.text("coalesce(service_platform, builder_platform)")
    op.create_index("ix_build_platform", "build", ["project_id", platform, "id"])
    op.create_index(
        "ix_service_project_id_id", "service", ["project_id", "id"], postgresql_where=sa.text("deleted_at is null")
    )
    op.create_table(
        "build_label",
        sa.Column("project_id", sa.String(length=32, collation="C"), nullable=False),
        sa.Column("key", sa.String(length=63, collation="C"), nullable=False),
        sa.Column("value", sa.String(length=255, collation="C"), nullable=False),
        sa.Column("build_id", sa.String(length=32, collation="C"), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "key", "value", "build_id", name=op.f("pk_build_label")),
    )
    op.execute(
        "insert into build_label (project_id, key, value, build_id) "
        "select b.project_id, l.key, l.value, b.id from build b cross join jsonb_each_text(b.labels) l"
    )
    op.execute(KEEP)
    for verb, row in (("insert", "new"), ("delete", "old")):
        op.execute(
            f"create trigger build_label_{verb} after {verb} on build for each row "
            f"when ({row}.labels <> '{{}}'::jsonb) execute function build_label_keep()"
        )


def downgrade() -> None:
    op.execute("drop function build_label_keep() cascade")
    op.drop_table("build_label")
    op.drop_index("ix_service_project_id_id", table_name="service")
    op.drop_index("ix_build_platform", table_name="build")
    op.drop_index("ix_build_service_id_id", table_name="build")
    op.drop_index("ix_build_project_id_status_id", table_name="build")

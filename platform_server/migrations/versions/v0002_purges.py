"""Purges that have begun."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "purges",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("referrers", sa.JSON(), nullable=False),
        sa.Column("blobs", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["publications.id"], name="fk_purges_id"),
        sa.PrimaryKeyConstraint("id", name="pk_purges"),
    )


def downgrade() -> None:
    op.drop_table("purges")

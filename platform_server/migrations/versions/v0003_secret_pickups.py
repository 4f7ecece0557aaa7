"""Secrets that wait to be read once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "secret_pickups",
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("field", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("read_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_secret_pickups_account_id"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_secret_pickups_user_id"),
        sa.PrimaryKeyConstraint("id", name="pk_secret_pickups"),
    )
    op.create_index("ix_secret_pickups_expires_at", "secret_pickups", ["expires_at"])


def downgrade() -> None:
    op.drop_table("secret_pickups")

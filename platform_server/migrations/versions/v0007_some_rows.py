"""Indexes of some rows, which what has come to its end does not make longer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

# name → table, columns, and of which rows
INDEXES = {
    "ix_publications_no_duplicate": ("publications", ["node_platform_id", "id"], "duplicate_of_id IS NULL"),
    "ix_publications_failed": ("publications", ["node_platform_id", "failed_at"], "status = 'failed'"),
    "ix_publications_retired": ("publications", ["node_platform_id", "retired_at"], "status = 'retired'"),
    "ix_publications_kept": (
        "publications",
        ["node_platform_id", "published_at", "id"],
        "status IN ('published', 'retired') AND published_at IS NOT NULL",
    ),
    "ix_publications_stuck": ("publications", ["account_id", "id"], "stuck_reported_at IS NOT NULL"),
    "ix_publications_purge_blocked": ("publications", ["id"], "purge_blocked IS NOT NULL"),
    "ix_events_manager": (
        "events",
        ["account_id", "kind", "created_at"],
        "source = 'disk_image_manager'",
    ),
    "ix_secret_pickups_sealed": ("secret_pickups", ["expires_at"], "sealed IS NOT NULL"),
}


def upgrade() -> None:
    # What went on is stuck no more.
    op.execute(
        "UPDATE publications SET stuck_reported_at = NULL WHERE stuck_reported_at IS NOT NULL "
        "AND status NOT IN ('queued', 'awaiting_upload', 'verifying')"
    )
    for name, (table, columns, rows) in INDEXES.items():
        where = sa.text(rows)
        op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    for name, (table, _, _) in INDEXES.items():
        op.drop_index(name, table)

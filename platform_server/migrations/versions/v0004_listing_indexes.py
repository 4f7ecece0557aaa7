"""Indexes for pages of an account's publications by status, and of its events by correlation id."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_index("ix_publications_account_id_status_id", "publications", ["account_id", "status", "id"])
    op.create_index(
        "ix_events_account_id_correlation_id_id", "events", ["account_id", "correlation_id", "id"]
    )
    op.drop_index("ix_events_correlation_id", "events")


def downgrade() -> None:
    op.create_index("ix_events_correlation_id", "events", ["correlation_id"])
    op.drop_index("ix_events_account_id_correlation_id_id", "events")
    op.drop_index("ix_publications_account_id_status_id", "publications")

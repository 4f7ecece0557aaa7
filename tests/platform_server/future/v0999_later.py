"""What a later program's migration may do while servers of this one serve: it only adds."""

from __future__ import annotations

import os

import sqlalchemy as sa
from alembic import op

revision = "0999"
# the newest of this program, whichever that is
down_revision = os.environ["DISK_IMAGE_TEST_NEWEST"]

COLUMNS = {"publications": "labels", "webhooks": "notes", "node_platforms": "notes"}


def upgrade() -> None:
    for table, column in COLUMNS.items():
        op.add_column(table, sa.Column(column, sa.Text()))
    op.create_table(
        "notices",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("publication_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(["publication_id"], ["publications.id"], name="fk_notices_publication_id"),
        sa.PrimaryKeyConstraint("id", name="pk_notices"),
    )
    op.create_index("ix_publications_labels", "publications", ["labels"])


def downgrade() -> None:
    op.drop_index("ix_publications_labels", "publications")
    op.drop_table("notices")
    for table, column in COLUMNS.items():
        op.drop_column(table, column)

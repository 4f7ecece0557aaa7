"""Indexes that find a commit's or image's publications by their status, however many of them failed."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_index(
        "ix_publications_node_platform_id_git_sha_status",
        "publications",
        ["node_platform_id", "git_sha", "status"],
    )
    op.create_index(
        "ix_publications_oci_digest_node_platform_id_status",
        "publications",
        ["oci_digest", "node_platform_id", "status"],
    )
    op.drop_index("ix_publications_node_platform_id_git_sha", "publications")
    op.drop_index("ix_publications_oci_digest", "publications")


def downgrade() -> None:
    op.create_index("ix_publications_oci_digest", "publications", ["oci_digest"])
    op.create_index(
        "ix_publications_node_platform_id_git_sha", "publications", ["node_platform_id", "git_sha"]
    )
    op.drop_index("ix_publications_oci_digest_node_platform_id_status", "publications")
    op.drop_index("ix_publications_node_platform_id_git_sha_status", "publications")

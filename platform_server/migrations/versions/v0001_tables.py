"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

UTC = sa.DateTime(timezone=True)
HOLDS_IMAGE = sa.text("status IN ('published', 'retired') AND published_at IS NOT NULL")
HOLDS_COMMIT = sa.text(
    "git_sha IS NOT NULL AND status IN ('published', 'retired') AND published_at IS NOT NULL"
)
CLAIMS_COMMIT = sa.text("git_sha IS NOT NULL AND status IN ('queued', 'awaiting_upload', 'verifying')")
DEFAULT = "fk_node_platforms_default_publication_id"


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_accounts"),
        sa.UniqueConstraint("name", name="uq_accounts_name"),
    )
    op.create_table(
        "events",
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("severity", sa.String(length=16), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("correlation_id", sa.Text()),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_events_account_id"),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_account_id_id", "events", ["account_id", "id"])
    op.create_index("ix_events_account_id_kind_id", "events", ["account_id", "kind", "id"])
    op.create_index("ix_events_correlation_id", "events", ["correlation_id"])
    op.create_table(
        "node_platforms",
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text()),
        sa.Column("arch", sa.String(length=16), nullable=False),
        sa.Column("cosign_identity_regexp", sa.Text()),
        sa.Column("cosign_issuer_regexp", sa.Text()),
        sa.Column("trusted_registries", sa.JSON(), nullable=False),
        sa.Column("disk_image_retention_count", sa.Integer(), nullable=False),
        sa.Column("default_publication_id", sa.Uuid()),
        sa.Column("updated_at", UTC, nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_node_platforms_account_id"),
        sa.PrimaryKeyConstraint("id", name="pk_node_platforms"),
        sa.UniqueConstraint("account_id", "name", name="uq_node_platforms_account_id_name"),
    )
    op.create_index("ix_node_platforms_account_id_id", "node_platforms", ["account_id", "id"])
    op.create_index("ix_node_platforms_default_publication_id", "node_platforms", ["default_publication_id"])
    op.create_table(
        "users",
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_users_account_id"),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("account_id", "name", name="uq_users_account_id_name"),
    )
    op.create_table(
        "workers",
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text()),
        sa.Column(
            "role",
            sa.Enum(
                "ci_worker",
                "service",
                name="workerrole",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column(
            "status",
            sa.Enum(
                "active",
                "suspended",
                "revoked",
                name="workerstatus",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("token_digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("last_seen_at", UTC),
        sa.Column("updated_at", UTC, nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_workers_account_id"),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
        sa.UniqueConstraint("token_digest", name="uq_workers_token_digest"),
    )
    op.create_index("ix_workers_account_id_id", "workers", ["account_id", "id"])
    op.create_table(
        "tokens",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("permissions", sa.JSON(), nullable=False),
        sa.Column("revoked_at", UTC),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_tokens_user_id"),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("digest", name="uq_tokens_digest"),
    )
    op.create_index("ix_tokens_user_id", "tokens", ["user_id"])
    op.create_table(
        "webhooks",
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("label_key", sa.Text(), nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                "active",
                "disabled",
                "revoked",
                name="webhookstatus",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("secret_preview", sa.String(length=8), nullable=False),
        sa.Column("previous_secret", sa.LargeBinary()),
        sa.Column("previous_until", UTC),
        sa.Column("plain_signatures", sa.Boolean(), nullable=False),
        sa.Column("received_count", sa.BigInteger(), nullable=False),
        sa.Column("last_received_at", UTC),
        sa.Column("last_rotated_at", UTC),
        sa.Column("created_by_id", sa.Uuid()),
        sa.Column("updated_at", UTC, nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_webhooks_account_id"),
        sa.ForeignKeyConstraint(["created_by_id"], ["users.id"], name="fk_webhooks_created_by_id"),
        sa.PrimaryKeyConstraint("id", name="pk_webhooks"),
        sa.UniqueConstraint("account_id", "label_key", name="uq_webhooks_account_id_label_key"),
    )
    op.create_index("ix_webhooks_account_id_id", "webhooks", ["account_id", "id"])
    op.create_table(
        "publications",
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("node_platform_id", sa.Uuid(), nullable=False),
        sa.Column("webhook_id", sa.Uuid()),
        sa.Column("worker_id", sa.Uuid()),
        sa.Column("correlation_id", sa.Text(), nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                "queued",
                "awaiting_upload",
                "verifying",
                "published",
                "failed",
                "retired",
                "purged",
                name="status",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("arch", sa.String(length=16), nullable=False),
        sa.Column("git_sha", sa.Text()),
        sa.Column("oci_ref", sa.Text()),
        sa.Column("oci_digest", sa.Text()),
        sa.Column("sha256", sa.Text()),
        sa.Column("size_bytes", sa.BigInteger()),
        sa.Column("firmware_ref", sa.Text()),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("upload_sha256", sa.Text()),
        sa.Column("upload_size_bytes", sa.BigInteger()),
        sa.Column("cosign_verified", sa.Boolean(), nullable=False),
        sa.Column("certificate_identity", sa.Text()),
        sa.Column("certificate_issuer", sa.Text()),
        sa.Column("sbom_digest", sa.Text()),
        sa.Column("provenance_digest", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("duplicate_of_id", sa.Uuid()),
        sa.Column("attempt_count", sa.Integer(), nullable=False),
        sa.Column("awaiting_upload_at", UTC),
        sa.Column("verifying_at", UTC),
        sa.Column("verified_at", UTC),
        sa.Column("published_at", UTC),
        sa.Column("failed_at", UTC),
        sa.Column("retired_at", UTC),
        sa.Column("reactivated_at", UTC),
        sa.Column("purge_started_at", UTC),
        sa.Column("purge_blocked", sa.Text()),
        sa.Column("purged_at", UTC),
        sa.Column("stuck_reported_at", UTC),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_publications_account_id"),
        sa.ForeignKeyConstraint(
            ["duplicate_of_id"], ["publications.id"], name="fk_publications_duplicate_of_id"
        ),
        sa.ForeignKeyConstraint(
            ["node_platform_id"], ["node_platforms.id"], name="fk_publications_node_platform_id"
        ),
        sa.ForeignKeyConstraint(["webhook_id"], ["webhooks.id"], name="fk_publications_webhook_id"),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name="fk_publications_worker_id"),
        sa.PrimaryKeyConstraint("id", name="pk_publications"),
    )
    op.create_index("ix_publications_account_id_id", "publications", ["account_id", "id"])
    op.create_index(
        "ix_publications_node_platform_id_git_sha", "publications", ["node_platform_id", "git_sha"]
    )
    op.create_index("ix_publications_node_platform_id_id", "publications", ["node_platform_id", "id"])
    op.create_index(
        "ix_publications_node_platform_id_status_id", "publications", ["node_platform_id", "status", "id"]
    )
    op.create_index("ix_publications_oci_digest", "publications", ["oci_digest"])
    op.create_index("ix_publications_status_id", "publications", ["status", "id"])
    op.create_index(
        "uq_publications_claim",
        "publications",
        ["node_platform_id", "arch", "git_sha"],
        unique=True,
        sqlite_where=CLAIMS_COMMIT,
        postgresql_where=CLAIMS_COMMIT,
    )
    op.create_index(
        "uq_publications_commit",
        "publications",
        ["node_platform_id", "arch", "git_sha"],
        unique=True,
        sqlite_where=HOLDS_COMMIT,
        postgresql_where=HOLDS_COMMIT,
    )
    op.create_index(
        "uq_publications_image",
        "publications",
        ["node_platform_id", "arch", "oci_digest"],
        unique=True,
        sqlite_where=HOLDS_IMAGE,
        postgresql_where=HOLDS_IMAGE,
    )
    op.create_table(
        "instances",
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("node_platform_id", sa.Uuid(), nullable=False),
        sa.Column("publication_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                "running",
                "terminated",
                name="instancestatus",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("terminated_at", UTC),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_instances_account_id"),
        sa.ForeignKeyConstraint(
            ["node_platform_id"], ["node_platforms.id"], name="fk_instances_node_platform_id"
        ),
        sa.ForeignKeyConstraint(["publication_id"], ["publications.id"], name="fk_instances_publication_id"),
        sa.PrimaryKeyConstraint("id", name="pk_instances"),
    )
    op.create_index("ix_instances_account_id_id", "instances", ["account_id", "id"])
    op.create_index("ix_instances_publication_id_status", "instances", ["publication_id", "status"])
    op.create_table(
        "verification_jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("available_at", UTC, nullable=False),
        sa.Column("lease", sa.Uuid()),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text()),
        sa.Column("created_at", UTC, nullable=False),
        sa.ForeignKeyConstraint(["id"], ["publications.id"], name="fk_verification_jobs_id"),
        sa.PrimaryKeyConstraint("id", name="pk_verification_jobs"),
    )
    op.create_index("ix_verification_jobs_available_at", "verification_jobs", ["available_at"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("webhook_id", sa.Uuid(), nullable=False),
        sa.Column("delivery_key", sa.Text(), nullable=False),
        sa.Column("body_sha256", sa.String(length=64), nullable=False),
        sa.Column("publication_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.ForeignKeyConstraint(
            ["publication_id"], ["publications.id"], name="fk_webhook_deliveries_publication_id"
        ),
        sa.ForeignKeyConstraint(["webhook_id"], ["webhooks.id"], name="fk_webhook_deliveries_webhook_id"),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
        sa.UniqueConstraint(
            "webhook_id", "delivery_key", name="uq_webhook_deliveries_webhook_id_delivery_key"
        ),
    )
    op.create_index("ix_webhook_deliveries_created_at", "webhook_deliveries", ["created_at"])
    op.create_index(
        "ix_webhook_deliveries_webhook_id_body_sha256_created_at",
        "webhook_deliveries",
        ["webhook_id", "body_sha256", "created_at"],
    )
    # The two tables refer to each other.
    with op.batch_alter_table("node_platforms") as batch:
        batch.create_foreign_key(DEFAULT, "publications", ["default_publication_id"], ["id"])


def downgrade() -> None:
    with op.batch_alter_table("node_platforms") as batch:
        batch.drop_constraint(DEFAULT, type_="foreignkey")
    for table in (
        "webhook_deliveries",
        "verification_jobs",
        "instances",
        "publications",
        "webhooks",
        "tokens",
        "workers",
        "users",
        "node_platforms",
        "events",
        "accounts",
    ):
        op.drop_table(table)

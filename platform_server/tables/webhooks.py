"""Where pipelines report images, and what they delivered."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from platform_server.tables.base import Base, one_of


class WebhookStatus(StrEnum):
    """A webhook takes deliveries, rests, or is gone for good."""

    ACTIVE = "active"
    DISABLED = "disabled"
    REVOKED = "revoked"


class Webhook(Base):
    """Where a pipeline reports images. Until `previous_until` the secret before the rotation counts too."""

    __tablename__ = "webhooks"
    __table_args__ = (UniqueConstraint("account_id", "label_key"), Index(None, "account_id", "id"))

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    label: Mapped[str]
    # the label without case and form: it is unique so
    label_key: Mapped[str]
    status: Mapped[WebhookStatus] = mapped_column(one_of(WebhookStatus), default=WebhookStatus.ACTIVE)
    secret: Mapped[bytes]
    secret_preview: Mapped[str] = mapped_column(String(8))
    previous_secret: Mapped[bytes | None]
    previous_until: Mapped[datetime | None]
    plain_signatures: Mapped[bool] = mapped_column(default=True)
    received_count: Mapped[int] = mapped_column(BigInteger, default=0)
    last_received_at: Mapped[datetime | None]
    last_rotated_at: Mapped[datetime | None]
    created_by_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"))
    updated_at: Mapped[datetime]


class Delivery(Base):
    """A webhook's delivery that was answered with a publication: its replays get the same answer.

    `delivery_key` is `id:` and the webhook-id, or `body:` and the body's sha256 where there is no id.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        UniqueConstraint("webhook_id", "delivery_key"),
        Index(None, "webhook_id", "body_sha256", "created_at"),
        Index(None, "created_at"),
    )

    webhook_id: Mapped[UUID] = mapped_column(ForeignKey("webhooks.id"))
    delivery_key: Mapped[str]
    body_sha256: Mapped[str] = mapped_column(String(64))
    publication_id: Mapped[UUID] = mapped_column(ForeignKey("publications.id"))

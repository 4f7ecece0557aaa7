"""How far publishing has come, beside the build: `LAYOUT.publish.json`.

It holds what can't be found out again: as whom the image was signed, and the ids of what the platform was
told. All else is asked of the layout, the registry and the platform. The file is replaced as a whole, and
belongs to one image: that of another one, or one that can't be read, counts for nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.definition import canonical_json
from platform_client.signatures import DELIVERY_ID
from supply_chain.beside import beside
from supply_chain.errors import InvalidDocument
from supply_chain.files import read_regular, replace_file, sync_folder
from supply_chain.layout_write import alone
from supply_chain.oci import DOCUMENT_LIMIT, Digest, parse_object

_Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class RecordedSigner(_Model):
    """As whom the image was signed, by which issuer's word."""

    identity: str
    issuer: str


class RecordedAnswer(_Model):
    """That the platform took a delivery, and as which publication."""

    status: Literal["queued", "idempotent_hit"]
    publication_id: str | None


class Delivery(_Model):
    """One thing told to one webhook, under one id however often it is sent. `webhook` is the sha256 of its
    URL and `body` that of the body, in hex; `answer` is None until the platform has taken it.
    """

    delivery_id: Annotated[str, Field(pattern=rf"^{DELIVERY_ID.pattern}$")]
    webhook: _Hex
    body: _Hex
    oci_ref: str
    platform_slug: str
    answer: RecordedAnswer | None = None


class PublishState(_Model):
    """`image` is the manifest's digest."""

    schema_version: Literal[1] = 1
    image: Digest
    signer: RecordedSigner | None = None
    deliveries: Annotated[tuple[Delivery, ...], Field(strict=False)] = ()

    def delivery(self, webhook: str, body: bytes) -> Delivery | None:
        """The delivery of exactly this body to this webhook."""
        digest = hashlib.sha256(body).hexdigest()
        same = (one for one in self.deliveries if (one.webhook, one.body) == (webhook, digest))
        return next(same, None)

    def with_delivery(self, delivery: Delivery) -> PublishState:
        """With this delivery, in place of the one with its id."""
        others = [one for one in self.deliveries if one.delivery_id != delivery.delivery_id]
        return self.model_copy(update={"deliveries": (*others, delivery)})


class StateFile:
    """The file, for whoever holds `publishing(layout)`."""

    def __init__(self, layout: Path) -> None:
        self.path = beside(layout, "publish.json")

    def load(self, image: str) -> tuple[PublishState, str]:
        """The state of publishing `image`, and why it is a new one (empty when it is not, or is the first).

        Raises OSError when there is a file that may not be read.
        """
        fresh = PublishState(image=image)
        try:
            content = read_regular(self.path, DOCUMENT_LIMIT)
        except FileNotFoundError:
            return fresh, ""
        try:
            if len(content) > DOCUMENT_LIMIT:
                raise InvalidDocument(f"more than {DOCUMENT_LIMIT} bytes", "")
            state = PublishState.model_validate(parse_object(content, str(self.path)))
        except (InvalidDocument, ValidationError):
            return fresh, f"{self.path} can't be read as a state: starting anew"
        if state.image != image:
            return fresh, f"{self.path} is about another image, {state.image}: starting anew"
        return state, ""

    def save(self, state: PublishState) -> None:
        """Replace the file: after a crash there is the old one or the new one, whole."""
        replace_file(self.path, canonical_json(state.model_dump(mode="json")) + b"\n")
        sync_folder(self.path.parent)


@contextmanager
def publishing(layout: Path) -> Iterator[StateFile]:
    """The state of a layout that nobody else publishes meanwhile. Raises LayoutError when somebody does."""
    with alone(layout, "blobs/sha256", "publishing"):
        yield StateFile(layout)

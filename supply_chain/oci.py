"""The OCI image specification's documents: descriptor, manifest, index.

Unknown fields are kept, since an index of referrers is written back with other tools' entries in it.
Documents are read strictly: a duplicate key, a number as text or a digest of another form is an error, never
a guess.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.definition import canonical_json
from supply_chain.errors import InvalidDocument

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
EMPTY = "application/vnd.oci.empty.v1+json"
EMPTY_CONTENT = b"{}"

# The OCI distribution specification's floor for what registries accept, and our ceiling for what is read.
DOCUMENT_LIMIT = 4 * 1024 * 1024

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
MediaType = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}$")
]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="allow", populate_by_name=True)

    def to_json(self) -> dict[str, Any]:
        """The document as it travels, without fields that are not set."""
        return self.model_dump(by_alias=True, exclude_none=True)


class Descriptor(_Document):
    """Where content is named: media type, sha256 digest and size in bytes."""

    media_type: MediaType = Field(alias="mediaType")
    digest: Digest
    size: int = Field(ge=0, lt=2**63)
    artifact_type: MediaType | None = Field(default=None, alias="artifactType")
    annotations: Mapping[str, str] | None = None

    @property
    def hex(self) -> str:
        """The digest's 64 digits."""
        return self.digest.removeprefix("sha256:")


class Manifest(_Document):
    """An image manifest; an artifact when `artifact_type` is set, a referrer when `subject` is."""

    schema_version: int = Field(alias="schemaVersion", ge=2, le=2)
    media_type: MediaType = Field(default=MANIFEST, alias="mediaType")
    artifact_type: MediaType | None = Field(default=None, alias="artifactType")
    config: Descriptor
    layers: tuple[Descriptor, ...] = Field(strict=False)
    subject: Descriptor | None = None
    annotations: Mapping[str, str] | None = None

    @property
    def kind(self) -> str:
        """The type that the referrers API reports: `artifactType`, else the configuration's media type."""
        return self.artifact_type or self.config.media_type

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Configuration and layers, each digest once, in the manifest's order."""
        return tuple({blob.digest: blob for blob in (self.config, *self.layers)}.values())


class Index(_Document):
    """A list of manifests."""

    schema_version: int = Field(default=2, alias="schemaVersion", ge=2, le=2)
    media_type: MediaType = Field(default=INDEX, alias="mediaType")
    manifests: tuple[Descriptor, ...] = Field(strict=False)
    annotations: Mapping[str, str] | None = None

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(self.to_json())


_Model = TypeVar("_Model", bound=_Document)


def parse_manifest(content: bytes, what: str) -> Manifest:
    """Read an image manifest. Raises InvalidDocument naming `what` and the field."""
    return _parse(Manifest, content, what)


def parse_index(content: bytes, what: str) -> Index:
    """Read an image index. Raises InvalidDocument naming `what` and the field."""
    return _parse(Index, content, what)


def parse_object(content: bytes, what: str) -> dict[str, Any]:
    """Read a JSON object without duplicate keys. Raises InvalidDocument."""
    try:
        loaded = json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        if b"\\u" in content:
            # Half of a surrogate pair is no character: nothing could print or store it later.
            json.dumps(loaded, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidDocument(
            f"{what}: expected a JSON object, found {_glimpse(content)} ({_reason(error)})", _WHO_ANSWERED
        ) from None
    if not isinstance(loaded, dict):
        raise InvalidDocument(f"{what}: expected a JSON object, found {_glimpse(content)}", _WHO_ANSWERED)
    return loaded


def broken_rule(error: ValidationError, what: str, hint: str) -> InvalidDocument:
    """The error for the document `what`, naming the first field that breaks a rule, and what is there."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    found = "" if first["type"] in ("missing", "extra_forbidden") else f" (found {first['input']!a:.100})"
    return InvalidDocument(f"{what}: {field}: {first['msg']}{found}", hint)


def describe(content: bytes, media_type: str, **fields: Any) -> Descriptor:
    """The descriptor of `content`."""
    return Descriptor(media_type=media_type, digest=digest_of(content), size=len(content), **fields)


def digest_of(content: bytes) -> str:
    """`sha256:<hex>` of `content`."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


_WHO_ANSWERED = (
    "check that the reference names an OCI registry, and that no proxy or login page answers in its place"
)


def _parse(model: type[_Model], content: bytes, what: str) -> _Model:
    loaded = parse_object(content, what)
    try:
        return model.model_validate(loaded)
    except ValidationError as error:
        hint = "the document breaks the OCI image specification: push the image anew"
        raise broken_rule(error, what, hint) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _glimpse(content: bytes) -> str:
    if content.lstrip()[:1] == b"<":
        return "an HTML or XML page"
    return f"{len(content)} bytes of something else" if content else "nothing"

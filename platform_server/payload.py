"""The webhook's body: which fields there are, and what each may be."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from platform_server.errors import shown
from supply_chain.errors import InvalidDocument, InvalidReference
from supply_chain.oci import parse_object
from supply_chain.reference import Reference, parse_reference

LARGEST = 2**63 - 1
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Line = Annotated[str, Field(pattern=r"^[\x20-\x7e]{1,512}$")]
# A whole commit id, or its start as `git rev-parse --short` prints it: which the image then can't confirm.
GitSha = Annotated[str, Field(pattern=r"^[0-9a-f]{7,64}$")]


class InvalidPayload(Exception):
    """A body that is not what the webhook takes; the text names field, value and rule."""


class Built(BaseModel):
    """An image was built. Every field but the first three is optional; each one that is given must be what
    the image and its provenance say.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    platform_slug: Name | None = None
    platform_name: Name | None = None
    oci_ref: Annotated[str, Field(max_length=1024)]
    sha256: Hex | None = None
    size_bytes: Annotated[int, Field(gt=0, le=LARGEST)] | None = None
    git_sha: GitSha | None = None
    arch: Literal["amd64", "arm64"] | None = None
    firmware_ref: Line | None = None
    sbom_path: Line | None = None
    oci_digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None

    @property
    def platform(self) -> str:
        """The platform's name."""
        name = self.platform_slug or self.platform_name
        assert name is not None
        return name

    @cached_property
    def reference(self) -> Reference:
        """Where the image is said to be."""
        return parse_reference(self.oci_ref)

    @cached_property
    def digest(self) -> str | None:
        """The manifest's digest, if any field says it."""
        return self.oci_digest or (f"sha256:{self.sha256}" if self.sha256 else None) or self.reference.digest


def parse_built(body: bytes) -> tuple[Built, dict[str, Any]]:
    """A body, and the same as JSON. Raises InvalidPayload."""
    try:
        loaded = parse_object(body, "body")
        built = Built.model_validate(loaded)
        reference = built.reference
    except (InvalidDocument, InvalidReference) as error:
        raise InvalidPayload(error.what) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        found = "" if first["type"] == "missing" else f", found {shown(first['input'])}"
        raise InvalidPayload(f"{field}: {first['msg']}{found}") from None
    names = {built.platform_slug, built.platform_name} - {None}
    if len(names) != 1:
        raise InvalidPayload(
            "platform_slug: expected it or platform_name, or both alike, found "
            f"{shown(built.platform_slug)} and {shown(built.platform_name)}"
        )
    digests = {built.oci_digest, reference.digest, f"sha256:{built.sha256}" if built.sha256 else None} - {
        None
    }
    if len(digests) > 1:
        raise InvalidPayload(
            f"sha256, oci_digest and oci_ref name different images: {', '.join(sorted(map(str, digests)))}"
        )
    return built, loaded

"""in-toto Statements: what a signature, an SBOM or a provenance says about one image.

Statement v1: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md. It is written with the
fields that cosign's reader knows and no others, because that reader refuses any more.

Reading is strict, and in one place lenient: `cosign attest` still writes the type `…/Statement/v0.1`, whose
fields mean the same, so both types are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from pipelines.definition import Json, canonical_json
from supply_chain.errors import InvalidDocument
from supply_chain.oci import Digest, broken_rule, parse_object

PAYLOAD_TYPE = "application/vnd.in-toto+json"
SIGNATURE = "https://sigstore.dev/cosign/sign/v1"
SBOM = "https://spdx.dev/Document"
PROVENANCE = "https://slsa.dev/provenance/v1"

# The SBOM of twenty thousand packages is about a tenth of this.
STATEMENT_LIMIT = 16 * 1024 * 1024

_V1 = "https://in-toto.io/Statement/v1"
_HINT = "don't trust it; have the image signed again"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class DigestSet(_Model):
    """The subject's sha256 in hex. Other algorithms are refused: what names the image here is sha256."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Subject(_Model):
    """What the statement is about: its digest alone decides. The other fields of in-toto's
    ResourceDescriptor are hints; `content` has no place here.
    """

    digest: DigestSet
    name: str | None = None
    uri: str | None = None
    media_type: str | None = Field(default=None, alias="mediaType")
    download_location: str | None = Field(default=None, alias="downloadLocation")
    annotations: Mapping[str, JsonValue] | None = None


class Statement(_Model):
    """One statement about one image. Its predicate's shape is its reader's business."""

    type_: Literal["https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"] = Field(
        alias="_type"
    )
    # in-toto allows several subjects, but an SBOM and a provenance are of one image: with a second subject,
    # what was attested of one could be shown for the other.
    subject: tuple[Subject] = Field(strict=False)
    predicate_type: Annotated[str, Field(min_length=1)] = Field(alias="predicateType")
    predicate: Mapping[str, JsonValue] = Field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The subject's digest, `sha256:<hex>`."""
        return f"sha256:{self.subject[0].digest.sha256}"


def statement_bytes(
    digest: Digest, predicate_type: str, predicate: Mapping[str, Json], *, name: str | None = None
) -> bytes:
    """The canonical JSON of the statement that says `predicate` of the manifest with `digest`
    (`sha256:<hex>`).
    """
    subject: dict[str, Json] = {"digest": {"sha256": digest.removeprefix("sha256:")}}
    if name is not None:
        subject["name"] = name
    content = canonical_json(
        {"_type": _V1, "subject": [subject], "predicateType": predicate_type, "predicate": predicate}
    )
    parse_statement(content, "the statement to sign")
    return content


def parse_statement(content: bytes, what: str) -> Statement:
    """Read a statement. Raises InvalidDocument, naming `what` and the field, for anything but one subject
    with a sha256, for unknown fields, keys that stand twice, and more than STATEMENT_LIMIT bytes.
    """
    if len(content) > STATEMENT_LIMIT:
        raise InvalidDocument(
            f"{what}: expected at most {STATEMENT_LIMIT} bytes, found {len(content)}", _HINT
        )
    try:
        return Statement.model_validate(parse_object(content, what))
    except InvalidDocument as error:
        raise InvalidDocument(error.what, _HINT) from None
    except ValidationError as error:
        raise broken_rule(error, what, _HINT) from None

"""A Sigstore bundle as what hangs on an image: one OCI manifest as cosign 3 writes and reads it.

Storage: https://github.com/sigstore/cosign/blob/main/specs/BUNDLE_SPEC.md, with what cosign sets beyond
it: the annotations, and the artifact type once more at the configuration. A manifest holds exactly one
bundle and refers to the image by `subject`.

What a manifest's annotations say of its bundle is a hint for people. Only the verified bundle counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from pipelines.definition import canonical_json
from supply_chain.errors import InvalidDocument
from supply_chain.oci import (
    DOCUMENT_LIMIT,
    EMPTY,
    EMPTY_CONTENT,
    MANIFEST,
    Descriptor,
    Manifest,
    describe,
    parse_manifest,
)
from supply_chain.statement import STATEMENT_LIMIT

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
# The statement in base64, and some kilobytes of certificate, timestamps and proof.
BUNDLE_LIMIT = STATEMENT_LIMIT // 3 * 4 + 128 * 1024

CREATED = "org.opencontainers.image.created"
CONTENT = "dev.sigstore.bundle.content"
PREDICATE_TYPE = "dev.sigstore.bundle.predicateType"

_HINT = "don't trust it; have the image signed again"


@dataclass(frozen=True, slots=True)
class Referrer:
    """A bundle's manifest. `descriptor` is its entry in an index, as the referrers API would list it."""

    content: bytes
    descriptor: Descriptor
    bundle: bytes


def write_referrer(
    bundle: bytes, subject: Descriptor, *, predicate_type: str, created: datetime
) -> Referrer:
    """The manifest that hangs `bundle`, a DSSE envelope with a statement of `predicate_type`, on `subject`.

    The same bundle at the same time gives the same bytes. Raises InvalidDocument for a bundle of more than
    BUNDLE_LIMIT bytes, which no reader here would take.
    """
    if len(bundle) > BUNDLE_LIMIT:
        raise InvalidDocument(
            f"bundle: expected at most {BUNDLE_LIMIT} bytes, found {len(bundle)}", "attest to less"
        )
    manifest = Manifest(
        schema_version=2,
        artifact_type=BUNDLE,
        config=describe(EMPTY_CONTENT, EMPTY, artifact_type=BUNDLE),
        layers=(describe(bundle, BUNDLE),),
        subject=Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size),
        annotations={
            CONTENT: "dsse-envelope",
            PREDICATE_TYPE: predicate_type,
            CREATED: created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
    )
    content = canonical_json(manifest.to_json())
    listed = describe(content, MANIFEST, artifact_type=BUNDLE, annotations=manifest.annotations)
    return Referrer(content, listed, bundle)


def read_referrer(content: bytes, subject: str, what: str) -> Descriptor | None:
    """The bundle that a manifest hangs on the image `subject` (`sha256:<hex>`); None when the manifest is of
    something else than a bundle, as everybody may hang on an image what they like.

    Raises InvalidDocument naming `what` and the field when it says it is a bundle's and breaks its form.
    """
    if len(content) > DOCUMENT_LIMIT:
        raise InvalidDocument(
            f"{what}: expected at most {DOCUMENT_LIMIT} bytes, found {len(content)}", _HINT
        )
    manifest = parse_manifest(content, what)
    if manifest.kind != BUNDLE:
        return None
    found = manifest.subject.digest if manifest.subject else "none"
    if found != subject:
        raise InvalidDocument(f"{what}: subject: expected {subject}, found {found}", _HINT)
    if len(manifest.layers) != 1:
        raise InvalidDocument(f"{what}: layers: expected one bundle, found {len(manifest.layers)}", _HINT)
    (bundle,) = manifest.layers
    if bundle.media_type != BUNDLE:
        raise InvalidDocument(
            f"{what}: layers.0.mediaType: expected {BUNDLE}, found {bundle.media_type}", _HINT
        )
    if bundle.size > BUNDLE_LIMIT:
        raise InvalidDocument(
            f"{what}: layers.0.size: expected at most {BUNDLE_LIMIT} bytes, found {bundle.size}", _HINT
        )
    return bundle

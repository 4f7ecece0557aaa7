"""A bundle's manifest: as cosign writes it, and read only in that form."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from supply_chain import referrer
from supply_chain.errors import InvalidDocument
from supply_chain.oci import DOCUMENT_LIMIT, MANIFEST, Descriptor, describe, digest_of
from supply_chain.referrer import BUNDLE, BUNDLE_LIMIT, read_referrer, write_referrer
from supply_chain.statement import SBOM, SIGNATURE

CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
IMAGE = describe(b"an image", MANIFEST, artifact_type="application/vnd.example", annotations={"a": "b"})
# What `cosign sign` 3.1.3 put into a registry, but for the image, the bundle and the time.
COSIGNS = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":'
    b'"application/vnd.oci.empty.v1+json","size":2,"digest":'
    b'"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","artifactType":'
    b'"application/vnd.dev.sigstore.bundle.v0.3+json"},"layers":[{"mediaType":'
    b'"application/vnd.dev.sigstore.bundle.v0.3+json","size":%d,"digest":"%b"}],"annotations":'
    b'{"dev.sigstore.bundle.content":"dsse-envelope","dev.sigstore.bundle.predicateType":'
    b'"https://sigstore.dev/cosign/sign/v1","org.opencontainers.image.created":"2026-01-02T03:04:05Z"},'
    b'"subject":{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":%d,"digest":"%b"},'
    b'"artifactType":"application/vnd.dev.sigstore.bundle.v0.3+json"}'
)


def _written(**changes: Any) -> bytes:
    document = json.loads(write_referrer(b"{}", IMAGE, predicate_type=SIGNATURE, created=CREATED).content)
    return json.dumps({**document, **changes}).encode()


def test_the_manifest_is_cosigns(snapshot: SnapshotAssertion) -> None:
    written = write_referrer(b"a bundle", IMAGE, predicate_type=SIGNATURE, created=CREATED)
    assert written.content.decode() == snapshot
    bundle = digest_of(b"a bundle").encode()
    assert json.loads(written.content) == json.loads(
        COSIGNS % (8, bundle, IMAGE.size, IMAGE.digest.encode())
    )


def test_an_index_lists_it_with_its_annotations() -> None:
    written = write_referrer(b"a bundle", IMAGE, predicate_type=SBOM, created=CREATED)
    assert written.descriptor == Descriptor(
        media_type=MANIFEST,
        digest=digest_of(written.content),
        size=len(written.content),
        artifact_type=BUNDLE,
        annotations={
            referrer.CONTENT: "dsse-envelope",
            referrer.PREDICATE_TYPE: SBOM,
            referrer.CREATED: "2026-01-02T03:04:05Z",
        },
    )


def test_equal_moments_give_equal_bytes() -> None:
    elsewhere = CREATED.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert write_referrer(b"{}", IMAGE, predicate_type=SBOM, created=elsewhere) == write_referrer(
        b"{}", IMAGE, predicate_type=SBOM, created=CREATED
    )


def test_what_is_written_and_what_cosign_wrote_is_read() -> None:
    bundle = describe(b"a bundle", BUNDLE)
    ours = write_referrer(b"a bundle", IMAGE, predicate_type=SIGNATURE, created=CREATED).content
    cosigns = COSIGNS % (bundle.size, bundle.digest.encode(), IMAGE.size, IMAGE.digest.encode())
    for content in (ours, cosigns):
        assert read_referrer(content, IMAGE.digest, "referrer") == bundle


def test_a_referrer_of_something_else_is_no_bundle() -> None:
    other = _written(artifactType="application/spdx+json", layers=[])
    assert read_referrer(other, IMAGE.digest, "referrer") is None


def _layers(change: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> bytes:
    (layer,) = json.loads(_written())["layers"]
    return _written(layers=change(layer))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(_layers(lambda _: []), "layers: expected one bundle, found 0", id="no-bundle"),
        pytest.param(_layers(lambda one: [one, one]), "expected one bundle, found 2", id="two-bundles"),
        pytest.param(
            _layers(lambda one: [{**one, "mediaType": "application/x-tar"}]),
            "layers.0.mediaType: expected .*v0.3.*, found application/x-tar",
            id="other-layer",
        ),
        pytest.param(
            _layers(lambda one: [{**one, "size": BUNDLE_LIMIT + 1}]),
            f"layers.0.size: expected at most {BUNDLE_LIMIT} bytes, found {BUNDLE_LIMIT + 1}",
            id="huge-bundle",
        ),
        pytest.param(_layers(lambda one: [{**one, "size": -1}]), "layers.0.size", id="negative-bundle"),
        pytest.param(_written(subject=None), "subject: expected sha256:.*, found none", id="no-subject"),
        pytest.param(
            _written(subject=describe(b"another image", MANIFEST).to_json()),
            f"subject: expected {IMAGE.digest}, found {digest_of(b'another image')}",
            id="other-image's",
        ),
        pytest.param(b"<html>", "expected a JSON object, found an HTML or XML page", id="login-page"),
        pytest.param(b'{"layers":[],' + _written()[1:], "a key stands twice", id="two-lists-of-layers"),
        pytest.param(
            _written() + b" " * DOCUMENT_LIMIT,
            f"expected at most {DOCUMENT_LIMIT} bytes",
            id="huge-manifest",
        ),
    ],
)
def test_another_form_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(InvalidDocument, match=f"^referrer: .*{said}"):
        read_referrer(content, IMAGE.digest, "referrer")


def test_a_bundle_that_nobody_would_read_is_not_written() -> None:
    with pytest.raises(InvalidDocument, match="bundle: expected at most"):
        write_referrer(b" " * (BUNDLE_LIMIT + 1), IMAGE, predicate_type=SBOM, created=CREATED)

"""What the platform is told of an image in a registry that nobody has verified yet."""

from __future__ import annotations

from datetime import UTC, datetime

import anyio
import pytest

from pipelines.errors import UsageError
from supply_chain.errors import VerificationError
from supply_chain.layout import Layout
from supply_chain.layout_write import hang
from supply_chain.publish.announcement import Facts, announcement, read_facts
from supply_chain.reference import parse_reference
from supply_chain.referrer import write_referrer
from supply_chain.verify.source import open_source
from tests.supply_chain.publish.conftest import Publisher
from tests.supply_chain.verify.signed_image import COMMIT

REFERENCE = parse_reference("registry.example:5000/os/debian:13")
FACTS = Facts(f"sha256:{'1a' * 32}", "arm64", 42, ())


def facts_of(ref: str) -> Facts:
    async def read() -> Facts:
        async with open_source(ref, plain_http=True) as source:
            return await read_facts(source)

    return anyio.run(read)


def test_facts_of_an_image_in_a_registry(publisher: Publisher) -> None:
    publisher(slug=None)
    size = sum(blob.size for blob in publisher.layout.manifest.blobs)
    assert facts_of(publisher.ref) == Facts(publisher.layout.image.digest, "amd64", size, (COMMIT,))


def test_facts_of_an_image_that_nobody_signed(layout: Layout) -> None:
    assert facts_of(str(layout.folder)).git_shas == ()


def test_an_image_without_its_layers_is_none(layout: Layout) -> None:
    layout.path(layout.layer("vmlinuz")).unlink()
    with pytest.raises(VerificationError):
        facts_of(str(layout.folder))


@pytest.mark.parametrize(
    "bundle",
    [
        b"{}",
        b"not json",
        b'{"dsseEnvelope": []}',
        b'{"dsseEnvelope": {"payload": 7}}',
        b'{"dsseEnvelope": {"payload": "!!"}}',
        b'{"dsseEnvelope": {"payload": "e30="}}',
    ],
)
def test_bundles_that_are_none_say_nothing(bundle: bytes, layout: Layout) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    hang(layout, [write_referrer(bundle, layout.image, predicate_type="x", created=now)], replacing=set())
    assert facts_of(str(layout.folder)).git_shas == ()


def test_it_names_the_image_by_digest() -> None:
    body = announcement("debian", REFERENCE, FACTS)
    assert body.oci_ref == f"registry.example:5000/os/debian@{FACTS.digest}"
    assert (body.platform_slug, body.platform_name) == ("debian", "debian")
    assert body.git_sha is None
    assert "git_sha" not in body.to_bytes().decode()


def test_the_newest_commit_is_told_of_unless_another_is_chosen() -> None:
    facts = Facts(FACTS.digest, "arm64", 42, ("1a" * 20, "2b" * 20))
    assert announcement("debian", REFERENCE, facts).git_sha == "1a" * 20
    assert announcement("debian", REFERENCE, facts, git_sha="2b" * 20).git_sha == "2b" * 20
    with pytest.raises(UsageError, match="as the image's provenance says"):
        announcement("debian", REFERENCE, facts, git_sha="3c" * 20)
    assert announcement("debian", REFERENCE, FACTS, git_sha="3c" * 20).git_sha == "3c" * 20


@pytest.mark.parametrize("slug", ["", "x" * 256])
def test_platforms_that_have_no_such_name(slug: str) -> None:
    with pytest.raises(UsageError, match="--platform-slug"):
        announcement(slug, REFERENCE, FACTS)

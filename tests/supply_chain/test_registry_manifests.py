"""Manifests and referrers: believed only as far as their digests and subjects go."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.definition import canonical_json
from supply_chain.errors import (
    BrokenAnswer,
    InvalidDocument,
    NotFound,
    RegistryError,
    Rejected,
    SupplyChainError,
    Unavailable,
    WrongContent,
)
from supply_chain.oci import (
    DOCUMENT_LIMIT,
    EMPTY,
    EMPTY_CONTENT,
    INDEX,
    MANIFEST,
    Descriptor,
    describe,
    digest_of,
    parse_index,
    parse_manifest,
)
from supply_chain.registry import Document, Policy, Repository, open_repository
from supply_chain.registry.paging import next_page
from supply_chain.registry.referrers import fallback_tag, referrer_descriptor
from supply_chain.registry.wire import Answer
from tests.supply_chain.registry_server import Fault, Planned, RegistryServer

_Result = TypeVar("_Result")

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
EMPTY_BLOB = describe(EMPTY_CONTENT, EMPTY)


def _manifest(**fields: Any) -> bytes:
    base: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": EMPTY_BLOB.to_json(),
        "layers": [EMPTY_BLOB.to_json()],
    }
    return canonical_json({**base, **fields})


IMAGE = _manifest(artifactType="application/vnd.example.image")
SUBJECT = describe(IMAGE, MANIFEST)


def _referrer(number: int, artifact_type: str = BUNDLE, subject: Descriptor = SUBJECT) -> bytes:
    annotations = {"number": str(number), "dev.sigstore.bundle.content": "dsse-envelope"}
    return _manifest(artifactType=artifact_type, subject=subject.to_json(), annotations=annotations)


def _run(
    server: RegistryServer, policy: Policy, work: Callable[[Repository], Awaitable[_Result]]
) -> _Result:
    async def run() -> _Result:
        async with open_repository(server.host, "team/image", plain_http=True, policy=policy) as repository:
            return await work(repository)

    return anyio.run(run)


@pytest.fixture
def filled(server: RegistryServer) -> RegistryServer:
    """A registry with the image, untagged, and the empty blob."""
    repo = server.repo("team/image")
    repo.blobs[EMPTY_BLOB.digest] = EMPTY_CONTENT
    repo.manifests[SUBJECT.digest] = (MANIFEST, IMAGE)
    return server


def _attach(server: RegistryServer, policy: Policy, *contents: bytes) -> None:
    async def work(repository: Repository) -> None:
        for content in contents:
            await repository.referrers.attach(content)

    _run(server, policy, work)


def _listed(server: RegistryServer, policy: Policy, artifact_type: str | None = None) -> list[Descriptor]:
    found = _run(server, policy, lambda repository: repository.referrers.list(SUBJECT.digest, artifact_type))
    return [one.descriptor for one in found]


# manifests


async def _get_and_resolve(repository: Repository, target: str) -> tuple[Document, str | None]:
    return await repository.manifests.get(target), await repository.manifests.resolve(target)


def test_written_and_read_back(filled: RegistryServer, policy: Policy) -> None:
    digest = _run(filled, policy, lambda repository: repository.manifests.put(IMAGE, MANIFEST, "v1"))
    assert digest == SUBJECT.digest
    for target in ("v1", digest):
        document, resolved = _run(filled, policy, partial(_get_and_resolve, target=target))
        assert document == Document(SUBJECT, IMAGE)
        assert resolved == digest
    assert _run(filled, policy, lambda repository: repository.manifests.resolve("absent")) is None
    assert _run(filled, policy, lambda repository: repository.manifests.find("absent")) is None
    with pytest.raises(NotFound) as caught:
        _run(filled, policy, lambda repository: repository.manifests.get("absent"))
    assert caught.value.codes == ("MANIFEST_UNKNOWN",)


@pytest.mark.parametrize(
    ("attack", "target", "media_type", "served", "error"),
    [
        ("other bytes under a digest", SUBJECT.digest, MANIFEST, _manifest(), WrongContent),
        ("an index in place of a manifest", "v1", INDEX, IMAGE, BrokenAnswer),
        (
            "a manifest in place of an index",
            "v1",
            MANIFEST,
            IMAGE.replace(b"manifest.v1", b"index.v1"),
            BrokenAnswer,
        ),
        ("a login page", "v1", "text/html", b"<html>", InvalidDocument),
        ("a list", "v1", MANIFEST, b"[]", InvalidDocument),
        ("a key twice", "v1", MANIFEST, b'{"mediaType": "a/b", "mediaType": "c/d"}', InvalidDocument),
        ("nested without end", "v1", MANIFEST, b'{"a":' * 100_000, InvalidDocument),
        ("larger than any manifest", "v1", MANIFEST, b" " * (DOCUMENT_LIMIT + 1), BrokenAnswer),
    ],
)
def test_what_is_no_manifest_is_refused(
    attack: str, target: str, media_type: str, served: bytes, error: type[SupplyChainError],
    filled: RegistryServer, policy: Policy,
) -> None:  # fmt: skip
    repo = filled.repo("team/image")
    key = target if target.startswith("sha256:") else digest_of(served)
    repo.manifests[key] = (media_type, served)
    repo.tags["v1"] = key
    with pytest.raises(error) as caught:
        _run(filled, policy, lambda repository: repository.manifests.get(target))
    assert caught.value.hint, attack


def test_a_tag_whose_digest_header_lies_is_refused(filled: RegistryServer, policy: Policy) -> None:
    repo = filled.repo("team/image")
    repo.manifests["sha256:" + "0" * 64] = (MANIFEST, IMAGE)
    repo.tags["v1"] = "sha256:" + "0" * 64
    with pytest.raises(WrongContent):
        _run(filled, policy, lambda repository: repository.manifests.get("v1"))


def test_a_manifest_without_its_blobs_is_refused_by_code(server: RegistryServer, policy: Policy) -> None:
    with pytest.raises(RegistryError) as caught:
        _run(server, policy, lambda repository: repository.manifests.put(IMAGE, MANIFEST))
    assert caught.value.codes == ("MANIFEST_BLOB_UNKNOWN",)


@pytest.mark.parametrize(
    ("attack", "change"),
    [
        (
            "a digest of another form",
            {"config": EMPTY_BLOB.to_json() | {"digest": "sha256:../../etc/passwd"}},
        ),
        ("an upper-case digest", {"config": EMPTY_BLOB.to_json() | {"digest": "sha256:" + "A" * 64}}),
        ("a digest with a newline", {"config": EMPTY_BLOB.to_json() | {"digest": EMPTY_BLOB.digest + "\n"}}),
        ("a negative size", {"config": EMPTY_BLOB.to_json() | {"size": -1}}),
        ("a size as text", {"config": EMPTY_BLOB.to_json() | {"size": "2"}}),
        ("a size as fraction", {"config": EMPTY_BLOB.to_json() | {"size": 2.0}}),
        ("a size beyond all", {"config": EMPTY_BLOB.to_json() | {"size": 2**63}}),
        ("no layers", {"layers": None}),
        ("layers no list", {"layers": {}}),
        ("another schema", {"schemaVersion": 1}),
        ("annotations no texts", {"annotations": {"a": 1}}),
        ("a header in the media type", {"mediaType": "a/b\r\nX: y"}),
    ],
)
def test_broken_documents(attack: str, change: dict[str, object]) -> None:
    with pytest.raises(InvalidDocument) as caught:
        parse_manifest(_manifest(**change), "the manifest")
    assert "the manifest" in caught.value.what, attack


@given(st.binary(max_size=200))
def test_any_bytes_are_a_document_or_refused(content: bytes) -> None:
    for parse in (parse_manifest, parse_index):
        with pytest.raises(InvalidDocument):
            parse(content, "it")


def test_unknown_fields_of_other_tools_stay() -> None:
    written = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [SUBJECT.to_json() | {"platform": {"os": "linux"}, "data": "e30="}],
        "org.example": [1],
    }
    assert json.loads(parse_index(json.dumps(written).encode(), "it").to_bytes()) == written


# referrers


def test_listed_with_their_own_types_over_pages(filled: RegistryServer, policy: Policy) -> None:
    filled.referrers_page = 2
    contents = [_referrer(number, BUNDLE if number % 2 else "application/other") for number in range(7)]
    _attach(filled, policy, *contents)
    assert {one.digest for one in _listed(filled, policy)} == {digest_of(content) for content in contents}
    bundles = _listed(filled, policy, BUNDLE)
    assert {one.digest for one in bundles} == {digest_of(content) for content in contents[1::2]}
    # the registry says the configuration's type, the manifests say their own
    assert {one.artifact_type for one in bundles} == {BUNDLE}
    assert all((one.annotations or {})["dev.sigstore.bundle.content"] == "dsse-envelope" for one in bundles)


def test_without_the_api_they_are_in_the_fallback_tag(filled: RegistryServer, policy: Policy) -> None:
    filled.referrers_api = False
    contents = [_referrer(number) for number in range(3)]
    assert _listed(filled, policy) == []
    _attach(filled, policy, *contents, contents[0])
    assert [one.digest for one in _listed(filled, policy)] == [digest_of(content) for content in contents]
    repo = filled.repo("team/image")
    index = parse_index(repo.manifests[repo.tags[fallback_tag(SUBJECT.digest)]][1], "index")
    assert [entry.artifact_type for entry in index.manifests] == [BUNDLE] * 3
    assert [(entry.annotations or {})["number"] for entry in index.manifests] == ["0", "1", "2"]


@pytest.mark.parametrize("says_subject", [False, True])
def test_the_api_is_found_by_calling_it(says_subject: bool, filled: RegistryServer, policy: Policy) -> None:
    filled.referrers_api, filled.says_subject = False, says_subject
    _attach(filled, policy, _referrer(0))
    assert fallback_tag(SUBJECT.digest) in filled.repo("team/image").tags
    filled.referrers_api, filled.says_subject = True, says_subject
    filled.repo("team/image").tags.clear()
    _attach(filled, policy, _referrer(1))
    assert fallback_tag(SUBJECT.digest) not in filled.repo("team/image").tags


def test_side_by_side_in_one_process_none_is_lost(filled: RegistryServer, policy: Policy) -> None:
    filled.referrers_api = False
    contents = [_referrer(number) for number in range(6)]

    async def work(repository: Repository) -> None:
        async with anyio.create_task_group() as group:
            for content in contents:
                group.start_soon(repository.referrers.attach, content)

    _run(filled, policy, work)
    assert {one.digest for one in _listed(filled, policy)} == {digest_of(content) for content in contents}


def test_an_entry_lost_to_another_writer_is_written_again(filled: RegistryServer, policy: Policy) -> None:
    filled.referrers_api = False
    theirs = _referrer(1)
    entry = referrer_descriptor(theirs, parse_manifest(theirs, "theirs"))
    filled.repo("team/image").manifests[entry.digest] = (MANIFEST, theirs)
    rival = canonical_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry.to_json()]})
    filled.overwrite_fallback = [rival, rival]
    ours = _referrer(0)
    _attach(filled, policy, ours)
    assert {one.digest for one in _listed(filled, policy)} == {entry.digest, digest_of(ours)}


def test_a_writer_that_always_wins_ends_in_an_error(filled: RegistryServer, policy: Policy) -> None:
    filled.referrers_api = False
    rival = canonical_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": []})
    filled.overwrite_fallback = [rival] * 100
    with pytest.raises(Unavailable, match="does not show it"):
        _attach(filled, policy, _referrer(0))
    assert len(filled.overwrite_fallback) == 100 - policy.attempts


def test_entries_that_are_no_referrers_are_left_out(filled: RegistryServer, policy: Policy) -> None:
    filled.referrers_api = False
    good, other = _referrer(0), _referrer(1, subject=describe(b"another image", MANIFEST))
    gone = describe(b"deleted", MANIFEST, artifact_type=BUNDLE)
    _attach(filled, policy, good)
    repo = filled.repo("team/image")
    repo.manifests[digest_of(other)] = (MANIFEST, other)
    entries = [describe(content, MANIFEST, artifact_type=BUNDLE) for content in (other, good, IMAGE)]
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [each.to_json() for each in (gone, *entries)],
    }
    content = json.dumps(index).encode()
    repo.manifests[digest_of(content)] = (INDEX, content)
    repo.tags[fallback_tag(SUBJECT.digest)] = digest_of(content)
    assert [one.digest for one in _listed(filled, policy)] == [digest_of(good)]


@pytest.mark.parametrize(
    "fault", [Fault.TOO_MANY, Fault.ERROR, Fault.BUSY, Fault.HTML, Fault.CUT_BEFORE, Fault.TRUNCATED]
)
@pytest.mark.parametrize("api", [False, True])
def test_a_listing_that_fails_is_never_empty(
    fault: Fault, api: bool, filled: RegistryServer, policy: Policy
) -> None:
    filled.referrers_api = api
    _attach(filled, policy, _referrer(0))
    where = "/referrers/" if api else f"/manifests/{fallback_tag(SUBJECT.digest)}"
    filled.faults = [Planned(fault, where=lambda method, path: where in path, times=1000)]
    with pytest.raises(SupplyChainError):
        _listed(filled, policy)


def test_pages_without_end(filled: RegistryServer, policy: Policy) -> None:
    filled.referrers_page = 1
    for number in range(101):
        content = _referrer(number)
        filled.repo("team/image").manifests[digest_of(content)] = (MANIFEST, content)
    with pytest.raises(BrokenAnswer, match="100 pages"):
        _listed(filled, policy)


def _linked(link: str) -> httpx.URL | None:
    headers = httpx.Headers({"link": link})
    return next_page(Answer(httpx.URL("https://a.example/v2/x/referrers/y"), 200, headers, b""))


def test_next_pages() -> None:
    assert _linked("") is None
    assert _linked('</v2/x?n=2>; rel="prev"') is None
    for link in (
        '</v2/x?n=2>; rel="next"',
        "<https://a.example/v2/x?n=2>; rel=next",
        '<p>; rel="prev", </v2/x?n=2>; rel="next"',
    ):
        assert _linked(link) == httpx.URL("https://a.example/v2/x?n=2")
    for link in (
        '<https://b.example/v2/x>; rel="next"',
        '<http://a.example/v2/x>; rel="next"',
        '<//b.example>; rel="next"',
    ):
        with pytest.raises(BrokenAnswer, match="another host"):
            _linked(link)


def test_too_large_says_what_to_raise(filled: RegistryServer, policy: Policy) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        return httpx.Response(413, text="<html>too large</html>")

    async def run() -> None:
        transport = httpx.MockTransport(refuse)
        async with open_repository(
            "registry.example.org", "a", policy=policy, transport=transport
        ) as repository:
            await repository.manifests.put(IMAGE, MANIFEST)

    with pytest.raises(Rejected) as caught:
        anyio.run(run)
    assert "largest request" in caught.value.hint
    assert "html" not in caught.value.what

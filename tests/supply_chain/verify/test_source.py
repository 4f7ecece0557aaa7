"""Verifying in a registry: resolved once, then all by digest; a registry that fails is no verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from supply_chain.errors import AccessDenied, Unavailable, VerificationError
from supply_chain.image import KERNEL, METADATA
from supply_chain.oci import INDEX, MANIFEST, digest_of
from supply_chain.registry import Policy
from supply_chain.verify.steps import Step
from tests.supply_chain.registry_server import Fault, Planned, RegistryServer
from tests.supply_chain.verify.bench import Bench
from tests.supply_chain.verify.signed_image import LOCK, Signed, index_of

NAME = "team/os"


@pytest.fixture
def ref(server: RegistryServer, signed: Signed) -> str:
    """Where the signed image is, by tag."""
    fill(server, signed.files)
    server.repo(NAME).tags["13"] = signed.image.digest
    return f"{server.host}/{NAME}:13"


def fill(server: RegistryServer, files: Mapping[str, bytes]) -> None:
    """Have a layout's blobs and manifests in the registry."""
    repo = server.repo(NAME)
    for content in (content for name, content in files.items() if name.startswith("blobs/")):
        repo.blobs[digest_of(content)] = content
        if content.startswith(b"{") and "layers" in (loaded := json.loads(content)):
            repo.manifests[digest_of(content)] = (loaded["mediaType"], content)


def requests(server: RegistryServer, method: str, part: str) -> int:
    """How many requests there were for such a path."""
    return sum(one.method == method and part in one.path for one in server.seen)


@pytest.mark.parametrize("api", [True, False], ids=["referrers API", "fallback tag"])
def test_an_image_in_a_registry(
    bench: Bench, server: RegistryServer, signed: Signed, policy: Policy, ref: str, api: bool
) -> None:
    if not api:
        server.referrers_api = False
        index = index_of(json.loads(signed.files["index.json"])["manifests"][1:])
        server.repo(NAME).manifests[digest_of(index)] = (INDEX, index)
        server.repo(NAME).tags[signed.image.digest.replace(":", "-")] = digest_of(index)
    verified = bench.at(ref, registry=policy, lock=LOCK)
    assert verified.digest == signed.image.digest
    assert verified.image == ref
    assert verified.size == sum(len(blob) for blob in signed.image.blobs.values())


def test_layers_are_read_only_on_demand(
    bench: Bench, server: RegistryServer, signed: Signed, policy: Policy, ref: str
) -> None:
    kernel = signed.image.of_title(KERNEL)["digest"]
    assert not bench.at(ref, registry=policy).layers_read
    assert requests(server, "GET", kernel) == 0
    pinned = f"{server.host}/{NAME}@{signed.image.digest}"
    assert bench.at(pinned, registry=policy, read_layers=True).layers_read
    assert requests(server, "GET", kernel) == 1


def test_a_tag_is_resolved_once(
    bench: Bench, server: RegistryServer, signed: Signed, other: Signed, policy: Policy, ref: str
) -> None:
    # moved between the steps: what was pinned at first is what is verified
    fill(server, other.files)

    def move(done: object) -> None:
        server.repo(NAME).tags["13"] = other.image.digest

    assert bench.at(ref, registry=policy, on_step=move).digest == signed.image.digest
    assert requests(server, "GET", "manifests/13") == 1


def test_a_layer_that_is_not_there(
    bench: Bench, server: RegistryServer, signed: Signed, policy: Policy, ref: str
) -> None:
    del server.repo(NAME).blobs[signed.image.of_title(METADATA)["digest"]]
    with pytest.raises(VerificationError, match="layer root") as refused:
        bench.at(ref, registry=policy)
    assert refused.value.step == Step.CONTENT


def test_a_layer_of_other_bytes_is_found_by_reading(
    bench: Bench, server: RegistryServer, signed: Signed, policy: Policy, ref: str
) -> None:
    digest = signed.image.of_title(KERNEL)["digest"]
    content = server.repo(NAME).blobs[digest]
    server.repo(NAME).blobs[digest] = content[:-1] + bytes([content[-1] ^ 1])
    assert not bench.at(ref, registry=policy).layers_read
    with pytest.raises(VerificationError) as refused:
        bench.at(ref, registry=policy, read_layers=True)
    assert refused.value.step == Step.CONTENT


def test_an_image_that_is_not_there(bench: Bench, server: RegistryServer, policy: Policy, ref: str) -> None:
    with pytest.raises(VerificationError) as refused:
        bench.at(ref.replace(":13", ":14"), registry=policy)
    assert refused.value.step == Step.MANIFEST


def test_a_registry_that_serves_another_image(
    bench: Bench, server: RegistryServer, signed: Signed, other: Signed, policy: Policy, ref: str
) -> None:
    server.repo(NAME).manifests[signed.image.digest] = (MANIFEST, other.image.manifest)
    with pytest.raises(VerificationError) as refused:
        bench.at(f"{server.host}/{NAME}@{signed.image.digest}", registry=policy)
    assert refused.value.step == Step.MANIFEST


def test_an_older_image_behind_the_tag_is_seen_by_its_digest_alone(
    bench: Bench, server: RegistryServer, signed: Signed, other: Signed, policy: Policy, ref: str
) -> None:
    # a signature doesn't say which image is wanted: whoever must know pins the digest
    fill(server, other.files)
    server.repo(NAME).tags["13"] = other.image.digest
    assert bench.at(ref, registry=policy).digest == other.image.digest


@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.TOO_MANY, Fault.CUT_BEFORE])
@pytest.mark.parametrize("part", ["/referrers/", "/manifests/13", "/blobs/"])
def test_a_registry_that_is_down_is_no_verdict(
    bench: Bench, server: RegistryServer, policy: Policy, ref: str, fault: Fault, part: str
) -> None:
    server.faults = [Planned(fault, where=lambda method, path: part in path, times=1000)]
    with pytest.raises(Unavailable):
        bench.at(ref, registry=policy)


def test_a_listing_that_fails_is_not_an_empty_one(
    bench: Bench, server: RegistryServer, policy: Policy, ref: str
) -> None:
    server.faults = [Planned(Fault.HTML, where=lambda method, path: "/referrers/" in path, times=1000)]
    with pytest.raises(VerificationError, match="listing of referrers") as refused:
        bench.at(ref, registry=policy)
    assert refused.value.step == Step.REFERRERS


def test_no_access_is_no_verdict(bench: Bench, server: RegistryServer, policy: Policy, ref: str) -> None:
    server.auth = "basic"
    with pytest.raises(AccessDenied):
        bench.at(ref, registry=policy)


def test_a_listed_referrer_that_is_gone_or_changed_is_passed_over(
    bench: Bench, server: RegistryServer, signed: Signed, policy: Policy, ref: str
) -> None:
    entries = json.loads(signed.files["index.json"])["manifests"][1:]
    gone = {"mediaType": MANIFEST, "digest": f"sha256:{'1' * 64}", "size": 5}
    changed = {**gone, "digest": f"sha256:{'2' * 64}"}
    server.referrers_api = False
    index = index_of([gone, changed, *entries])
    repo = server.repo(NAME)
    repo.manifests |= {digest_of(index): (INDEX, index), f"sha256:{'2' * 64}": (MANIFEST, b"{}")}
    repo.tags[signed.image.digest.replace(":", "-")] = digest_of(index)
    verified = bench.at(ref, registry=policy)
    assert [one.digest for one in verified.ignored] == [gone["digest"], changed["digest"]]

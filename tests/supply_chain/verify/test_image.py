"""Verifying an image, step by step: what it takes, what is passed over, and which step refuses what."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from supply_chain.errors import (
    InvalidReference,
    LayoutError,
    VerificationError,
)
from supply_chain.image import BUILD_MANIFEST, KERNEL, METADATA
from supply_chain.layout import open_layout
from supply_chain.oci import MANIFEST, digest_of
from supply_chain.provenance import RECIPE_LOCK
from supply_chain.referrer import BUNDLE
from supply_chain.registry import Document
from supply_chain.statement import PROVENANCE, SBOM, SIGNATURE, parse_statement, statement_bytes
from supply_chain.verify import signatures
from supply_chain.verify.bundle import VerifiedBundle
from supply_chain.verify.image import verify_image
from supply_chain.verify.policy import Signer, signer_policy
from supply_chain.verify.signatures import Signed as Found
from supply_chain.verify.signatures import by_signer
from supply_chain.verify.source import LayoutSource
from supply_chain.verify.steps import Done, Step
from tests.supply_chain.verify.bench import SIGNER, Bench
from tests.supply_chain.verify.forge import IDENTITY, ISSUER, Forge, Names
from tests.supply_chain.verify.signed_image import (
    COMMIT,
    EPOCH,
    LOCK,
    PACKAGES,
    Image,
    Json,
    Signed,
    blob_files,
    blob_path,
    bundle,
    index_of,
    layout_files,
    make_image,
    provenance_of,
    sbom_of,
    sign,
    write,
)

ELSEWHERE = Names(identity="https://git.example/org/elsewhere/.gitea/workflows/x.yml@refs/heads/main")


def test_what_is_known_of_a_verified_image(bench: Bench, signed: Signed, tmp_path: Path) -> None:
    verified = bench.verify(signed.files, lock=LOCK)
    entries = [entry["digest"] for entry in json.loads(signed.files["index.json"])["manifests"]]
    assert [verified.digest, verified.signature, verified.sbom, verified.provenance] == entries
    assert (verified.identity, verified.issuer, verified.builder_id) == (IDENTITY, ISSUER, IDENTITY)
    assert (verified.git_sha, verified.git_shas) == (COMMIT, (COMMIT,))
    assert (verified.arch, verified.kernel_version) == ("amd64", "6.12.1-test")
    assert verified.size == sum(len(blob) for blob in signed.image.blobs.values())
    assert verified.packages == len(PACKAGES) + 1  # the kernel
    assert verified.layers_read
    assert verified.ignored == ()
    assert json.loads(json.dumps(verified.to_json()))["git_sha"] == COMMIT


def test_every_step_is_told_in_its_order(bench: Bench, signed: Signed, tmp_path: Path) -> None:
    told: list[Done] = []
    bench.at(str(write(tmp_path / "it", signed.files)), lock=LOCK, on_step=told.append)
    assert [done.step for done in told] == list(Step)
    assert [step.number for step in Step] == [1, 2, 3, 4, 5, 6, 7]


# --- step 4: who signed ---


@pytest.mark.parametrize("missing", [SIGNATURE, SBOM, PROVENANCE])
def test_all_three_are_required(bench: Bench, signed: Signed, missing: str) -> None:
    left = [(kind, each) for kind, each in signed.bundles.items() if kind != missing]
    refused = bench.refuse(layout_files(signed.image, left), Step.SIGNATURES)
    assert refused.expected == "signature, SBOM and provenance by one trusted signer"


def test_an_sbom_is_no_signature(bench: Bench, signed: Signed) -> None:
    # `cosign verify` takes any attestation for a signature
    twice = [(SBOM, signed.bundles[SBOM]), (SIGNATURE, signed.bundles[SBOM])]
    refused = bench.refuse(
        layout_files(signed.image, [*twice, (PROVENANCE, signed.bundles[PROVENANCE])]), Step.SIGNATURES
    )
    assert refused.found.startswith("SBOM and provenance by")


def test_the_three_must_be_by_one_signer(bench: Bench, forge: Forge, signed: Signed) -> None:
    elsewhere = sign(forge, signed.image, ELSEWHERE)
    mixed = {**signed.bundles, SBOM: elsewhere.bundles[SBOM]}
    anyone = signer_policy(identity_regexp="https://git[.]example/.+", issuer=ISSUER)
    refused = bench.refuse(layout_files(signed.image, list(mixed.items())), Step.SIGNATURES, policy=anyone)
    assert "SBOM by" in refused.found
    assert "signature and provenance by" in refused.found


def test_another_signer_is_named(bench: Bench, forge: Forge, signed: Signed) -> None:
    refused = bench.refuse(sign(forge, signed.image, ELSEWHERE).files, Step.SIGNATURES)
    assert f"3 passed over: signed by {ELSEWHERE.identity}" in refused.found


def test_another_issuer_is_not_the_signers(bench: Bench, forge: Forge, signed: Signed) -> None:
    evil = sign(forge, signed.image, Names(issuer="https://evil.example"))
    assert "expected the issuer" in bench.refuse(evil.files, Step.SIGNATURES).found


def test_another_trusts_signature_does_not_count(bench: Bench, stranger: Forge, signed: Signed) -> None:
    bench.refuse(sign(stranger, signed.image).files, Step.SIGNATURES)


def test_what_others_hang_on_the_image_is_passed_over_and_named(
    bench: Bench, forge: Forge, stranger: Forge, signed: Signed, other: Signed
) -> None:
    elsewhere = bundle(forge, statement_bytes(signed.image.digest, SIGNATURE, {}), ELSEWHERE)
    odd = {
        "signed by https://git.example/org/elsewhere": elsewhere,
        "is about another image": other.bundles[SIGNATURE],
        "says something else: https://cyclonedx.org/bom": bundle(
            forge, statement_bytes(signed.image.digest, "https://cyclonedx.org/bom", {})
        ),
        "expected a JSON object, found an HTML or XML page": b"<html>",
        "media type: expected": json.dumps({"mediaType": "application/json"}).encode(),
        "failed to build timestamp certificate chain": bundle(
            stranger, statement_bytes(signed.image.digest, SIGNATURE, {})
        ),
    }
    bundles = [*((SIGNATURE, each) for each in odd.values()), *signed.bundles.items()]
    verified = bench.verify(layout_files(signed.image, bundles))
    assert len(verified.ignored) == len(odd)
    for part, ignored in zip(odd, verified.ignored, strict=True):
        assert part in ignored.why or "time: expected one" in ignored.why


def test_what_is_no_bundle_is_passed_over(bench: Bench, signed: Signed) -> None:
    subject = signed.image.described.to_json()
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2}
    layer = {"mediaType": BUNDLE, "digest": digest_of(b"{}"), "size": 2}
    plain = {"schemaVersion": 2, "mediaType": MANIFEST, "config": empty, "subject": subject}
    manifests = [
        {**plain, "artifactType": "application/vnd.example", "layers": [empty]},
        {**plain, "artifactType": BUNDLE, "layers": [layer, layer]},
        {**plain, "artifactType": BUNDLE, "layers": [empty]},
        {**plain, "artifactType": BUNDLE, "layers": [{**layer, "size": 1 << 40}]},
        {**plain, "artifactType": BUNDLE, "layers": [layer], "subject": empty},
        {**plain, "artifactType": BUNDLE, "layers": [{**layer, "digest": f"sha256:{'0' * 64}"}]},
        {"not": "a manifest"},
    ]
    contents = [json.dumps(each).encode() for each in manifests]
    entries = json.loads(signed.files["index.json"])["manifests"]
    hung = [{"mediaType": MANIFEST, "digest": digest_of(each), "size": len(each)} for each in contents]
    gone = {"mediaType": MANIFEST, "digest": f"sha256:{'1' * 64}", "size": 5}
    files = signed.files | blob_files(contents) | {"index.json": index_of([*entries, *hung, gone])}
    verified = bench.verify(files)
    assert [each.digest for each in verified.ignored] == [each["digest"] for each in (*hung, gone)]
    assert all(each.why for each in verified.ignored)


def test_the_same_bytes_may_come_from_several_commits(bench: Bench, forge: Forge, signed: Signed) -> None:
    later = provenance_of(signed.image)
    definition = later["buildDefinition"]
    definition["externalParameters"]["gitSha"] = "2e" * 20
    definition["resolvedDependencies"][-1]["digest"]["gitCommit"] = "2e" * 20
    again = (PROVENANCE, bundle(forge, statement_bytes(signed.image.digest, PROVENANCE, later)))
    verified = bench.verify(layout_files(signed.image, [*signed.bundles.items(), again]))
    assert set(verified.git_shas) == {COMMIT, "2e" * 20}


def test_what_the_signer_says_in_other_shapes_is_passed_over(
    bench: Bench, forge: Forge, signed: Signed
) -> None:
    foreign = statement_bytes(signed.image.digest, PROVENANCE, {"buildDefinition": {"buildType": "other"}})
    bundles = [*signed.bundles.items(), (PROVENANCE, bundle(forge, foreign))]
    verified = bench.verify(layout_files(signed.image, bundles))
    assert "buildType" in verified.ignored[0].why


def test_of_what_one_signer_says_the_newest_comes_first() -> None:
    signer = Signer(IDENTITY, ISSUER)
    statement = parse_statement(statement_bytes(f"sha256:{'0' * 64}", SBOM, {}), "it")
    times = {
        name: datetime(2026, 1, day, tzinfo=UTC) for name, day in (("old", 1), ("new", 3), ("later", 2))
    }
    said = by_signer([Found(name, VerifiedBundle(statement, signer, at)) for name, at in times.items()])
    assert [each.referrer for each in said[signer][SBOM]] == ["new", "later", "old"]


def test_more_bundles_than_any_image_needs_are_not_read(
    bench: Bench, signed: Signed, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.verify(signed.files)
    sizes = sum(map(len, signed.bundles.values()))
    monkeypatch.setattr(signatures, "ALL_BUNDLES", sizes - 1)
    refused = bench.refuse(signed.files, Step.SIGNATURES)
    assert refused.what == f"bundles: expected at most {sizes - 1} bytes in all, found more"


# --- steps 5 to 7: what is attested and what is there ---


def resigned(forge: Forge, signed: Signed, kind: str, predicate: Json) -> dict[str, bytes]:
    """The layout with another predicate, by the same signer."""
    changed = bundle(forge, statement_bytes(signed.image.digest, kind, predicate))
    return layout_files(signed.image, list({**signed.bundles, kind: changed}.items()))


def sbom_with(image: Image, change: Callable[[Json], None]) -> Json:
    sbom = sbom_of(image)
    change(sbom)
    return sbom


SBOM_LIES: dict[str, tuple[Step, Callable[[Json], Any]]] = {
    "of another image": (
        Step.SBOM,
        lambda sbom: sbom["packages"][0]["checksums"][0].update(checksumValue="00" * 32),
    ),
    "describes nothing": (Step.SBOM, lambda sbom: sbom["relationships"].pop(0)),
    "describes two images": (
        Step.SBOM,
        lambda sbom: sbom["relationships"].append(sbom["relationships"][0]),
    ),
    "no SPDX document": (Step.SBOM, lambda sbom: sbom.pop("spdxVersion")),
    "a package that the build did not use": (
        Step.PROVENANCE,
        lambda sbom: sbom["packages"][-1]["externalRefs"][0].update(
            referenceLocator="pkg:deb/debian/evil@1?arch=amd64"
        ),
    ),
    "another file of a package": (
        Step.PROVENANCE,
        lambda sbom: sbom["packages"][-1]["checksums"][0].update(checksumValue="00" * 32),
    ),
}


@pytest.mark.parametrize(("step", "lie"), SBOM_LIES.values(), ids=SBOM_LIES)
def test_an_sbom_that_lies(
    bench: Bench, forge: Forge, signed: Signed, step: Step, lie: Callable[[Json], None]
) -> None:
    refused = bench.refuse(resigned(forge, signed, SBOM, sbom_with(signed.image, lie)), step)
    assert "expected" in refused.what or "Field required" in refused.what


PROVENANCE_LIES: dict[str, Callable[[Json], Any]] = {
    "another builder": lambda it: it["runDetails"]["builder"].update(id=ELSEWHERE.identity),
    "no builder": lambda it: it["runDetails"]["builder"].pop("id"),
    "another build type": lambda it: it["buildDefinition"].update(buildType="https://example.org/make"),
    "another arch": lambda it: it["buildDefinition"]["externalParameters"]["recipe"].update(arch="arm64"),
    "another time": lambda it: it["buildDefinition"]["externalParameters"]["recipe"].update(
        source_date_epoch=EPOCH + 1
    ),
    "a time as text": lambda it: it["buildDefinition"]["externalParameters"]["recipe"].update(
        source_date_epoch=str(EPOCH)
    ),
    "a time as a fraction": lambda it: it["buildDefinition"]["externalParameters"]["recipe"].update(
        source_date_epoch=float(EPOCH)
    ),
    "a package less": lambda it: it["buildDefinition"]["resolvedDependencies"].pop(0),
    "two commits": lambda it: it["buildDefinition"]["externalParameters"].update(gitSha="2e" * 20),
}


@pytest.mark.parametrize("lie", PROVENANCE_LIES.values(), ids=PROVENANCE_LIES)
def test_a_provenance_that_lies(
    bench: Bench, forge: Forge, signed: Signed, lie: Callable[[Json], None]
) -> None:
    changed = provenance_of(signed.image)
    lie(changed)
    bench.refuse(resigned(forge, signed, PROVENANCE, changed), Step.PROVENANCE)


def test_another_lock_is_refused(bench: Bench, signed: Signed) -> None:
    refused = bench.refuse(signed.files, Step.LOCK, lock=LOCK + b" ")
    assert refused.found == digest_of(LOCK)[7:]


def rewritten(old: str, new: str) -> Callable[[Json], Json]:
    return lambda predicate: json.loads(json.dumps(predicate).replace(old, new))


def with_dependency(uri: str, of: str) -> Callable[[Json], Json]:
    def change(predicate: Json) -> Json:
        if "buildDefinition" in predicate:
            more = {"uri": uri, "digest": {"sha256": "0d" * 32}, "annotations": {"sets": [of]}}
            predicate["buildDefinition"]["resolvedDependencies"].append(more)
        return predicate

    return change


# SBOM and provenance agree, and name the lock: nothing else could see it.
BUILT_FROM_OTHERS: dict[str, tuple[str, Callable[[Json], Json]]] = {
    "another version": ("bash", rewritten("bash@5.2.37-2", "bash@5.2.36-1")),
    "another file": ("bash", rewritten(digest_of(b"bash")[7:], "00" * 32)),
    "a package more in the initramfs": (
        "busybox",
        with_dependency("pkg:deb/debian/busybox@1?arch=amd64&distro=debian-13", "initramfs"),
    ),
    "a package for another set": ("linux-image", rewritten('["kernel"]', '["root"]')),
}


@pytest.mark.parametrize(("package", "lie"), BUILT_FROM_OTHERS.values(), ids=BUILT_FROM_OTHERS)
def test_an_image_of_other_packages_than_its_lock_names(
    bench: Bench, forge: Forge, signed: Signed, package: str, lie: Callable[[Json], Json]
) -> None:
    said = {SBOM: lie(sbom_of(signed.image)), PROVENANCE: lie(provenance_of(signed.image))}
    bundles = {
        kind: bundle(forge, statement_bytes(signed.image.digest, kind, predicate))
        for kind, predicate in said.items()
    }
    files = layout_files(signed.image, list({**signed.bundles, **bundles}.items()))
    bench.verify(files)
    refused = bench.refuse(files, Step.LOCK, lock=LOCK)
    assert f"pkg:deb/debian/{package}" in refused.what


def test_a_build_that_names_no_lock(bench: Bench, forge: Forge, signed: Signed) -> None:
    changed = provenance_of(signed.image)
    build = changed["buildDefinition"]
    build["resolvedDependencies"] = [
        one for one in build["resolvedDependencies"] if one.get("name") != RECIPE_LOCK
    ]
    refused = bench.refuse(resigned(forge, signed, PROVENANCE, changed), Step.LOCK, lock=LOCK)
    assert (refused.expected, refused.found) == (digest_of(LOCK)[7:], "none")
    build["resolvedDependencies"].append({"name": RECIPE_LOCK, "uri": "https://git.example/lock.json"})
    refused = bench.refuse(resigned(forge, signed, PROVENANCE, changed), Step.LOCK, lock=LOCK)
    assert refused.found == "none"


def test_a_lock_that_is_none(bench: Bench, forge: Forge, signed: Signed) -> None:
    changed = provenance_of(signed.image)
    for dependency in changed["buildDefinition"]["resolvedDependencies"]:
        if dependency.get("name") == RECIPE_LOCK:
            dependency["digest"]["sha256"] = digest_of(b"{}")[7:]
    refused = bench.refuse(resigned(forge, signed, PROVENANCE, changed), Step.LOCK, lock=b"{}")
    assert "schema: Field required" in refused.what


# --- steps 1 to 3: what is there ---


def with_manifest(signed: Signed, image: Image) -> dict[str, bytes]:
    """Another manifest, with everything that was signed re-hung on it."""
    return layout_files(image, list(signed.bundles.items()))


def test_a_changed_manifest_is_another_image(bench: Bench, signed: Signed) -> None:
    refused = bench.refuse(
        with_manifest(signed, signed.image.changed(annotations={"x": "y"})), Step.SIGNATURES
    )
    assert "is about another image" in refused.found


def test_manifest_bytes_of_another_digest(bench: Bench, signed: Signed) -> None:
    changed = signed.image.manifest.replace(b"image.title", b"image.tItle")
    bench.refuse(signed.files | {blob_path(signed.image.digest): changed}, Step.MANIFEST)


@pytest.mark.parametrize("title", [BUILD_MANIFEST, KERNEL, METADATA, "objects-00.pack"])
@pytest.mark.parametrize("how", ["changed", "truncated", "gone"])
def test_a_layer_that_is_not_what_the_manifest_says(
    bench: Bench, signed: Signed, title: str, how: str
) -> None:
    path = blob_path(signed.image.of_title(title)["digest"])
    files = signed.files
    content = files.pop(path)
    if how != "gone":
        files[path] = content[:-1] + (bytes([content[-1] ^ 1]) if how == "changed" else b"")
    bench.refuse(files, Step.CONTENT)


def test_a_root_of_another_fsverity_digest(bench: Bench, forge: Forge) -> None:
    # all documents agree, but the kernel would refuse the root
    image = make_image()
    layers = json.loads(image.manifest)["layers"]
    other_root = b"another root"
    for layer in layers:
        if layer["annotations"]["org.opencontainers.image.title"] == METADATA:
            layer.update(digest=digest_of(other_root), size=len(other_root))
    built = json.loads(image.blobs[layers[0]["digest"]])
    built["artifacts"][METADATA] = {"sha256": digest_of(other_root)[7:], "size_bytes": len(other_root)}
    content = json.dumps(built).encode()
    layers[0].update(digest=digest_of(content), size=len(content))
    changed = image.changed(layers=layers)
    blobs = {**image.blobs, digest_of(content): content, digest_of(other_root): other_root}
    refused = bench.refuse(sign(forge, Image(changed.manifest, blobs)).files, Step.CONTENT)
    assert "fs-verity" in refused.what


def test_a_layout_that_is_none(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(LayoutError):
        bench.at(str(tmp_path))
    with pytest.raises(InvalidReference, match="no folder 'out/nothing'"):
        bench.at("out/nothing")


def test_a_source_that_gives_other_bytes_than_it_says(
    forge: Forge, signed: Signed, other: Signed, tmp_path: Path
) -> None:
    class Lying(LayoutSource):
        async def image(self) -> Document:
            return Document(signed.image.described, other.image.manifest)

    source = Lying(open_layout(write(tmp_path, signed.files)))
    with pytest.raises(VerificationError) as refused:
        anyio.run(verify_image, source, forge.trust, SIGNER)
    assert refused.value.step == Step.MANIFEST
    assert (refused.value.expected, refused.value.found) == (
        f"bytes with the digest {signed.image.digest}",
        other.image.digest,
    )

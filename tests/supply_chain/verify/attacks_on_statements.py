"""Statements that the trusted signer did sign, and that are not true of this image.

Most are compared directly, as verify does after the bundle has been verified; some travel the whole way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pipelines.definition import canonical_json
from supply_chain.provenance import RECIPE_LOCK
from supply_chain.statement import PROVENANCE, SBOM, SIGNATURE, statement_bytes
from tests.supply_chain.verify.attacks import Attack, Json, cuts, field_changes, flips
from tests.supply_chain.verify.forge import IDENTITY, Forge, Names
from tests.supply_chain.verify.signed_image import (
    LOCK,
    Signed,
    bundle,
    layout_files,
    provenance_of,
    sbom_of,
    sign,
    statements_of,
)


def signed_statements(forge: Forge, signed: Signed) -> Iterator[Attack]:
    """Malformed statements in the signature's envelope, each signed by the trusted signer."""
    content = statements_of(signed.image)[SIGNATURE]
    document = json.loads(content)
    changes = [
        *(("bit flipped", what, each) for what, each in flips(content, step=2, seed=8)),
        *(("truncated", what, each) for what, each in cuts(content, 20)),
        *field_changes(document),
        ("byte order mark", "", b"\xef\xbb\xbf" + content),
        ("UTF-16", "", content.decode().encode("utf-16")),
        ("a second document", "", content + content),
    ]
    for kind, what, statement in changes:
        same = _says(statement) == _says(content)
        yield Attack(
            f"statement: {kind}, then signed",
            what,
            bundle(forge, statement),
            harmless="says the same of the same image" if same else "",
        )


def sboms(signed: Signed) -> Iterator[Attack]:
    """SBOMs, compared with the image and the honest provenance."""
    document = sbom_of(signed.image)
    honest = _contents(canonical_json(document))
    # that a key stands twice is for the statement's reader to see, and what nobody compares is no attack
    for kind, what, changed in field_changes(document, doubled=False):
        if _contents(changed) != honest:
            yield Attack(f"SBOM: {kind}", what, sbom=changed)
    packages = document["packages"]
    for at, element in enumerate(packages):
        for digit in range(0, 64, 7):
            value = element["checksums"][0]["checksumValue"]
            other = value[:digit] + ("0" if value[digit] != "0" else "1") + value[digit + 1 :]
            yield _with(
                document,
                f"SBOM: checksum of {_kind(element)}",
                f"{at} {digit}",
                at,
                {"checksums": [{"algorithm": "SHA256", "checksumValue": other}]},
            )
        yield _with(
            document,
            f"SBOM: checksum of {_kind(element)}",
            f"{at} SHA1",
            at,
            {"checksums": [{**element["checksums"][0], "algorithm": "SHA1"}]},
        )
        yield _with(
            document,
            f"SBOM: checksum of {_kind(element)}",
            f"{at} two",
            at,
            {"checksums": [*element["checksums"], {"algorithm": "SHA256", "checksumValue": "00" * 32}]},
        )
        left = {**document, "packages": [*packages[:at], *packages[at + 1 :]]}
        yield Attack(f"SBOM: {_kind(element)} is missing", f"{at}", sbom=canonical_json(left))
    for what, package in {
        "never used": {"purl": "pkg:deb/debian/evil@1?arch=amd64&distro=debian-13", "sha256": "66" * 32},
        "another version": {
            "purl": "pkg:deb/debian/bash@0?arch=amd64&distro=debian-13",
            "sha256": "66" * 32,
        },
    }.items():
        element = {
            **packages[-1],
            "SPDXID": "SPDXRef-more",
            "checksums": [{"algorithm": "SHA256", "checksumValue": package["sha256"]}],
            "externalRefs": [{**packages[-1]["externalRefs"][0], "referenceLocator": package["purl"]}],
        }
        more = {**document, "packages": [*packages, element]}
        related = {**document["relationships"][-1], "relatedSpdxElement": "SPDXRef-more"}
        more["relationships"] = [*document["relationships"], related]
        yield Attack("SBOM: a package more", what, sbom=canonical_json(more))


def provenances(signed: Signed) -> Iterator[Attack]:
    """Provenances, compared with the image, the signer and the honest SBOM."""
    document = provenance_of(signed.image)
    honest = _made(canonical_json(document))
    for kind, what, changed in field_changes(document, doubled=False):
        if _made(changed) != honest:
            yield Attack(f"provenance: {kind}", what, provenance=changed)
    for builder in (
        IDENTITY + "/",
        IDENTITY.replace("main", "mian"),
        "",
        "https://git.example",
        IDENTITY.upper(),
        " " + IDENTITY,
    ):
        false = provenance_of(signed.image)
        false["runDetails"]["builder"]["id"] = builder
        yield Attack("provenance: another builder", builder, provenance=canonical_json(false))
    dependencies = document["buildDefinition"]["resolvedDependencies"]
    for at, dependency in enumerate(dependencies):
        if "sha256" not in dependency["digest"]:
            continue
        for digit in range(0, 64, 9):
            value = dependency["digest"]["sha256"]
            other = value[:digit] + ("0" if value[digit] != "0" else "1") + value[digit + 1 :]
            false = provenance_of(signed.image)
            false["buildDefinition"]["resolvedDependencies"][at]["digest"]["sha256"] = other
            lock = LOCK if dependency.get("name") == RECIPE_LOCK else None
            kernel = "linux-image" in dependency.get("uri", "")
            yield Attack(
                "provenance: checksum of what it used",
                f"{at} {digit}",
                provenance=canonical_json(false),
                lock=lock,
                harmless="of a package that is not in the SBOM" if kernel else "",
            )
    for what, lock in {
        "a byte more": LOCK + b" ",
        "a byte less": LOCK[:-1],
        "empty": b"",
        "another": b"{}",
    }.items():
        yield Attack("lock: another one", what, provenance=canonical_json(document), lock=lock)
    for what, lock in flips(LOCK, step=4):
        yield Attack("lock: bit flipped", what, provenance=canonical_json(document), lock=lock)


def whole_way(forge: Forge, stranger: Forge, signed: Signed, other: Signed) -> Iterator[Attack]:
    """False attestations in a layout, and honest ones by signers who don't count."""
    image = signed.image
    elsewhere = Names(identity="https://git.example/org/elsewhere/x.yml@refs/heads/main")
    lies: dict[str, tuple[str, bytes]] = {
        "SBOM of another image": (SBOM, statement_bytes(image.digest, SBOM, sbom_of(other.image))),
        "SBOM that is empty": (SBOM, statement_bytes(image.digest, SBOM, {})),
        "SBOM of a later SPDX": (
            SBOM,
            statement_bytes(image.digest, SBOM, {**sbom_of(image), "spdxVersion": "SPDX-3.0"}),
        ),
        "SBOM of another predicate type": (
            SBOM,
            statement_bytes(image.digest, "https://spdx.dev/Document/v2.3", sbom_of(image)),
        ),
        "CycloneDX": (SBOM, statement_bytes(image.digest, "https://cyclonedx.org/bom", sbom_of(image))),
        "provenance that is empty": (PROVENANCE, statement_bytes(image.digest, PROVENANCE, {})),
        "provenance of an older SLSA": (
            PROVENANCE,
            statement_bytes(image.digest, "https://slsa.dev/provenance/v0.2", provenance_of(image)),
        ),
        "provenance by another builder": (
            PROVENANCE,
            statement_bytes(image.digest, PROVENANCE, provenance_of(image, elsewhere.identity)),
        ),
        "signature of another image": (SIGNATURE, statement_bytes(other.image.digest, SIGNATURE, {})),
        "signature of another type": (
            SIGNATURE,
            statement_bytes(image.digest, "https://sigstore.dev/cosign/sign/v2", {}),
        ),
        "a signature's type in capitals": (SIGNATURE, statement_bytes(image.digest, SIGNATURE.upper(), {})),
    }
    for what, (kind, statement) in lies.items():
        changed = {**signed.bundles, kind: bundle(forge, statement)}
        yield Attack("image: a false attestation", what, files=layout_files(image, list(changed.items())))
    for name, author in {
        "another identity": sign(forge, image, elsewhere),
        "another issuer": sign(forge, image, Names(issuer="https://evil.example")),
        "another trust": sign(stranger, image),
    }.items():
        for chosen in range(1, 8):
            kinds = (SIGNATURE, SBOM, PROVENANCE)
            mixed = [
                (kind, (author if chosen >> at & 1 else signed).bundles[kind])
                for at, kind in enumerate(kinds)
            ]
            yield Attack(
                "image: attested by another signer", f"{name} {chosen:03b}", files=layout_files(image, mixed)
            )


def _with(document: Json, kind: str, what: str, at: int, fields: Json) -> Attack:
    packages = [*document["packages"]]
    packages[at] = {**packages[at], **fields}
    return Attack(kind, what, sbom=canonical_json({**document, "packages": packages}))


def _kind(element: Json) -> str:
    if "externalRefs" in element:
        return "a package"
    return "a layer" if "packageFileName" in element else "the image"


def _says(statement: bytes) -> object:
    """What a signature's statement says, for who reads it leniently."""
    try:
        loaded = json.loads(statement)
        types = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")
        digests = [subject["digest"] for subject in loaded["subject"]]
        return loaded["_type"] in types, digests, loaded["predicateType"]
    except (ValueError, KeyError, TypeError):
        return None


def _contents(sbom: bytes) -> object:
    """What an SBOM says of image, layers and packages, for who reads it leniently."""
    try:
        loaded = json.loads(sbom)
        elements = [
            (
                element["SPDXID"],
                element.get("packageFileName"),
                [each["checksumValue"] for each in element["checksums"] if each["algorithm"] == "SHA256"],
                [
                    each["referenceLocator"]
                    for each in element.get("externalRefs", ())
                    if each["referenceType"] == "purl"
                ],
            )
            for element in loaded["packages"]
        ]
        names = ("spdxElementId", "relationshipType", "relatedSpdxElement")
        related = [[each[name] for name in names] for each in loaded["relationships"]]
        return loaded["spdxVersion"], loaded["SPDXID"], elements, related
    except (ValueError, KeyError, TypeError):
        return None


def _made(provenance: bytes) -> object:
    """What a provenance says of builder, recipe and packages, for who reads it leniently."""
    try:
        loaded: Any = json.loads(provenance)
        definition = loaded["buildDefinition"]
        recipe = definition["externalParameters"]["recipe"]
        return (
            definition["buildType"],
            loaded["runDetails"]["builder"]["id"],
            [recipe[name] for name in ("arch", "source_date_epoch", "cmdline", "variants")],
            sorted(
                (each["uri"], each["digest"]["sha256"])
                for each in definition["resolvedDependencies"]
                if isinstance(sets := (each.get("annotations") or {}).get("sets"), list)
                and ("root" in sets or "kernel" in sets)
            ),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None

"""Reading SBOMs: what is taken from one, and which are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supply_chain.beside import sbom_path
from supply_chain.errors import InvalidDocument, LayoutError
from supply_chain.sbom import parse_sbom, read_sbom
from tests.supply_chain.images import write_image

PURL = "pkg:deb/debian/bash@5.2?arch=amd64"


def _element(id: str, name: str, sha256: str | None, **more: Any) -> dict[str, Any]:
    checksums = [] if sha256 is None else [{"algorithm": "SHA256", "checksumValue": sha256}]
    return {"SPDXID": id, "name": name, "checksums": checksums, **more}


def _relation(one: str, kind: str, other: str) -> dict[str, str]:
    return {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}


def document(image: str = "ab" * 32) -> dict[str, Any]:
    """An image with a root, a package in it, a tool that is not in it, and a loop of containers."""
    purl = {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": PURL}
    tool = {**purl, "referenceLocator": "pkg:deb/debian/gcc@14?arch=amd64"}
    return {
        "spdxVersion": "SPDX-2.3",
        "SPDXID": "SPDXRef-DOCUMENT",
        "packages": [
            _element("SPDXRef-Image", "image", image),
            _element("SPDXRef-Root", "root", "01" * 32, packageFileName="root.cfs"),
            _element("SPDXRef-bash", "bash", "02" * 32, versionInfo="5.2", externalRefs=[purl]),
            _element("SPDXRef-gcc", "gcc", "03" * 32, versionInfo="14", externalRefs=[tool]),
        ],
        "relationships": [
            _relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Image"),
            _relation("SPDXRef-Image", "CONTAINS", "SPDXRef-Root"),
            _relation("SPDXRef-Root", "CONTAINS", "SPDXRef-bash"),
            _relation("SPDXRef-bash", "CONTAINS", "SPDXRef-Root"),
            _relation("SPDXRef-gcc", "BUILD_TOOL_OF", "SPDXRef-Image"),
        ],
    }


def test_what_is_in_the_image() -> None:
    sbom = parse_sbom(document(), "it")
    assert sbom.image == f"sha256:{'ab' * 32}"
    assert sbom.layers == {"root.cfs": "01" * 32}
    assert {purl: package.sha256 for purl, package in sbom.packages.items()} == {PURL: "02" * 32}


def test_what_a_layer_was_made_from_is_in_it_and_what_a_package_was_made_from_is_not() -> None:
    found = document()
    for name, related, kind in (
        ("kernel", "SPDXRef-Root", "GENERATED_FROM"),
        ("bash-source", "SPDXRef-bash", "GENERATED_FROM"),
        ("editor", "SPDXRef-Root", "DEV_TOOL_OF"),
    ):
        url = {"referenceType": "purl", "referenceLocator": f"pkg:deb/debian/{name}@1"}
        found["packages"].append(_element(f"SPDXRef-{name}", name, "04" * 32, externalRefs=[url]))
        found["relationships"].append(_relation(related, kind, f"SPDXRef-{name}"))
    assert set(parse_sbom(found, "it").packages) == {PURL, "pkg:deb/debian/kernel@1"}


def _two_images(found: dict[str, Any]) -> None:
    found["relationships"].append(_relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Root"))


def _no_image(found: dict[str, Any]) -> None:
    del found["relationships"][0]


def _image_that_is_not_there(found: dict[str, Any]) -> None:
    del found["packages"][0]


def _image_without_a_checksum(found: dict[str, Any]) -> None:
    found["packages"][0]["checksums"] = [{"algorithm": "SHA1", "checksumValue": "00" * 20}]


def _image_with_two_checksums(found: dict[str, Any]) -> None:
    found["packages"][0]["checksums"] *= 2


def _checksum_that_is_none(found: dict[str, Any]) -> None:
    found["packages"][0]["checksums"][0]["checksumValue"] = "AB" * 32


def _one_id_twice(found: dict[str, Any]) -> None:
    found["packages"].append(_element("SPDXRef-bash", "other", "04" * 32))


def _package_without_a_checksum(found: dict[str, Any]) -> None:
    found["packages"][2]["checksums"] = []


def _layer_without_a_checksum(found: dict[str, Any]) -> None:
    found["packages"][1]["checksums"] = []


def _one_purl_twice(found: dict[str, Any]) -> None:
    again = {**found["packages"][2], "SPDXID": "SPDXRef-again"}
    again["checksums"] = [{"algorithm": "SHA256", "checksumValue": "05" * 32}]
    found["packages"].append(again)
    found["relationships"].append(_relation("SPDXRef-Root", "CONTAINS", "SPDXRef-again"))


def _one_layer_twice(found: dict[str, Any]) -> None:
    found["packages"].append(_element("SPDXRef-again", "root", "05" * 32, packageFileName="root.cfs"))
    found["relationships"].append(_relation("SPDXRef-Root", "CONTAINS", "SPDXRef-again"))


def _spdx_3(found: dict[str, Any]) -> None:
    found["spdxVersion"] = "SPDX-3.0"


def _no_packages(found: dict[str, Any]) -> None:
    del found["packages"]


def _number_for_a_name(found: dict[str, Any]) -> None:
    found["packages"][0]["name"] = 1


@pytest.mark.parametrize(
    "spoil",
    [
        _two_images,
        _no_image,
        _image_that_is_not_there,
        _image_without_a_checksum,
        _image_with_two_checksums,
        _checksum_that_is_none,
        _one_id_twice,
        _package_without_a_checksum,
        _layer_without_a_checksum,
        _one_purl_twice,
        _one_layer_twice,
        _spdx_3,
        _no_packages,
        _number_for_a_name,
    ],
)
def test_refused(spoil: Callable[[dict[str, Any]], None]) -> None:
    found = document()
    spoil(found)
    with pytest.raises(InvalidDocument, match="the SBOM: "):
        parse_sbom(found, "the SBOM")


def test_the_sbom_beside_a_layout(tmp_path: Path) -> None:
    layout = write_image(tmp_path / "quick", {"bash": [b"x"]})
    content = json.dumps(document(layout.image.hex)).encode()
    sbom_path(layout.folder).write_bytes(content)
    assert read_sbom(layout.folder) == content


@pytest.mark.parametrize("content", [None, b"", b"<html>", b"[]", b'{"a":1,"a":2}', b"[" * 100_000])
def test_no_sbom_is_a_clear_error(tmp_path: Path, content: bytes | None) -> None:
    layout = write_image(tmp_path / "quick", {"bash": [b"x"]})
    if content is not None:
        sbom_path(layout.folder).write_bytes(content)
    with pytest.raises(LayoutError, match=r"quick\.sbom\.json") as raised:
        read_sbom(layout.folder)
    assert "disk-image build" in raised.value.hint


def test_an_sbom_of_another_image_is_refused(tmp_path: Path) -> None:
    layout = write_image(tmp_path / "quick", {"bash": [b"x"]})
    sbom_path(layout.folder).write_bytes(json.dumps(document()).encode())
    with pytest.raises(LayoutError, match=f"about {layout.image.digest}"):
        read_sbom(layout.folder)

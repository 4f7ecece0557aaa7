"""Reading an SBOM: which packages an image says it holds.

SPDX 2.3 as JSON (https://spdx.github.io/spdx-spec/v2.3/), of the shape that stages/sbom writes and
docs/reference/attestations.md describes. Only what is asked for here is checked; all else in it is left
alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from supply_chain.beside import REBUILD, read_beside, sbom_path
from supply_chain.errors import InvalidDocument, LayoutError
from supply_chain.oci import broken_rule, parse_object
from supply_chain.provenance import check_image
from supply_chain.statement import STATEMENT_LIMIT

DOCUMENT_ID = "SPDXRef-DOCUMENT"
_HINT = "don't trust it; build and sign the image again"
_HEX = re.compile(r"[0-9a-f]{64}")
_Id = Annotated[str, Field(pattern=r"^SPDXRef-[A-Za-z0-9.-]+$")]


@dataclass(frozen=True, slots=True)
class Package:
    """A package: its package URL says all but the sha256 (hex) of its file."""

    name: str
    version: str
    purl: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Sbom:
    """What an SBOM says of the image whose manifest has the digest `image`: the layers that it describes, by
    title and with their sha256 (hex), and by package URL the Debian packages in the root and the initramfs,
    and those that a layer was made from: the kernel's.
    """

    image: str
    layers: Mapping[str, str]
    packages: Mapping[str, Package]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class _Checksum(_Model):
    algorithm: str
    checksumValue: str


class _Reference(_Model):
    referenceType: str
    referenceLocator: str


class _Element(_Model):
    SPDXID: _Id
    name: str
    versionInfo: str = ""
    packageFileName: str = ""
    checksums: tuple[_Checksum, ...] = Field(default=(), strict=False)
    externalRefs: tuple[_Reference, ...] = Field(default=(), strict=False)

    @property
    def sha256(self) -> str | None:
        found = [each.checksumValue for each in self.checksums if each.algorithm == "SHA256"]
        return found[0] if len(found) == 1 and _HEX.fullmatch(found[0]) else None

    @property
    def purl(self) -> str:
        found = [each.referenceLocator for each in self.externalRefs if each.referenceType == "purl"]
        return found[0] if len(found) == 1 else ""


class _Relationship(_Model):
    spdxElementId: str
    relationshipType: str
    relatedSpdxElement: str


class _Document(_Model):
    spdxVersion: Literal["SPDX-2.3"]
    SPDXID: Literal["SPDXRef-DOCUMENT"]
    packages: tuple[_Element, ...] = Field(strict=False)
    relationships: tuple[_Relationship, ...] = Field(strict=False)


def read_sbom(layout: Path) -> bytes:
    """The SBOM that `disk-image build` wrote beside the layout's folder. Raises LayoutError when it is not
    there, not an SBOM, or of another image than the layout's index names.
    """
    path = sbom_path(layout)
    content = read_beside(path, STATEMENT_LIMIT)
    try:
        sbom = parse_sbom(parse_object(content, str(path)), str(path))
    except InvalidDocument as error:
        raise LayoutError(error.what, REBUILD) from None
    check_image(path, layout, sbom.image)
    return content


def parse_sbom(document: Mapping[str, Any], what: str) -> Sbom:
    """Read an SBOM. Raises InvalidDocument, naming `what`, unless it describes exactly one image with a
    sha256, and every layer and Debian package that it is made of has one too and is there once.
    """
    try:
        read = _Document.model_validate(document)
    except ValidationError as error:
        raise broken_rule(error, what, _HINT) from None
    elements = {element.SPDXID: element for element in read.packages}
    if len(elements) != len(read.packages):
        raise InvalidDocument(f"{what}: packages: an SPDXID stands twice", _HINT)
    described = [
        each.relatedSpdxElement
        for each in read.relationships
        if (each.spdxElementId, each.relationshipType) == (DOCUMENT_ID, "DESCRIBES")
    ]
    image = elements.get(described[0]) if len(described) == 1 else None
    if image is None or image.sha256 is None:
        raise InvalidDocument(f"{what}: expected it to describe one image with a SHA256", _HINT)
    layers: dict[str, str] = {}
    packages: dict[str, Package] = {}
    for element in _made_of(image, elements, read.relationships):
        title, purl = element.packageFileName, element.purl
        if not title and not purl.startswith("pkg:deb/"):
            continue
        if element.sha256 is None:
            raise InvalidDocument(f"{what}: {title or purl}: expected one SHA256", _HINT)
        if title in layers or purl in packages:
            raise InvalidDocument(f"{what}: {title or purl} stands twice", _HINT)
        if title:
            layers[title] = element.sha256
        else:
            packages[purl] = Package(element.name, element.versionInfo, purl, element.sha256)
    return Sbom(f"sha256:{image.sha256}", dict(sorted(layers.items())), dict(sorted(packages.items())))


def _made_of(
    image: _Element, elements: Mapping[str, _Element], relationships: tuple[_Relationship, ...]
) -> list[_Element]:
    """All that the image contains, at any depth, and what its layers were generated from."""
    inside: dict[str, list[str]] = defaultdict(list)
    for each in relationships:
        one = elements.get(each.spdxElementId)
        layer = one is not None and bool(one.packageFileName)
        if each.relationshipType == "CONTAINS" or (layer and each.relationshipType == "GENERATED_FROM"):
            inside[each.spdxElementId].append(each.relatedSpdxElement)
    found: dict[str, _Element] = {}
    pending = [image.SPDXID]
    while pending:
        for name in inside[pending.pop()]:
            if name in elements and name not in found:
                found[name] = elements[name]
                pending.append(name)
    return list(found.values())

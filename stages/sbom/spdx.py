"""SPDX 2.3 documents as JSON: https://spdx.github.io/spdx-spec/v2.3/. Packages only, no list of files.

The same content gives the same bytes: everything is sorted, the time is the recipe's, and the namespace is
made from the image's digest and the document's own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from stages.sbom.copyright import NOASSERTION, Declared

DOCUMENT = "SPDXRef-DOCUMENT"
NAMESPACE = "https://powernode.org/disk-image-ci/spdx"
_CREATOR = "Tool: disk-image-ci"


class Purpose(StrEnum):
    """What a package is for, of SPDX's primaryPackagePurpose."""

    OPERATING_SYSTEM = "OPERATING-SYSTEM"
    ARCHIVE = "ARCHIVE"
    SOURCE = "SOURCE"
    FILE = "FILE"


class Relation(StrEnum):
    """How two elements are related (SPDX 2.3, clause 11)."""

    DESCRIBES = "DESCRIBES"
    CONTAINS = "CONTAINS"
    GENERATED_FROM = "GENERATED_FROM"
    BUILD_TOOL_OF = "BUILD_TOOL_OF"


@dataclass(frozen=True, slots=True)
class Element:
    """An SPDX package. `sha256` (hex) is of its one file, None when no file of it is known; `file_name` is
    the title of the image's layer that it is.
    """

    id: str
    name: str
    version: str | None = None
    purl: str | None = None
    sha256: str | None = None
    file_name: str | None = None
    supplier: str = NOASSERTION
    source_info: str | None = None
    comment: str | None = None
    purpose: Purpose | None = None
    license: Declared = field(default_factory=Declared)

    def to_json(self) -> dict[str, Any]:
        """As SPDX writes it, without fields that are not set."""
        found: dict[str, Any] = {
            "SPDXID": self.id,
            "name": self.name,
            "downloadLocation": NOASSERTION,
            "filesAnalyzed": False,
            "supplier": self.supplier,
            "licenseDeclared": self.license.expression,
        }
        optional = {
            "versionInfo": self.version,
            "packageFileName": self.file_name,
            "sourceInfo": self.source_info,
            "comment": self.comment,
            "primaryPackagePurpose": self.purpose,
        }
        found |= {name: value for name, value in optional.items() if value is not None}
        if self.sha256 is not None:
            found["checksums"] = [{"algorithm": "SHA256", "checksumValue": self.sha256}]
        if self.purl is not None:
            found["externalRefs"] = [
                {
                    "referenceCategory": "PACKAGE-MANAGER",
                    "referenceType": "purl",
                    "referenceLocator": self.purl,
                }
            ]
        return found


def identifier(kind: str, *parts: str, digest: str = "") -> str:
    """An SPDXID that says what it names. Two different names, or one name with two digests, never share one,
    however they are spelled.
    """
    readable = re.sub("[^A-Za-z0-9.]+", "-", "-".join(parts))[:100].strip("-")
    unique = hashlib.sha256("\0".join((*parts, digest)).encode()).hexdigest()[:12]
    return f"SPDXRef-{kind}-{readable}-{unique}" if readable else f"SPDXRef-{kind}-{unique}"


class Document:
    """A document being put together; it describes one element."""

    def __init__(self, name: str, image: Element, created: int) -> None:
        self._name = name
        self._image = image
        self._created = created
        self._elements: dict[str, Element] = {}
        self._relations: set[tuple[str, str, str]] = set()
        self.add(image)
        self._relations.add((DOCUMENT, Relation.DESCRIBES, image.id))

    @property
    def count(self) -> int:
        """The number of elements."""
        return len(self._elements)

    def add(self, element: Element) -> Element:
        """Take `element` in, once; what an element of the same id said first stays."""
        return self._elements.setdefault(element.id, element)

    def relate(self, one: Element, relation: Relation, others: Iterable[Element]) -> None:
        """State `relation` between `one` and each of `others`."""
        self._relations.update((one.id, relation, other.id) for other in others)

    def to_bytes(self) -> bytes:
        """The document as canonical JSON."""
        texts: dict[str, tuple[str, str]] = {}
        for element in self._elements.values():
            texts.update(element.license.texts)
        document: dict[str, Any] = {
            "spdxVersion": "SPDX-2.3",
            "dataLicense": "CC0-1.0",
            "SPDXID": DOCUMENT,
            "name": self._name,
            "creationInfo": {
                "created": datetime.fromtimestamp(self._created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "creators": [_CREATOR],
            },
            "packages": [self._elements[id].to_json() for id in sorted(self._elements)],
            "relationships": [
                {"spdxElementId": one, "relationshipType": relation, "relatedSpdxElement": other}
                for one, relation, other in sorted(self._relations)
            ],
            "hasExtractedLicensingInfos": _extracted(texts),
        }
        digest = hashlib.sha256(_canonical(document)).hexdigest()[:32]
        document["documentNamespace"] = f"{NAMESPACE}/{self._image.sha256}/{digest}"
        return _canonical(document)


def _extracted(texts: Mapping[str, tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"licenseId": id, "name": name, "extractedText": text} for id, (name, text) in sorted(texts.items())
    ]


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

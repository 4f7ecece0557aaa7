"""A built image: its layout, and what `build` writes beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.definition import canonical_json
from supply_chain.beside import build_record_path, sbom_path
from supply_chain.layout import Layout
from tests.supply_chain.images import noise, write_image
from tests.supply_chain.test_provenance import record


def built(folder: Path, content: str = "bash") -> Layout:
    """An image of one package, with SBOM and build record."""
    layout = write_image(folder, {"bash": [noise(content, 1000)]})
    write_record(layout)
    sbom_path(folder).write_bytes(canonical_json(sbom(layout.image.hex)))
    return layout


def write_record(layout: Layout, **definition: Any) -> None:
    """The build record, with `definition`'s fields in place of its own."""
    build_record_path(layout.folder).write_bytes(record(layout.image.digest, **definition).to_bytes())


def sbom(image: str) -> dict[str, Any]:
    """An SBOM of the image with this sha256, and of nothing in it."""
    described = {
        "SPDXID": "SPDXRef-image",
        "name": "image",
        "checksums": [{"algorithm": "SHA256", "checksumValue": image}],
    }
    relationship = {
        "spdxElementId": "SPDXRef-DOCUMENT",
        "relationshipType": "DESCRIBES",
        "relatedSpdxElement": "SPDXRef-image",
    }
    return {
        "spdxVersion": "SPDX-2.3",
        "SPDXID": "SPDXRef-DOCUMENT",
        "packages": [described],
        "relationships": [relationship],
    }

"""What `disk-image build` leaves: a layout, and SBOM and build record beside it."""

from __future__ import annotations

from pathlib import Path

from pipelines.definition import canonical_json
from supply_chain.beside import build_record_path, sbom_path
from supply_chain.layout import Layout, open_layout
from tests.supply_chain.verify.signed_image import (
    COMMIT,
    layout_files,
    make_image,
    provenance_of,
    sbom_of,
    write,
)


def built(folder: Path, name: str = "debian", commit: str = COMMIT) -> Layout:
    """An unsigned image, small and whole."""
    image = make_image(name)
    write(folder, layout_files(image, []))
    sbom_path(folder).write_bytes(canonical_json(sbom_of(image)))
    provenance = provenance_of(image)
    del provenance["runDetails"]["builder"]["id"]
    record = canonical_json({"schemaVersion": 1, "image": image.digest, **provenance})
    build_record_path(folder).write_bytes(record.replace(COMMIT.encode(), commit.encode()))
    return open_layout(folder)

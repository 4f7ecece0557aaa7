"""Small images in the real formats: a layout with packs, made from names and contents."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pipelines.definition import canonical_json
from stages.image import layout as writer
from stages.shared import fsverity, packs
from supply_chain.delta import OBJECTS
from supply_chain.image import ARTIFACT, CONFIG, FSVERITY, METADATA, TITLE
from supply_chain.layout import Layout, open_layout
from supply_chain.oci import EMPTY, EMPTY_CONTENT, MANIFEST, describe, digest_of

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


def noise(name: str, size: int) -> bytes:
    """Bytes that don't compress, the same for the same name."""
    return random.Random(name).randbytes(size)


def write_image(
    folder: Path,
    packages: Mapping[str, Sequence[bytes]],
    kernel: bytes = b"kernel",
    metadata: bytes | None = None,
) -> Layout:
    """One pack a package; the metadata, if none is given, names every object, so that it differs when any of
    them does.
    """
    made = writer.Layout(folder)
    objects = {
        name: [(fsverity.merkle(content).digest, content) for content in each]
        for name, each in packages.items()
    }
    if metadata is None:
        names = {name: [digest for digest, _ in each] for name, each in objects.items()}
        metadata = json.dumps(names).encode()
    composefs = fsverity.merkle(metadata).digest
    layers = [
        made.add_bytes("application/vnd.powernode.disk_image.kernel.v1", kernel, {TITLE: "vmlinuz"}),
        made.add_bytes(
            "application/vnd.erofs", metadata, {TITLE: METADATA, FSVERITY: f"sha256:{composefs}"}
        ),
    ]
    for name, each in sorted(objects.items()):
        source, listed = b"", []
        for digest, content in each:
            listed.append(packs.Object(digest, len(source), len(content)))
            source += content
        layers.append(
            made.add(
                OBJECTS,
                partial(packs.write, source, listed),
                {TITLE: f"objects-{name}.pack"},
            )
        )
    config = made.add_bytes(
        CONFIG,
        canonical_json(
            {
                "arch": "amd64",
                "kernel_version": "6.12.0",
                "cmdline": f"quiet composefs={composefs}",
                "fsverity_algorithm": "sha256",
                "fsverity_digest": composefs,
                "source_date_epoch": 1_700_000_000,
                "format_versions": {"config": 1, "build_manifest": 1, "composefs": 0, "pack": 1},
            }
        ),
    )
    made.finish(ARTIFACT, config, layers)
    return open_layout(folder)


def referrer(layout: Layout, content: bytes, artifact_type: str = BUNDLE) -> bytes:
    """A manifest that hangs `content` on the layout's image, in the form that signatures have."""
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": artifact_type,
            "config": describe(EMPTY_CONTENT, EMPTY).to_json(),
            "layers": [describe(content, artifact_type).to_json()],
            "subject": describe(layout.manifest_bytes, MANIFEST).to_json(),
            "annotations": {"dev.sigstore.bundle.content": "dsse-envelope"},
        }
    )


def hang(layout: Layout, content: bytes, artifact_type: str = BUNDLE) -> Layout:
    """The layout with such a referrer in it, as signing leaves it."""
    manifest = referrer(layout, content, artifact_type)
    for blob in (EMPTY_CONTENT, content, manifest):
        (layout.folder / "blobs" / "sha256" / digest_of(blob).removeprefix("sha256:")).write_bytes(blob)
    entry = describe(manifest, MANIFEST, artifact_type=artifact_type)
    index = layout.index.model_copy(update={"manifests": (*layout.index.manifests, entry)})
    (layout.folder / "index.json").write_bytes(index.to_bytes())
    return open_layout(layout.folder)

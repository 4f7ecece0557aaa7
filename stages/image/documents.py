"""The image's own documents: its configuration and its build manifest. Facts of the content only: who built
it, from which commit, lock or base image, and when, stands in the signed provenance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.image.layout import TITLE, Descriptor
from stages.shared import fsverity, packs

CONFIG_VERSION = 1
BUILD_MANIFEST_VERSION = 1
# stages/composefs writes this format and no other.
COMPOSEFS_VERSION = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What the image is: `cmdline` is the recipe's words, `composefs` the metadata image's fs-verity digest
    in hex.
    """

    arch: str
    kernel_version: str
    cmdline: tuple[str, ...]
    variants: tuple[str, ...]
    composefs: str
    source_date_epoch: int


def config(facts: Facts) -> Mapping[str, Any]:
    """The artifact's configuration."""
    return {
        "arch": facts.arch,
        "kernel_version": facts.kernel_version,
        "cmdline": " ".join((*facts.cmdline, f"composefs={facts.composefs}")),
        "fsverity_algorithm": fsverity.ALGORITHM,
        "fsverity_digest": facts.composefs,
        "source_date_epoch": facts.source_date_epoch,
        "format_versions": {
            "config": CONFIG_VERSION,
            "build_manifest": BUILD_MANIFEST_VERSION,
            "composefs": COMPOSEFS_VERSION,
            "pack": packs.VERSION,
        },
    }


def build_manifest(facts: Facts, layers: Sequence[Descriptor]) -> Mapping[str, Any]:
    """`build-manifest.json`; `layers` are all layers but this one. What is null is in the provenance."""
    return {
        "schema_version": BUILD_MANIFEST_VERSION,
        "arch": facts.arch,
        "kernel_version": facts.kernel_version,
        "variants": list(facts.variants),
        "artifacts": {
            layer.annotations[TITLE]: {"sha256": layer.sha256, "size_bytes": layer.size} for layer in layers
        },
        "fsverity_root_hash": facts.composefs,
        "base_image_digest": None,
        "apt_snapshot": None,
        "git_sha": None,
        "oci_digest": None,
    }

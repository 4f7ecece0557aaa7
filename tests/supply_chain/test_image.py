"""An image's documents: each strict, and none that says something else than the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from supply_chain.errors import InvalidDocument
from supply_chain.image import (
    BUILD_MANIFEST,
    KERNEL,
    METADATA,
    build_manifest,
    image_config,
    image_manifest,
    layers_by_title,
)
from supply_chain.oci import Descriptor
from tests.supply_chain.verify.signed_image import make_image

Json = dict[str, Any]

IMAGE = make_image()
LAYERS = layers_by_title(image_manifest(IMAGE.manifest, "it"), "it")
CONFIG = IMAGE.blobs[json.loads(IMAGE.manifest)["config"]["digest"]]
BUILT = IMAGE.blobs[LAYERS[BUILD_MANIFEST].digest]


def changed(content: bytes, change: Callable[[Json], object]) -> bytes:
    loaded = json.loads(content)
    change(loaded)
    return json.dumps(loaded).encode()


def read(built: bytes, layers: Mapping[str, Descriptor] = LAYERS) -> None:
    build_manifest(built, layers, image_config(CONFIG, LAYERS, "it"), "it")


def test_the_honest_one() -> None:
    read(BUILT)


CONFIGS: dict[str, Callable[[Json], object]] = {
    "another root": lambda it: it.update(fsverity_digest="00" * 32),
    "boots another root": lambda it: it.update(cmdline=f"quiet composefs={'00' * 32}"),
    "boots two roots": lambda it: it.update(cmdline=f"{it['cmdline']} composefs={'00' * 32}"),
    "boots no root": lambda it: it.update(cmdline="quiet"),
    "another algorithm": lambda it: it.update(fsverity_algorithm="sha512"),
    "unknown field": lambda it: it.update(more=1),
    "later format": lambda it: it["format_versions"].update(pack=2),
    "unknown arch": lambda it: it.update(arch="riscv64"),
    "a line more": lambda it: it.update(cmdline="a\n" + it["cmdline"]),
}


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS)
def test_refuses_the_configuration(change: Callable[[Json], object]) -> None:
    with pytest.raises(InvalidDocument, match="it: "):
        image_config(changed(CONFIG, change), LAYERS, "it")


BUILD_MANIFESTS: dict[str, Callable[[Json], object]] = {
    "another digest": lambda it: it["artifacts"][KERNEL].update(sha256="00" * 32),
    "another size": lambda it: it["artifacts"][KERNEL].update(size_bytes=1),
    "an artifact less": lambda it: it["artifacts"].pop(KERNEL),
    "an artifact more": lambda it: it["artifacts"].update(extra=it["artifacts"][KERNEL]),
    "itself": lambda it: it["artifacts"].update({BUILD_MANIFEST: it["artifacts"][KERNEL]}),
    "two that changed places": lambda it: it["artifacts"].update(
        {KERNEL: it["artifacts"][METADATA], METADATA: it["artifacts"][KERNEL]}
    ),
    "another arch": lambda it: it.update(arch="arm64"),
    "another kernel": lambda it: it.update(kernel_version="6.1"),
    "another root": lambda it: it.update(fsverity_root_hash="00" * 32),
    "no variant": lambda it: it.update(variants=[]),
    "a commit": lambda it: it.update(git_sha="1f" * 20),
    "another schema": lambda it: it.update(schema_version=2),
    "unknown field": lambda it: it.update(more=1),
}


@pytest.mark.parametrize("change", BUILD_MANIFESTS.values(), ids=BUILD_MANIFESTS)
def test_refuses_the_build_manifest(change: Callable[[Json], object]) -> None:
    with pytest.raises(InvalidDocument, match="it: "):
        read(changed(BUILT, change))


def test_a_layer_that_the_build_manifest_lacks() -> None:
    with pytest.raises(InvalidDocument, match=r"artifact extra\.raw: expected .*, found none"):
        read(BUILT, {**LAYERS, "extra.raw": LAYERS[KERNEL]})

"""vmlinuz, release, initramfs, metadata, digest, objects, tree → layout, manifest: an OCI artifact in one
folder, and its manifest once more, for what only has to name it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from stages.image import documents, grouping
from stages.image.documents import Facts
from stages.image.grouping import Sourced
from stages.image.layout import TITLE, Descriptor, Layout, canonical_json
from stages.shared import fsverity, packs
from stages.shared.job import Failure, Job, main, progress

ARTIFACT = "application/vnd.powernode.disk_image.v1"
CONFIG = "application/vnd.powernode.disk_image.config.v1+json"
BUILD_MANIFEST = "application/vnd.powernode.disk_image.v1+manifest"
KERNEL = "application/vnd.powernode.disk_image.kernel.v1"
INITRAMFS = "application/vnd.powernode.disk_image.initramfs.v1+zstd"
METADATA = "application/vnd.erofs"
OBJECTS = "application/vnd.powernode.disk_image.objects.v1+zstd"
# As composefs-rs names it; `<algorithm>:<hex>`, its spelling of an fs-verity digest.
FSVERITY = "containers.composefs.fsverity"
VARIANTS = ("kernel-initrd-composefs-oci",)
_OBJECT = re.compile(r"([0-9a-f]{64}) (\d+) (\d+) (\S+)")


def program(job: Job) -> None:
    """Write the layout and the manifest."""
    for variant in job.params["variants"]:
        if variant not in VARIANTS:
            raise Failure(
                f"variant {variant!r} is not built yet", f"built are: {', '.join(VARIANTS)}", code="variant"
            )
    facts = Facts(
        arch=job.params["arch"],
        kernel_version=job.input("release").read_text().removesuffix("\n"),
        cmdline=tuple(job.params["cmdline"]),
        variants=tuple(job.params["variants"]),
        composefs=_composefs_digest(job),
        source_date_epoch=job.source_date_epoch,
    )
    groups = grouping.packs(_objects(job.input("objects")))
    layout = Layout(job.output("layout"))
    layers = [
        layout.add_file(KERNEL, job.input("vmlinuz"), {TITLE: "vmlinuz"}),
        layout.add_file(INITRAMFS, job.input("initramfs"), {TITLE: "initramfs.cpio.zst"}),
        layout.add_file(
            METADATA,
            job.input("metadata"),
            {TITLE: "root.cfs", FSVERITY: f"{fsverity.ALGORITHM}:{facts.composefs}"},
        ),
        *_packs(layout, job.input("tree"), groups),
    ]
    manifest = canonical_json(documents.build_manifest(facts, layers))
    layers.insert(0, layout.add_bytes(BUILD_MANIFEST, manifest, {TITLE: "build-manifest.json"}))
    if len(layers) > grouping.MOST_LAYERS:
        raise Failure(
            f"expected at most {grouping.MOST_LAYERS} layers, found {len(layers)}",
            "stages/image/grouping.py makes too many packs",
        )
    config = layout.add_bytes(CONFIG, canonical_json(documents.config(facts)))
    image = layout.finish(ARTIFACT, config, layers)
    job.output("manifest").write_bytes(layout.path(image).read_bytes())
    print(f"{len(layers)} layers, {sum(layer.size for layer in layers)} bytes; sha256:{image.sha256}")


def _composefs_digest(job: Job) -> str:
    stated = job.input("digest").read_text().removesuffix("\n")
    metadata = job.input("metadata")
    (measured,) = fsverity.digests(metadata, [(0, metadata.stat().st_size)])
    if measured != stated:
        raise Failure(
            f"metadata image: expected the fs-verity digest {stated}, found {measured}",
            "metadata and digest are of different builds; build again",
        )
    return measured


def _objects(path: Path) -> Iterator[Sourced]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        found = _OBJECT.fullmatch(line)
        if found is None:
            raise Failure(
                f"objects: line {number}: expected `digest offset size source`, found {line[:80]!r}",
                "the list is damaged; build again",
            )
        yield Sourced(packs.Object(found[1], int(found[2]), int(found[3])), found[4])


def _packs(layout: Layout, tree: Path, groups: Mapping[str, list[packs.Object]]) -> Iterator[Descriptor]:
    total = sum(each.size for group in groups.values() for each in group)
    done = 0
    with packs.mapped(tree) as source:
        for title, group in groups.items():
            yield layout.add(OBJECTS, partial(packs.write, source, group), {TITLE: title})
            done += sum(each.size for each in group)
            progress(done, total)


if __name__ == "__main__":
    main(program)

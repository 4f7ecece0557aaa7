"""The guest's disk, made from an image's layers (docs/design.md, «The guest»)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from stages.boot.ext4_verity import Disk
from stages.boot.layout import Image
from stages.shared import packs
from stages.shared.job import Failure

LABEL = "disk-image"
_CHUNK = 1 << 20


def write(image: Image, output: Path) -> None:
    """Write the disk: the metadata image and every object, each with fs-verity.

    Raises Failure when the metadata image's digest is not the config's, or a pack is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="disk-") as staging:
        disk = Disk(Path(staging))
        fill(disk, image)
        disk.write(output, LABEL)


def fill(disk: Disk, image: Image) -> None:
    """Add the image's files to a disk that is being made; raises as `write` does."""
    measured = disk.add(f"composefs/images/{image.digest}.cfs", _chunks(image.metadata))
    if measured != image.digest:
        raise Failure(
            f"the metadata image: expected fs-verity sha256 {image.digest}, found {measured}",
            "build the image again",
        )
    held: set[str] = set()
    for path in image.packs:
        with packs.open_pack(path) as pack:
            for digest in pack.entries:
                if digest not in held:  # two packs may hold the same object
                    disk.add(object_path(digest), pack.stream(digest))
                    held.add(digest)


def object_path(digest: str) -> str:
    """Where the disk has the object of that fs-verity digest (hex), as composefs names it."""
    return f"composefs/objects/{digest[:2]}/{digest[2:]}"


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk

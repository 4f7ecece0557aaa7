"""Which pack each object goes into.

A package's objects share a pack that depends on nothing but the package's name, so that an unchanged package
leaves its pack, and every registry's copy of it, as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stages.shared.packs import Object

# Never change these alone: every image's packs are cut by them.
BUCKETS = 48
LARGE = 64 << 20
# 64 layers at most, which all registries and clients take: the build manifest, kernel, initramfs and
# metadata, the buckets, the last pack, and what is left for large objects.
MOST_LAYERS = 64
MOST_LARGE = MOST_LAYERS - 4 - BUCKETS - 1
NOBODY = "-"


@dataclass(frozen=True, slots=True)
class Sourced:
    """An object and the source package it belongs to (`-`: none)."""

    content: Object
    source: str


def bucket(source: str) -> int:
    """A source package's bucket: the first 8 bytes of its name's sha256, big-endian, modulo BUCKETS."""
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big") % BUCKETS


def packs(objects: Iterable[Sourced]) -> Mapping[str, list[Object]]:
    """Pack title → its objects; only packs that have any, in the order of the image's layers.

    First the buckets by number, then large objects one by one, then what belongs to no package. Where an
    image has more than MOST_LARGE large objects, the largest have packs of their own and the rest stay with
    their packages.
    """
    listed = list(objects)
    large = sorted(
        (each.content for each in listed if each.content.size > LARGE),
        key=lambda each: (-each.size, each.digest),
    )
    alone = {each.digest for each in large[:MOST_LARGE]}
    buckets: dict[int, list[Object]] = {}
    rest: list[Object] = []
    for each in listed:
        if each.content.digest in alone:
            continue
        if each.source == NOBODY:
            rest.append(each.content)
        else:
            buckets.setdefault(bucket(each.source), []).append(each.content)
    found = {f"objects-{number:02d}.pack": buckets[number] for number in sorted(buckets)}
    found |= {
        f"objects-{each.digest}.pack": [each]
        for each in sorted(large[:MOST_LARGE], key=lambda each: each.digest)
    }
    if rest:
        found["objects-local.pack"] = rest
    return found

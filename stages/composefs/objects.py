"""The objects of an image: each content larger than the inline limit once, as a range of the root's tar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from stages.shared.dpkg_files import NOBODY


@dataclass(frozen=True, slots=True)
class Found:
    """One path's content: where it is in the tar, its size and fs-verity digest."""

    path: str
    offset: int
    size: int
    digest: str


def index(found: Iterable[Found], sources: Mapping[str, str]) -> Iterator[str]:
    """The lines `<digest> <offset> <size> <source package>`, sorted by digest.

    Content that several paths have is taken at its lowest offset and belongs to the smallest name among the
    source packages that have it; to none (`-`) only when no package has it.
    """
    objects: dict[str, tuple[int, int, str]] = {}
    for content in found:
        source = sources.get(content.path, NOBODY)
        known = objects.get(content.digest)
        if known is None:
            objects[content.digest] = (content.offset, content.size, source)
        else:
            packages = sorted({known[2], source} - {NOBODY})
            objects[content.digest] = (
                min(known[0], content.offset),
                content.size,
                packages[0] if packages else NOBODY,
            )
    for digest, (offset, size, source) in sorted(objects.items()):
        yield f"{digest} {offset} {size} {source}\n"

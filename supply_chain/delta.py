"""How many bytes a node with an older publication would fetch for a new one.

By pack: every layer whose digest is new. By object: the new packs' indexes, read by Range, and of their
objects those that no old pack has. An index read by Range has no digest of its own, so these are figures for
people; a node checks each object it fetches by fs-verity.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import anyio

from supply_chain.errors import InvalidDocument
from supply_chain.layout import Layout, open_layout
from supply_chain.oci import Descriptor, Manifest, parse_manifest
from supply_chain.reference import parse_reference
from supply_chain.registry import Repository, open_repository, read_file
from supply_chain.registry.parallel import side_by_side

OBJECTS = "application/vnd.powernode.disk_image.objects.v1+zstd"

# Indexes read at once.
_PARALLEL = 4

# A layer's bytes from an offset on, so many.
Ranges = Callable[[Descriptor, int, int], Coroutine[Any, Any, bytes]]


@dataclass(frozen=True, slots=True)
class Publication:
    """An image's manifest and a way to read ranges of its layers."""

    manifest: Manifest
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """Bytes a node would fetch. `other_bytes` (kernel, metadata image …) and `index_bytes` are in both sums
    they concern.
    """

    by_pack_bytes: int
    by_object_bytes: int
    other_bytes: int
    index_bytes: int
    changed_packs: int
    missing_objects: int

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return asdict(self)


class _Stored(Protocol):
    @property
    def length(self) -> int: ...


async def plan_fetch(new: Publication, old: Publication) -> FetchPlan:
    """What a node that has all of `old` would fetch for `new`.

    Raises InvalidDocument for a pack whose index is damaged, and RegistryErrors.
    """
    had = {layer.digest for layer in old.manifest.layers}
    changed = [
        layer
        for layer in {one.digest: one for one in new.manifest.layers}.values()
        if layer.digest not in had
    ]
    packs = [layer for layer in changed if layer.media_type == OBJECTS]
    other = sum(layer.size for layer in changed if layer.media_type != OBJECTS)
    known: set[str] = set()
    missing: dict[str, int] = {}
    indexes = 0

    async def know(pack: Descriptor) -> None:
        known.update((await _entries(old.ranges, pack))[0])

    async def miss(pack: Descriptor) -> None:
        nonlocal indexes
        entries, read = await _entries(new.ranges, pack)
        indexes += read
        missing.update((digest, entry.length) for digest, entry in entries.items() if digest not in known)

    if packs:
        await side_by_side(
            _PARALLEL, [one for one in old.manifest.layers if one.media_type == OBJECTS], know
        )
        await side_by_side(_PARALLEL, packs, miss)
    return FetchPlan(
        by_pack_bytes=other + sum(pack.size for pack in packs),
        by_object_bytes=other + indexes + sum(missing.values()),
        other_bytes=other,
        index_bytes=indexes,
        changed_packs=len(packs),
        missing_objects=len(missing),
    )


async def publication(repository: Repository, target: str) -> Publication:
    """A publication in a registry, by tag or digest."""
    document = await repository.manifests.get(target)
    return Publication(parse_manifest(document.content, f"manifest {target}"), repository.read_range)


@asynccontextmanager
async def open_publication(
    image: str, *, plain_http: bool = False, ca_file: Path | None = None
) -> AsyncIterator[Publication]:
    """The layout in the folder `image`, or the publication at the reference `image`. Raises LayoutError,
    InvalidReference, UsageError and RegistryErrors.
    """
    folder = Path(image)
    if await anyio.to_thread.run_sync(folder.is_dir):
        yield layout_publication(await anyio.to_thread.run_sync(open_layout, folder))
        return
    reference = parse_reference(image)
    async with open_repository(
        reference.registry, reference.repository, plain_http=plain_http, ca_file=ca_file
    ) as repository:
        yield await publication(repository, reference.target)


def layout_publication(layout: Layout) -> Publication:
    """A publication that is still a layout on disk."""

    async def ranges(blob: Descriptor, offset: int, length: int) -> bytes:
        return await anyio.to_thread.run_sync(read_file(layout.path(blob)), offset, length)

    return Publication(layout.manifest, ranges)


async def _entries(ranges: Ranges, pack: Descriptor) -> tuple[Mapping[str, _Stored], int]:
    """A pack's index, and how many bytes were read for it."""
    # zstandard loads with it, which nothing else here needs
    from stages.shared.job import Failure
    from stages.shared.packs import Reader

    count = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal count
        count += length
        return anyio.from_thread.run(ranges, pack, offset, length)

    try:
        reader = await anyio.to_thread.run_sync(partial(Reader, read, pack.size, name=f"pack {pack.digest}"))
    except Failure as failure:
        raise InvalidDocument(failure.what, failure.hint) from None
    return reader.entries, count

"""What differs between two images: packages, files, layers.

Packages come from the SBOMs, files from the roots' metadata images, layers from the manifests. Nothing here
says that an image is to be trusted: an SBOM that hangs on one is taken as it stands, whoever signed it.
"""

from __future__ import annotations

import base64
import binascii
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from supply_chain.beside import sbom_path
from supply_chain.erofs import Entry, Kind, entries
from supply_chain.errors import InvalidDocument
from supply_chain.image import METADATA, image_manifest, layer, layers_by_title
from supply_chain.oci import Descriptor, parse_object
from supply_chain.referrer import BUNDLE_LIMIT
from supply_chain.sbom import Package, Sbom, parse_sbom, read_sbom
from supply_chain.statement import SBOM, parse_statement
from supply_chain.verify.source import Source

# A root of a million files; it is read into memory.
_MOST_METADATA = 512 << 20


@dataclass(frozen=True, slots=True)
class Side:
    """One image: `packages` by package URL, `files` by path, `layers` by title."""

    name: str
    digest: str
    packages: Mapping[str, Package]
    files: Mapping[str, Entry]
    layers: Mapping[str, Descriptor]

    @property
    def size(self) -> int:
        """Of all layers, in bytes."""
        return sum(each.size for each in self.layers.values())


@dataclass(frozen=True, slots=True)
class PackageChange:
    """A package by name, with its versions: one on each side, or none on one. Where a name has several on
    one side, each is a change of its own. The same version twice: its file is another one.
    """

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class FileChange:
    """A path that is on one side only, or `what` of it differs: kind, mode, owner, content, xattrs."""

    path: str
    before: Entry | None
    after: Entry | None
    what: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerChange:
    """A layer by title, with its size on each side in bytes."""

    title: str
    before: int | None
    after: int | None


@dataclass(frozen=True, slots=True)
class Difference:
    """All that differs, sorted by name. `times` counts the paths of which only the time differs."""

    before: Side
    after: Side
    packages: tuple[PackageChange, ...]
    files: tuple[FileChange, ...]
    times: int
    layers: tuple[LayerChange, ...]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "before": _side(self.before),
            "after": _side(self.after),
            "packages": [
                {"name": each.name, "before": each.before, "after": each.after} for each in self.packages
            ],
            "files": [
                {
                    "path": each.path,
                    "what": list(each.what),
                    "before": _file(each.before),
                    "after": _file(each.after),
                }
                for each in self.files
            ],
            "times": self.times,
            "layers": [
                {"title": each.title, "before": each.before, "after": each.after} for each in self.layers
            ],
        }


async def read_side(source: Source) -> Side:
    """Read an image as far as it is compared.

    Raises InvalidDocument and LayoutError for what can't be read, an image without an SBOM included, and
    RegistryErrors.
    """
    document = await source.image()
    digest = document.descriptor.digest
    what = f"{source.name}: manifest"
    layers = layers_by_title(image_manifest(document.content, what), what)
    metadata = await source.read(layer(layers, METADATA, what), _MOST_METADATA)
    return Side(
        source.name,
        digest,
        (await _sbom(source, digest)).packages,
        await anyio.to_thread.run_sync(entries, metadata),
        layers,
    )


def compare(before: Side, after: Side) -> Difference:
    """What differs between the two."""
    files, times = _files(before.files, after.files)
    return Difference(before, after, _packages(before, after), files, times, _layers(before, after))


async def _sbom(source: Source, digest: str) -> Sbom:
    """The SBOM beside a layout, else the one that hangs on the image."""
    if source.on_disk and sbom_path(Path(source.name)).exists():
        content = await anyio.to_thread.run_sync(read_sbom, Path(source.name))
        return parse_sbom(parse_object(content, "SBOM"), "SBOM")
    found: list[Sbom] = []
    refused: list[str] = []
    for hanging in await source.referrers(digest):
        if hanging.bundle is None:
            continue
        try:
            sbom = _attached(await source.read(hanging.bundle, BUNDLE_LIMIT), hanging.digest)
        except InvalidDocument as error:
            refused.append(error.what)
            continue
        if sbom is not None and sbom.image == digest and sbom not in found:
            found.append(sbom)
    if len(found) == 1:
        return found[0]
    why = f" ({'; '.join(refused)})" if refused else ""
    raise InvalidDocument(
        f"{source.name}: expected one SBOM beside it or attached to it, found {len(found)}{why}",
        "build it with --output, or sign it and push it again" if not found else "verify the image first",
    )


def _attached(bundle: bytes, what: str) -> Sbom | None:
    """The SBOM in a Sigstore bundle; None when it holds something else. No signature is looked at."""
    envelope = parse_object(bundle, what).get("dsseEnvelope")
    payload = envelope.get("payload") if isinstance(envelope, dict) else None
    if not isinstance(payload, str):
        return None
    try:
        content = base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise InvalidDocument(f"{what}: payload: {error}", "don't trust it; sign the image again") from None
    statement = parse_statement(content, what)
    return parse_sbom(statement.predicate, what) if statement.predicate_type == SBOM else None


def _packages(before: Side, after: Side) -> tuple[PackageChange, ...]:
    sides: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for index, (side, other) in enumerate(((before, after), (after, before))):
        for purl, package in side.packages.items():
            if other.packages.get(purl) != package:
                sides[package.name][index].append(package.version)
    found: list[PackageChange] = []
    for name, (old, new) in sorted(sides.items()):
        if len(old) == len(new) == 1:
            found.append(PackageChange(name, old[0], new[0]))
        else:
            found += [PackageChange(name, version, None) for version in old]
            found += [PackageChange(name, None, version) for version in new]
    return tuple(found)


def _files(before: Mapping[str, Entry], after: Mapping[str, Entry]) -> tuple[tuple[FileChange, ...], int]:
    found: list[FileChange] = []
    times = 0
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old is None or new is None:
            found.append(FileChange(path, old, new))
        elif what := _what(old, new):
            found.append(FileChange(path, old, new, what))
        elif old.mtime != new.mtime:
            times += 1
    return tuple(found), times


def _what(old: Entry, new: Entry) -> tuple[str, ...]:
    if old.kind != new.kind:
        return ("kind",)
    differing = {
        "mode": old.mode != new.mode,
        "owner": (old.uid, old.gid) != (new.uid, new.gid),
        "content": (old.size, old.content) != (new.size, new.content),
        "xattrs": old.xattrs != new.xattrs,
    }
    return tuple(name for name, differs in differing.items() if differs)


def _layers(before: Side, after: Side) -> tuple[LayerChange, ...]:
    found = []
    for title in sorted(before.layers.keys() | after.layers.keys()):
        old, new = before.layers.get(title), after.layers.get(title)
        if old is None or new is None or old.digest != new.digest:
            found.append(LayerChange(title, old.size if old else None, new.size if new else None))
    return tuple(found)


def _side(side: Side) -> dict[str, object]:
    return {"image": side.name, "digest": side.digest, "size": side.size}


def _file(entry: Entry | None) -> dict[str, object] | None:
    if entry is None:
        return None
    found: dict[str, object] = {
        "kind": entry.kind.value,
        "mode": f"{entry.mode:04o}",
        "uid": entry.uid,
        "gid": entry.gid,
    }
    if entry.kind is Kind.FILE:
        found |= {"size": entry.size, "fsverity": entry.content}
    elif entry.kind is Kind.LINK:
        found["target"] = entry.content
    if entry.xattrs:
        found["xattrs"] = {name: value.hex() for name, value in entry.xattrs}
    return found

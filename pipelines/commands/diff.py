"""disk-image diff: the packages, files and sizes that differ between two images."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterable

import anyio

from supply_chain.diff import Difference, FileChange, LayerChange, PackageChange, Side, compare, read_side
from supply_chain.erofs import Entry, Kind
from supply_chain.verify.source import open_source


def run(args: Namespace) -> int:
    """Compare; that they differ is no failure."""
    found = anyio.run(_compared, args)
    if args.json:
        print(json.dumps(found.to_json()))
    else:
        print("\n".join(_lines(found)))
    return 0


async def _compared(args: Namespace) -> Difference:
    return compare(await _side(args, args.before), await _side(args, args.after))


async def _side(args: Namespace, image: str) -> Side:
    async with open_source(image, plain_http=args.plain_http, ca_file=args.ca_file) as source:
        return await read_side(source)


def _lines(found: Difference) -> Iterable[str]:
    for label, side in (("before", found.before), ("after ", found.after)):
        yield f"{label}  {side.digest}  {side.size} bytes  {side.name}"
    yield f"packages: {_count(found.packages)}"
    for package in found.packages:
        yield f"  {_sign(package.before, package.after)} {_shown(package.name)} {_package(package)}"
    times = f"; of {found.times} more only the time" if found.times else ""
    yield f"files: {_count(found.files)}{times}"
    for file in found.files:
        yield f"  {_sign(file.before, file.after)} {_shown(file.path)} {_file(file)}"
    yield f"layers: {_count(found.layers)}"
    for layer in found.layers:
        sizes = _both(_bytes(layer.before), _bytes(layer.after))
        yield f"  {_sign(layer.before, layer.after)} {layer.title} {sizes}"


def _count(changes: Iterable[PackageChange | FileChange | LayerChange]) -> str:
    signs = [_sign(each.before, each.after) for each in changes]
    return f"{signs.count('~')} changed, {signs.count('+')} added, {signs.count('-')} removed"


def _sign(before: object, after: object) -> str:
    return "+" if before is None else "-" if after is None else "~"


def _both(before: str | None, after: str | None) -> str:
    if before is None or after is None:
        return before or after or ""
    return before if before == after else f"{before} → {after}"


def _package(change: PackageChange) -> str:
    said = _shown(_both(change.before, change.after))
    return f"{said} (another file)" if change.before == change.after else said


def _bytes(size: int | None) -> str | None:
    return None if size is None else f"{size} bytes"


def _file(change: FileChange) -> str:
    said = _both(_entry(change.before), _entry(change.after))
    return f"{said} ({', '.join(change.what)})" if change.what else said


def _entry(entry: Entry | None) -> str | None:
    if entry is None:
        return None
    match entry.kind:
        case Kind.FILE:
            return f"{entry.size} bytes"
        case Kind.LINK:
            return f"-> {_shown(entry.content)}"
    return entry.kind.value


def _shown(path: str) -> str:
    """A name of the image can hold what would steer a terminal."""
    return path if path.isprintable() else ascii(path)

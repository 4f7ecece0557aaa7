"""Kernel modules for the initramfs: the named ones and what they depend on, uncompressed, and the order to
load them.

modules.dep(5), modules.builtin: Linux Documentation/kbuild/kbuild.rst.
"""

from __future__ import annotations

import difflib
import gzip
import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from initramfs.kernel_modules import ORDER
from stages.initramfs.archive import Archive
from stages.shared import canonical_tar
from stages.shared.job import Failure


@dataclass(frozen=True, slots=True)
class Index:
    """What a kernel has: `files` maps a module's name to its path, `depends` to its dependencies' names;
    both by the kernel's spelling, with underscores.
    """

    files: dict[str, str]
    depends: dict[str, tuple[str, ...]]
    builtin: frozenset[str]


def add(archive: Archive, tree: Path, release: str, wanted: Sequence[str], folder: str) -> list[str]:
    """Put `wanted` and their dependencies into `folder`; returns the names in load order.

    Raises Failure for a name the kernel has neither as a module nor built in.
    """
    if not wanted:
        return []
    base = f"usr/lib/modules/{release}/"
    entries = list(canonical_tar.read(tree))
    places = {entry.path: (offset, entry.size) for entry, offset in entries if entry.path.startswith(base)}
    if len(entries) == 1:  # the root alone
        raise Failure(
            f"kernel.modules: {', '.join(wanted)}: this kernel has no loadable modules",
            "drop kernel.modules, or ask for CONFIG_MODULES=y in a kernel fragment",
        )
    with tree.open("rb") as stream:

        def content(path: str) -> bytes:
            if base + path not in places:
                raise Failure(
                    f"the kernel's modules: expected /{base}{path}, found none",
                    "build the kernel stage again",
                )
            offset, size = places[base + path]
            stream.seek(offset)
            return stream.read(size)

        index = parse(content("modules.dep").decode(), content("modules.builtin").decode())
        order = load_order(index, wanted)
        for name in order:
            archive.file(
                f"{folder}/{name}.ko", 0o644, decompress(index.files[name], content(index.files[name]))
            )
    if order:
        archive.file(f"{folder}/{ORDER}", 0o644, "".join(f"{name}.ko\n" for name in order).encode())
    return order


def parse(dependencies: str, builtin: str) -> Index:
    """Read modules.dep (`path: path …`) and modules.builtin (one path a line)."""
    files: dict[str, str] = {}
    depends: dict[str, tuple[str, ...]] = {}
    for line in dependencies.splitlines():
        path, colon, needed = line.partition(":")
        if not colon:
            raise Failure(
                f"modules.dep: expected `path: paths`, found {line!r}", "build the kernel stage again"
            )
        files[_name(path)] = path
        depends[_name(path)] = tuple(_name(other) for other in needed.split())
    return Index(files, depends, frozenset(_name(path) for path in builtin.split()))


def load_order(index: Index, wanted: Sequence[str]) -> list[str]:
    """Each module after all it depends on; built-in ones are left out."""
    order: dict[str, None] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise Failure(
                f"modules.dep: {' → '.join((*path, name))} is a cycle", "build the kernel stage again"
            )
        if name in order or name in index.builtin:
            return
        if name not in index.files:
            raise _unknown(index, name, path)
        for other in sorted(index.depends[name]):
            visit(other, (*path, name))
        order[name] = None

    for name in wanted:
        visit(name.replace("-", "_"), ())
    return list(order)


def decompress(path: str, content: bytes) -> bytes:
    """A module's bytes as the kernel takes them, whatever the distribution's compression."""
    try:
        if path.endswith(".xz"):
            return lzma.decompress(content)
        if path.endswith(".zst"):
            with zstandard.ZstdDecompressor().stream_reader(content) as reader:
                return reader.read()
        if path.endswith(".gz"):
            return gzip.decompress(content)
    except (lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile, EOFError) as error:
        raise Failure(f"{path}: broken compression: {error}", "build the kernel stage again") from None
    return content


def _unknown(index: Index, name: str, path: tuple[str, ...]) -> Failure:
    if path:
        return Failure(
            f"modules.dep: {path[-1]} needs {name}, which the kernel lacks", "build the kernel stage again"
        )
    near = difflib.get_close_matches(name, sorted({*index.files, *index.builtin}), 1)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else f"the kernel has {len(index.files)} modules; see its modules.dep"
    )
    return Failure(f"kernel.modules: the kernel has no module {name!r}, loadable or built in", hint)


def _name(path: str) -> str:
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")

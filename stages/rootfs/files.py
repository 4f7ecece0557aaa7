"""Files put into the root: the recipe's, the kernel's modules, and generated text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.rootfs.accounts import Accounts
from stages.shared.canonical_tar import Kind
from stages.shared.job import Failure
from stages.shared.tree import Node, Tree


def add_file(
    tree: Tree, accounts: Accounts, file: Mapping[str, Any], source: Path | None, taken: dict[str, str]
) -> None:
    """Put one recipe file (`path`, `mode`, `user`, `group`, and `symlink` or `source`'s content) where its
    path leads.

    It may take the place of a package's file or link, not of a directory, and not of another file of the
    recipe (`taken`: real path → path as the recipe has it).
    """
    path = file["path"]
    place = tree.place(path.lstrip("/"))
    if place in taken:
        raise Failure(
            f"files: {path} and {taken[place]} are the same file /{place}",
            "keep one of the two in the recipe",
        )
    taken[place] = path
    there = tree.nodes.get(tree.resolve(place))
    if there is not None and there.kind is Kind.DIRECTORY:
        raise Failure(f"files: {path} is a directory in the packages", "choose a path below it")
    uid, gid = accounts.uid(file["user"], path), accounts.gid(file["group"], path)
    if source is None:
        node = Node(Kind.SYMLINK, 0o777, uid, gid, tree.clamp, target=file["symlink"])
    else:
        node = Node(Kind.FILE, int(file["mode"], 8), uid, gid, tree.clamp, content=source.read_bytes())
    tree.put(place, node)


def add_modules(tree: Tree, modules: Tree) -> None:
    """Merge the kernel's modules in; a path that a package has with other content is refused."""
    for path, node in modules.nodes.items():
        place = tree.place(path)
        if node.kind is Kind.DIRECTORY and (there := tree.nodes.get(tree.resolve(place))) is not None:
            if there.kind is not Kind.DIRECTORY:
                raise Failure(
                    f"/{place}: a directory of the kernel's modules, a {there.kind} in the packages",
                    _ONE_KERNEL,
                )
            continue
        found = tree.nodes.get(place)
        if found is not None and (found.kind, found.target, found.content) != (
            node.kind,
            node.target,
            node.content,
        ):
            raise Failure(
                f"/{place}: in the packages and in the kernel's modules, with different content", _ONE_KERNEL
            )
        tree.put(place, node)


_ONE_KERNEL = "leave the kernel's package out of the recipe's packages: `kernel` brings its modules"

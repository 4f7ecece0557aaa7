"""Unpacked packages to one tree."""

from __future__ import annotations

from collections.abc import Iterable

from stages.shared.canonical_tar import Kind
from stages.shared.job import Failure
from stages.shared.tree import Node, Tree
from stages.tools.base import ALIASES, DIRECTORIES, FILES, LINKS
from stages.tools.unpack import Unpacked


def merge(packages: Iterable[Unpacked], clamp: int) -> Tree:
    """Put the packages and the declared base together; a path with two contents is refused, naming both
    packages.
    """
    tree = Tree(clamp)
    for alias, target in ALIASES.items():
        tree.put(target, Node(Kind.DIRECTORY, 0o755))
        tree.put(alias, Node(Kind.SYMLINK, 0o777, target=target))
    owners: dict[str, str] = {}
    for unpacked in packages:
        for name, node in unpacked.nodes.items():
            _add(tree, owners, unpacked.package, name, node)
        for name, target in unpacked.links.items():
            node = (
                unpacked.nodes.get(target)
                or tree.nodes.get(tree.place(target))
                or _missing(unpacked, name, target)
            )
            _add(tree, owners, unpacked.package, name, node)
    _declare(tree)
    return tree


def _add(tree: Tree, owners: dict[str, str], package: str, name: str, node: Node) -> None:
    path = tree.place(name)
    found = tree.nodes.get(path)
    if found is None:
        tree.put(path, node)
        owners[path] = package
        return
    if node.kind is Kind.DIRECTORY and _leads_to_directory(tree, path):
        return
    if (found.kind, found.target, found.content) == (node.kind, node.target, node.content):
        return
    raise Failure(
        f"/{path}: {owners.get(path, 'the base')} and {package} have different content for it",
        "keep only one of the two packages in the tools set",
        details=[package],
    )


def _leads_to_directory(tree: Tree, path: str) -> bool:
    there = tree.nodes.get(tree.resolve(path))
    return there is not None and there.kind is Kind.DIRECTORY


def _missing(unpacked: Unpacked, name: str, target: str) -> Node:
    raise Failure(
        f"{unpacked.package}: /{name} is a hard link to /{target}, which it does not have",
        "the package is broken",
    )


def _declare(tree: Tree) -> None:
    for path, mode in DIRECTORIES.items():
        tree.put(path, Node(Kind.DIRECTORY, mode))
    for path, text in FILES.items():
        tree.put(path, Node(Kind.FILE, 0o644, content=text.encode()))
    for link, candidates in LINKS.items():
        folder = link.rpartition("/")[0]
        chosen = next((name for name in candidates if f"{folder}/{name}" in tree.nodes), None)
        if chosen is not None and link not in tree.nodes:
            tree.put(link, Node(Kind.SYMLINK, 0o777, target=chosen))

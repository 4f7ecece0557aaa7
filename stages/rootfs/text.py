"""Text in a tree: files read and written whole, and names that are nearly right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from stages.shared.canonical_tar import Kind
from stages.shared.tree import Node, Tree


def read_text(tree: Tree, path: str) -> str | None:
    """A file's text, links followed inside the tree; None when there is none."""
    node = tree.nodes.get(tree.resolve(path))
    if node is None or node.kind is not Kind.FILE:
        return None
    return bytes(node.content).decode("utf-8", "surrogateescape")


def write_text(tree: Tree, path: str, text: str, mode: int = 0o644, gid: int = 0) -> None:
    """Give a file new text; a file that is there keeps its owner and mode."""
    place = tree.resolve(path)
    found = tree.nodes.get(place)
    content = text.encode("utf-8", "surrogateescape")
    if found is not None and found.kind is Kind.FILE:
        node = Node(
            Kind.FILE,
            found.mode,
            found.uid,
            found.gid,
            tree.clamp,
            capability=found.capability,
            content=content,
        )
    else:
        node = Node(Kind.FILE, mode, 0, gid, tree.clamp, content=content)
    tree.put(place, node)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; the nearest name is …`, or nothing when no name is near."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.75)
    return f"; the nearest name is {close[0]}" if close else ""

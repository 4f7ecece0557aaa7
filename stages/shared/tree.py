"""A whole tree in memory: what a stage that puts several sources together builds, changes and writes as
one tar.

Content stays where it is (bytes, or a view of a mapped file), so a tree costs its names, not its size.
Paths are those of canonical_tar.Entry: relative, `.` is the root. Nothing here touches the host's file
system, so no link in a tree can lead out of it.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stages.shared import canonical_tar
from stages.shared.canonical_tar import Entry, Kind
from stages.shared.job import Failure

# As path_resolution(7): the kernel follows at most 40 links in one path.
_MOST_LINKS = 40


@dataclass(slots=True, eq=False)
class Node:
    """An inode. Two paths with the same Node are hard links of each other; `kind` is never HARDLINK."""

    kind: Kind
    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    target: str = ""
    capability: bytes = b""
    content: bytes | memoryview = b""


class Tree:
    """Paths and their nodes. Every parent exists: `put` makes missing ones as 0755 of 0:0, with time
    `clamp`.
    """

    def __init__(self, clamp: int) -> None:
        self.clamp = clamp
        self.nodes: dict[str, Node] = {".": self._directory()}

    @classmethod
    def load(cls, path: Path, clamp: int) -> Tree:
        """The tree in a canonical tar."""
        tree = cls(clamp)
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        for entry, offset in canonical_tar.read(path):
            if entry.kind is Kind.HARDLINK:
                tree.nodes[entry.path] = tree.nodes[entry.target]
                continue
            content = data[offset : offset + entry.size] if entry.size else b""
            tree.nodes[entry.path] = Node(
                entry.kind,
                entry.mode,
                entry.uid,
                entry.gid,
                entry.mtime,
                entry.target,
                entry.capability,
                content,
            )
        return tree

    def put(self, path: str, node: Node) -> None:
        """Put `node` at `path`, in place of what is there. `path` must be a real one: see `place`."""
        missing = []
        parent = path.rpartition("/")[0]
        while parent and parent not in self.nodes:
            missing.append(parent)
            parent = parent.rpartition("/")[0]
        for each in reversed(missing):
            self.nodes[each] = self._directory()
        self.nodes[path] = node

    def place(self, path: str) -> str:
        """Where `path` really is: links among its parents are followed inside the tree, its own name is
        not.
        """
        parent, _, name = path.rpartition("/")
        if not parent:
            return name
        real = self.resolve(parent)
        return name if real == "." else f"{real}/{name}"

    def resolve(self, path: str) -> str:
        """As realpath(3) with the tree as the root; parts that don't exist stay as they are written.

        Raises Failure for a loop of links, and for a path below something that is not a directory.
        """
        pending = [*reversed(PurePosixPath(path).parts)]
        real: list[str] = []
        links = 0
        while pending:
            part = pending.pop()
            if part == "..":
                del real[-1:]
                continue
            if part in ("/", "."):
                continue
            here = "/".join((*real, part))
            node = self.nodes.get(here)
            if node is not None and node.kind is Kind.SYMLINK:
                links += 1
                if links > _MOST_LINKS:
                    raise Failure(
                        f"/{path}: more than {_MOST_LINKS} symbolic links",
                        "remove the loop of links from the tree",
                    )
                if node.target.startswith("/"):
                    real = []
                pending.extend(reversed(PurePosixPath(node.target).parts))
                continue
            if pending and node is not None and node.kind is not Kind.DIRECTORY:
                raise Failure(
                    f"/{path}: /{here} is a {node.kind}, not a directory", "choose a path below a directory"
                )
            real.append(part)
        return "/".join(real) or "."

    def write(self, output: Path) -> None:
        """Write the canonical tar, times clamped."""
        first: dict[int, str] = {}
        with output.open("wb", 1 << 20) as stream, canonical_tar.Writer(stream, self.clamp) as writer:
            for path in sorted(self.nodes, key=canonical_tar.sort_key):
                node = self.nodes[path]
                kind, size, target, capability = node.kind, len(node.content), node.target, node.capability
                content: bytes | memoryview = node.content
                if kind is Kind.FILE and (earlier := first.setdefault(id(node), path)) != path:
                    kind, size, target, capability, content = Kind.HARDLINK, 0, earlier, b"", b""
                writer.add(
                    Entry(path, kind, node.mode, node.uid, node.gid, node.mtime, size, target, capability),
                    content,
                )

    def _directory(self) -> Node:
        return Node(Kind.DIRECTORY, 0o755, mtime=self.clamp)

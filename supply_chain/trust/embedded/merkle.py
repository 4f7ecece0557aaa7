"""The Merkle tree of RFC 6962 section 2.1: root, inclusion proofs, consistency proofs.

Leaves are only appended. The hashes of all complete subtrees are kept, two hashes a leaf, so that root and
proofs of any size up to the present one cost O(log² n).
"""

from __future__ import annotations

import hashlib

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    """MTH({d(0)}) of RFC 6962: SHA-256(0x00 || entry)."""
    return hashlib.sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\1" + left + right).digest()


class MerkleTree:
    """Leaf hashes in order. Sizes are numbers of leaves; a `size` of None is the present one.

    Every method raises IndexError for leaves or sizes that the tree does not have.
    """

    def __init__(self) -> None:
        # _levels[k][i] is the hash over the leaves from i * 2**k up to (i + 1) * 2**k
        self._levels: list[list[bytes]] = [[]]

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return len(self._levels[0])

    def append(self, leaf: bytes) -> int:
        """Add a leaf's hash; its index."""
        index = self.size
        for level in range(index.bit_length() + 1):
            if level == len(self._levels):
                self._levels.append([])
            nodes = self._levels[level]
            nodes.append(leaf)
            if len(nodes) % 2:
                break
            leaf = node_hash(nodes[-2], nodes[-1])
        return index

    def root(self, size: int | None = None) -> bytes:
        """The tree's hash when it had `size` leaves."""
        size = self._known(size)
        return self._subtree(0, size) if size else EMPTY_ROOT

    def nodes(self, level: int, start: int, end: int) -> list[bytes]:
        """Hashes of the complete subtrees of 2**level leaves, numbered from `start` up to `end`."""
        nodes = self._levels[level] if level < len(self._levels) else []
        if not 0 <= start < end <= len(nodes):
            raise IndexError(f"no nodes from {start} up to {end} at level {level}")
        return nodes[start:end]

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """PATH(index, D[size]) of RFC 6962 section 2.1.1: from the leaf's sibling to the root's child."""
        size = self._known(size)
        if not 0 <= index < size:
            raise IndexError(f"no leaf {index} in a tree of {size}")
        proof, start, end = [], 0, size
        while end - start > 1:
            split = start + _largest_power_below(end - start)
            if index < split:
                proof.append(self._subtree(split, end))
                end = split
            else:
                proof.append(self._subtree(start, split))
                start = split
        return proof[::-1]

    def consistency_proof(self, old: int, size: int | None = None) -> list[bytes]:
        """PROOF(old, D[size]) of RFC 6962 section 2.1.2: that the first `old` leaves are still the same."""
        size = self._known(size)
        if not 0 < old <= size:
            raise IndexError(f"no proof from {old} to {size} leaves")
        proof, start, end, whole = [], 0, size, True
        while old != end:
            split = start + _largest_power_below(end - start)
            if old <= split:
                proof.append(self._subtree(split, end))
                end = split
            else:
                proof.append(self._subtree(start, split))
                start, whole = split, False
        if not whole:
            proof.append(self._subtree(start, end))
        return proof[::-1]

    def _known(self, size: int | None) -> int:
        if size is None:
            return self.size
        if not 0 <= size <= self.size:
            raise IndexError(f"the tree has {self.size} leaves, not {size}")
        return size

    def _subtree(self, start: int, end: int) -> bytes:
        """The hash over leaves `start` up to `end`, which are a node of some tree: when their number is a
        power of two it divides `start`.
        """
        count = end - start
        if count & (count - 1) == 0:
            level = count.bit_length() - 1
            return self._levels[level][start >> level]
        split = start + _largest_power_below(count)
        return node_hash(self._subtree(start, split), self._subtree(split, end))


def _largest_power_below(count: int) -> int:
    """The largest power of two smaller than `count`, which is at least 2."""
    return 1 << ((count - 1).bit_length() - 1)

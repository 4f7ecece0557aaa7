"""The Merkle tree against its definition in RFC 6962 section 2.1, and against known answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supply_chain.trust.embedded.merkle import MerkleTree, leaf_hash, node_hash

# The eight leaves that Certificate Transparency implementations test with, and the roots after each of them
# (certificate-transparency, merkletree/merkle_tree_test.cc).
LEAVES = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def grown(entries: Sequence[bytes]) -> MerkleTree:
    tree = MerkleTree()
    for number, entry in enumerate(entries):
        assert tree.append(leaf_hash(entry)) == number
    return tree


def split(count: int) -> int:
    """The largest power of two smaller than `count`."""
    power = 1
    while power * 2 < count:
        power *= 2
    return power


def mth(entries: Sequence[bytes]) -> bytes:
    """MTH as section 2.1 writes it."""
    if not entries:
        return hashlib.sha256(b"").digest()
    if len(entries) == 1:
        return leaf_hash(entries[0])
    k = split(len(entries))
    return node_hash(mth(entries[:k]), mth(entries[k:]))


def path(m: int, entries: Sequence[bytes]) -> list[bytes]:
    """PATH as section 2.1.1 writes it."""
    if len(entries) == 1:
        return []
    k = split(len(entries))
    if m < k:
        return [*path(m, entries[:k]), mth(entries[k:])]
    return [*path(m - k, entries[k:]), mth(entries[:k])]


def subproof(m: int, entries: Sequence[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF as section 2.1.2 writes it."""
    if m == len(entries):
        return [] if whole else [mth(entries)]
    k = split(len(entries))
    if m <= k:
        return [*subproof(m, entries[:k], whole), mth(entries[k:])]
    return [*subproof(m - k, entries[k:], False), mth(entries[:k])]


def test_known_roots() -> None:
    tree = grown([bytes.fromhex(leaf) for leaf in LEAVES])
    assert tree.root(0).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert [tree.root(size).hex() for size in range(1, 9)] == ROOTS


def test_a_known_inclusion_proof() -> None:
    tree = grown([bytes.fromhex(leaf) for leaf in LEAVES])
    assert [one.hex() for one in tree.inclusion_proof(5, 8)] == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


@given(st.data(), st.lists(st.binary(max_size=4), min_size=1, max_size=70))
def test_roots_and_proofs_are_those_of_the_definition(data: st.DataObject, entries: list[bytes]) -> None:
    tree = grown(entries)
    size = data.draw(st.integers(1, len(entries)))
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size))
    assert tree.root(size) == mth(entries[:size])
    assert tree.inclusion_proof(index, size) == path(index, entries[:size])
    assert tree.consistency_proof(old, size) == subproof(old, entries[:size], True)


@given(st.integers(1, 70), st.integers(0, 5), st.data())
def test_nodes_are_roots_of_whole_subtrees(size: int, level: int, data: st.DataObject) -> None:
    entries = [bytes([number]) for number in range(size)]
    tree, width = grown(entries), 1 << level
    count = size // width
    if count == 0:
        with pytest.raises(IndexError):
            tree.nodes(level, 0, 1)
        return
    start = data.draw(st.integers(0, count - 1))
    assert tree.nodes(level, start, count) == [
        mth(entries[number * width : (number + 1) * width]) for number in range(start, count)
    ]


@pytest.mark.parametrize("size", [0, 1, 5])
def test_what_the_tree_does_not_have_is_no_proof(size: int) -> None:
    tree = grown([b"x"] * size)
    for wrong in (-1, size, size + 1):
        with pytest.raises(IndexError):
            tree.inclusion_proof(wrong)
    for old, new in ((0, size), (size + 1, size), (1, size + 1)):
        with pytest.raises(IndexError):
            tree.consistency_proof(old, new)
    with pytest.raises(IndexError):
        tree.root(size + 1)
    with pytest.raises(IndexError):
        tree.nodes(0, 0, size + 1)

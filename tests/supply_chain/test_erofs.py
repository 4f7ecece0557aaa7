"""Reading metadata images: what mkcomposefs wrote, and what nobody should have written."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supply_chain.erofs import Kind, entries
from supply_chain.errors import InvalidDocument
from tests.stages.composefs_trees import CAPABILITY, Tree, dump_of
from tests.supply_chain import roots

IMAGE = roots.asset("before")


@pytest.mark.parametrize(("name", "tree"), [("before", roots.BEFORE), ("after", roots.AFTER)])
def test_everything_that_the_dump_says(name: str, tree: Tree) -> None:
    found = entries(roots.asset(name))
    assert found == roots.stated(dump_of(tree))
    assert list(found) == sorted(found)


def test_a_hard_link_is_the_same_file() -> None:
    found = entries(roots.asset("before"))
    assert found["/usr/bin/ping"] == found["/usr/bin/ping4"]
    assert found["/usr/bin/ping"].xattrs == (("security.capability", CAPABILITY),)
    assert found["/usr/bin/ping"].kind is Kind.FILE


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 4096, roots.asset("before")[:-4096], roots.asset("before")[:1100]]
)
def test_no_image_or_half_of_one(content: bytes) -> None:
    with pytest.raises(InvalidDocument, match=r"root\.cfs: not a composefs image"):
        entries(content)


# mkcomposefs writes the root's inode in its long form, and its 256 whiteouts fill a block.
_ROOT_NUMBER = struct.unpack_from("<H", IMAGE, 1024 + 14)[0]
_ROOT = _ROOT_NUMBER * 32
_ROOT_BLOCK = struct.unpack_from("<I", IMAGE, _ROOT + 16)[0] * 4096
_FOLDER = 2


def test_a_folder_inside_itself() -> None:
    image = bytearray(IMAGE)
    entries_end = struct.unpack_from("<H", image, _ROOT_BLOCK + 8)[0]
    kinds = [image[at + 10] for at in range(_ROOT_BLOCK, _ROOT_BLOCK + entries_end, 12)]
    # The first two are `.` and `..`.
    index = len(kinds) - 1 - kinds[::-1].index(_FOLDER)
    assert index > 1
    struct.pack_into("<Q", image, _ROOT_BLOCK + 12 * index, _ROOT_NUMBER)
    with pytest.raises(InvalidDocument, match="inside itself, or twice there"):
        entries(bytes(image))


def test_an_inode_larger_than_the_image() -> None:
    image = bytearray(IMAGE)
    struct.pack_into("<Q", image, _ROOT + 8, 1 << 31)
    with pytest.raises(InvalidDocument, match="an inode of 2147483648 bytes"):
        entries(bytes(image))


def test_folders_that_share_their_blocks_make_no_endless_work() -> None:
    """Forty folders, each of whose 256 blocks are the same: what is read is bounded by the image's size."""
    blocks = 256
    inodes, top, shared = len(IMAGE), len(IMAGE) + 4096, len(IMAGE) + 8192
    image = bytearray(IMAGE) + bytes(8192 + blocks * 4096)

    def inode(index: int, mode: int, size: int, at: int) -> None:
        struct.pack_into("<HHHHQI", image, inodes + 64 * index, 1, 0, mode, 0, size, at >> 12)

    def number(index: int) -> int:
        return inodes // 32 + 2 * index

    children = range(2, 42)
    inode(0, 0o40755, 4096, top)
    inode(1, 0o100644, 0, 0)
    names = 12 * len(children)
    for position, child in enumerate(children):
        inode(child, 0o40755, blocks * 4096, shared)
        struct.pack_into("<QHBB", image, top + 12 * position, number(child), names + position, _FOLDER, 0)
        image[top + names + position] = ord("A") + position
    for block in range(blocks):
        struct.pack_into("<QHBBc", image, shared + 4096 * block, number(1), 12, 1, 0, b"f")
    struct.pack_into("<H", image, 1024 + 14, number(0))
    with pytest.raises(InvalidDocument, match="its inodes overlap"):
        entries(bytes(image))


@given(
    st.lists(st.tuples(st.integers(1024, len(roots.asset("before")) - 1), st.integers(0, 255)), max_size=20)
)
def test_changed_bytes_give_entries_or_a_clear_error(changes: list[tuple[int, int]]) -> None:
    image = bytearray(IMAGE)
    for at, byte in changes:
        image[at] = byte
    try:
        found = entries(bytes(image))
    except InvalidDocument:
        return
    assert all(path.startswith("/") for path in found)

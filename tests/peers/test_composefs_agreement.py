"""mkcomposefs and cfsctl make the same image of our dumps (docs/explanation/composefs-agreement.md)."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings

from stages.composefs import dump
from stages.shared import canonical_tar, fsverity
from stages.shared.canonical_tar import Kind
from tests.peers.conftest import QuickRoot, ToolsTree
from tests.peers.encoders import Encoder, differing, said
from tests.stages.composefs_trees import EPOCH, Tree, dump_of, trees

pytestmark = [
    pytest.mark.peers,
    pytest.mark.sandbox,
    pytest.mark.network,
    pytest.mark.timeout(1800),
]


def _walked(cfsctl: str, folder: Path) -> str:
    """The digest of a folder as cfsctl reads it: names, metadata, links and every file's content."""
    flags = ("--no-repo", "--hash", "sha256", "--erofs-version", "0")
    return said(cfsctl, *flags, "compute-id", "--no-propagate-usr-to-root", folder)


def test_the_root_s_image_is_the_same_from_both_encoders(
    cfsctl_mkcomposefs: Encoder, quick_root: QuickRoot, mkcomposefs: Encoder, tmp_path: Path
) -> None:
    stage = quick_root.metadata.read_bytes()
    assert fsverity.digest(stage) == quick_root.digest
    for encoder in (mkcomposefs, cfsctl_mkcomposefs):
        image, digest = encoder.image(quick_root.dump.read_bytes(), tmp_path)
        assert differing(image, stage) == []
        assert digest == quick_root.digest


@pytest.mark.skipif(os.geteuid() != 0, reason="owners and capabilities of a whole root need root to set")
@pytest.mark.parametrize("unpacker", ["tar", "stage"])
def test_cfsctl_reads_the_unpacked_root_as_the_dump_says(
    cfsctl: str, quick_root: QuickRoot, tmp_path: Path, unpacker: str
) -> None:
    """Nothing of ours takes part with GNU tar: it unpacks, cfsctl walks and measures every file."""
    root = tmp_path / "root"
    root.mkdir()
    if unpacker == "tar":
        # Sorted by path bytes, `a-b` comes between `a` and `a/x`: tar would set a's time too early.
        order = ("--delay-directory-restore", "--numeric-owner", "--same-owner")
        said("tar", "-C", root, *order, "--xattrs", "--xattrs-include=*", "-xpf", quick_root.tree)
    else:
        canonical_tar.unpack(quick_root.tree, root)
    assert _walked(cfsctl, root) == quick_root.digest
    (root / "etc" / "hostname").write_text("another\n")
    assert _walked(cfsctl, root) != quick_root.digest
    shutil.rmtree(root)


def test_format_version_1_is_one_byte_of_the_header(
    cfsctl_mkcomposefs: Encoder, quick_root: QuickRoot, mkcomposefs: Encoder, tmp_path: Path
) -> None:
    text, stage = quick_root.dump.read_bytes(), quick_root.metadata.read_bytes()
    newer = [
        encoder.image(text, tmp_path, "--min-version=1") for encoder in (mkcomposefs, cfsctl_mkcomposefs)
    ]
    assert newer[0] == newer[1]
    assert differing(stage, newer[0][0]) == [12]
    assert (stage[12], newer[0][0][12]) == (0, 1)


def test_any_user_s_folder_but_for_hard_links_when_mkcomposefs_walks_it(
    cfsctl: str, cfsctl_mkcomposefs: Encoder, mkcomposefs: Encoder, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    (folder / "a-b").write_bytes(b"content" * 1000)
    (folder / "a" / "x").hardlink_to(folder / "a-b")
    (folder / "a" / "small").write_bytes(b"small")
    (folder / "link").symlink_to("a/x")
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    linked, unlinked = (_dump_of_folder(folder, tmp_path / "tar", links=links) for links in (True, False))
    image, digest = mkcomposefs.image(linked, tmp_path)
    assert cfsctl_mkcomposefs.image(linked, tmp_path) == (image, digest)
    assert _walked(cfsctl, folder) == digest
    # mkcomposefs makes each name a file of its own; cfsctl does so under its command line.
    assert mkcomposefs.image(folder, tmp_path) == mkcomposefs.image(unlinked, tmp_path)
    assert cfsctl_mkcomposefs.image(folder, tmp_path) == mkcomposefs.image(unlinked, tmp_path)
    assert mkcomposefs.image(unlinked, tmp_path)[0] != image


def _dump_of_folder(folder: Path, tar: Path, *, links: bool) -> bytes:
    canonical_tar.pack(folder, tar, EPOCH)
    data = tar.read_bytes()
    tree = {entry.path: (entry, data[at : at + entry.size]) for entry, at in canonical_tar.read(tar)}
    if not links:
        for path, (entry, _) in tree.items():
            if entry.kind is Kind.HARDLINK:
                first, content = tree[entry.target]
                tree[path] = (replace(first, path=path), content)
    return dump_of(list(tree.values()))


@settings(max_examples=60, deadline=None)
@given(tree=trees())
def test_every_tree_is_the_same_image_from_both_encoders(
    cfsctl_mkcomposefs: Encoder,
    mkcomposefs: Encoder,
    tmp_path_factory: pytest.TempPathFactory,
    tree: Tree,
) -> None:
    scratch = tmp_path_factory.mktemp("tree")
    text = dump_of(tree)
    image, digest = mkcomposefs.image(text, scratch)
    assert cfsctl_mkcomposefs.image(text, scratch) == (image, digest)
    assert fsverity.digest(image) == digest


@settings(max_examples=30, deadline=None)
@given(tree=trees())
def test_an_image_reads_back_as_the_dump_it_was_made_from(
    tools: ToolsTree, mkcomposefs: Encoder, tmp_path_factory: pytest.TempPathFactory, tree: Tree
) -> None:
    scratch = tmp_path_factory.mktemp("tree")
    text = dump_of(tree)
    mkcomposefs.image(text, scratch)
    told = said(*tools.argv("composefs-info"), "dump", scratch / "image")
    assert _metadata(told.encode()) == _metadata(text)


def _metadata(text: bytes) -> dict[bytes, list[bytes]]:
    """Path → size, mode, owner and mtime, but for link lines; directory sizes are the encoder's own."""
    rows = {}
    for line in text.splitlines():
        row = line.split(b" ")
        if not row[2].startswith(b"@"):
            size = b"" if row[2].startswith(b"4") else row[1]
            rows[dump.unescape(row[0])] = [size, row[2], *row[4:6], row[7]]
    return rows

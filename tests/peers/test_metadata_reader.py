"""Our reader of metadata images finds in mkcomposefs's what the dump says (supply_chain/erofs.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from supply_chain.erofs import entries
from tests.peers.conftest import QuickRoot
from tests.peers.encoders import Encoder
from tests.stages.composefs_trees import Tree, dump_of, trees
from tests.supply_chain import roots

pytestmark = [pytest.mark.peers, pytest.mark.sandbox, pytest.mark.network, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(("name", "tree"), [("before", roots.BEFORE), ("after", roots.AFTER)])
def test_the_images_that_other_tests_read_are_mkcomposefs_s(
    mkcomposefs: Encoder, tmp_path: Path, name: str, tree: Tree
) -> None:
    image, _ = mkcomposefs.image(dump_of(tree), tmp_path)
    assert roots.asset(name) == image, f"tests/supply_chain/assets/{name}.cfs is of another tree"


def test_the_whole_root(quick_root: QuickRoot) -> None:
    assert entries(quick_root.metadata.read_bytes()) == roots.stated(quick_root.dump.read_bytes())


def test_any_tree(mkcomposefs: Encoder, tmp_path: Path) -> None:
    @settings(max_examples=60)
    @given(trees())
    def check(tree: Tree) -> None:
        dump = dump_of(tree)
        image, _ = mkcomposefs.image(dump, tmp_path)
        assert entries(image) == roots.stated(dump)

    check()

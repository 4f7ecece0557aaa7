"""Tools trees: unpacked once from their tar, then the read-only root of every stage that names them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pipelines.errors import StoreError
from pipelines.sandbox import MOUNT_POINTS
from pipelines.scratch import work_folder
from pipelines.store import Store


def tree_path(store: Store, sha256: str) -> Path:
    """Where the tree of a tar is unpacked, or would be."""
    return store.root / "trees" / sha256


def unpack(store: Store, sha256: str) -> Path:
    """Unpack the tools tar of that digest, if it isn't yet, and give the tree's path.

    The same tree for root and ordinary users: all its files belong to whoever unpacks it, which is uid 0
    inside.
    """
    tree = tree_path(store, sha256)
    if tree.is_dir():
        return tree
    with store.guard("unpacking a tools tree"):
        tree.parent.mkdir(parents=True, exist_ok=True)
        with work_folder(store, "tree", store.root / "work") as work:
            new = work.folder / "tree"
            new.mkdir()
            command = [
                "tar",
                "--extract",
                "--preserve-permissions",
                "--no-same-owner",
                # a-b sorts between a and a/x: without this, a's time is set before a/x changes it
                "--delay-directory-restore",
                "--directory",
                str(new),
            ]
            done = subprocess.run(
                [*command, "--file", str(store.blob(sha256))], capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                if "No space left" in done.stderr:
                    raise store.full("unpacking a tools tree")
                said = [*done.stderr.strip().splitlines(), "no message"][0]
                raise StoreError(
                    f"tools tree sha256:{sha256}: tar ended with {done.returncode}: {said}",
                    "disk-image cache check --repair, then run the same command again",
                )
            for name in MOUNT_POINTS:
                (new / name).mkdir(exist_ok=True)
            try:
                new.rename(tree)
            except OSError:
                # Another build unpacked the same tar meanwhile.
                if not tree.is_dir():
                    raise
    return tree

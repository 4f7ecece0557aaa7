"""What others put in a file's place is refused at once, and what is written is whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from supply_chain.beside import read_beside, sbom_path, write_beside
from supply_chain.errors import LayoutError
from supply_chain.files import read_regular, replace_file
from supply_chain.layout import open_layout
from supply_chain.layout_write import hang
from supply_chain.oci import EMPTY_CONTENT, digest_of
from supply_chain.publish.state import StateFile
from tests.supply_chain.images import noise, write_image


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _fifo_that_is_held_open(path: Path) -> None:
    os.mkfifo(path)
    os.open(path, os.O_RDWR)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


_REFUSED = "not a regular file|Is a directory"
IN_PLACE_OF_A_FILE = pytest.mark.parametrize("put", [_fifo, _fifo_that_is_held_open, _device, Path.mkdir])


@IN_PLACE_OF_A_FILE
def test_beside_a_layout(put: Callable[[Path], None], tmp_path: Path) -> None:
    path = sbom_path(tmp_path / "image")
    put(path)
    with pytest.raises(LayoutError, match=_REFUSED):
        read_beside(path, 10)
    if put is not Path.mkdir:
        write_beside(path, b"new")
        assert (path.read_bytes(), path.is_symlink()) == (b"new", False)


@IN_PLACE_OF_A_FILE
def test_as_the_state_of_publishing(put: Callable[[Path], None], tmp_path: Path) -> None:
    file = StateFile(tmp_path / "image")
    put(file.path)
    with pytest.raises(OSError, match=_REFUSED):
        file.load(f"sha256:{'1a' * 32}")


@IN_PLACE_OF_A_FILE
def test_under_the_name_of_a_blob_to_write(put: Callable[[Path], None], tmp_path: Path) -> None:
    layout = write_image(tmp_path / "image", {"bash": [noise("bash", 1000)]})
    put(layout.folder / "blobs" / "sha256" / digest_of(EMPTY_CONTENT).removeprefix("sha256:"))
    with pytest.raises(LayoutError, match=_REFUSED):
        hang(layout, [])


@IN_PLACE_OF_A_FILE
@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
def test_as_a_layout_s_document(put: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    layout = write_image(tmp_path / "image", {"bash": [noise("bash", 1000)]})
    (layout.folder / name).unlink()
    put(layout.folder / name)
    with pytest.raises(LayoutError, match=_REFUSED):
        open_layout(layout.folder)


@pytest.mark.parametrize("size", [0, 9, 10, 11, 5_000_000])
def test_reading_says_whether_there_is_more(size: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(size))
    assert read_regular(tmp_path / "file", 10) == bytes(min(size, 11))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    replace_file(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]

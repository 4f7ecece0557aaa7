"""What comes into a layout comes whole: killed at any line, raced, without space, and over links."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from supply_chain import layout_write
from supply_chain.errors import LayoutError
from supply_chain.files import replace_file
from supply_chain.layout import Layout, open_layout
from supply_chain.oci import EMPTY_CONTENT, digest_of
from supply_chain.referrer import Referrer, write_referrer
from supply_chain.statement import SBOM
from tests.supply_chain.images import noise, write_image

CREATED = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return write_image(tmp_path / "image", {"bash": [noise("bash", 1000)]})


def referrer(layout: Layout, bundle: bytes) -> Referrer:
    return write_referrer(bundle, layout.image, predicate_type=SBOM, created=CREATED)


def test_a_kill_at_any_line_leaves_the_old_index_or_the_new_one(layout: Layout) -> None:
    program = [sys.executable, "-m", "tests.supply_chain.killed", str(layout.folder.parent)]
    done = subprocess.run(
        program, capture_output=True, text=True, timeout=110, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


def test_the_image_is_first_and_what_hung_there_stays(layout: Layout) -> None:
    one, two = referrer(layout, b"one"), referrer(layout, b"two")
    after = layout_write.hang(layout_write.hang(layout, [one]), [two])
    assert after.index.manifests == (layout.image, one.descriptor, two.descriptor)
    for each in (one, two):
        assert after.path(each.descriptor).read_bytes() == each.content
    assert (layout.folder / "blobs" / "sha256" / digest_of(EMPTY_CONTENT)[7:]).read_bytes() == b"{}"


def test_what_is_replaced_is_listed_no_more(layout: Layout) -> None:
    one, two = referrer(layout, b"one"), referrer(layout, b"two")
    before = layout_write.hang(layout, [one])
    after = layout_write.hang(before, [two], replacing={one.descriptor.digest})
    assert after.index.manifests == (layout.image, two.descriptor)


def test_hanging_it_again_changes_nothing(layout: Layout) -> None:
    one = referrer(layout, b"one")
    layout_write.hang(layout, [one])
    before = {path: path.stat().st_ino for path in (layout.folder / "blobs" / "sha256").iterdir()}
    again = layout_write.hang(layout, [one])
    assert again.index.manifests == (layout.image, one.descriptor)
    assert {path: path.stat().st_ino for path in (layout.folder / "blobs" / "sha256").iterdir()} == before


def test_writers_at_once_lose_nothing(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(path: Path, content: bytes) -> None:
        # long enough for all to have read the index, if nothing keeps them apart
        threading.Event().wait(0.02)
        replace_file(path, content)

    monkeypatch.setattr(layout_write, "replace_file", slow)
    each = [referrer(layout, f"bundle {number}".encode()) for number in range(8)]
    threads = [threading.Thread(target=layout_write.hang, args=(layout, [one])) for one in each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    listed = open_layout(layout.folder).index.manifests
    assert listed[0] == layout.image
    assert {entry.digest for entry in listed[1:]} == {one.descriptor.digest for one in each}


def test_links_into_a_store_stay_as_they_are(layout: Layout, tmp_path: Path) -> None:
    store = tmp_path / "store.json"
    os.link(layout.folder / "index.json", store)
    store.chmod(0o444)
    before = store.read_bytes()
    layout_write.hang(layout, [referrer(layout, b"one")])
    assert store.read_bytes() == before


def test_half_a_blob_from_elsewhere_is_written_anew(layout: Layout) -> None:
    one = referrer(layout, b"one")
    layout.path(one.descriptor).write_bytes(one.content[:10])
    after = layout_write.hang(layout, [one])
    assert after.read(one.descriptor, limit=10_000) == one.content


def test_another_image_in_its_place_is_left_alone(layout: Layout, tmp_path: Path) -> None:
    one = referrer(layout, b"one")
    layout.folder.rename(tmp_path / "before")
    write_image(layout.folder, {"bash": [noise("another", 1000)]})
    before = (layout.folder / "index.json").read_bytes()
    with pytest.raises(LayoutError, match="holds another image by now: expected sha256:"):
        layout_write.hang(layout, [one])
    assert (layout.folder / "index.json").read_bytes() == before


def test_a_folder_that_takes_nothing_keeps_its_index(layout: Layout) -> None:
    before = (layout.folder / "index.json").read_bytes()
    blobs = layout.folder / "blobs" / "sha256"
    moved = blobs.with_name("moved")
    blobs.rename(moved)
    blobs.symlink_to("/proc/self/fdinfo")
    for write in (
        lambda: layout_write.check_writable(layout),
        lambda: layout_write.hang(layout, [referrer(layout, b"one")]),
    ):
        with pytest.raises(LayoutError, match="can't be written: No such file or directory"):
            write()
    assert (layout.folder / "index.json").read_bytes() == before
    assert not list(layout.folder.glob(".*"))

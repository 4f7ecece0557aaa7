"""Collecting and checking: what is used stays, what is wrong is named, and a repair is a rebuild."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from pipelines import trees
from pipelines.collect import check, collect
from pipelines.definition import OutputKind, Plan, StageOutput
from pipelines.errors import StoreError
from pipelines.records import Record
from pipelines.store import Store
from tests.pipelines.executor import World, became

DAY = 86400.0


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.new(tmp_path)


def plan(world: World, suffix: str = "") -> Plan:
    one = world.stage("one", f'job.output("out").write_text("1" * 5000 + "{suffix}")')
    two = world.stage(
        "two",
        f'job.output("out").write_text("2" * 3000 + "{suffix}")',
        inputs={"in": StageOutput("one", "out")},
    )
    return Plan("p", (one, two))


def age(world: World, record: Record, days: float) -> None:
    path = world.store.result_path(record.key)
    then = path.stat().st_mtime - days * DAY
    os.utime(path, (then, then))


def blobs(store: Store) -> set[str]:
    return {path.parent.name + path.name for path in store.blobs.rglob("*") if path.is_file()}


def test_what_was_not_used_for_long_is_collected(world: World) -> None:
    old = world.run(plan(world))
    for record in old.records.values():
        age(world, record, 31)
    new = world.run(plan(world, "new"))
    collected = collect(world.store)
    assert (collected.removed, collected.kept) == (2, 2)
    assert collected.freed == 8000
    assert collected.size == 8006
    assert blobs(world.store) == {new.output(name, "out").content.digest for name in ("one", "two")}
    assert became(world.run(plan(world, "new"))) == {"one": "cached", "two": "cached"}
    assert became(world.run(plan(world))) == {"one": "ran", "two": "ran"}


def test_a_use_keeps_a_result(world: World) -> None:
    results = world.run(plan(world))
    for record in results.records.values():
        age(world, record, 31)
    world.run(plan(world))
    assert collect(world.store).removed == 0


def test_the_least_recently_used_go_first_until_the_rest_fits(world: World) -> None:
    results = world.run(plan(world))
    age(world, results.records["one"], 2)
    age(world, results.records["two"], 1)
    collected = collect(world.store, max_size=4000)
    assert (collected.kept, collected.size) == (1, 3000)
    assert world.store.result(results.records["one"].key) is None
    assert world.store.result(results.records["two"].key) is not None


def test_a_blob_that_two_results_share_stays_while_one_of_them_does(world: World) -> None:
    first = world.run(Plan("a", (world.stage("s", 'job.output("out").write_text("x")', params={"n": 1}),)))
    world.run(Plan("a", (world.stage("s", 'job.output("out").write_text("x")', params={"n": 2}),)))
    age(world, first.records["s"], 31)
    assert collect(world.store).removed == 1
    assert blobs(world.store) == {first.output("s", "out").content.digest}


def test_nothing_is_collected_or_repaired_while_a_build_uses_the_store(world: World) -> None:
    results = world.run(plan(world))
    for record in results.records.values():
        age(world, record, 31)
    with world.store.use():
        with pytest.raises(StoreError, match="a build uses the store"):
            collect(Store(world.store.root))
        with pytest.raises(StoreError, match="a build uses the store"):
            check(Store(world.store.root), repair=True)
        assert check(Store(world.store.root)) == []
    assert collect(world.store).removed == 2


def test_leftovers_of_no_result_are_collected(world: World) -> None:
    world.run(plan(world))
    stray = world.store.blob("ab" * 32)
    stray.parent.mkdir(exist_ok=True)
    stray.write_text("stray")
    (world.store.root / "partial").mkdir()
    partial = world.store.root / "partial" / "file"
    partial.write_text("x")
    os.utime(partial, (0, 0))
    tree = world.store.root / "trees" / ("cd" * 32)
    (tree / "usr").mkdir(parents=True)
    collect(world.store)
    assert not stray.exists()
    assert not partial.exists()
    assert not tree.exists()
    assert became(world.run(plan(world))) == {"one": "cached", "two": "cached"}


def test_a_sound_store_has_no_problems(world: World) -> None:
    world.run(plan(world))
    assert check(Store(world.store.root)) == []


def test_a_corrupted_blob_is_named_and_after_the_repair_rebuilt(world: World) -> None:
    results = world.run(plan(world))
    digest = results.output("two", "out").content.digest
    blob = world.store.blob(digest)
    status = blob.stat()
    blob.chmod(0o644)
    blob.write_text("3" * 3000)
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))
    store = Store(world.store.root)
    [problem] = check(store)
    assert str(problem).startswith(f"blob sha256:{digest} (two.out): holds bytes with sha256:")
    assert problem.hint == "disk-image cache check --repair"
    [problem] = check(store, repair=True)
    assert problem.hint.startswith("removed")
    world.store = Store(world.store.root)
    assert became(world.run(plan(world))) == {"one": "cached", "two": "ran"}
    assert check(Store(world.store.root)) == []


def test_a_broken_record_and_a_missing_blob_are_named(world: World) -> None:
    results = world.run(plan(world))
    broken = world.store.result_path(results.records["one"].key)
    broken.write_bytes(broken.read_bytes()[:-10])
    missing = results.output("two", "out").content.digest
    world.store.blob(missing).unlink()
    found = [str(problem) for problem in check(Store(world.store.root), repair=True)]
    assert found == [
        f"result {results.records['one'].key}: can't be read",
        f"blob sha256:{missing} (two.out): is missing",
    ]
    assert not broken.exists()


def tree_of(store: Store, tmp_path: Path) -> Path:
    """An unpacked tree and its tar in the store."""
    tar = tmp_path / "tree.tar"
    with tarfile.open(tar, "w") as archive:
        for name, mode in (("usr", 0o755), ("usr/bin", 0o755), ("root", 0o700)):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            archive.addfile(folder)
        file = tarfile.TarInfo("usr/bin/tool")
        file.size, file.mode = 4, 0o755
        archive.addfile(file, io.BytesIO(b"tool"))
        hard = tarfile.TarInfo("usr/bin/tool2")
        hard.type, hard.linkname, hard.mode = tarfile.LNKTYPE, "usr/bin/tool", 0o755
        archive.addfile(hard)
        link = tarfile.TarInfo("bin")
        link.type, link.linkname = tarfile.SYMTYPE, "usr/bin"
        archive.addfile(link)
    stored, _ = store.ingest(tar, OutputKind.FILE)
    return trees.unpack(store, stored.content.digest)


def test_a_tree_is_unpacked_with_its_mount_points_and_is_sound(world: World, tmp_path: Path) -> None:
    tree = tree_of(world.store, tmp_path)
    assert {path.name for path in tree.iterdir()} == {"usr", "root", "bin", "stage", "tmp", "proc", "dev"}
    assert (tree / "root").stat().st_mode & 0o7777 == 0o700
    assert (tree / "usr/bin/tool").samefile(tree / "usr/bin/tool2")
    assert check(world.store) == []
    assert trees.unpack(world.store, tree.name) == tree


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("content", "usr/bin/tool: has other content"),
        ("longer", "usr/bin/tool: has other content"),
        ("mode", "root: expected mode 0700, found 0755"),
        ("missing", "usr/bin/tool2: is missing"),
        ("type", "bin: has another type"),
        ("link", "bin: leads to /etc"),
        ("more", "usr/bin/more: expected nothing"),
    ],
)
def test_a_tree_that_is_not_its_tar_is_named_and_removed(
    world: World, tmp_path: Path, name: str, expected: str
) -> None:
    tree = tree_of(world.store, tmp_path)
    if name == "content":
        (tree / "usr/bin/tool").write_text("TOOL")
    elif name == "longer":
        (tree / "usr/bin/tool").write_text("tools")
    elif name == "mode":
        (tree / "root").chmod(0o755)
    elif name == "missing":
        (tree / "usr/bin/tool2").unlink()
    elif name == "type":
        (tree / "bin").unlink()
        (tree / "bin").mkdir()
    elif name == "link":
        (tree / "bin").unlink()
        (tree / "bin").symlink_to("/etc")
    else:
        (tree / "usr/bin/more").touch()
    [problem] = check(world.store, repair=True)
    assert str(problem) == f"tree sha256:{tree.name}: {expected}"
    assert not tree.exists()
    assert check(world.store) == []


def test_a_tar_that_can_t_be_unpacked_leaves_no_tree(world: World, tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("no tar")
    stored, _ = world.store.ingest(tmp_path / "bad", OutputKind.FILE)
    with pytest.raises(StoreError, match="tar ended with"):
        trees.unpack(world.store, stored.content.digest)
    assert not trees.tree_path(world.store, stored.content.digest).exists()
    assert list((world.store.root / "work").iterdir()) == []

"""The canonical tar: one form for each tree, and nothing else read."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.shared import canonical_tar, tar_header
from stages.shared.canonical_tar import Entry, Kind, Writer
from stages.shared.job import Failure

EPOCH = 1_700_000_000
ROOT = Entry(".", Kind.DIRECTORY, 0o755, 0, 0, 0)

_NAMES = st.one_of(
    st.text(
        st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=120
    ),
    st.binary(min_size=1, max_size=60).map(os.fsdecode),
    st.text("ab", min_size=95, max_size=260),
).filter(lambda name: name not in (".", "..") and not {"/", "\0"} & {*name})
_OWNERS = st.sampled_from([0, 1, 1000, 2097151, 2097152, 4294967294])
_TARGETS = st.one_of(st.sampled_from(["/usr/lib", "../x", "a" * 100, "b" * 101, "ä" * 60]), _NAMES)


@st.composite
def _trees(draw: st.DrawFn) -> list[tuple[Entry, bytes]]:
    """A canonical list of entries with contents."""
    folders = [""]
    entries: dict[str, tuple[Entry, bytes]] = {".": (replace(ROOT, mtime=draw(st.integers(0, EPOCH))), b"")}
    files: list[str] = []
    for _ in range(draw(st.integers(0, 12))):
        path = draw(st.sampled_from(folders)) + draw(_NAMES)
        if path in entries:
            continue
        entry = Entry(
            path,
            Kind.FILE,
            draw(st.integers(0, 0o7777)),
            draw(_OWNERS),
            draw(_OWNERS),
            draw(st.integers(0, EPOCH)),
        )
        content = b""
        match draw(st.sampled_from(Kind)):
            case Kind.DIRECTORY:
                entry = replace(entry, kind=Kind.DIRECTORY)
                folders.append(path + "/")
            case Kind.SYMLINK:
                entry = replace(entry, kind=Kind.SYMLINK, target=draw(_TARGETS))
            case Kind.HARDLINK if files and os.fsencode(min(files, key=os.fsencode)) < os.fsencode(path):
                first = min(files, key=os.fsencode)
                entry = replace(
                    entries[first][0], path=path, kind=Kind.HARDLINK, size=0, target=first, capability=b""
                )
            case _:
                content = draw(st.binary(max_size=1100))
                entry = replace(
                    entry,
                    size=len(content),
                    capability=draw(st.sampled_from([b"", b"\x01\0\0\x02\n=\xff" * 3])),
                )
                files.append(path)
        entries[path] = (entry, content)
    return sorted(entries.values(), key=lambda pair: canonical_tar.sort_key(pair[0].path))


def _written(pairs: list[tuple[Entry, bytes]], clamp: int = EPOCH) -> bytes:
    stream = io.BytesIO()
    with Writer(stream, clamp) as writer:
        for entry, content in pairs:
            writer.add(entry, content)
    return stream.getvalue()


@settings(max_examples=150, deadline=None)
@given(_trees())
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, tree: list[tuple[Entry, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("tar") / "tree"
    path.write_bytes(_written(tree))
    data = path.read_bytes()
    found = [(entry, data[offset : offset + entry.size]) for entry, offset in canonical_tar.read(path)]
    assert found == tree


@settings(max_examples=60, deadline=None)
@given(_trees())
def test_other_readers_see_the_same(tree: list[tuple[Entry, bytes]]) -> None:
    with tarfile.open(
        fileobj=io.BytesIO(_written(tree)), encoding="utf-8", errors="surrogateescape"
    ) as archive:
        members = archive.getmembers()
        assert [(m.name, m.mode, m.uid, m.gid, m.mtime) for m in members] == [
            (e.path, e.mode, e.uid, e.gid, e.mtime) for e, _ in tree
        ]
        assert [m.linkname for m in members] == [e.target for e, _ in tree]
        assert [archive.extractfile(m).read() if m.isreg() else b"" for m in members] == [c for _, c in tree]  # type: ignore[union-attr]
        assert all(m.uname == m.gname == "" for m in members)


@given(size=st.sampled_from([0o77777777777, 0o100000000000, 1 << 40]))
def test_sizes_from_8_gib_are_in_an_extended_header(
    tmp_path_factory: pytest.TempPathFactory, size: int
) -> None:
    path = tmp_path_factory.mktemp("tar") / "huge"
    entry = Entry("huge", Kind.FILE, 0o644, 0, 0, 0, size)
    path.write_bytes(tar_header.header(ROOT) + tar_header.header(entry))
    start = path.stat().st_size
    os.truncate(path, start + size + -size % 512 + 1024)  # a hole: no bytes on the disk
    (_, found) = islice(canonical_tar.read(path), 2)
    assert found == (entry, start)
    assert (b" size=" in tar_header.header(entry)) == (size > 0o77777777777)


@pytest.mark.skipif(shutil.which("tar") is None, reason="GNU tar is not installed")
def test_gnu_tar_lists_long_and_odd_names(tmp_path: Path) -> None:
    names = ["a" * 101, "b" * 90 + "/" + "c" * 90, "b" * 90, "ü" * 80]
    tree = [(ROOT, b"")] + [
        (Entry(name, Kind.DIRECTORY if name == "b" * 90 else Kind.FILE, 0o755, 3_000_000, 0, 7), b"")
        for name in sorted(names, key=os.fsencode)
    ]
    path = tmp_path / "tree"
    path.write_bytes(_written(tree))
    listed = subprocess.run(
        ["tar", "--quoting-style=literal", "-tf", path],
        check=True,
        capture_output=True,
        env={"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]},
    )
    assert [line.rstrip("/") for line in listed.stdout.decode().splitlines()] == [
        entry.path for entry, _ in tree
    ]
    assert listed.stderr == b""


def test_a_large_tar_is_read_without_staying_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as stream, Writer(stream, EPOCH) as writer:
        writer.add(ROOT)
        for number in range(1500):
            writer.add(Entry(f"{number:04}", Kind.FILE, 0o644, 0, 0, 0, 40_000), bytes(40_000))
    resident = [_mapped_kib(path) for number, _ in enumerate(canonical_tar.read(path)) if number % 100 == 0]
    assert 0 < max(resident) < 10 << 10 < path.stat().st_size >> 10


def _mapped_kib(path: Path) -> int:
    """How much of a mapped file is resident in this process (proc_pid_smaps(5), Rss)."""
    mapping = Path("/proc/self/smaps").read_text().partition(f" {path}\n")[2]
    return int(mapping.partition("\nRss:")[2].split()[0]) if mapping else 0


def _order(data: bytes) -> bytes:
    return data[:512] + data[1024:1536] + data[512:1024] + data[1536:]


def _twice(data: bytes) -> bytes:
    return data[:1024] + data[512:]


def _trailing(data: bytes) -> bytes:
    return data + bytes(512)


def _no_end(data: bytes) -> bytes:
    return data[:-1024]


def _cut_content(data: bytes) -> bytes:
    return data[: data.rindex(b"content")]


def _padding(data: bytes) -> bytes:
    place = data.rindex(b"content") + len(b"content")
    return data[:place] + b"leftover" + data[place + 8 :]


def _checksum(data: bytes) -> bytes:
    return data[:600] + b"\x37" + data[601:]


def _owner_name(data: bytes) -> bytes:
    return _patched(data, 265, b"root")


def _device_node(data: bytes) -> bytes:
    return _patched(data, 156, b"3")


def _escaping_path(data: bytes) -> bytes:
    return _patched(data, 0, b"../evil\0")


def _absolute_path(data: bytes) -> bytes:
    return _patched(data, 0, b"/etc\0")


def _patched(data: bytes, at: int, value: bytes) -> bytes:
    """Change the second entry's header and correct its checksum, as an attacker would."""
    block = bytearray(data[512:1024])
    block[at : at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return data[:512] + bytes(block) + data[1024:]


@pytest.mark.parametrize(
    "attack",
    [
        _order, _twice, _trailing, _no_end, _cut_content, _padding, _checksum, _owner_name, _device_node,
        _escaping_path, _absolute_path, lambda data: b"", lambda data: b"<html>" + bytes(600),
        lambda data: data[512:],
    ],
)  # fmt: skip
def test_another_form_is_refused(tmp_path: Path, attack: Callable[[bytes], bytes]) -> None:
    tree = [
        (ROOT, b""),
        (replace(ROOT, path="a"), b""),
        (replace(ROOT, path="b"), b""),
        (Entry("c", Kind.FILE, 0o644, 0, 0, 0, 7), b"content"),
    ]
    good = tmp_path / "tree"
    good.write_bytes(_written(tree))
    assert len([*canonical_tar.read(good)]) == 4
    good.write_bytes(attack(good.read_bytes()))
    with pytest.raises(Failure, match="tree: "):
        [*canonical_tar.read(good)]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_random_damage_never_reads_as_another_tree(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    tree = data.draw(_trees())
    blob = bytearray(_written(tree))
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("tar") / "tree"
    path.write_bytes(bytes(blob))
    try:
        found = [*canonical_tar.read(path)]
    except Failure:
        return
    # Content carries no checksum (the file's digest does); everything else must have been refused or be
    # true.
    assert _written(
        [(entry, bytes(blob[offset : offset + entry.size])) for entry, offset in found]
    ) == bytes(blob)


@pytest.mark.parametrize(
    "entries",
    [
        [Entry("a", Kind.FILE, 0o644, 0, 0, 0)],
        [ROOT, Entry("a/b", Kind.FILE, 0o644, 0, 0, 0)],
        [ROOT, Entry("a", Kind.FILE, 0o644, 0, 0, 0), Entry("a/b", Kind.FILE, 0o644, 0, 0, 0)],
        [ROOT, Entry("b", Kind.FILE, 0o644, 0, 0, 0), Entry("a", Kind.FILE, 0o644, 0, 0, 0)],
        [ROOT, Entry("a", Kind.FILE, 0o644, 0, 0, 0), Entry("a", Kind.FILE, 0o644, 0, 0, 0)],
        [ROOT, Entry("a", Kind.HARDLINK, 0o644, 0, 0, 0, target="z")],
        [ROOT, Entry("a", Kind.FILE, 0o644, 0, 0, 0), Entry("b", Kind.HARDLINK, 0o755, 0, 0, 0, target="a")],
        [ROOT, Entry("a", Kind.SYMLINK, 0o777, 0, 0, 0)],
        [ROOT, Entry("a", Kind.DIRECTORY, 0o755, 0, 0, 0, capability=b"x")],
        [ROOT, Entry("a", Kind.FILE, 0o644, 0, 0, 0, size=5)],
        [ROOT, Entry("..", Kind.FILE, 0o644, 0, 0, 0)],
        [ROOT, Entry("a\0b", Kind.FILE, 0o644, 0, 0, 0)],
    ],
    ids=[
        "no_root", "missing_parent", "parent_is_a_file", "wrong_order", "twice", "hardlink_to_nothing",
        "hardlink_of_other_mode", "link_to_nowhere", "capability_of_a_directory", "content_too_short",
        "dot_dot", "nul",
    ],
)  # fmt: skip
def test_the_writer_refuses(entries: list[Entry]) -> None:
    with pytest.raises(Failure):
        _written([(entry, b"") for entry in entries])


def test_times_are_clamped(tmp_path: Path) -> None:
    path = tmp_path / "tree"
    path.write_bytes(
        _written([(replace(ROOT, mtime=EPOCH + 5), b""), (replace(ROOT, path="a", mtime=-3), b"")])
    )
    assert [entry.mtime for entry, _ in canonical_tar.read(path)] == [EPOCH, 0]


def _folder(where: Path, order: list[str]) -> Path:
    where.mkdir()
    for name in order:
        (where / name).mkdir()
        (where / name / "file").write_text(name)
    (where / "a" / "other").hardlink_to(where / "a" / "file")
    (where / "link").symlink_to("a/file")
    for path in sorted(where.rglob("*"), reverse=True):
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    return where


def test_pack_does_not_depend_on_the_folder_s_order(tmp_path: Path) -> None:
    names = ["a", "a-b", "a.b", "ä", "Z"]
    tars = []
    for index in range(4):
        random.Random(index).shuffle(names)
        tar = tmp_path / f"{index}.tar"
        folder = _folder(tmp_path / str(index), names)
        os.utime(folder, (EPOCH + index, EPOCH + index))
        canonical_tar.pack(folder, tar, EPOCH)
        tars.append(tar.read_bytes())
    assert len({*tars}) == 1
    entries = {entry.path: entry for entry, _ in canonical_tar.read(tmp_path / "0.tar")}
    assert [*entries] == [
        ".",
        "Z",
        "Z/file",
        "a",
        "a-b",
        "a-b/file",
        "a.b",
        "a.b/file",
        "a/file",
        "a/other",
        "link",
        "ä",
        "ä/file",
    ]
    assert entries["a/other"].kind is Kind.HARDLINK
    assert entries["a/other"].target == "a/file"


def test_unpack_gives_the_tree_back(tmp_path: Path) -> None:
    first, second = tmp_path / "first.tar", tmp_path / "second.tar"
    folder = _folder(tmp_path / "tree", ["a", "b"])
    (folder / "b").chmod(0o555)
    canonical_tar.pack(folder, first, EPOCH)
    canonical_tar.unpack(first, tmp_path / "again")
    canonical_tar.pack(tmp_path / "again", second, EPOCH)
    assert first.read_bytes() == second.read_bytes()


def test_pack_leaves_out_and_refuses(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "tree", ["a", "b"])
    os.mkfifo(folder / "a" / "fifo")
    with pytest.raises(Failure, match="a/fifo"):
        canonical_tar.pack(folder, tmp_path / "tar", EPOCH)
    canonical_tar.pack(folder, tmp_path / "tar", EPOCH, exclude=lambda path: path in ("a/fifo", "b"))
    assert "b/file" not in [entry.path for entry, _ in canonical_tar.read(tmp_path / "tar")]


def test_a_clock_behind_the_clamp_leaves_no_trace(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "old").touch()
    os.utime(folder / "old", (1000, 1000))
    (folder / "new").touch()
    os.utime(folder / "new", (5000, 5000))
    canonical_tar.pack(folder, tmp_path / "tar", EPOCH, made_since=5000)
    assert {e.path: e.mtime for e, _ in canonical_tar.read(tmp_path / "tar") if e.path != "."} == {
        "new": EPOCH,
        "old": 1000,
    }

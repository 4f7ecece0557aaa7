"""The composefs stage: the dump says the tree exactly, every encoder agrees on it, and each object is
found.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion

from stages.composefs import __main__ as stage
from stages.composefs import dump, objects
from stages.composefs.dump import Content
from stages.composefs.objects import Found
from stages.shared import canonical_tar, fsverity
from stages.shared.canonical_tar import Entry, Kind
from stages.shared.job import Failure, Job

EPOCH = 1_700_000_000
MakeJob = Callable[..., Job]
Tree = Sequence[tuple[Entry, bytes]]
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def file(
    path: str, content: bytes, mode: int = 0o644, mtime: int = EPOCH, capability: bytes = b""
) -> tuple[Entry, bytes]:
    return Entry(path, Kind.FILE, mode, 0, 0, mtime, len(content), capability=capability), content


def folder(path: str, mode: int = 0o755, mtime: int = EPOCH) -> tuple[Entry, bytes]:
    return Entry(path, Kind.DIRECTORY, mode, 0, 0, mtime), b""


def symlink(path: str, target: str) -> tuple[Entry, bytes]:
    return Entry(path, Kind.SYMLINK, 0o777, 0, 0, EPOCH, target=target), b""


def hardlink(path: str, to: Entry) -> tuple[Entry, bytes]:
    return replace(to, path=path, kind=Kind.HARDLINK, size=0, target=to.path, capability=b""), b""


def write_tar(path: Path, tree: Tree) -> Path:
    with path.open("wb") as stream, canonical_tar.Writer(stream, EPOCH) as writer:
        for entry, content in sorted(tree, key=lambda each: os.fsencode(each[0].path)):
            writer.add(entry, io.BytesIO(content))
    return path


STATUS = b"""Package: ping
Status: install ok installed
Architecture: amd64
Source: iputils (3:20240905-3)

Package: base
Status: install ok installed
Architecture: amd64
"""
# A link before `a/x` as a whole string, after it name by name; each kind; each border of the inline limit.
LINKED = file("a-b", b"linked" * 100)
SAMPLE: Tree = [
    folder(".", mtime=3),
    folder("a"),
    LINKED,
    hardlink("a/x", LINKED[0]),
    file("empty", b""),
    file("inline", b"one\ttwo\\three\n\x00\xff =-"),
    file("inline-64", b"6" * 64),
    file("outside-65", b"6" * 65, mode=0o4755, mtime=0),
    file("dash", b"-"),
    file("ping", b"ping" * 2000, capability=CAPABILITY),
    file("same content", b"ping" * 2000),
    symlink("link", "-"),
    symlink("link=to", "a b/=\\\udcff"),
    *(folder(path) for path in ("var", "var/lib", "var/lib/dpkg", "var/lib/dpkg/info")),
    file("var/lib/dpkg/status", STATUS),
    file("var/lib/dpkg/info/base.list", b"/a-b\n/same content\n/var\n"),
    file("var/lib/dpkg/info/ping.list", b"/ping\n/a/x\n"),
]

# Stands for mkcomposefs: any bytes will do as an image where only the stage around it is looked at.
FAKE = """#!/usr/bin/env python3
import hashlib, shutil, sys
assert sys.argv[1:5] == ["--from-file", "--min-version=0", "--max-version=0", "--print-digest"], sys.argv
shutil.copyfile(sys.argv[5], sys.argv[6])
sys.path.insert(0, {root!r})
from stages.shared import fsverity
print({digest})
"""
HONEST = "fsverity.digest(open(sys.argv[6], 'rb'))"


def fake_mkcomposefs(bin: Path, monkeypatch: pytest.MonkeyPatch, digest: str = HONEST) -> None:
    bin.mkdir()
    program = bin / "mkcomposefs"
    program.write_text(FAKE.format(root=os.fspath(Path(__file__).parents[2]), digest=digest))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")


def contents(tree: Tree) -> dict[str, Content]:
    return {
        entry.path: Content(inline=data) if entry.size <= 64 else Content(digest=fsverity.digest(data))
        for entry, data in tree
        if entry.kind is Kind.FILE and entry.size
    }


def dump_of(tree: Tree) -> bytes:
    ordered = sorted((entry for entry, _ in tree), key=lambda entry: os.fsencode(entry.path))
    return b"".join(dump.lines(ordered, contents(tree)))


def test_the_dump_of_each_kind(snapshot: SnapshotAssertion) -> None:
    assert dump_of(SAMPLE).decode().splitlines() == snapshot


def test_the_stage_s_outputs(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: SnapshotAssertion
) -> None:
    fake_mkcomposefs(tmp_path / "bin", monkeypatch)
    tar = write_tar(tmp_path / "tree", SAMPLE)
    job = make_job("composefs", {}, inputs={"tree": tar})
    stage.program(job)
    assert sorted(path.name for path in (job.folder / "out").iterdir()) == [
        "digest",
        "dump",
        "metadata",
        "objects",
    ]
    assert job.output("dump").read_bytes() == dump_of(SAMPLE)
    assert job.output("digest").read_text() == fsverity.digest(job.output("metadata").read_bytes()) + "\n"
    listed = job.output("objects").read_text()
    assert listed.splitlines() == snapshot
    packed = tar.read_bytes()
    for line in listed.splitlines():
        digest, offset, size, _ = line.split(" ")
        assert fsverity.digest(packed[int(offset) : int(offset) + int(size)]) == digest


def test_nothing_around_the_stage_reaches_its_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """umask, time zone, locale, hash seed, number of CPUs and the folder vary."""
    fake_mkcomposefs(tmp_path / "bin", monkeypatch)
    found = set()
    for number, (umask, zone, locale, seed) in enumerate(
        [
            (0o022, "UTC", "C.UTF-8", "0"),
            (0o077, "Pacific/Kiritimati", "C", "4321"),
            (0o002, "EST5EDT", "POSIX", "7"),
        ]
    ):
        folder = tmp_path / f"job{'x' * number}"
        (folder / "in").mkdir(parents=True)
        (folder / "out").mkdir()
        write_tar(folder / "in" / "tree", SAMPLE)
        (folder / "job.json").write_text('{"name": "composefs", "source_date_epoch": 1, "params": {}}')
        env = {"PATH": os.environ["PATH"], "TZ": zone, "LC_ALL": locale, "PYTHONHASHSEED": seed}
        one_cpu = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if number else []
        argv = [*one_cpu, sys.executable, "-m", "stages.composefs", os.fspath(folder)]
        root = Path(__file__).parents[2]
        subprocess.run(argv, cwd=root, env=env, umask=umask, check=True, stdout=subprocess.DEVNULL)
        found.add(tuple(path.read_bytes() for path in sorted((folder / "out").iterdir())))
    assert len(found) == 1


def test_a_digest_that_differs_from_mkcomposefs_s_stops_the_build(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_mkcomposefs(tmp_path / "bin", monkeypatch, digest="'00' * 32")
    job = make_job("composefs", {}, inputs={"tree": write_tar(tmp_path / "tree", SAMPLE)})
    with pytest.raises(Failure, match=f"mkcomposefs says {'00' * 32}"):
        stage.program(job)
    assert not job.output("digest").exists()


def test_a_dump_that_mkcomposefs_refuses_stops_the_build(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_mkcomposefs(tmp_path / "bin", monkeypatch, digest="sys.exit(3)")
    job = make_job("composefs", {}, inputs={"tree": write_tar(tmp_path / "tree", SAMPLE)})
    with pytest.raises(Failure, match="exit code 3"):
        stage.program(job)


def test_a_damaged_tar_stops_the_build(make_job: MakeJob, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "tree", SAMPLE)
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(Failure, match="expected the two zero blocks"):
        stage.program(make_job("composefs", {}, inputs={"tree": tar}))


def test_hard_links_share_the_first_name_in_depth_first_order() -> None:
    rows = {line.split(b" ")[0]: line.split(b" ") for line in dump_of(SAMPLE).splitlines()}
    assert rows[b"/a/x"][3] == b"2"
    assert rows[b"/a-b"][2:9] == [b"@100644", b"1", b"0", b"0", b"0", b"0.0", b"/a/x"]
    order = list(rows)
    assert order.index(b"/a/x") < order.index(b"/a-b")


def test_content_of_two_packages_goes_to_the_smallest_name() -> None:
    found = [Found("b", 900, 70, "11" * 32), Found("a", 100, 70, "11" * 32), Found("c", 500, 70, "11" * 32)]
    assert list(objects.index(found, {"b": "beta", "a": "zeta"})) == [f"{'11' * 32} 100 70 beta\n"]


def test_content_of_no_package_is_nobody_s() -> None:
    found = [Found("etc/motd", 100, 70, "22" * 32), Found("etc/issue", 300, 70, "11" * 32)]
    assert list(objects.index(found, {"etc/issue": "base-files"})) == [
        f"{'11' * 32} 300 70 base-files\n",
        f"{'22' * 32} 100 70 -\n",
    ]


_RAW = st.binary(max_size=80)


@given(_RAW)
def test_fields_are_escaped_and_read_back(raw: bytes) -> None:
    for escaped in (dump.escape(raw), dump.escape_xattr(raw)):
        assert dump.unescape(escaped) == raw
        assert re.fullmatch(rb"[\x21-\x7e]*", escaped)
    assert dump.escape(raw) != b"-"
    assert b"=" not in dump.escape_xattr(raw)


_NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: name not in (b".", b"..") and not {0, 0x2F} & {*name}
)
_CONTENTS = st.one_of(
    st.sampled_from([b"", b"-", b"x" * 64, b"x" * 65, b"y" * 4097]), st.binary(max_size=200)
)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    folders, made = [""], {".": folder(".", draw(st.integers(0, 0o7777)), draw(st.integers(0, EPOCH)))}
    files: list[Entry] = []
    for _ in range(draw(st.integers(0, 15))):
        path = draw(st.sampled_from(folders)) + os.fsdecode(draw(_NAMES))
        if path in made or os.fsencode(path) < b".":  # a canonical tar has the root's `.` first
            continue
        match draw(st.sampled_from(Kind)):
            case Kind.DIRECTORY:
                made[path] = folder(path, draw(st.integers(0, 0o7777)), draw(st.integers(0, EPOCH)))
                folders.append(path + "/")
            case Kind.SYMLINK:
                made[path] = symlink(path, os.fsdecode(draw(_NAMES)))
            case Kind.HARDLINK if files and os.fsencode(path) > os.fsencode(files[-1].path):
                made[path] = hardlink(path, files[-1])
            case _:
                capability = draw(st.sampled_from([b"", CAPABILITY]))
                made[path] = file(path, draw(_CONTENTS), draw(st.integers(0, 0o7777)), capability=capability)
                files.append(made[path][0])
    return sorted(made.values(), key=lambda each: os.fsencode(each[0].path))


@given(trees())
def test_a_dump_reads_back_as_the_tree(tree: Tree) -> None:
    """An independent reading of composefs-dump(5): metadata, content, links and their counts."""
    rows = [line.split(b" ") for line in dump_of(tree).splitlines()]
    paths = [b"" if row[0] == b"/" else dump.unescape(row[0]) for row in rows]
    assert [path.split(b"/") for path in paths] == sorted(path.split(b"/") for path in paths)
    by_path = {b"/" + os.fsencode(entry.path): (entry, data) for entry, data in tree if entry.path != "."}
    by_path[b""] = tree[0]
    assert set(by_path) == set(paths)
    names: dict[bytes, list[bytes]] = {}
    for path, row in zip(paths, rows, strict=True):
        entry, data = by_path[path]
        inode = by_path[b"/" + os.fsencode(entry.target)][0] if entry.kind is Kind.HARDLINK else entry
        if row[2].startswith(b"@"):
            first = dump.unescape(row[8])
            assert first in paths[: paths.index(path)]
            names[first].append(path)
            assert by_path[first][0].path in (inode.path, *_links_to(tree, inode))
            continue
        names[path] = [path]
        mode = int(row[2], 8)
        assert (stat.S_IMODE(mode), row[7]) == (inode.mode, b"%d.0" % inode.mtime)
        if stat.S_ISDIR(mode):
            inside = sum(
                each.kind is Kind.DIRECTORY and _parent(each) == path for each, _ in tree if each.path != "."
            )
            assert (entry.kind, int(row[3])) == (Kind.DIRECTORY, 2 + inside)
        elif stat.S_ISLNK(mode):
            assert dump.unescape(row[8]) == os.fsencode(entry.target)
        else:
            data = {each.path: content for each, content in tree}[inode.path]
            assert int(row[1]) == len(data)
            if len(data) > 64:
                digest = fsverity.digest(data).encode()
                assert row[8:11] == [digest[:2] + b"/" + digest[2:], b"-", digest]
            else:
                assert row[8:11] == [b"-", dump.escape(data) if data else b"-", b"-"]
        assert len(row) == 11 + bool(inode.capability)
    for path, row in zip(paths, rows, strict=True):
        if path in names and not stat.S_ISDIR(int(row[2], 8)):
            assert int(row[3]) == len(names[path])


def _links_to(tree: Tree, inode: Entry) -> list[str]:
    return [entry.path for entry, _ in tree if entry.kind is Kind.HARDLINK and entry.target == inode.path]


def _parent(entry: Entry) -> bytes:
    head = os.fsencode(entry.path).rpartition(b"/")[0]
    return b"/" + head if head else b""


@pytest.mark.sandbox
@pytest.mark.skipif(shutil.which("mkcomposefs") is None, reason="mkcomposefs is not installed")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(tree=trees())
def test_mkcomposefs_takes_every_tree_and_measures_alike(
    tree: Tree, make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job("composefs", {}, inputs={"tree": write_tar(tmp_path / "tree", tree)})
    stage.program(job)
    measured = fsverity.digest(job.output("metadata").read_bytes())
    assert job.output("digest").read_text() == measured + "\n"
    if shutil.which("composefs-info") is not None:
        told = subprocess.run(
            ["composefs-info", "dump", job.output("metadata")], check=True, capture_output=True
        ).stdout
        assert _metadata(told) == _metadata(job.output("dump").read_bytes())


def _metadata(text: bytes) -> dict[bytes, list[bytes]]:
    """Path → size, mode, owner and mtime, but for link lines; directory sizes are the encoder's own."""
    rows = {}
    for line in text.splitlines():
        row = line.split(b" ")
        if not row[2].startswith(b"@"):
            size = b"" if row[2].startswith(b"4") else row[1]
            rows[dump.unescape(row[0])] = [size, row[2], *row[4:6], row[7]]
    return rows

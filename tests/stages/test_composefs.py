"""The composefs stage: the dump says the tree exactly, every encoder agrees on it, and each object is
found.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion

from stages.composefs import __main__ as stage
from stages.composefs import dump, objects
from stages.composefs.objects import Found
from stages.shared import fsverity
from stages.shared.canonical_tar import Entry, Kind
from stages.shared.job import Failure, Job
from tests.stages.composefs_trees import (
    CAPABILITY,
    Tree,
    dump_of,
    file,
    folder,
    hardlink,
    symlink,
    trees,
    write_tar,
)

MakeJob = Callable[..., Job]
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


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (
            symlink("deep/link", "x" * 1025),
            "deep/link: expected at most 1024 as its target's length, found 1025",
        ),
        (symlink("link", "ä" * 513), "found 1026"),
        (
            (replace(file("f", b"")[0], uid=1 << 32), b""),
            "f: expected at most 4294967294 as its owner or group",
        ),
        ((replace(folder("f")[0], gid=(1 << 32) - 1), b""), "found 4294967295"),
    ],
    ids=["link_that_cfsctl_refuses", "length_in_bytes", "owner_that_wraps_to_root", "group_nobody_can_have"],
)
def test_what_encoders_read_differently_stops_the_build(entry: tuple[Entry, bytes], told: str) -> None:
    with pytest.raises(Failure, match=re.escape(told)):
        dump_of([folder("."), folder("deep"), entry])


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
        assert row[4:6] == [b"%d" % inode.uid, b"%d" % inode.gid]
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

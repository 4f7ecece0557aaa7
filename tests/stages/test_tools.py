"""Tools trees: packages unpacked into one tree that depends on them alone."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.shared import canonical_tar
from stages.shared.canonical_tar import Entry, Kind
from stages.shared.job import Failure, Job
from stages.tools.__main__ import program


def member(kind: bytes, mode: int = 0o644, target: str = "", uid: int = 0) -> tarfile.TarInfo:
    """A tar entry that is no plain file; its name is the key it stands under."""
    info = tarfile.TarInfo()
    info.type, info.mode, info.linkname, info.uid = kind, mode, target, uid
    return info


def directory(mode: int) -> tarfile.TarInfo:
    return member(tarfile.DIRTYPE, mode)


def link(target: str) -> tarfile.TarInfo:
    return member(tarfile.SYMTYPE, 0o777, target)


def hard_link(target: str) -> tarfile.TarInfo:
    return member(tarfile.LNKTYPE, target=target)


@pytest.fixture
def tools(debs: Any, make_job: Callable[..., Job]) -> Callable[[], Path]:
    """Run the program over the packages made so far; the tree."""

    def run() -> Path:
        job = make_job("tools", {}, inputs={"repository": debs.folder}, epoch=1)
        program(job)
        return job.output("tree")

    return run


def entries(tree: Path) -> dict[str, Entry]:
    return {entry.path: entry for entry, _ in canonical_tar.read(tree)}


def content(tree: Path, path: str) -> bytes:
    data = tree.read_bytes()
    return next(data[at : at + entry.size] for entry, at in canonical_tar.read(tree) if entry.path == path)


def test_the_base_is_there_whatever_the_packages(debs: Any, tools: Callable[[], Path]) -> None:
    debs.make("hello", {"usr/bin/hello": "hi"})
    found = entries(tools())
    for path in ("stage", "tmp", "proc", "dev", "sys", "run"):
        assert found[path].kind is Kind.DIRECTORY
    assert {path: found[path].target for path in ("bin", "sbin", "lib", "lib64")} == {
        "bin": "usr/bin",
        "sbin": "usr/sbin",
        "lib": "usr/lib",
        "lib64": "usr/lib64",
    }
    assert found["tmp"].mode == 0o1777
    assert b"root:x:0:0:" in content(tools(), "etc/passwd")


def test_owners_special_bits_and_times_are_gone(debs: Any, tools: Callable[[], Path]) -> None:
    su = member(tarfile.REGTYPE, 0o6755, uid=1234)
    debs.make(
        "hello",
        {"usr/bin/su": su, "var/mail": directory(0o2775), "usr/share/doc/x": "d", "usr/share/doc-x": "k"},
    )
    found = entries(tools())
    assert {(entry.uid, entry.gid) for entry in found.values()} == {(0, 0)}
    assert {entry.mtime for entry in found.values()} <= {0, 1}
    assert found["usr/bin/su"].mode == 0o755
    assert found["var/mail"].mode == 0o755
    assert "usr/share/doc/x" not in found
    assert "usr/share/doc-x" in found


@pytest.mark.parametrize("first", ["a", "z"])
def test_old_paths_go_through_merged_usr(debs: Any, tools: Callable[[], Path], first: str) -> None:
    """Whatever the packages' order: base-files brings the links, others still ship /bin and /lib paths."""
    debs.make(first, {"bin/sh": "shell", "lib/x86_64/libc.so": "libc", "lib64/ld.so": "ld"})
    debs.make("base-files", {"bin": link("usr/bin"), "lib": link("usr/lib"), "usr/bin/env": "env"})
    found = entries(tools())
    assert {"usr/bin/sh", "usr/bin/env", "usr/lib/x86_64/libc.so", "usr/lib64/ld.so"} <= found.keys()
    assert not [path for path in found if path.startswith(("bin/", "lib/", "lib64/"))]


def test_hard_links_stay_links(debs: Any, tools: Callable[[], Path]) -> None:
    debs.make("perl", {"usr/bin/perl": "interpreter", "usr/bin/a-perl": hard_link("./usr/bin/perl")})
    found = entries(tools())
    assert found["usr/bin/a-perl"].size == len("interpreter")
    assert (found["usr/bin/perl"].kind, found["usr/bin/perl"].target) == (Kind.HARDLINK, "usr/bin/a-perl")


def test_alternatives_are_links_to_what_is_there(debs: Any, tools: Callable[[], Path]) -> None:
    debs.make("mawk", {"usr/bin/mawk": "mawk"})
    assert entries(tools())["usr/bin/awk"].target == "mawk"
    debs.make("gawk", {"usr/bin/gawk": "gawk"})
    debs.make("gcc", {"usr/bin/gcc": link("gcc-14"), "usr/bin/gcc-14": "gcc"})
    found = entries(tools())
    assert found["usr/bin/awk"].target == "gawk"
    assert found["usr/bin/cc"].target == "gcc"
    assert "usr/bin/yacc" not in found


def test_a_path_with_two_contents_names_both_packages(debs: Any, tools: Callable[[], Path]) -> None:
    debs.make("one", {"usr/bin/x": "1", "usr/share/same": "s"})
    debs.make("two", {"usr/bin/x": "2", "usr/share/same": "s"})
    with pytest.raises(Failure, match="/usr/bin/x: one and two have different content"):
        tools()


def test_a_directory_meets_a_link_to_one(debs: Any, tools: Callable[[], Path]) -> None:
    debs.make("a", {"usr/lib/tree": link("real"), "usr/lib/real/x": "x"})
    debs.make("b", {"usr/lib/tree/y": "y"})
    assert "usr/lib/real/y" in entries(tools())


def test_the_tree_depends_on_the_packages_alone(
    debs: Any, tools: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcdef":
        debs.make(name, {f"usr/bin/{name}": name * 1000, f"usr/lib/{name}": link("/usr/bin/a")})
    first = tools().read_bytes()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    for path in debs.folder.rglob("*.deb"):
        path.rename(path.with_name("moved")).rename(path)
    assert tools().read_bytes() == first


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"../evil": "x"}, "leaves the tree"),
        ({"usr/../../evil": "x"}, "leaves the tree"),
        ({"dev/sda": member(tarfile.BLKTYPE)}, "device node"),
        ({"usr/bin/x": hard_link("./etc/shadow")}, "hard link to /etc/shadow"),
        ({"usr/a": link("b"), "usr/b": link("a"), "usr/a/x": "x"}, "symbolic links"),
        ({"usr/file": "x", "usr/file/below": "x"}, "not a directory"),
    ],
    ids=["dot_dot", "hidden_dot_dot", "device_node", "foreign_hard_link", "link_loop", "below_a_file"],
)
def test_a_hostile_package_is_refused(
    debs: Any, tools: Callable[[], Path], files: dict[str, Any], says: str
) -> None:
    debs.make("evil", files)
    with pytest.raises(Failure, match=says):
        tools()


def test_a_link_out_of_the_tree_stays_inside(debs: Any, tools: Callable[[], Path], tmp_path: Path) -> None:
    debs.make(
        "a", {"usr/lib/up": link("../../../../../../srv"), "srv/x": "x", "usr/lib/out": link(str(tmp_path))}
    )
    debs.make("b", {"usr/lib/up/y": "y"})
    assert {"srv/x", "srv/y"} <= entries(tools()).keys()
    debs.make("c", {"usr/lib/out/owned": "x"})
    with pytest.raises(Failure, match="/usr/lib/out: a and c"):
        tools()
    assert not (tmp_path / "owned").exists()


def test_a_set_without_packages_is_refused(debs: Any, tools: Callable[[], Path]) -> None:
    debs.folder.mkdir()
    with pytest.raises(Failure, match="no package"):
        tools()

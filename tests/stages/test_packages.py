"""The packages stage without its sandbox: the repository, what is checked, what is left out. (tests/system
installs.)
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.packages import __main__ as packages
from stages.packages.clean import clean, left_out
from stages.packages.install import install
from stages.packages.installed import check_installed
from stages.packages.repository import stored_repository
from stages.shared import canonical_tar, deb
from stages.shared.job import Failure, Job

EPOCH = 1_700_000_000


def test_the_stored_repository_is_indexed_by_its_own_files(debs: Any, tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        debs.make(name, {f"usr/{name}": name * 999})
    folder = stored_repository(debs.folder, tmp_path / "stored")
    stanzas = [deb.fields(stanza.strip()) for stanza in (folder / "Packages").read_text().split("\n\n")]
    assert [stanza["Package"] for stanza in stanzas] == ["a", "b", "c"]
    for stanza in stanzas:
        content = (folder / stanza["Filename"]).read_bytes()
        assert (int(stanza["Size"]), stanza["SHA256"]) == (len(content), hashlib.sha256(content).hexdigest())


def _root(tmp_path: Path, status: str) -> Path:
    root = tmp_path / "root"
    (root / "var/lib/dpkg/info").mkdir(parents=True)
    (root / "var/lib/dpkg/status").write_text(status)
    return root


def _stanza(name: str, version: str = "1", arch: str = "amd64", status: str = "install ok installed") -> str:
    of_it = f"Package: {name}\nStatus: {status}\nArchitecture: {arch}\nVersion: {version}\n"
    return f"{of_it}Conffiles:\n /etc/x abc\n\n"


def test_exactly_the_locked_packages_pass(tmp_path: Path) -> None:
    root = _root(tmp_path, _stanza("a") + _stanza("b", "2:1", "all"))
    check_installed(root, ["b:all=2:1", "a:amd64=1"])


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (_stanza("a"), "b:all=1 is missing"),
        (_stanza("a") + _stanza("b", arch="all") + _stanza("apt"), "apt:amd64=1 was not asked for"),
        (_stanza("a", "2") + _stanza("b", arch="all"), "a:amd64=1 is missing; a:amd64=2 was not asked for"),
        (
            _stanza("a") + _stanza("b", arch="all", status="install ok unpacked"),
            "b:all=1 is «install ok unpacked»",
        ),
    ],
    ids=["missing", "surplus", "other_version", "not_configured"],
)
def test_a_difference_is_named(tmp_path: Path, status: str, says: str) -> None:
    with pytest.raises(Failure, match=says):
        check_installed(_root(tmp_path, status), ["a:amd64=1", "b:all=1"])


LEAKS = (
    "etc/hostname", "etc/resolv.conf", "etc/passwd-", "etc/shadow-", "etc/apt/sources.list",
    "etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap", "var/log/dpkg.log",
    "var/log/apt/term.log", "var/log/bootstrap.log", "var/log/alternatives.log",
    "var/cache/apt/pkgcache.bin", "var/cache/apt/archives/x.deb", "var/cache/ldconfig/aux-cache",
    "var/cache/debconf/config.dat-old", "var/lib/dpkg/status-old", "var/lib/dpkg/lock",
    "var/lib/apt/lists/x_Packages", "var/lib/systemd/random-seed", "var/lib/dbus/machine-id", "run/x",
    "tmp/x", "var/tmp/x", "dev/null", "proc/x",
)  # fmt: skip
KEPT = (
    "etc/apt/apt.conf.d/01autoremove", "etc/ld.so.cache", "etc/group", "var/lib/dpkg/status",
    "var/lib/dpkg/lock.md", "var/cache/debconf/config.dat", "usr/share/etc/hostname", "var/log/journal",
)  # fmt: skip


def test_the_builder_and_the_moment_stay_out(tmp_path: Path) -> None:
    root = _root(tmp_path, "")
    (root / "var/lib/dpkg/info/apt.list").touch()
    for path in (*LEAKS, *KEPT):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    canonical_tar.pack(root, tmp_path / "tar", EPOCH, exclude=left_out(root))
    found = {entry.path for entry, _ in canonical_tar.read(tmp_path / "tar")}
    assert not found & {*LEAKS}
    assert {*KEPT, "run", "tmp", "dev", "var/lib/apt/lists"} <= found


def test_a_root_without_apt_has_no_trace_of_apt(tmp_path: Path) -> None:
    root = _root(tmp_path, "")
    for path in ("etc/apt/trusted.gpg.d", "var/lib/apt/lists", "var/cache/apt"):
        (root / path).mkdir(parents=True)
    canonical_tar.pack(root, tmp_path / "tar", EPOCH, exclude=left_out(root))
    assert not [
        entry.path for entry, _ in canonical_tar.read(tmp_path / "tar") if "apt" in entry.path.split("/")
    ]


def test_clean_rewrites_what_carries_the_moment(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    shadow = root / "etc/shadow"
    shadow.write_text("root:*:20454:0:99999:7:::\nsystemd-network:!*::::::1:\n")
    shadow.chmod(0o600)
    clean(root)
    assert shadow.read_text() == "root:*::0:99999:7:::\nsystemd-network:!*::::::1:\n"
    assert shadow.stat().st_mode & 0o7777 == 0o600
    assert (root / "etc/machine-id").read_bytes() == b""


def test_mmdebstrap_is_asked_for_the_exact_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def record(argv: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        asked.append(argv)
        return subprocess.CompletedProcess(argv, 0)

    monkeypatch.setattr(subprocess, "run", record)
    install(tmp_path / "root", tmp_path / "repository", "trixie", "amd64", ["a:amd64=1", "b:all=2:1"])
    (argv,) = asked
    assert argv[0] == "mmdebstrap"
    assert {
        "--mode=root",
        "--variant=custom",
        "--skip=chroot/mount,check/empty",
        "--include=a:amd64=1,b:all=2:1",
    } <= {*argv}
    assert argv[-3:] == [
        "trixie",
        str(tmp_path / "root"),
        f"deb [trusted=yes] copy:{tmp_path / 'repository'} ./",
    ]


def test_a_failed_installation_says_what_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mmdebstrap").write_text("#!/bin/sh\nexit 25\n")
    (tmp_path / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(Failure, match=r"^mmdebstrap: exit code 25$") as caught:
        install(tmp_path / "root", tmp_path, "trixie", "amd64", ["a:amd64=1"])
    assert "message above" in caught.value.hint


def test_the_tree_is_what_was_installed(
    debs: Any, make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole program around an installation that is stood in for."""

    def installed(root: Path, repository: Path, suite: str, arch: str, wanted: list[str]) -> None:
        assert [path.name for path in repository.glob("*.deb")] == ["hello_1.0_all.deb"]
        (root / "var/lib/dpkg/info").mkdir(parents=True)
        (root / "var/lib/dpkg/status").write_text(_stanza("hello", "1.0", "all"))
        (root / "etc").mkdir()
        (root / "etc/hostname").write_text("builder")

    monkeypatch.setattr(packages, "_SCRATCH", tmp_path)
    monkeypatch.setattr(packages, "install", installed)
    debs.make("hello", {"usr/bin/hello": "hi"})
    job = make_job(
        "packages",
        {"suite": "trixie", "arch": "amd64", "packages": ["hello:all=1.0"]},
        inputs={"repository": debs.folder},
    )
    packages.program(job)
    found = {entry.path: entry for entry, _ in canonical_tar.read(job.output("tree"))}
    assert "etc/hostname" not in found
    assert found["etc/machine-id"].size == 0
    assert {entry.mtime for entry in found.values()} == {EPOCH}

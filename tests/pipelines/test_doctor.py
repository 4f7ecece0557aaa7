"""The doctor: what is missing is named with the command that helps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import doctor, sandbox
from pipelines.doctor import Check
from pipelines.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_every_check_says_what_it_found_and_what_to_do(store: Store) -> None:
    checks = doctor.doctor(store)
    names = [check.check for check in checks]
    assert len(names) == len(set(names))
    assert {"python", "runc", "store", "scratch", "apt-get"} <= set(names)
    assert all(check.found and check.to_do for check in checks)
    assert checks[0] == Check("python", True, sys.version.split()[0], "install Python 3.11 or newer")


def test_an_ordinary_user_s_ids_are_checked_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    names = [check.check for check in doctor.doctor(store)]
    assert names[2:7] == ["newuidmap", "newgidmap", "subuid", "subgid", "user namespaces"]


def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "host_path", lambda: "/nowhere")
    assert doctor.program("runc", "runc") == Check("runc", False, "nothing", "apt-get install runc")


def test_a_missing_range_names_the_usermod_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    assert doctor.subordinate_ids("u", tmp_path) == Check(
        "subuid",
        False,
        "nothing",
        "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 4321",
    )


def test_a_range_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    (tmp_path / "subgid").write_text("4321:100000:65536\n")
    found = doctor.subordinate_ids("g", tmp_path)
    assert (found.check, found.ok, found.found) == ("subgid", True, "65536 ids from 100000")


def test_user_namespaces_that_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "unshare: unshare failed: Operation not permitted\n")

    monkeypatch.setattr(subprocess, "run", refused)
    found = doctor.user_namespaces()
    assert not found.ok
    assert found.found == "unshare: unshare failed: Operation not permitted"
    assert "unprivileged_userns_clone" in found.to_do


def test_a_store_that_can_t_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = doctor.store_folder(Store(tmp_path / "file"))
    assert not found.ok
    assert "--store DIR" in found.to_do


def test_too_little_room_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "STORE_SPACE", 1 << 60)
    found = doctor.store_folder(store)
    assert not found.ok
    assert found.found.startswith(f"{store.root}: ")
    assert "DISK_IMAGE_STORE" in found.to_do


def test_a_tmpdir_that_is_not_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    found = doctor.scratch(store)
    assert not found.ok
    assert found.found.startswith("TMPDIR=/nowhere")

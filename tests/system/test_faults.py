"""Bad input and bad luck, through the command: a clear error, nothing lost, and the same digest
afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.system.command import ROOT, Built, build, disk_image

pytestmark = [pytest.mark.sandbox, pytest.mark.network, pytest.mark.timeout(1800)]


def _arguments(quick: Built, warm_store: Path, store: Path, layout: Path) -> list[str]:
    pool = warm_store / "blobs" / "sha256"
    return [
        "build", os.fspath(ROOT / "recipes" / "quick"), "--output", os.fspath(layout), "--store",
        os.fspath(store), "--pool", os.fspath(pool), "--lock", os.fspath(quick.lock), "--tools-lock",
        os.fspath(quick.tools_lock), "--json",
    ]  # fmt: skip


def _processes_of(store: Path) -> list[str]:
    """Command lines that name the store, and containers that live in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if os.fspath(store) in command:
            found.append(command)
    return found


def test_kill_9_in_each_stage_then_the_same_command_finishes_with_the_same_digest(
    quick: Built, warm_store: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    argv = [sys.executable, "-m", "pipelines", *_arguments(quick, warm_store, store, tmp_path / "layout")]
    killed: set[str] = set()
    for _ in range(2 * len(quick.stages)):
        log, told = tmp_path / "stderr", tmp_path / "stdout"
        with log.open("w") as stderr, told.open("w") as stdout:
            process = subprocess.Popen(argv, cwd=ROOT, stdout=stdout, stderr=stderr, start_new_session=True)
            while process.poll() is None:
                running = {
                    line.split()[1].rstrip(":")
                    for line in log.read_text().splitlines()
                    if line.startswith("stage ") and line.endswith("running")
                }
                if fresh := running - killed:
                    killed |= fresh
                    time.sleep(0.2)
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    break
                time.sleep(0.02)
        if process.returncode != -signal.SIGKILL:
            break
        deadline = time.monotonic() + 10
        while (left := _processes_of(store)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left == [], "kill -9 left processes behind"
    assert killed == set(quick.stages), "some stage was never killed"
    assert process.returncode == 0, log.read_text()
    assert json.loads(told.read_text())["manifest_digest"] == quick.manifest_digest
    assert list((store / "work").iterdir()) == []


def test_two_builds_at_once_on_one_store_run_each_stage_once(
    quick: Built, warm_store: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "pipelines", *_arguments(quick, warm_store, store, tmp_path / name)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name in ("a", "b")
    ]  # fmt: skip
    told = []
    for process in processes:
        out, err = process.communicate(timeout=1200)
        assert process.returncode == 0, err
        told.append(json.loads(out))
    assert [t["manifest_digest"] for t in told] == [quick.manifest_digest] * 2
    ran = [{stage["name"] for stage in t["stages"] if stage["result"] == "ran"} for t in told]
    assert ran[0] | ran[1] == set(quick.stages)
    assert ran[0] & ran[1] == set()


def test_a_wrong_sha256_in_the_lock_names_the_package_expected_and_found(
    quick: Built, warm_store: Path, tmp_path: Path
) -> None:
    lock = json.loads(quick.lock.read_text())
    victim = next(package for package in lock["packages"] if "root" in package["sets"])
    right = victim["sha256"]
    victim["sha256"] = "0" * 64
    wrong = tmp_path / "lock.json"
    wrong.write_text(json.dumps(lock))
    done = disk_image(
        "build",
        ROOT / "recipes" / "quick",
        "--store",
        warm_store,
        "--lock",
        wrong,
        "--tools-lock",
        quick.tools_lock,
    )
    assert done.returncode == 1
    for word in (victim["name"], "0" * 64, right):
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_gone_from_the_archive_is_named_with_its_successor_and_the_command(
    quick: Built, warm_store: Path, tmp_path: Path
) -> None:
    lock = json.loads(quick.lock.read_text())
    victim = next(package for package in lock["packages"] if package["name"] == "iproute2")
    successor = victim["version"]
    victim |= {
        "version": "1.0-1",
        "sha256": "1" * 64,
        "pool_path": "pool/main/i/iproute2/iproute2_1.0-1_gone.deb",
    }
    stale = tmp_path / "lock.json"
    stale.write_text(json.dumps(lock))
    recipe = ROOT / "recipes" / "quick"
    done = disk_image(
        "build", recipe, "--store", warm_store, "--lock", stale, "--tools-lock", quick.tools_lock
    )
    assert done.returncode == 1
    for word in ("iproute2", "1.0-1", successor, "disk-image lock"):
        assert word in done.stderr, done.stderr

    shutil.copytree(recipe, tmp_path / "recipe")
    shutil.copy(stale, tmp_path / "recipe" / "lock.json")
    relocked = build(tmp_path / "recipe", tmp_path / "out" / "layout", warm_store, "--relock")
    assert relocked.lock.parent == tmp_path / "out"
    assert json.loads((tmp_path / "recipe" / "lock.json").read_text()) == lock, (
        "the committed lock was rewritten"
    )


def test_a_corrupted_store_entry_is_found_named_and_rebuilt(
    quick: Built, warm_store: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    argv = _arguments(quick, warm_store, store, tmp_path / "layout")
    assert disk_image(*argv).returncode == 0
    blob = max((store / "blobs" / "sha256").glob("*/*"), key=lambda path: path.stat().st_size)
    digest = blob.parent.name + blob.name
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(4096)
        file.write(b"corrupted")
    checked = disk_image("cache", "check", "--store", store)
    assert checked.returncode == 1
    assert digest in checked.stdout + checked.stderr
    assert disk_image("cache", "check", "--repair", "--store", store).returncode in (0, 1)
    assert disk_image("cache", "check", "--store", store).returncode == 0
    again = disk_image(*argv[:3], os.fspath(tmp_path / "again"), *argv[4:])
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["manifest_digest"] == quick.manifest_digest

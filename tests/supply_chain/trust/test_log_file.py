"""The log on disk: nothing that was answered is lost, whoever dies when, and damage is never served."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from supply_chain.errors import TrustError
from supply_chain.trust.embedded.log_file import LogFile
from supply_chain.trust.embedded.merkle import MerkleTree, leaf_hash

ROOT = Path(__file__).parents[3]
# Appends for ever; says of each entry that it is in only after it is.
_APPENDER = """
import sys
from pathlib import Path
from supply_chain.trust.embedded.log_file import LogFile
log, name, number = LogFile(Path(sys.argv[1])), sys.argv[2], 0
while number < int(sys.argv[3]):
    entry = f"{name} {number} ".encode() + b"x" * 3000
    included = log.append(entry, b"kept beside")
    print(included.index, number, flush=True)
    number += 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    LogFile.create(tmp_path / "log")
    return tmp_path / "log"


def appender(folder: Path, name: str, count: int) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", _APPENDER, str(folder), name, str(count)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def whole(folder: Path) -> list[bytes]:
    """All entries, after checking that they lead to the head."""
    log = LogFile(folder)
    head = log.head()
    entries = [entry for entry, _ in log.entries(0, head.tree_size)] if head.tree_size else []
    tree = MerkleTree()
    for entry in entries:
        tree.append(leaf_hash(entry))
    assert (tree.size, tree.root()) == (head.tree_size, head.root)
    return entries


def test_entries_come_back_with_what_is_kept_beside_them(folder: Path) -> None:
    log = LogFile(folder)
    log.append(b"one")
    log.append(b"two", b"beside")
    assert LogFile(folder).entries(0, 9) == [(b"one", b""), (b"two", b"beside")]
    assert LogFile(folder).entries(1, 2) == [(b"two", b"beside")]
    for start, end in ((2, 3), (-1, 1), (1, 1)):
        with pytest.raises(IndexError):
            LogFile(folder).entries(start, end)


def test_the_same_bytes_twice_are_one_entry(folder: Path) -> None:
    log = LogFile(folder)
    first = log.append(b"one")
    log.append(b"two")
    again = log.append(b"one")
    assert (first.index, again.index, again.tree_size) == (0, 0, 2)
    assert LogFile(folder).append(b"two").index == 1


def test_an_older_tree_stays_a_part_of_every_later_one(folder: Path) -> None:
    heads = []
    for number in range(20):
        LogFile(folder).append(b"%d" % number)
        heads.append(LogFile(folder).head())
    log = LogFile(folder)
    for head in heads:
        assert log.read(lambda tree, size=head.tree_size: tree.root(size)) == head.root  # type: ignore[misc]
    found = log.find(leaf_hash(b"3"), 7)
    assert found is not None
    assert (found.index, found.tree_size, found.root) == (3, 7, heads[6].root)
    assert log.find(leaf_hash(b"7"), 7) is None
    assert log.find(leaf_hash(b"3"), 21) is None
    assert log.find(leaf_hash(b"none"), 7) is None


def test_two_processes_append_at_once(folder: Path) -> None:
    writers = [appender(folder, name, 40) for name in ("a", "b")]
    told = {}
    for name, writer in zip("ab", writers, strict=True):
        output, _ = writer.communicate(timeout=60)
        assert writer.returncode == 0
        told[name] = [tuple(map(int, line.split())) for line in output.splitlines()]
    entries = whole(folder)
    assert len(entries) == 80
    for name, lines in told.items():
        assert len(lines) == 40
        for index, number in lines:
            assert entries[index].startswith(f"{name} {number} ".encode())


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_moment_nothing_that_was_told_is_lost(folder: Path, seed: int) -> None:
    before: list[bytes] = []
    for run in range(2):
        writer = appender(folder, f"run{run}", 1_000_000)
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(random.Random(seed * 10 + run).uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        told = [line.split() for line in (first + writer.stdout.read()).splitlines() if line.count(" ") == 1]
        writer.stdout.close()
        entries = whole(folder)
        assert entries[: len(before)] == before
        # the last line may itself be torn by the kill: its number is then no entry's
        for index, number in told[:-1]:
            assert entries[int(index)].startswith(f"run{run} {number} ".encode())
        before = entries


@pytest.mark.parametrize("kept", [1, 10, 39, 40, 41, 60])
def test_a_torn_tail_is_cut_off(folder: Path, kept: int) -> None:
    log = LogFile(folder)
    log.append(b"one")
    size, head = (folder / "entries").stat().st_size, (folder / "head").read_bytes()
    log.append(b"two" * 20)
    os.truncate(folder / "entries", size + kept)
    (folder / "head").write_bytes(head)
    assert whole(folder) == [b"one"]
    assert LogFile(folder).append(b"three").index == 1
    assert whole(folder) == [b"one", b"three"]


def test_an_entry_that_was_written_but_not_told_is_kept(folder: Path) -> None:
    log = LogFile(folder)
    head = (folder / "head").read_bytes()
    log.append(b"one")
    (folder / "head").write_bytes(head)
    assert whole(folder) == [b"one"]
    assert json.loads((folder / "head").read_text())["tree_size"] == 1


def test_a_failed_write_is_not_answered_and_can_be_repeated(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LogFile(folder)
    log.append(b"one")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TrustError, match="No space left on device"):
            log.append(b"two")
    assert log.append(b"two").index == 1
    assert whole(folder) == [b"one", b"two"]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def swap(path: Path) -> None:
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[half:] + content[:half])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("entries", cut, "entry 1 is torn or changed, the head counts 2"),
    ("entries", flip, "entry 1 is torn or changed, the head counts 2"),
    ("entries", empty, "entry 0 is torn or changed, the head counts 2"),
    ("entries", swap, "do not lead to the head"),
    ("head", cut, "head is not what was written"),
    ("head", empty, "head is not what was written"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE)
def test_a_damaged_log_is_never_served(
    folder: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    log = LogFile(folder)
    log.append(b"one")
    log.append(b"two")
    damage(folder / name)
    before = (folder / name).read_bytes()
    reopened = LogFile(folder)
    for opened in (reopened, reopened, LogFile(folder)):
        with pytest.raises(TrustError, match=message):
            opened.append(b"three")
    assert (folder / name).read_bytes() == before


def test_a_log_that_shrinks_under_a_running_service_is_noticed(folder: Path) -> None:
    log = LogFile(folder)
    log.append(b"one")
    empty(folder / "entries")
    with pytest.raises(TrustError, match="entries is shorter than it was"):
        log.append(b"two")


def test_a_log_that_another_holds_for_long_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supply_chain.trust.embedded.log_file._PATIENCE", 0.05)
    with LogFile(folder)._locked(), pytest.raises(TrustError, match="another process has held the log"):
        LogFile(folder).append(b"one")


def test_a_missing_log_is_named(folder: Path) -> None:
    (folder / "entries").unlink()
    with pytest.raises(TrustError, match=r"entries: No such file"):
        LogFile(folder).head()

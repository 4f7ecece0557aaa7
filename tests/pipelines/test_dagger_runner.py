"""What runs inside the executor's containers: results kept and found, and what damaged ones are answered."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from pipelines import dagger_runner as runner
from pipelines.definition import canonical_json
from stages.shared.canonical_tar import pack

DOCUMENT = {"definition": {"name": "kernel"}, "inputs": {}}
KEY = hashlib.sha256(canonical_json(DOCUMENT)).hexdigest()


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, place in {"OUT": "out", "RESULTS": "results", "KEPT": "kept", "PACKED": "packed.tar"}.items():
        monkeypatch.setattr(runner, name, tmp_path / place)
    (tmp_path / "out").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "vmlinuz").write_bytes(b"a kernel")
    sha256 = hashlib.sha256(b"a kernel").hexdigest()
    outputs = {"vmlinuz": {"kind": "file", "digest": sha256, "size": 8, "files": [], "sha256": sha256}}
    record = {"stage": "kernel", "key": KEY, "document": DOCUMENT, "outputs": outputs}
    (tmp_path / "kept" / "record.json").write_text(json.dumps(record))


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """A kept result's folder."""
    runner.keep("quick", "kernel", KEY)
    return tmp_path / "results" / KEY


def answer(tmp_path: Path) -> object:
    return json.loads((tmp_path / "out" / "answer.json").read_text())


def refused(code: int, verb: str, *words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        runner.find(*words) if verb == "find" else runner.fetch(*words)
    assert ended.value.code == code


def test_what_is_kept_is_found_and_fetched(entry: Path, tmp_path: Path) -> None:
    runner.find(KEY)
    assert answer(tmp_path) == json.loads((entry / "record.json").read_text())
    runner.fetch(KEY, "vmlinuz")
    assert (tmp_path / "out" / "vmlinuz").read_bytes() == b"a kernel"


def test_kept_twice_is_kept_once(entry: Path, tmp_path: Path) -> None:
    runner.keep("quick", "kernel", KEY)
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == sorted([KEY, "last"])
    runner.fetch(KEY, "vmlinuz")


def test_the_newest_document_of_each_stage(entry: Path, tmp_path: Path) -> None:
    runner.last("quick")
    assert answer(tmp_path) == {"kernel": DOCUMENT}
    runner.last("another plan")
    assert answer(tmp_path) == {}
    shutil.rmtree(entry)
    runner.last("quick")
    assert answer(tmp_path) == {}


def test_nothing_kept_is_absent(tmp_path: Path) -> None:
    refused(runner.ABSENT, "find", KEY)
    refused(runner.ABSENT, "fetch", KEY, "vmlinuz")


def test_poisoned_bytes_are_refused_and_removed(
    entry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (entry / "vmlinuz").write_bytes(b"a kernem")
    refused(runner.DAMAGED, "fetch", KEY, "vmlinuz")
    assert "vmlinuz: expected sha256" in capsys.readouterr().err
    assert not entry.exists()
    refused(runner.ABSENT, "find", KEY)


def test_truncated_output_is_refused_and_removed(entry: Path) -> None:
    (entry / "vmlinuz").write_bytes(b"a ker")
    refused(runner.DAMAGED, "fetch", KEY, "vmlinuz")
    assert not entry.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"document": 1}', "\x00"])
def test_a_broken_record_is_refused_and_removed(entry: Path, content: str) -> None:
    (entry / "record.json").write_text(content)
    refused(runner.DAMAGED, "find", KEY)
    assert not entry.exists()


def test_a_result_under_another_key_is_refused(entry: Path, tmp_path: Path) -> None:
    other = "0" * 64
    entry.rename(tmp_path / "results" / other)
    refused(runner.DAMAGED, "find", other)
    assert not (tmp_path / "results" / other).exists()


@pytest.mark.parametrize("gone", ["record.json", "vmlinuz"])
def test_half_an_entry_is_refused_and_removed(entry: Path, gone: str) -> None:
    (entry / gone).unlink()
    refused(runner.DAMAGED, "find", KEY)
    assert not entry.exists()


def test_what_is_not_the_result_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "kept" / "vmlinuz").write_bytes(b"another")
    with pytest.raises(SystemExit):
        runner.keep("quick", "kernel", KEY)
    assert list((tmp_path / "results").iterdir()) == []


def test_a_folder_travels_as_a_tar(tmp_path: Path) -> None:
    folder = tmp_path / "layout"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "one").write_text("1")
    pack(folder, tmp_path / "packed.tar", 0)
    runner.unpack_folder()
    assert (tmp_path / "out" / "folder" / "blobs" / "one").read_text() == "1"

"""The store: content by digest, results by key, nothing half-written, every damage found."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.definition import OutputKind
from pipelines.errors import StoreError
from pipelines.keys import Content
from pipelines.records import Record, Signature, Stored, StoredFile
from pipelines.scratch import sweep, work_folder
from pipelines.store import Last, Store, default_root, link_or_copy


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(store: Store, tmp_path: Path, text: str, key: str = "ab" * 32) -> Record:
    """A stored result with the one output `out`."""
    source = tmp_path / "out"
    source.write_text(text)
    stored, signatures = store.ingest(source, OutputKind.FILE)
    record = Record("stage", key, {"inputs": {}}, {"out": stored}, signatures, 1.5)
    store.save(record)
    return record


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"DISK_IMAGE_STORE": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"DISK_IMAGE_STORE": "", "XDG_CACHE_HOME": "/b"}, Path("/b/disk-image")),
        ({"XDG_CACHE_HOME": "relative"}, Path("~/.cache/disk-image").expanduser()),
        ({}, Path("~/.cache/disk-image").expanduser()),
    ],
)
def test_where_the_store_is(environment: dict[str, str], expected: Path) -> None:
    assert default_root(environment) == expected


def test_a_result_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    record = put(store, tmp_path, "content")
    assert Store(store.root).result(record.key) == record
    digest = hashlib.sha256(b"content").hexdigest()
    blob = store.root / "blobs" / "sha256" / digest[:2] / digest[2:]
    assert blob.read_text() == "content"
    assert stat.S_IMODE(blob.stat().st_mode) == 0o444


DIGESTS = st.binary(max_size=2).map(lambda data: hashlib.sha256(data).hexdigest())
FILES = st.lists(st.builds(StoredFile, st.text("ab/é", min_size=1), DIGESTS, st.integers(0, 9)), max_size=3)
OUTPUTS = st.dictionaries(
    st.sampled_from("ab"),
    st.builds(Stored, st.builds(Content, st.just(OutputKind.FILE), DIGESTS), st.integers(0, 9))
    | st.builds(
        Stored, st.builds(Content, st.just(OutputKind.FILES), DIGESTS), st.integers(0, 9), FILES.map(tuple)
    ),
)


@given(OUTPUTS, st.integers(0, 10**7))
def test_every_record_survives_its_file(outputs: dict[str, Stored], milliseconds: int) -> None:
    signatures = {sha256: Signature(1, 2, 3) for stored in outputs.values() for sha256, _ in stored.blobs()}
    record = Record("s", "k", {"params": {"é": [None, True, 1]}}, outputs, signatures, milliseconds / 1000)
    assert Record.from_bytes(record.to_bytes()) == record


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_a_truncated_record_is_no_result(store: Store, tmp_path: Path, cut: int) -> None:
    record = put(store, tmp_path, "content")
    path = store.result_path(record.key)
    path.write_bytes(path.read_bytes()[:cut])
    assert store.result(record.key) is None


def test_a_record_under_another_key_is_no_result(store: Store, tmp_path: Path) -> None:
    record = put(store, tmp_path, "content")
    other = "cd" * 32
    store.write(store.result_path(other), record.to_bytes())
    assert store.result(other) is None


def test_an_untouched_entry_is_fine_without_reading_it(store: Store, tmp_path: Path) -> None:
    record = put(store, tmp_path, "content")
    assert Store(store.root).damages(record, read=False) == []
    assert Store(store.root).damages(record, read=True) == []


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("remove", "is missing"),
        ("truncate", "has 3 bytes, expected 7"),
        ("replace", "holds bytes with sha256:"),
    ],
)
def test_every_use_sees_damage_that_the_inode_shows(
    store: Store, tmp_path: Path, damage: str, expected: str
) -> None:
    record = put(store, tmp_path, "content")
    blob = store.blob(record.outputs["out"].content.digest)
    blob.chmod(0o644)
    if damage == "remove":
        blob.unlink()
    elif damage == "truncate":
        os.truncate(blob, 3)
    else:
        blob.write_text("CONTENT")
    [found] = store.damages(record, read=False)
    assert str(found).startswith(f"stage.out: blob sha256:{found.sha256} {expected}")


def test_reading_sees_damage_that_the_inode_hides(store: Store, tmp_path: Path) -> None:
    record = put(store, tmp_path, "content")
    blob = store.blob(record.outputs["out"].content.digest)
    status = blob.stat()
    blob.chmod(0o644)
    blob.write_text("CONTENT")
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert Store(store.root).damages(record, read=False) == []
    [found] = Store(store.root).damages(record, read=True)
    assert "holds bytes with" in found.what


def test_a_store_that_was_copied_is_read_once_and_then_trusted(store: Store, tmp_path: Path) -> None:
    record = put(store, tmp_path, "content")
    shutil.copytree(store.root, tmp_path / "copy")
    copy = Store(tmp_path / "copy")
    assert copy.damages(record, read=False) == []
    signed = copy.result(record.key)
    assert signed is not None
    assert signed.signatures != record.signatures
    assert signed.same_outputs(record)


def test_equal_content_is_kept_once(store: Store, tmp_path: Path) -> None:
    one = put(store, tmp_path, "content", "ab" * 32)
    two = put(store, tmp_path, "content", "cd" * 32)
    assert one.signatures == two.signatures
    assert len([path for path in store.blobs.rglob("*") if path.is_file()]) == 1


def test_good_bytes_replace_damaged_ones_of_the_same_digest(store: Store, tmp_path: Path) -> None:
    record = put(store, tmp_path, "content")
    blob = store.blob(record.outputs["out"].content.digest)
    blob.chmod(0o644)
    blob.write_text("CONTENT")
    put(Store(store.root), tmp_path, "content")
    assert blob.read_text() == "content"


def test_a_file_with_another_name_elsewhere_is_copied_not_shared(store: Store, tmp_path: Path) -> None:
    pool = tmp_path / "pool.deb"
    pool.write_text("content")
    out = tmp_path / "out"
    os.link(pool, out)
    store.ingest(out, OutputKind.FILE)
    pool.write_text("changed later")
    digest = hashlib.sha256(b"content").hexdigest()
    assert store.blob(digest).read_text() == "content"
    assert stat.S_IMODE(pool.stat().st_mode) != 0o444


def test_a_file_that_links_to_the_blob_already_stays_one(store: Store, tmp_path: Path) -> None:
    record = put(store, tmp_path, "content")
    blob = store.blob(record.outputs["out"].content.digest)
    out = tmp_path / "again"
    os.link(blob, out)
    _, signatures = Store(store.root).ingest(out, OutputKind.FILE)
    assert signatures == record.signatures


def test_names_that_are_no_text_are_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "folder") + b"/\xff")).write_text("")
    with pytest.raises(ValueError, match="expected a name in UTF-8"):
        store.ingest(tmp_path / "folder", OutputKind.FILES)


def test_a_fifo_in_an_output_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "pipe")
    with pytest.raises(ValueError, match="pipe: expected a plain file, found a device, socket or fifo"):
        store.ingest(tmp_path / "folder", OutputKind.FILES)


def test_links_share_the_blobs(store: Store, tmp_path: Path) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "file").write_text("content")
    stored, _ = store.ingest(tmp_path / "folder", OutputKind.FILES)
    store.link(stored, tmp_path / "linked")
    blob = store.blob(hashlib.sha256(b"content").hexdigest())
    assert (tmp_path / "linked" / "deep" / "file").samefile(blob)


def test_where_links_can_t_be_a_copy_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cross(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    (tmp_path / "a").write_text("content")
    monkeypatch.setattr(os, "link", cross)
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "content"
    assert not (tmp_path / "b").samefile(tmp_path / "a")


def test_the_newest_result_of_a_stage_is_remembered(store: Store) -> None:
    assert store.last("plan", "stage") is None
    store.set_last("plan", "stage", Last("ab" * 32, same_output=True))
    assert store.last("plan", "stage") == Last("ab" * 32, same_output=True)


def test_a_key_s_lock_has_one_holder_even_in_one_process(store: Store) -> None:
    first = store.lock("key")
    assert first is not None
    assert store.lock("key") is None
    first.release()
    again = store.lock("key")
    assert again is not None
    again.release()


def test_a_killed_holder_s_lock_is_free(store: Store) -> None:
    code = (
        "import os, sys; from pathlib import Path; from pipelines.store import Store;"
        f"held = Store(Path({str(store.root)!r})).lock('key'); print(held is not None, flush=True);"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n"
    lock = store.lock("key")
    assert lock is not None
    lock.release()


def test_a_live_job_s_folder_is_not_swept(store: Store, tmp_path: Path) -> None:
    with work_folder(store, "job", tmp_path) as work:
        assert sweep(store) == []
        assert work.folder.is_dir()
        assert work.scratch.is_dir()
    assert not work.folder.exists()
    assert not work.scratch.parent.exists()


def test_a_dead_job_s_folders_are_swept(store: Store, tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from pipelines.store import Store;"
        "from pipelines.scratch import work_folder\n"
        f"with work_folder(Store(Path({str(store.root)!r})), 'job', Path({str(tmp_path)!r})) as work:\n"
        "    (work.folder / 'sub').mkdir(); (work.scratch / 'file').touch(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    [dead] = (store.root / "work").iterdir()
    scratch = tmp_path / f"disk-image-{dead.name}"
    assert scratch.is_dir()
    assert sweep(store) == [dead.name]
    assert not dead.exists()
    assert not scratch.exists()


def test_a_forged_scratch_path_is_not_removed(store: Store, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    dead = store.root / "work" / "job-0"
    dead.mkdir(parents=True)
    (dead / "scratch").write_text(str(precious))
    sweep(store)
    assert precious.is_dir()
    assert not dead.exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [(28, "no space left"), (122, "no space left"), (30, "can't be written"), (13, "can't be written")],
    ids=["ENOSPC", "EDQUOT", "EROFS", "EACCES"],
)
def test_what_a_disk_refuses_says_what_to_do(store: Store, code: int, words: str) -> None:
    with pytest.raises(StoreError, match=words) as caught, store.guard("testing"):
        raise OSError(code, os.strerror(code))
    assert "--store DIR" in caught.value.hint


def test_other_errors_pass_as_they_are(store: Store) -> None:
    with pytest.raises(IsADirectoryError), store.guard("testing"):
        raise IsADirectoryError

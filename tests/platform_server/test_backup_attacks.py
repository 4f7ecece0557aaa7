"""Backups that are damaged, changed or made by somebody else: each is refused before anything is there."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from platform_server.backup import format
from platform_server.backup.archive import Reader
from platform_server.backup.format import LARGEST_PART
from platform_server.backup.read import Checker, read
from platform_server.errors import BackupError, StateError
from platform_server.sealing import Sealer
from tests.platform_server.backups import Member, Target, build, changed, members, put

GOOD = Path(__file__).with_name("format-1-schema-0002.backup")
MEMBERS = members(GOOD)
EVENTS = format.rows_name("events", 0)
UPLOAD = next(name for name, _ in MEMBERS if name.startswith("uploads/"))
SIZE = GOOD.stat().st_size


def _refused(path: Path, target: Path, match: str) -> None:
    with pytest.raises(BackupError, match=match) as raised:
        put(path, Target(target))
    assert raised.value.hint
    assert "\n" not in raised.value.what
    assert not target.exists()


def _json(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    def work(content: bytes) -> bytes:
        loaded = json.loads(content)
        change(loaded)
        return json.dumps(loaded).encode()

    return work


def _lines(change: Callable[[list[bytes]], object]) -> Callable[[bytes], bytes]:
    def work(content: bytes) -> bytes:
        lines = gzip.decompress(content).splitlines(keepends=True)
        change(lines)
        return gzip.compress(b"".join(lines))

    return work


def _signed(content: Sequence[Member]) -> list[Member]:
    """As somebody signs it who has the key: the manifest is made anew."""
    key = dict(content)["secrets.key"]
    manifest = dict(content)["manifest.json"]
    signature = Sealer(key).sign(format.signed(manifest)).encode()
    return changed(content, "manifest.hmac", lambda _: signature)


@pytest.mark.parametrize("length", [0, 1, 511, 512, 600, 9000, SIZE // 2, SIZE - 1024, SIZE - 1])
def test_cut_off(tmp_path: Path, length: int) -> None:
    path = tmp_path / "platform.backup"
    path.write_bytes(GOOD.read_bytes()[:length])
    _refused(path, tmp_path / "state", "is cut off|expected the header")


def test_bytes_after_the_end(tmp_path: Path) -> None:
    path = tmp_path / "platform.backup"
    path.write_bytes(GOOD.read_bytes() + b"\0")
    _refused(path, tmp_path / "state", "expected nothing after manifest.hmac")


def test_not_a_backup_at_all(tmp_path: Path) -> None:
    path = tmp_path / "platform.backup"
    for content in (b"SQLite format 3\0" * 100, bytes(10240), gzip.compress(GOOD.read_bytes())):
        path.write_bytes(content)
        _refused(path, tmp_path / "state", "expected the header of a member|expected a member")
    _refused(tmp_path, tmp_path / "state", "not a regular file|Is a directory")
    _refused(tmp_path / "nothing", tmp_path / "state", "No such file")


@given(at=st.integers(0, SIZE - 1), flip=st.integers(1, 255))
def test_one_byte_changed_anywhere(at: int, flip: int) -> None:
    content = bytearray(GOOD.read_bytes())
    content[at] ^= flip
    with pytest.raises(BackupError):
        read(io.BytesIO(content), None, Checker(), lambda line: None)


@given(content=st.binary(max_size=2000))
def test_arbitrary_bytes_are_no_backup(content: bytes) -> None:
    with pytest.raises(BackupError):
        read(io.BytesIO(content), None, Checker(), lambda line: None)


CHANGES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "another format": (format.HEAD, _json(lambda head: head.update(format=2)), "expected format 1, found 2"),
    "a schema of the future": (
        format.HEAD,
        _json(lambda head: head.update(revision="9999")),
        "schema 9999 is not one of this program's",
    ),
    "a schema that is a path": (format.HEAD, _json(lambda head: head.update(revision="../x")), "revision"),
    "a table with SQL for a name": (
        format.HEAD,
        _json(lambda head: head["tables"][0].update(name='accounts"; DROP TABLE users; --')),
        "tables.0.name",
    ),
    "a table twice": (
        format.HEAD,
        _json(lambda head: head["tables"].append(head["tables"][-1])),
        "each once",
    ),
    "a column twice": (
        format.HEAD,
        _json(lambda head: head["tables"][0]["columns"].append(head["tables"][0]["columns"][0])),
        "expected columns, each once",
    ),
    "a kind that is none": (
        format.HEAD,
        _json(lambda head: head["tables"][0]["columns"][0].update(kind="pickle")),
        "kind",
    ),
    "a head that is no JSON": (format.HEAD, lambda content: content[:-1], "JSON"),
    "a head that is deep": (format.HEAD, lambda _: b"[" * 100_000, "JSON"),
    "an administrator's token put in": (
        format.rows_name("tokens", 0),
        _lines(lambda lines: lines.append(lines[0].replace(lines[0][2:10], b"00000000"))),
        "tokens: expected",
    ),
    "an event taken out": (EVENTS, _lines(lambda lines: lines.pop()), "events: expected"),
    "events in another order": (EVENTS, _lines(lambda lines: lines.reverse()), "events: expected"),
    "a row of another length": (EVENTS, _lines(lambda lines: lines.append(b"[]\n")), "expected a row"),
    "a row that is deep": (
        EVENTS,
        _lines(lambda lines: lines.append(b"[" * 100_000 + b"\n")),
        "expected a row",
    ),
    "half a line": (EVENTS, _lines(lambda lines: lines.append(b"[1")), "expected whole lines"),
    "a part that is no gzip": (EVENTS, lambda _: b"not gzip", "expected gzip"),
    "a part with more behind it": (EVENTS, lambda content: content + content, "one gzip member"),
    "a bomb": (EVENTS, lambda _: gzip.compress(bytes(LARGEST_PART + 1), 9), "of at most"),
    "another upload": (UPLOAD, lambda content: content[::-1], "upload .*: expected what it says"),
    "another key": ("secrets.key", lambda _: bytes(32), "another signature"),
    "a short key": ("secrets.key", lambda key: key[:16], "expected 32 bytes"),
    "a long key": ("secrets.key", lambda key: key * 2, "expected at most 32 bytes"),
    "another manifest": (format.MANIFEST, lambda content: content + b" ", "another signature"),
    "another signature": (format.SIGNATURE, lambda _: b"0" * 64, "another signature"),
    "a signature that is no text": (format.SIGNATURE, lambda _: b"\xff" * 64, "another signature"),
}


@pytest.mark.parametrize("attack", CHANGES)
def test_changed(tmp_path: Path, attack: str) -> None:
    name, change, match = CHANGES[attack]
    path = build(tmp_path / "platform.backup", changed(MEMBERS, name, change))
    _refused(path, tmp_path / "state", match)


ORDERS: dict[str, tuple[Callable[[list[Member]], object], str]] = {
    "an upload that climbs out": (
        lambda all: all.insert(-2, ("uploads/../../etc/cron.d/x.tar", b"")),
        "expected manifest.json",
    ),
    "an upload with an absolute path": (
        lambda all: all.insert(-2, ("/etc/cron.d/x", b"")),
        "expected manifest.json",
    ),
    "an upload twice": (lambda all: all.insert(-2, all[-3]), "expected uploads in order"),
    "an upload nobody has": (
        lambda all: all.insert(-2, ("uploads/ffffffff-ffff-7fff-bfff-ffffffffffff.tar", b"x")),
        "upload ffffffff-ffff-7fff-bfff-ffffffffffff",
    ),
    "an upload left out": (lambda all: all.pop(-3), "upload .*: expected what it says"),
    "the head twice": (lambda all: all.insert(0, all[0]), "expected secrets.key, found 'backup.json'"),
    "no head": (lambda all: all.pop(0), "expected backup.json"),
    "no key": (lambda all: all.pop(1), "expected secrets.key"),
    "no signature": (lambda all: all.pop(), "is cut off|expected the header"),
    "no manifest": (lambda all: all.pop(-2), "expected manifest.json"),
    "a part twice": (lambda all: all.insert(3, all[2]), "expected manifest.json"),
    "rows of an unknown table": (
        lambda all: all.insert(2, (format.rows_name("secrets", 0), b"")),
        "expected manifest.json",
    ),
    "a table left out": (lambda all: all.remove((EVENTS, dict(all)[EVENTS])), "events: expected"),
}


@pytest.mark.parametrize("attack", ORDERS)
def test_other_members(tmp_path: Path, attack: str) -> None:
    change, match = ORDERS[attack]
    content = list(MEMBERS)
    change(content)
    _refused(build(tmp_path / "platform.backup", content), tmp_path / "state", match)


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE,
     tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE],
)  # fmt: skip
def test_members_that_are_no_plain_files(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "platform.backup"
    with tarfile.open(path, "w:", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo(format.HEAD)
        info.type, info.linkname = kind, "/etc/shadow"
        archive.addfile(info)
    _refused(path, tmp_path / "state", "expected a member of a backup|expected the header")


def test_a_size_that_is_not_there_costs_no_memory(tmp_path: Path) -> None:
    """8 EiB are announced, for a member that may be long."""
    info = tarfile.TarInfo(UPLOAD)
    info.size, info.mode = 1 << 62, 0o600
    reader = Reader(io.BytesIO(info.tobuf(tarfile.GNU_FORMAT) + b"x"))
    assert reader.size == 1 << 62
    with pytest.raises(BackupError, match="is cut off after uploads/"):
        for _ in reader.chunks():
            pass
    info.name = format.HEAD
    path = tmp_path / "platform.backup"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"x")
    _refused(path, tmp_path / "state", "expected at most 1048576 bytes")


SIGNED: dict[str, tuple[Callable[[Any], object], Callable[[Any], object], str]] = {
    "columns of another schema": (
        lambda head: head["tables"][0]["columns"].append({"name": "extra", "kind": "text"}),
        lambda manifest: None,
        "expected a row",
    ),
    "no rows of a table": (
        lambda head: None,
        lambda manifest: manifest["tables"]["users"].update(rows=0),
        "users: expected",
    ),
}


@pytest.mark.parametrize("attack", SIGNED)
def test_signed_by_who_has_the_key_and_yet_wrong(tmp_path: Path, attack: str) -> None:
    head, manifest, match = SIGNED[attack]
    content = changed(MEMBERS, format.HEAD, _json(head))
    content = _signed(changed(content, format.MANIFEST, _json(manifest)))
    _refused(build(tmp_path / "platform.backup", content), tmp_path / "state", match)


def _forged(name: str, change: Callable[[list[bytes]], object]) -> list[Member]:
    """Rows of a table changed, and everything that says what they are made to fit."""
    content = changed(MEMBERS, name, _lines(change))
    lines = gzip.decompress(dict(content)[name])
    digest = {"rows": lines.count(b"\n"), "parts": 1, "sha256": hashlib.sha256(lines).hexdigest()}
    table = name.split("/")[1]
    return _signed(
        changed(content, format.MANIFEST, _json(lambda manifest: manifest["tables"].update({table: digest})))
    )


def test_rows_that_refer_to_nothing(tmp_path: Path) -> None:
    content = _forged(format.rows_name("users", 0), lambda lines: lines.clear())
    path = build(tmp_path / "platform.backup", _without_part(content, "users"))
    with pytest.raises(StateError, match="lead nowhere"):
        put(path, Target(tmp_path / "state"))
    assert not (tmp_path / "state").exists()


def _without_part(content: list[Member], table: str) -> list[Member]:
    """No lines: no part."""
    empty = {
        "rows": 0,
        "parts": 0,
        "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }
    left = [each for each in content if each[0] != format.rows_name(table, 0)]
    return _signed(
        changed(left, format.MANIFEST, _json(lambda manifest: manifest["tables"].update({table: empty})))
    )


def test_a_row_that_the_schema_refuses(tmp_path: Path) -> None:
    def broken(lines: list[bytes]) -> None:
        lines[0] = lines[0].replace(b'"purged"', b'"stolen"')

    path = build(tmp_path / "platform.backup", _forged(format.rows_name("publications", 0), broken))
    _refused(path, tmp_path / "state", "a row of the backup can't be kept there: CHECK constraint failed")


def test_a_row_that_reads_back_as_another_one(tmp_path: Path) -> None:
    """The same time in another zone, which a database keeps as this one."""

    def zoned(lines: list[bytes]) -> None:
        lines[0] = lines[0].replace(b"T12:00:00.000000+00:00", b"T14:00:00.000000+02:00")

    path = build(tmp_path / "platform.backup", _forged(format.rows_name("accounts", 0), zoned))
    _refused(path, tmp_path / "state", "accounts: expected 1 rows with SHA-256 .*, read back 1 with")

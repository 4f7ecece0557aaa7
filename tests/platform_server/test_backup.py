"""A backup of either database, restored into either, is the same platform; what must not be overwritten."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, func, select, text

from platform_server.accounts import user_token
from platform_server.app import create_app
from platform_server.errors import BackupError, StateError
from platform_server.migrations.run import newest
from platform_server.state_folder import backup_mark, initialise, open_database, open_platform
from platform_server.tables import Account, Publication, Webhook
from platform_server.tokens import authenticate
from platform_server.upload_files import file_of
from platform_server.webhooks import secrets_of
from tests.platform_server.backups import Target, digests, members, put, rows_of, take
from tests.platform_server.clock import START, Clock
from tests.platform_server.conftest import DATABASES
from tests.platform_server.invariants import broken
from tests.platform_server.lived import SECRET, live, upload
from tests.platform_server.made import Made
from tests.platform_server.verifying import Trial
from tests.postgres_server import PostgresServer
from tests.system.command import disk_image

OLDER = Path(__file__).with_name("format-1-schema-0002.backup")
CONTENT = b"an image" * 100_000


# what backups are taken of, unless a test says on both
pytestmark = pytest.mark.one_database


@pytest.fixture(params=DATABASES)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    """Where they are restored to."""
    folder = tmp_path / "restored"
    if request.param == "sqlite":
        yield Target(folder)
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    name = server.create()
    yield Target(folder, server.url(name))
    server.drop(name)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("made", DATABASES, indirect=True)
def test_what_is_restored_is_the_same_row_by_row_and_lives_on(
    trial: Trial, clock: Clock, made: Made, target: Target, tmp_path: Path
) -> None:
    live(trial, clock)
    there, awaited = upload(trial, CONTENT), upload(trial, b"later", arrived=False)
    path = tmp_path / "platform.backup"
    taken = take(trial.platform, path)
    assert not taken.warnings
    assert _mode(path) == 0o600
    assert not list(tmp_path.glob("*.part"))
    contents = put(path, target)
    assert contents.manifest == taken.manifest
    assert contents.head.created_at == clock()
    before = digests(trial.platform)
    assert {name: (each.rows, each.sha256) for name, each in taken.manifest.tables.items()} == before
    assert rows_of(target) == before
    assert all(before[name][0] for name in ("publications", "events", "webhook_deliveries", "tokens"))
    restored = target.open()
    with closing(restored.database):
        assert broken(restored) == []
        read = restored.database.read_now
        assert read(lambda on: authenticate(on, made.admin_token)).name == "admin"
        hook = read(lambda on: on.get_one(Webhook, trial.webhook_id))
        assert SECRET in secrets_of(hook, restored.sealer, hook.created_at)
        assert file_of(restored, there).read_bytes() == CONTENT
        assert not file_of(restored, awaited).exists()
        assert _mode(file_of(restored, there)) == 0o600
        # and can be written, with its references looked at
        restored.database.write_now(lambda on: user_token(on, "another", "admin", ["*"], START))
        with pytest.raises(Exception, match=r"(?i)foreign key"):
            restored.database.write_now(lambda on: on.execute(delete(Account)))
    again = tmp_path / "again.backup"
    take(trial.platform, again)
    assert members(again) == members(path)
    assert _mode(target.folder) == 0o700
    assert _mode(target.folder / "secrets.key") == 0o600


def test_a_backup_without_its_key_asks_for_it_and_takes_no_other(
    trial: Trial, clock: Clock, made: Made, target: Target, tmp_path: Path
) -> None:
    live(trial, clock)
    path = tmp_path / "platform.backup"
    take(trial.platform, path, with_key=False)
    key = made.folder / "secrets.key"
    assert key.read_bytes() not in path.read_bytes()
    with pytest.raises(BackupError, match="without the key") as raised:
        put(path, target)
    assert "--key" in raised.value.hint
    other = tmp_path / "other"
    other.write_bytes(bytes(32))
    other.chmod(0o600)
    with pytest.raises(BackupError, match="signed with this platform's key"):
        put(path, target, other)
    assert not target.folder.exists()
    put(path, target, key)
    assert rows_of(target) == digests(trial.platform)
    assert (target.folder / "secrets.key").read_bytes() == key.read_bytes()


def test_the_named_key_must_be_the_one_that_is_in_the_backup(
    trial: Trial, made: Made, target: Target, tmp_path: Path
) -> None:
    path, other = tmp_path / "platform.backup", tmp_path / "other"
    take(trial.platform, path)
    other.write_bytes(bytes(32))
    other.chmod(0o600)
    with pytest.raises(BackupError, match="expected the key that --key names"):
        put(path, target, other)
    put(path, target, made.folder / "secrets.key", dry_run=True)
    assert not target.folder.exists()
    put(path, target, made.folder / "secrets.key")


@pytest.mark.parametrize("there", ["a platform", "a file", "another key", "another's upload", "a link"])
def test_what_is_there_is_not_overwritten(trial: Trial, target: Target, tmp_path: Path, there: str) -> None:
    path = tmp_path / "platform.backup"
    take(trial.platform, path)
    folder = target.folder
    if there == "a platform":
        initialise(folder, START, target.database)
    else:
        (folder / "uploads").mkdir(parents=True)
        if there == "a file":
            (folder / "notes").write_text("mine")
        elif there == "another key":
            (folder / "secrets.key").write_bytes(bytes(32))
            (folder / "secrets.key").chmod(0o600)
        elif there == "a link":
            (folder / "secrets.key").symlink_to(trial.platform.folder / "secrets.key")
        else:
            (folder / "uploads" / f"{UUID(int=7)}.tar").touch()
    before = {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()}
    for dry_run in (True, False):
        with pytest.raises(BackupError, match=r"expected a folder|expected an empty database"):
            put(path, target, dry_run=dry_run)
    assert {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()} == before


def test_a_database_with_foreign_tables_is_not_touched(trial: Trial, target: Target, tmp_path: Path) -> None:
    path = tmp_path / "platform.backup"
    take(trial.platform, path)
    target.folder.mkdir()
    with closing(open_database(target.folder, target.database)) as opened, opened.migrating() as on:
        on.execute(text("CREATE TABLE theirs (id INTEGER)"))
    with pytest.raises(BackupError, match=r"expected an empty database, found 1 tables \(theirs\)"):
        put(path, target)
    with closing(open_database(target.folder, target.database)) as opened, opened.snapshot() as on:
        assert on.execute(text("SELECT count(*) FROM theirs")).scalar_one() == 0
    assert not (target.folder / "secrets.key").exists()


def test_a_restore_that_fails_leaves_nothing_and_an_empty_folder_is_filled(
    trial: Trial, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(trial, CONTENT)
    path = tmp_path / "platform.backup"
    take(trial.platform, path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("platform_server.backup.place.os.fsync", full)
        with pytest.raises(BackupError, match="No space left on device"):
            put(path, target)
    assert not target.folder.exists()
    with monkeypatch.context() as patched:
        patched.setattr("platform_server.backup.place.Place.upload", full)
        with pytest.raises(BackupError, match="No space left on device"):
            put(path, target)
    assert not target.folder.exists()
    target.folder.mkdir()
    put(path, target)
    assert rows_of(target) == digests(trial.platform)


def test_a_backup_that_fails_leaves_nothing_under_its_name(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(trial, CONTENT)
    path = tmp_path / "platform.backup"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for place in ("platform_server.backup.archive.os.fsync", "platform_server.backup.archive.Writer.stream"):
        with monkeypatch.context() as patched:
            patched.setattr(place, full)
            with pytest.raises(BackupError, match="No space left on device"):
                take(trial.platform, path)
        assert not list(tmp_path.glob("platform.backup*"))
    path.write_text("yesterday's")
    with pytest.raises(BackupError, match="expected a new file"):
        take(trial.platform, path)
    assert path.read_text() == "yesterday's"
    with pytest.raises(BackupError, match="No such file or directory"):
        take(trial.platform, tmp_path / "nowhere" / "platform.backup")


def test_what_a_killed_backup_left_is_replaced(trial: Trial, tmp_path: Path) -> None:
    (tmp_path / "platform.backup.part").write_bytes(b"half")
    take(trial.platform, tmp_path / "platform.backup")
    assert [each.name for each in tmp_path.glob("platform.backup*")] == ["platform.backup"]


def test_an_upload_that_is_lost_or_damaged_is_told_and_the_rest_kept(
    trial: Trial, target: Target, tmp_path: Path
) -> None:
    damaged, lost = upload(trial, CONTENT), upload(trial, b"another")
    file_of(trial.platform, damaged).write_bytes(b"changed" * 10)
    file_of(trial.platform, lost).unlink()
    trial.write(
        lambda on: on.execute(
            text("UPDATE publications SET status = 'verifying' WHERE upload_size_bytes = 7")
        )
    )
    taken = take(trial.platform, tmp_path / "platform.backup")
    assert list(taken.warnings) == [
        f"publication {damaged}: its upload is not the one that came",
        f"publication {lost} is verifying: its upload is not there",
    ]
    assert not backup_mark(trial.platform.folder).exists()
    put(tmp_path / "platform.backup", target)
    assert rows_of(target) == digests(trial.platform)


def test_a_whole_backup_is_marked_for_those_who_watch(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    platform = made.open(clock=clock)
    with closing(platform.database):
        registry = create_app(platform).state.process.registry

        def marked() -> object:
            return registry.get_sample_value("disk_image_last_backup_timestamp_seconds")

        assert marked() == 0
        take(platform, tmp_path / "first")
        before = clock().timestamp()
        assert marked() == before
        clock.pass_by(days=1)
        with pytest.raises(BackupError):
            take(platform, tmp_path / "first")
        assert marked() == before
        take(platform, tmp_path / "second")
        assert marked() == clock().timestamp()
        monkeypatch.setattr("os.utime", _fails)
        take(platform, tmp_path / "third")
        assert "nobody who watches the platform sees this backup" in caplog.text


def _fails(*arguments: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize("made", DATABASES, indirect=True)
def test_the_commands_say_what_they_did(
    trial: Trial, clock: Clock, made: Made, target: Target, tmp_path: Path
) -> None:
    live(trial, clock)
    upload(trial, CONTENT)
    path = tmp_path / "platform.backup"
    done = disk_image("platform", "backup", *made.argv, path, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    counts = {name: rows for name, (rows, _) in digests(trial.platform).items()}
    assert answer == {
        "file": str(path),
        "size_bytes": path.stat().st_size,
        "has_key": True,
        "rows": counts,
        "uploads": 1,
        "warnings": [],
    }
    assert f"events: {counts['events']} rows" in done.stderr.splitlines()
    place = {"DISK_IMAGE_PLATFORM_DATABASE": target.database} if target.database else {}
    argv = ("platform", "restore", "--state", target.folder, path)
    dry = disk_image(*argv, "--dry-run", "--json", env=place)
    assert dry.returncode == 0, dry.stderr
    assert json.loads(dry.stdout)["dry_run"] is True
    assert not target.folder.exists()
    done = disk_image(*argv, env=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{target.folder}: {sum(counts.values())} rows and 1 uploads of 20")
    assert "read back: every row is as in the backup" in done.stderr
    again = disk_image(*argv, env=place)
    assert again.returncode == 1
    assert "Traceback" not in again.stderr
    assert "expected a" in again.stderr


def test_a_backup_of_an_older_schema_is_restored_and_brought_forward(target: Target, tmp_path: Path) -> None:
    """The program of schema 0002 made it, of what `live` and `upload` do."""
    contents = put(OLDER, target)
    assert contents.head.revision == "0002" != newest()
    restored = target.open()
    with closing(restored.database):
        assert broken(restored) == []
        count = restored.database.read_now(lambda on: on.scalar(select(func.count(Publication.id))))
        assert count == contents.manifest.tables["publications"].rows > 0


@pytest.mark.postgres
@pytest.mark.parametrize("target", ["postgres"], indirect=True)
def test_what_can_not_be_kept_elsewhere_is_said_without_the_row(
    trial: Trial, target: Target, tmp_path: Path
) -> None:
    """SQLite takes the character 0 in a text, PostgreSQL does not."""
    trial.change(description="a\0b")
    take(trial.platform, tmp_path / "platform.backup")
    with pytest.raises((BackupError, StateError), match="NUL") as raised:
        put(tmp_path / "platform.backup", target)
    assert "a\\0b" not in raised.value.what
    assert not target.folder.exists()


def test_a_folder_that_is_no_platform_has_no_backup(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no platform's state"):
        open_platform(tmp_path)
    done = disk_image("platform", "backup", "--state", tmp_path, tmp_path / "platform.backup")
    assert done.returncode == 1
    assert not (tmp_path / "platform.backup").exists()

"""The state folder: whose it is, what a second or killed `init` does, and the key."""

from __future__ import annotations

import os
import time
from pathlib import Path
from uuid import UUID

import pytest

from platform_server import identifiers
from platform_server.errors import StateError
from platform_server.events import Kind, Told, emit, recent
from platform_server.identifiers import continue_after
from platform_server.sealing import Sealer, make_key, read_key
from platform_server.state_folder import initialise, open_platform
from platform_server.tokens import authenticate
from tests.platform_server.api import Api
from tests.platform_server.clock import START
from tests.platform_server.made import Made
from tests.platform_server.rows import first_account_id


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_only_the_owner_can_read_it_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        initialise(tmp_path / "state", START)
    finally:
        os.umask(before)
    assert _mode(tmp_path / "state") == 0o700
    assert {path.name: _mode(path) for path in (tmp_path / "state").iterdir()} == {
        "platform.db": 0o600,
        "secrets.key": 0o600,
        "uploads": 0o700,
    }


def test_a_folder_that_others_can_write_is_refused(tmp_path: Path, made: Made) -> None:
    """Whoever can write it can put another key or database there, and read what is sealed from then on."""
    for folder, use in (
        (tmp_path / "new", lambda: initialise(tmp_path / "new", START)),
        (made.folder, made.open),
    ):
        folder.mkdir(exist_ok=True)
        for mode in (0o720, 0o702, 0o777):
            folder.chmod(mode)
            with pytest.raises(StateError, match=f"found mode {mode:04o}") as raised:
                use()
            assert raised.value.hint.startswith(f"chmod 0700 {folder}")
    assert list((tmp_path / "new").iterdir()) == []
    made.folder.chmod(0o755)
    made.open().database.close()


def test_a_second_init_is_refused_and_changes_nothing(made: Made) -> None:
    key = (made.folder / "secrets.key").read_bytes()
    with pytest.raises(StateError, match="set up already"):
        initialise(made.folder, START, made.database)
    assert (made.folder / "secrets.key").read_bytes() == key
    platform = made.open()
    assert platform.database.read_now(lambda on: authenticate(on, made.admin_token)).name == "admin"
    platform.database.close()


def test_init_completes_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    make_key(tmp_path / "state" / "secrets.key")
    (tmp_path / "state" / "platform.db").touch()
    assert initialise(tmp_path / "state", START).startswith("pnu_")


def test_a_folder_without_a_platform_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no platform's state") as raised:
        open_platform(tmp_path)
    assert "disk-image platform init" in raised.value.hint


@pytest.mark.parametrize("damage", ["readable by others", "missing", "short"])
def test_a_key_that_may_be_known_or_is_lost_is_refused(made: Made, damage: str) -> None:
    key = made.folder / "secrets.key"
    if damage == "readable by others":
        key.chmod(0o640)
    elif damage == "missing":
        key.unlink()
    else:
        key.write_bytes(b"short")
    with pytest.raises(StateError, match=r"secrets\.key: "):
        made.open()


def test_a_secret_opens_with_its_key_for_its_owner_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_key(tmp_path / name)
    sealer = Sealer(read_key(tmp_path / "one"))
    sealed = sealer.seal("pndis_secret", "webhook 1")
    assert b"secret" not in sealed
    assert sealer.open(sealed, "webhook 1") == "pndis_secret"
    for other, owner in ((sealer, "webhook 2"), (Sealer(read_key(tmp_path / "two")), "webhook 1")):
        with pytest.raises(StateError, match="does not open"):
            other.open(sealed, owner)


def test_the_key_of_another_database_is_refused(made: Made, api: Api) -> None:
    """It would open none of the secrets, and seal new ones that no other server opens."""
    api.post("/disk_image_webhooks", {"label": "pipeline"})
    made.open().database.close()
    make_key(made.folder / "other.key")
    (made.folder / "other.key").replace(made.folder / "secrets.key")
    with pytest.raises(StateError, match=r"secrets\.key: not the key that .* was used with"):
        made.open()


def test_what_comes_after_a_clock_was_set_back_is_the_newest(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists and their pages are in the order of ids: a server that starts goes on after the last one."""
    year = 365 * 86400 * 10**9
    right = time.time_ns
    platform = made.open()

    def tell(kind: Kind) -> None:
        platform.database.write_now(
            lambda on: emit(on, first_account_id(on), kind, {}, Told("test"), platform.clock())
        )

    monkeypatch.setattr(identifiers, "_last", 0)
    monkeypatch.setattr(time, "time_ns", lambda: right() + year)
    tell(Kind.AGENT_PAUSED)
    platform.database.close()
    # another process, whose clock is right
    monkeypatch.setattr(time, "time_ns", right)
    monkeypatch.setattr(identifiers, "_last", 0)
    platform = made.open()
    tell(Kind.AGENT_RESUMED)
    told = platform.database.read_now(lambda on: recent(on, first_account_id(on), limit=10))
    platform.database.close()
    assert [each.kind for each in told] == [Kind.AGENT_RESUMED, Kind.AGENT_PAUSED]


def test_an_id_that_no_clock_made_is_not_gone_on_after() -> None:
    for far in (UUID(int=2**128 - 1), UUID(int=2**128 - 1 & ~(0xF << 76) | 7 << 76)):
        continue_after(far)
    assert identifiers.new_id().int >> 80 <= time.time_ns() // 1_000_000 + 1000

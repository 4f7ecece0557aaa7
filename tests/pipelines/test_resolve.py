"""Locking against signed archives in folders: what is locked, and which archives are refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.errors import ArchiveError, RecipeError
from pipelines.evidence import Evidence, evidence_path, write_lock
from pipelines.lock import Lock, load_lock
from pipelines.recipe import Recipe
from pipelines.relock import changes
from pipelines.resolve import resolve, resolve_tools
from pipelines.successors import successors
from pipelines.tools import Base, Extra, Tools, ToolSet
from tests.pipelines.local_archive import Key, LocalArchive

KEY = Key("archive")
RECIPE = {
    "platform_slug": "small",
    "suite": "trixie",
    "arch": "amd64",
    "source_date_epoch": 1767225600,
    "hostname": "small",
    "packages": ("editor",),
    "kernel": {"package": "linux-image-amd64"},
}


@pytest.fixture
def archive(tmp_path: Path) -> LocalArchive:
    made = LocalArchive(tmp_path / "archive", KEY)
    made.add("base-files", "13.8", Essential="yes", Pre_Depends="libc6")
    made.add("libc6", "2.41-12")
    made.add("editor", "2:1.0-1", Depends="libc6 (>= 2.40), libedit (= 3.1-1)", Recommends="spelling")
    made.add("libedit", "3.1-1")
    made.add("spelling", "1.0")
    made.add("apt", "3.0.4")
    made.add("linux-image-amd64", "6.12.117-1", Depends="linux-image-6.12.117-amd64 (= 6.12.117-1)")
    made.add("linux-image-6.12.117-amd64", "6.12.117-1", Depends="kmod, linux-base")
    made.add("kmod", "34")
    made.add("linux-base", "4.12", arch="all")
    made.add("linux-source-6.12", "6.12.117-1", arch="all", Depends="kmod")
    made.add("python3-minimal", "3.13.5-1", Depends="python3.13-minimal, dpkg")
    made.add("python3.13-minimal", "3.13.5-2", Depends="libpython3.13-minimal (= 3.13.5-2), libc6, zlib1g")
    made.add("libpython3.13-minimal", "3.13.5-2", Depends="libc6, libssl3t64")
    made.add("libpython3-stdlib", "3.13.5-1", Depends="libpython3.13-stdlib")
    made.add("libpython3.13-stdlib", "3.13.5-2", Depends="libffi8, tzdata")
    for name in ("zlib1g", "libssl3t64", "libffi8", "tzdata"):
        made.add(name, "1.0")
    made.add("dpkg", "1.22", Depends="tar")
    made.add("tar", "1.35")
    made.publish()
    return made


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.gpg"
    path.write_bytes(KEY.keyring())
    return path


@pytest.fixture
def lock_it(archive: LocalArchive, keys: Path) -> Callable[..., tuple[Lock, Evidence]]:
    def run(
        locked: Lock | None = None, update: tuple[str, ...] = (), **fields: object
    ) -> tuple[Lock, Evidence]:
        recipe = Recipe.model_validate(RECIPE | fields)
        return resolve(recipe, [str(archive.root)], locked=locked, update=update, keys=keys)

    return run


Locker = Callable[..., tuple[Lock, Evidence]]


def _versions(lock: Lock, of: str) -> dict[str, str]:
    return {file.name: file.version for file in lock.of_set(of)}


def test_the_sets_hold_what_each_stage_takes_and_nothing_more(lock_it: Locker) -> None:
    lock, _ = lock_it()
    assert _versions(lock, "root") == {
        "base-files": "13.8",
        "editor": "2:1.0-1",
        "libc6": "2.41-12",
        "libedit": "3.1-1",
    }
    assert _versions(lock, "kernel") == {"linux-image-6.12.117-amd64": "6.12.117-1"}
    assert _versions(lock, "initramfs") == {
        "libc6": "2.41-12",
        "libffi8": "1.0",
        "libpython3.13-minimal": "3.13.5-2",
        "libpython3.13-stdlib": "3.13.5-2",
        "python3.13-minimal": "3.13.5-2",
        "zlib1g": "1.0",
    }
    (libc,) = (file for file in lock.packages if file.name == "libc6")
    assert libc.sets == ("initramfs", "root")


def test_apt_is_in_the_root_when_the_recipe_asks_for_it(lock_it: Locker) -> None:
    lock, _ = lock_it(packages=("apt", "editor"))
    assert "apt" in _versions(lock, "root")


def test_a_source_kernel_is_a_source_of_the_set_kernel(lock_it: Locker) -> None:
    lock, _ = lock_it(kernel={"source": "linux-source-6.12", "fragments": ("base.config",)})
    assert [(file.name, file.arch, file.sets) for file in lock.sources] == [
        ("linux-source-6.12", "all", ("kernel",))
    ]
    assert not any("kernel" in file.sets for file in lock.packages)


def test_the_epoch_is_in_the_version_and_not_in_the_pool_path(lock_it: Locker) -> None:
    lock, _ = lock_it()
    (editor,) = (file for file in lock.packages if file.name == "editor")
    assert (editor.version, editor.pool_path) == ("2:1.0-1", "pool/main/e/editor/editor_1.0-1_amd64.deb")


def test_a_security_update_wins_and_keeps_its_own_pool(archive: LocalArchive, lock_it: Locker) -> None:
    archive.add("libc6", "2.41-12+deb13u1", suite="trixie-security")
    archive.publish()
    lock, _ = lock_it()
    (libc,) = (file for file in lock.packages if file.name == "libc6")
    assert libc.pool_path == "pool/updates/main/l/libc6/libc6_2.41-12+deb13u1_amd64.deb"


def test_the_lock_names_no_place_and_no_date_and_the_evidence_has_them(
    archive: LocalArchive, lock_it: Locker, tmp_path: Path
) -> None:
    lock, evidence = lock_it()
    assert str(tmp_path).encode() not in lock.to_bytes() + evidence.to_bytes()
    assert set(json.loads(lock.to_bytes())) == {
        "schema",
        "suite",
        "arch",
        "requested",
        "packages",
        "sources",
    }
    assert [suite.suite for suite in evidence.suites] == ["trixie", "trixie-updates", "trixie-security"]
    assert {suite.signed_by for suite in evidence.suites} == {(KEY.fingerprint,)}


def test_locking_again_without_news_touches_no_file(lock_it: Locker, tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    assert write_lock(path, *lock_it())
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in (path, evidence_path(path))]
    assert not write_lock(path, *lock_it())
    assert before == [(file.read_bytes(), file.stat().st_mtime_ns) for file in (path, evidence_path(path))]
    assert load_lock(path, "disk-image lock") == lock_it()[0]


def test_changes_name_what_a_new_lock_brings(archive: LocalArchive, lock_it: Locker) -> None:
    old, _ = lock_it()
    archive.add("libc6", "2.41-13")
    archive.add("editor", "2:1.0-2", Depends="libc6, libvi")
    archive.add("libvi", "1")
    archive.publish()
    new, _ = lock_it()
    assert [str(change) for change in changes(old, new)] == [
        "editor: 2:1.0-1 → 2:1.0-2",
        "libc6: 2.41-12 → 2.41-13",
        "libedit: 3.1-1 → not there",
        "libvi: not there → 1",
    ]
    assert changes(new, new) == ()


def test_an_update_moves_one_package_and_what_it_needs(archive: LocalArchive, lock_it: Locker) -> None:
    old, _ = lock_it()
    archive.remove("editor", "2:1.0-1")
    archive.remove("libedit", "3.1-1")
    archive.add("editor", "2:2.0-1", Depends="libc6 (>= 2.40), libedit (= 4.0-1)")
    archive.add("libedit", "4.0-1")
    archive.add("libc6", "2.42-1")
    archive.add("base-files", "13.9", Essential="yes", Pre_Depends="libc6")
    archive.publish()
    new, _ = lock_it(locked=old, update=("editor",))
    assert {change.name for change in changes(old, new)} == {"editor", "libedit"}
    # The locked editor is in no index any more; its successor shows that it wanted the exact old libedit.
    new, _ = lock_it(locked=old, update=("libedit",))
    assert {change.name for change in changes(old, new)} == {"editor", "libedit"}
    new, _ = lock_it(locked=old, update=("libc6",))
    assert {change.name for change in changes(old, new)} == {"libc6"}


def test_an_update_of_the_metapackage_moves_the_kernel_alone(archive: LocalArchive, lock_it: Locker) -> None:
    old, _ = lock_it()
    archive.add("linux-image-amd64", "6.12.120-1", Depends="linux-image-6.12.120-amd64 (= 6.12.120-1)")
    archive.add("linux-image-6.12.120-amd64", "6.12.120-1")
    archive.add("libc6", "2.42-1")
    archive.publish()
    new, _ = lock_it(locked=old, update=("linux-image-amd64",))
    assert _versions(new, "kernel") == {"linux-image-6.12.120-amd64": "6.12.120-1"}
    assert _versions(new, "root") == _versions(old, "root")


def test_an_update_of_an_unknown_package_names_the_nearest(lock_it: Locker) -> None:
    old, _ = lock_it()
    with pytest.raises(RecipeError, match="'libedt'") as told:
        lock_it(locked=old, update=("libedt",))
    assert "'libedit'" in told.value.hint


def test_an_unknown_package_names_its_field_and_the_nearest(lock_it: Locker) -> None:
    with pytest.raises(RecipeError, match=r"packages: package 'editr' is not in trixie, ") as told:
        lock_it(packages=("editr",))
    assert told.value.hint == "did you mean 'editor'?"


def test_packages_that_do_not_resolve_say_what_is_missing(archive: LocalArchive, lock_it: Locker) -> None:
    archive.add("viewer", "1.0", Depends="libnowhere")
    archive.publish()
    with pytest.raises(ArchiveError, match="viewer : Depends: libnowhere but it is not installable"):
        lock_it(packages=("viewer",))


def test_successors_are_the_newest_and_follow_versions_in_names(
    archive: LocalArchive, lock_it: Locker, keys: Path
) -> None:
    lock, _ = lock_it()
    archive.remove("libedit", "3.1-1")
    archive.remove("linux-image-6.12.117-amd64", "6.12.117-1")
    archive.remove("editor", "2:1.0-1")
    archive.add("libedit", "3.2-1")
    archive.add("libedit", "3.10-1")
    archive.add("linux-image-6.12.120-amd64", "6.12.120-1")
    archive.publish()
    gone = [
        file for file in lock.packages if file.name in ("libedit", "editor", "linux-image-6.12.117-amd64")
    ]
    found = successors(gone, lock, [str(archive.root)], keys=keys)
    assert {name: file and (file.name, file.version) for name, file in found.items()} == {
        "editor": None,
        "libedit": ("libedit", "3.10-1"),
        "linux-image-6.12.117-amd64": ("linux-image-6.12.120-amd64", "6.12.120-1"),
    }


def test_an_index_changed_after_signing_is_refused(archive: LocalArchive, lock_it: Locker) -> None:
    index = archive.index("trixie")
    index.write_bytes(index.read_bytes().replace(b"Size: 20", b"Size: 21"))
    with pytest.raises(ArchiveError, match="Hash Sum mismatch"):
        lock_it()


def test_a_release_changed_after_signing_is_refused(archive: LocalArchive, lock_it: Locker) -> None:
    release = archive.root / "dists/trixie/InRelease"
    release.write_bytes(release.read_bytes().replace(b"Label: Debian", b"Label: debian"))
    with pytest.raises(ArchiveError, match=r"trixie.*(BADSIG|[Ss]ignature|not signed)") as told:
        lock_it()
    assert "signed with Debian's keys" in told.value.hint


def test_a_release_of_a_strange_key_is_refused(archive: LocalArchive, lock_it: Locker) -> None:
    archive.publish("trixie-security", key=Key("mallory"))
    with pytest.raises(ArchiveError, match=r"trixie-security.*(NO_PUBKEY|not signed|Missing key)"):
        lock_it()


def test_a_release_without_a_signature_is_refused(archive: LocalArchive, lock_it: Locker) -> None:
    release = archive.root / "dists/trixie/InRelease"
    text = release.read_text().split("\n\n", 1)[1].split("-----BEGIN")[0]
    release.write_text(text)
    with pytest.raises(ArchiveError, match="trixie"):
        lock_it()


def test_a_signed_index_past_its_valid_until_is_refused(archive: LocalArchive, lock_it: Locker) -> None:
    archive.publish("trixie-security", valid_days=-1)
    with pytest.raises(ArchiveError, match=r"trixie-security.* is expired") as told:
        lock_it()
    assert "kept current" in told.value.hint


def test_an_index_valid_for_another_day_is_used(archive: LocalArchive, lock_it: Locker) -> None:
    archive.publish("trixie-security", valid_days=1)
    _, evidence = lock_it()
    assert evidence.suites[2].valid_until is not None


def test_a_missing_security_suite_is_not_skipped(archive: LocalArchive, lock_it: Locker) -> None:
    (archive.root / "dists/trixie-security/InRelease").unlink()
    with pytest.raises(
        ArchiveError, match=r"no archive serves the suite trixie-security \(/.*: no such file\)"
    ):
        lock_it()


def test_the_hosts_apt_settings_take_no_part(
    archive: LocalArchive, lock_it: Locker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.publish("trixie-security", valid_days=-1)
    hostile = tmp_path / "apt.conf"
    hostile.write_text('Acquire::Check-Valid-Until "false";\nAcquire::AllowInsecureRepositories "true";\n')
    monkeypatch.setenv("APT_CONFIG", os.fspath(hostile))
    with pytest.raises(ArchiveError, match="is expired"):
        lock_it()


TOOLS = Tools(
    suite="trixie",
    extra=(Extra(suite="forky", packages=("composefs", "libcomposefs1")),),
    base=Base(packages=("tar",)),
    sets={
        "image": ToolSet(packages=("composefs",), arm64=("linux-base",)),
        "boot": ToolSet(packages=("editor",), amd64=("kmod",)),
    },
)


@pytest.fixture
def with_forky(archive: LocalArchive) -> LocalArchive:
    archive.add("composefs", "1.0.8-3", suite="forky", Depends="libcomposefs1 (= 1.0.8-3), libc6 (>= 2.38)")
    archive.add("libcomposefs1", "1.0.8-3", suite="forky")
    archive.add("libc6", "2.99-1", suite="forky")
    archive.publish()
    archive.publish("forky")
    return archive


def test_only_the_named_packages_come_from_the_extra_suite(with_forky: LocalArchive, keys: Path) -> None:
    lock, evidence = resolve_tools(TOOLS, "amd64", [str(with_forky.root)], keys=keys)
    assert _versions(lock, "image") == {
        "composefs": "1.0.8-3",
        "libc6": "2.41-12",
        "libcomposefs1": "1.0.8-3",
        "tar": "1.35",
    }
    assert "kmod" in _versions(lock, "boot")
    assert evidence.suites[-1].suite == "forky"


def test_an_expired_extra_suite_is_refused_unless_it_is_accepted_by_name(
    with_forky: LocalArchive, keys: Path
) -> None:
    with_forky.publish("forky", valid_days=-10)
    with pytest.raises(ArchiveError, match=r"forky.* is expired") as told:
        resolve_tools(TOOLS, "amd64", [str(with_forky.root)], keys=keys)
    assert "--accept-expired" in told.value.hint
    _, evidence = resolve_tools(TOOLS, "amd64", [str(with_forky.root)], keys=keys, expired=("forky",))
    assert [suite.suite for suite in evidence.suites if suite.expiry_accepted] == ["forky"]


def test_an_accepted_expiry_does_not_accept_a_bad_signature(with_forky: LocalArchive, keys: Path) -> None:
    with_forky.publish("forky", valid_days=-10, key=Key("mallory"))
    with pytest.raises(ArchiveError, match="forky"):
        resolve_tools(TOOLS, "amd64", [str(with_forky.root)], keys=keys, expired=("forky",))


def test_an_accepted_expiry_holds_for_extra_suites_only(with_forky: LocalArchive, keys: Path) -> None:
    with pytest.raises(RecipeError, match="trixie-security"):
        resolve_tools(TOOLS, "amd64", [str(with_forky.root)], keys=keys, expired=("trixie-security",))

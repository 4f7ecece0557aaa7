"""What is mounted, from where and with which options; the calls are recorded instead of made."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from initramfs import kernel_modules, libc, mounts, switch, verity
from initramfs.refusal import Refused

DIGEST = "cd" * 32
Call = tuple[str, str, str, int, str]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    made: list[Call] = []

    def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
        made.append((source, target, kind, flags, options))

    monkeypatch.setattr(libc, "mount", mount)
    return made


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(mounts, "DISK", str(tmp_path))
    images = tmp_path / "composefs" / "images"
    images.mkdir(parents=True)
    (images / f"{DIGEST}.cfs").write_bytes(b"the image")
    return tmp_path


def test_the_file_measured_is_the_file_mounted(
    disk: Path, calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def require(fd: int, digest: str) -> None:
        measured.append(os.fstat(fd).st_ino)
        # Between measuring and mounting, another file takes the path's place.
        path = disk / "composefs" / "images" / f"{digest}.cfs"
        path.rename(path.with_suffix(".old"))
        path.write_bytes(b"another image")

    monkeypatch.setattr(verity, "require", require)
    mounted: list[int] = []

    def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
        mounted.append(os.stat(source).st_ino)
        calls.append((source, target, kind, flags, options))

    monkeypatch.setattr(libc, "mount", mount)
    mounts.mount_metadata(DIGEST)
    assert mounted == measured
    ((_, target, kind, flags, _),) = calls
    assert (target, kind) == (mounts.METADATA, "erofs")
    assert flags & libc.MS_RDONLY


def test_another_digest_is_not_mounted(
    disk: Path, calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verity, "measure", lambda fd: "sha256:" + "00" * 32)
    with pytest.raises(Refused, match=f"expected sha256:{DIGEST}, found sha256:0000"):
        mounts.mount_metadata(DIGEST)
    assert calls == []


def test_a_kernel_without_file_backed_erofs_is_named(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mount(*_: object) -> None:
        raise OSError(errno.ENOTBLK, "mount: Block device required")

    monkeypatch.setattr(libc, "mount", mount)
    monkeypatch.setattr(verity, "require", lambda fd, digest: None)
    with pytest.raises(Refused, match="EROFS_FS_BACKED_BY_FILE"):
        mounts.mount_metadata(DIGEST)


def test_no_such_image_names_those_that_are_there(disk: Path) -> None:
    with pytest.raises(
        Refused, match=rf"expected the metadata image {'e' * 64}\.cfs on the disk, found {DIGEST}\.cfs"
    ):
        mounts.open_image(str(disk), "e" * 64)


def test_an_image_that_is_a_link_or_a_pipe_is_refused(disk: Path) -> None:
    images = disk / "composefs" / "images"
    (images / f"{'1' * 64}.cfs").symlink_to(images / f"{DIGEST}.cfs")
    with pytest.raises(Refused):
        mounts.open_image(str(disk), "1" * 64)
    os.mkfifo(images / f"{'2' * 64}.cfs")
    with pytest.raises(Refused, match="plain file"):
        mounts.open_image(str(disk), "2" * 64)


def test_one_overlay_with_verity_required(
    calls: list[Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata, writes = tmp_path / "metadata", tmp_path / "writes"
    metadata.mkdir()
    writes.mkdir()
    metadata.chmod(0o751)
    monkeypatch.setattr(mounts, "METADATA", str(metadata))
    monkeypatch.setattr(mounts, "WRITES", str(writes))
    mounts.mount_root()
    (tmpfs, overlay) = calls
    assert tmpfs[1:3] == (str(writes), "tmpfs")
    _, target, kind, flags, options = overlay
    assert (target, kind, flags) == (mounts.ROOT, "overlay", 0)
    assert options.split(",") == [
        f"lowerdir={metadata}::/layers/disk/composefs/objects",
        f"upperdir={writes}/upper",
        f"workdir={writes}/work",
        "metacopy=on",
        "redirect_dir=on",
        "verity=require",
    ]
    assert (writes / "upper").stat().st_mode & 0o7777 == 0o751


def test_the_disk_is_read_only_and_inert(calls: list[Call]) -> None:
    mounts.mount_disk("/dev/vda")
    flags = libc.MS_RDONLY | libc.MS_NODEV | libc.MS_NOSUID | libc.MS_NOEXEC
    assert calls == [("/dev/vda", mounts.DISK, "ext4", flags, "")]


def test_a_root_without_its_mount_points_is_refused(
    calls: list[Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "ROOT", str(tmp_path))
    (tmp_path / "proc").mkdir()
    (tmp_path / "sys").symlink_to("/tmp")
    with pytest.raises(Refused, match="expected the directory /sys in the root"):
        mounts.move_system()
    assert calls == [("/proc", f"{tmp_path}/proc", "", libc.MS_MOVE, "")]


def test_clearing_stays_inside_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    old = tmp_path / "old"
    (old / "usr" / "lib").mkdir(parents=True)
    (old / "usr" / "lib" / "module.pyc").write_bytes(b"x")
    (old / "link").symlink_to(outside)
    (old / "hard").hardlink_to(outside / "kept")
    fd = os.open(old, os.O_RDONLY | os.O_DIRECTORY)
    try:
        switch.clear(fd)
    finally:
        os.close(fd)
    assert list(old.iterdir()) == []
    assert (outside / "kept").read_text() == "kept"


def test_init_that_can_not_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch, "INIT", "/nonexistent/init")
    monkeypatch.setattr(libc, "restore_signals", lambda: None)
    with pytest.raises(
        Refused, match="expected /nonexistent/init to start, found: No such file or directory"
    ):
        switch.execute_init()


def test_modules_load_in_the_order_of_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[bytes] = []
    monkeypatch.setattr(libc, "load_module", loaded.append)
    kernel_modules.load_all(str(tmp_path))
    assert loaded == [], "a kernel that needs no module has no list"
    (tmp_path / "order").write_text("netfs.ko\nerofs.ko\n")
    (tmp_path / "erofs.ko").write_bytes(b"2")
    (tmp_path / "netfs.ko").write_bytes(b"1")
    kernel_modules.load_all(str(tmp_path))
    assert loaded == [b"1", b"2"]


def test_a_module_that_is_there_is_fine_and_a_rejected_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "order").write_text("erofs.ko\n")
    (tmp_path / "erofs.ko").write_bytes(b"x")

    def answers(number: int) -> None:
        def load(image: bytes) -> None:
            raise OSError(number, "injected")

        monkeypatch.setattr(libc, "load_module", load)

    answers(errno.EEXIST)
    kernel_modules.load_all(str(tmp_path))
    answers(errno.EKEYREJECTED)
    with pytest.raises(Refused, match=r"kernel module erofs\.ko can't be loaded: Key was rejected"):
        kernel_modules.load_all(str(tmp_path))

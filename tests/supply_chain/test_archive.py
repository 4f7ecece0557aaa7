"""A layout in a tar archive: read as it is, and nothing but a layout."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supply_chain.archive import open_archive
from supply_chain.errors import LayoutError
from tests.supply_chain.archives import archive, member
from tests.supply_chain.images import noise, write_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A layout."""
    return write_image(tmp_path / "layout", {"bash": [noise("bash", 3000)], "libc6": []}).folder


@pytest.fixture
def files(folder: Path) -> dict[str, bytes]:
    """Its files by name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[bytes], str]:
    """Why an archive is refused."""

    def refuse(content: bytes) -> str:
        (tmp_path / "image.tar").write_bytes(content)
        with pytest.raises(LayoutError) as error:
            open_archive(tmp_path / "image.tar")
        assert error.value.hint
        return error.value.what

    return refuse


@pytest.mark.parametrize(
    "names", [("oci-layout", "index.json", "blobs"), (".",)], ids=["by name", "the folder"]
)
@pytest.mark.parametrize("format", ["ustar", "gnu"])
def test_what_tar_writes(folder: Path, tmp_path: Path, names: tuple[str, ...], format: str) -> None:
    path = tmp_path / "image.tar"
    subprocess.run(["tar", f"--format={format}", "-C", folder, "-cf", path, *names], check=True)
    layout = open_archive(path)
    layout.check()
    assert layout.image.digest in (folder / "index.json").read_text()
    assert all(layout.has(blob) for blob in layout.manifest.blobs)


def test_a_changed_byte_is_found_when_it_is_read(files: dict[str, bytes], tmp_path: Path) -> None:
    content = bytearray(archive(files))
    content[content.index(noise("bash", 3000)[:64])] ^= 1
    (tmp_path / "image.tar").write_bytes(content)
    with pytest.raises(LayoutError, match="its content's digest is"):
        open_archive(tmp_path / "image.tar").check()


def test_a_missing_blob(files: dict[str, bytes], tmp_path: Path) -> None:
    whole = {name: content for name, content in files.items() if not content.startswith(b"kernel")}
    (tmp_path / "image.tar").write_bytes(archive(whole))
    layout = open_archive(tmp_path / "image.tar")
    assert [blob for blob in layout.manifest.blobs if not layout.has(blob)]
    with pytest.raises(LayoutError, match="not there"):
        layout.check()


BLOB = f"blobs/sha256/{'a' * 64}"
ATTACKS = {
    "path traversal": (member("../../etc/cron.d/x"), "found '../../etc/cron.d/x'"),
    "traversal below blobs": (member("blobs/sha256/../../../x"), "found"),
    "absolute path": (member("/etc/passwd"), "found '/etc/passwd'"),
    "symbolic link": (member(BLOB, tarfile.SYMTYPE, "/etc/shadow"), "is a symbolic link"),
    "link as folder": (member("blobs", tarfile.SYMTYPE, "/"), "is a symbolic link"),
    "hard link": (member(BLOB, tarfile.LNKTYPE, "../../platform.db"), "is a hard link"),
    "device": (member(BLOB, tarfile.BLKTYPE), "is a device"),
    "fifo": (member(BLOB, tarfile.FIFOTYPE), "is a fifo"),
    "sparse bomb": (member(BLOB, tarfile.GNUTYPE_SPARSE), "is a sparse file"),
    "extended header": (member(BLOB, tarfile.XHDTYPE), "is of type"),
    "long name": (member("././@LongLink", tarfile.GNUTYPE_LONGNAME), "is of type"),
    "other file": (member("install.sh"), "found 'install.sh'"),
    "other folder": (member("blobs/sha512", tarfile.DIRTYPE), "found 'blobs/sha512'"),
    "terminal escape": (member("\x1b[2J"), r"found '\x1b[2J'"),
    "same name twice": (member("index.json"), "is there twice"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks(files: dict[str, bytes], refused: Callable[[bytes], str], attack: str) -> None:
    entry, says = ATTACKS[attack]
    assert says in refused(archive(files, [entry]))


def test_a_folder_twice_and_too_many_files(files: dict[str, bytes], refused: Callable[[bytes], str]) -> None:
    assert "is there twice" in refused(archive(files, [member("blobs", tarfile.DIRTYPE)] * 2))
    many = [member(f"blobs/sha256/{number:064x}") for number in range(5000)]
    assert "expected at most 4096 files" in refused(archive(files, many))


def test_a_file_that_claims_more_than_is_there(
    files: dict[str, bytes], refused: Callable[[bytes], str]
) -> None:
    content = archive(files)
    assert "which are left" in refused(content[:1600])
    huge = member(BLOB)
    huge.size = 10 * 1024**3 - 1
    header = huge.tobuf(tarfile.GNU_FORMAT)
    assert "which are left" in refused(header)
    huge.size = -1
    assert "which are left" in refused(huge.tobuf(tarfile.GNU_FORMAT))


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08" + b"a" * 2000, b"PK\x03\x04" * 500, b"a" * 511])
def test_what_is_no_archive_of_a_layout(content: bytes, refused: Callable[[bytes], str]) -> None:
    assert "not there" in refused(content) or "not a tar header" in refused(content)


def test_documents_are_bounded(files: dict[str, bytes], refused: Callable[[bytes], str]) -> None:
    assert "expected at most" in refused(archive({**files, "index.json": b" " * (5 * 1024**2)}))
    assert "index.json: not there" in refused(archive({"oci-layout": files["oci-layout"]}))


def test_only_a_regular_file_is_opened(tmp_path: Path, files: dict[str, bytes]) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "image.tar").write_bytes(archive(files))
    (tmp_path / "link").symlink_to("image.tar")
    for name in ("fifo", "link", "none", "."):
        with pytest.raises(LayoutError):
            open_archive(tmp_path / name)


@given(st.binary(max_size=3000), st.integers(0, 6000))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.tar"
    honest = archive({"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": b"{}", BLOB: b"a"})
    path.write_bytes(honest[:at] + noise + honest[at:])
    with pytest.raises(LayoutError):
        open_archive(path)

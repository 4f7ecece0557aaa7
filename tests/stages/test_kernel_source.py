"""The kernel from source: unpacked, patched, made the same everywhere."""

from __future__ import annotations

import io
import lzma
import os
import re
import shutil
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.store import Store
from stages.initramfs import modules
from stages.initramfs.archive import Archive
from stages.kernel_source import compiler_cache, fragments, source
from stages.kernel_source.__main__ import program
from stages.kernel_source.arch import architecture
from stages.kernel_source.make import Make
from stages.shared import canonical_tar
from stages.shared.canonical_tar import Entry, Kind
from stages.shared.job import Failure, Job
from tests.system.command import ROOT, disk_image

AMD64 = architecture("amd64")
EPOCH = 1767225600


# Source and patches


def tarball(files: dict[str, str]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"linux-source-6.12/{name}")
            info.size, info.mtime = len(text), 1
            archive.addfile(info, io.BytesIO(text.encode()))
    return stream.getvalue()


TARBALL = "usr/src/linux-source-6.12.tar.xz"
needs_xz = pytest.mark.skipif(shutil.which("xz") is None, reason="xz is not installed")
needs_patch = pytest.mark.skipif(shutil.which("patch") is None, reason="patch(1) is not installed")


@needs_xz
def test_the_source_is_unpacked_without_its_top_folder(debs: Any, tmp_path: Path) -> None:
    debs.make("linux-source-6.12", {TARBALL: tarball({"Makefile": "all:\n", "fs/Kconfig": ""})})
    debs.make("other", {"usr/src/other.tar.xz": "x"})
    source.unpack(debs.folder, tmp_path / "linux")
    assert (tmp_path / "linux/Makefile").read_text() == "all:\n"
    assert (tmp_path / "linux/fs/Kconfig").exists()


def test_a_package_without_a_kernel_source_is_refused(debs: Any, tmp_path: Path) -> None:
    debs.make("linux-source-6.12", {"usr/share/doc/linux-source-6.12/copyright": "x"})
    with pytest.raises(Failure, match=r"expected one package with .* among 1, found none"):
        source.unpack(debs.folder, tmp_path / "linux")


@needs_xz
def test_two_kernel_sources_are_refused(debs: Any, tmp_path: Path) -> None:
    for version in ("6.12", "6.13"):
        debs.make(f"linux-source-{version}", {TARBALL.replace("6.12", version): tarball({"Makefile": ""})})
    with pytest.raises(
        Failure, match=r"found linux-source-6\.12_1\.0_all\.deb, linux-source-6\.13_1\.0_all\.deb"
    ):
        source.unpack(debs.folder, tmp_path / "linux")


@needs_xz
def test_a_damaged_tarball_is_named(debs: Any, tmp_path: Path) -> None:
    debs.make("linux-source-6.12", {TARBALL: tarball({"Makefile": "x" * 100_000})[:-40]})
    with pytest.raises(Failure, match=r"linux-source-6\.12_1\.0_all\.deb: \./usr/src/.*: tar: exit code 2"):
        source.unpack(debs.folder, tmp_path / "linux")


PATCH = """\
--- a/fs/a.c
+++ b/fs/a.c
@@ -1,3 +1,3 @@
 one
-two
+TWO
 three
"""


def apply(tmp_path: Path, text: str, patch: str, name: str = "fs/a.c") -> str:
    tree = tmp_path / "tree"
    (tree / name).parent.mkdir(parents=True, exist_ok=True)
    (tree / name).write_text(text)
    (tmp_path / "patch-0000").write_text(patch)
    source.patch(tree, tmp_path / "patch-0000", "patches/two.patch")
    return (tree / name).read_text()


@needs_patch
def test_a_patch_is_applied(tmp_path: Path) -> None:
    assert apply(tmp_path, "zero\none\ntwo\nthree\n", PATCH) == "zero\none\nTWO\nthree\n"
    assert sorted(path.name for path in (tmp_path / "tree/fs").iterdir()) == ["a.c"]


@needs_patch
@pytest.mark.parametrize(
    ("text", "patch", "reason"),
    [
        pytest.param("one\n2\nthree\n", PATCH, r"fs/a\.c: Hunk #1 FAILED at 1", id="other-content"),
        pytest.param("1\ntwo\nthree\n", PATCH, r"fs/a\.c: Hunk #1 FAILED at 1", id="only-with-fuzz"),
        pytest.param("one\nTWO\nthree\n", PATCH, r"previously applied", id="already-applied"),
        pytest.param("x", PATCH.replace("fs/a.c", "fs/b.c"), r"can't find file to patch", id="no-such-file"),
        pytest.param("one\n", PATCH[:-8], r"malformed patch", id="truncated"),
        pytest.param("one\n", "<html>gone</html>\n", r"garbage", id="html-page"),
        pytest.param(
            "x", PATCH.replace("a/fs/a.c", "a/../../x").replace("b/fs/a.c", "b/../../x"), "", id="escape"
        ),
    ],
)
def test_a_patch_that_does_not_apply_names_the_first_hunk(
    tmp_path: Path, text: str, patch: str, reason: str
) -> None:
    with pytest.raises(Failure, match=rf"^patches/two\.patch does not apply: .*{reason}") as caught:
        apply(tmp_path, text, patch)
    assert caught.value.code == "patch"
    assert not (tmp_path / "x").exists()


# make


def make_tree(tmp_path: Path, makefile: str) -> Make:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "Makefile").write_text("prepare:\n" + makefile)
    return Make(tree, AMD64, EPOCH, "ccache gcc", {"CCACHE_DIR": "/c"})


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
def test_a_build_sees_nothing_of_who_when_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("KCFLAGS", "-O0")
    make = make_tree(tmp_path, "all:\n\t@env\n\t@echo CC is '$(CC)'\n")
    make.build("all")
    seen = capfd.readouterr().out
    for line in (
        "ARCH=x86_64",
        "KBUILD_BUILD_TIMESTAMP=Thu Jan  1 00:00:00 UTC 2026",
        "KBUILD_BUILD_USER=disk-image",
        "KBUILD_BUILD_HOST=disk-image",
        "KBUILD_BUILD_VERSION=1",
        f"KCFLAGS=-ffile-prefix-map={make.source}=/usr/src/linux",
        "LOCALVERSION=",
        "CCACHE_DIR=/c",
        "CC is ccache gcc",
    ):
        assert line in seen.splitlines()
    assert "someone" not in seen


@needs_make
def test_commands_are_counted_and_not_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    steps = "".join(f"\t@echo '  CC      fs/{n}.o'\n" for n in range(45))
    make_tree(tmp_path, f"all:\n{steps}\t@echo 'fs/a.c:1: warning: unused'\n").build("all")
    told = [line for line in capfd.readouterr().out.splitlines() if not line.startswith("make")]
    assert [line for line in told if not line.startswith("@progress")] == ["fs/a.c:1: warning: unused"]
    assert [line.split('"done": ')[1].split(",")[0] for line in told if "@progress" in line] == [
        "20",
        "40",
        "45",
    ]
    assert all('"total": 45' in line for line in told if "@progress" in line)


@needs_make
def test_a_failed_build_ends_with_the_compilers_errors(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make = make_tree(
        tmp_path,
        "all:\n\t@echo 'fs/a.c:7:1: error: expected ;' >&2\n\t@echo 'lines of others'\n\t@exit 3\n",
    )
    with pytest.raises(Failure, match=r"^make all: exit code 2: fs/a\.c:7:1: error: expected ;$"):
        make.build("all")
    tail = capfd.readouterr().out.partition("\nerrors:\n")[2]
    assert tail.startswith("fs/a.c:7:1: error: expected ;\n")
    assert "of others" not in tail


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", os.fspath(folder))


def test_no_ccache_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(tmp_path / "bin", monkeypatch, gcc="exit 0")
    assert compiler_cache.compiler(tmp_path, tmp_path) == ("gcc", {})


def test_a_broken_ccache_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(tmp_path / "bin", monkeypatch, gcc=f"echo {tmp_path}/bin/gcc", ccache="exit 1")
    assert compiler_cache.compiler(tmp_path, tmp_path) == ("gcc", {})


def test_another_compiler_proper_is_another_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(tmp_path / "bin", monkeypatch, gcc=f"echo {tmp_path}/cc1", ccache="exit 0")
    checks = set()
    for content in ("one", "two", "one"):
        (tmp_path / "cc1").write_text(content)
        name, environment = compiler_cache.compiler(tmp_path / "cache", tmp_path)
        assert (name, environment["CCACHE_DIR"]) == ("ccache gcc", str(tmp_path / "cache"))
        checks.add(environment["CCACHE_COMPILERCHECK"])
    assert len(checks) == 2


# The program


def test_a_broken_fragment_fails_before_anything_is_unpacked(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    (tmp_path / "a.config").write_text("CONFIG_A=maybe\n")
    job = make_job(
        "kernel",
        {"arch": "amd64", "fragments": ["kernel/a.config"], "patches": []},
        inputs={"fragment-0000": tmp_path / "a.config", "repository": tmp_path / "absent"},
    )
    with pytest.raises(Failure, match=r"^kernel/a\.config:1: expected CONFIG_NAME=value"):
        program(job)


def test_modules_for_the_initramfs_are_refused_by_a_kernel_without_any(tmp_path: Path) -> None:
    with (tmp_path / "modules").open("wb") as stream, canonical_tar.Writer(stream, EPOCH) as writer:
        writer.add(Entry(".", Kind.DIRECTORY, 0o755, 0, 0, EPOCH))
    with pytest.raises(
        Failure, match=r"^kernel\.modules: virtio_blk, erofs: this kernel has no loadable modules"
    ):
        modules.add(Archive(), tmp_path / "modules", "6.12.117", ["virtio_blk", "erofs"], "modules")


CRC7_PATCH = """\
--- a/lib/crc7.c
+++ b/lib/crc7.c
@@ -73,2 +73,2 @@
-MODULE_DESCRIPTION("CRC7 calculations");
+MODULE_DESCRIPTION("CRC7 calculations, patched");
 MODULE_LICENSE("GPL");
"""


@pytest.mark.kernel
@pytest.mark.network
@pytest.mark.timeout(1800)
def test_a_small_kernel_with_a_patched_module(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe"
    shutil.copytree(ROOT / "recipes/debian-minimal", recipe)
    (recipe / "small.config").write_text(
        "CONFIG_64BIT=y\nCONFIG_MODULES=y\nCONFIG_CRC7=m\nCONFIG_CRC16=y\nCONFIG_PRINTK=y\n"
    )
    (recipe / "crc7.patch").write_text(CRC7_PATCH)
    text = (recipe / "recipe.toml").read_text()
    table = (
        '[kernel]\nsource = "linux-source-6.12"\nfragments = ["small.config"]\npatches = ["crc7.patch"]\n\n'
    )
    text = text.replace('"debian-minimal"', '"small-kernel"')
    (recipe / "recipe.toml").write_text(re.sub(r"\[kernel\]\n.*?\n\n", table, text, flags=re.DOTALL))
    path = Path(os.environ.get("DISK_IMAGE_TEST_STORE", ROOT / "out" / "test-store"))
    done = disk_image("build", recipe, "--target", "kernel", "--store", path, "--relock", "--json")
    assert done.returncode == 0, done.stderr
    store = Store(path)
    last = store.last("small-kernel", "kernel")
    record = store.result(last.key) if last else None
    assert record is not None
    outputs = {name: store.blob(stored.content.digest) for name, stored in record.outputs.items()}
    release = outputs["release"].read_text().strip()
    config = fragments.values(outputs["config"].read_text())
    assert (config["CRC7"], config["CRC16"], config["MODULES"]) == ("m", "y", "y")
    check_modules(outputs["modules"], release)
    check_image(outputs["vmlinuz"].read_bytes(), release)


def check_modules(modules: Path, release: str) -> None:
    base = f"usr/lib/modules/{release}"
    entries: dict[str, tuple[Entry, int]] = {
        entry.path: (entry, offset) for entry, offset in canonical_tar.read(modules)
    }
    data = modules.read_bytes()

    def content(name: str) -> bytes:
        entry, offset = entries[f"{base}/{name}"]
        return data[offset : offset + entry.size]

    assert b"description=CRC7 calculations, patched\0" in content("kernel/lib/crc7.ko")
    assert content("modules.dep") == b"kernel/lib/crc7.ko:\n"
    assert b"kernel/lib/crc16.ko\n" in content("modules.builtin")
    assert {entry.mtime for entry, _ in entries.values()} == {EPOCH}
    assert {(entry.uid, entry.gid) for entry, _ in entries.values()} == {(0, 0)}
    assert {entry.kind for entry, _ in entries.values()} == {Kind.FILE, Kind.DIRECTORY}


def check_image(image: bytes, release: str) -> None:
    start = image.index(b"\xfd7zXZ\0")
    kernel = lzma.LZMADecompressor().decompress(image[start:])
    banner = re.search(rb"Linux version [^\n]+\n", kernel)
    assert banner is not None
    assert banner[0].startswith(f"Linux version {release} (disk-image@disk-image) (gcc (Debian ".encode())
    assert banner[0].endswith(b" #1 Thu Jan  1 00:00:00 UTC 2026\n")
    assert b"/tmp/linux" not in kernel

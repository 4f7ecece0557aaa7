"""The kernel from source: fragments merged and checked, patches refused, make kept reproducible."""

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
from hypothesis import given
from hypothesis import strategies as st

from pipelines.store import Store
from stages.initramfs import modules
from stages.initramfs.archive import Archive
from stages.kernel_source import compiler_cache, fragments, kconfig, source
from stages.kernel_source.__main__ import program
from stages.kernel_source.arch import Architecture, architecture
from stages.kernel_source.fragments import Request
from stages.kernel_source.make import Make
from stages.shared import canonical_tar
from stages.shared.canonical_tar import Entry, Kind
from stages.shared.job import Failure, Job
from tests.system.command import ROOT, disk_image

AMD64 = architecture("amd64")
EPOCH = 1767225600

options = st.sampled_from(["A", "B", "64BIT", "EXT4_FS", "SND_SOC_88PM860X", "_x"])
values = st.one_of(
    st.sampled_from(["y", "m", "n", "0", "-7", "0x1F", '""', r'"a \"b\" # c"']),
    st.integers(0, 1 << 40).map(str),
)
requests = st.builds(Request, options, values, st.just("a.config"), st.integers(1, 99))


# Fragments


@given(st.lists(st.lists(requests)))
def test_the_last_request_for_an_option_counts(parts: list[list[Request]]) -> None:
    last = {request.option: request for part in parts for request in part}
    assert fragments.merge(parts) == last


@given(st.lists(requests, unique_by=lambda request: request.option))
def test_what_is_written_reads_back_and_fulfils_itself(asked: list[Request]) -> None:
    text = fragments.to_config(asked)
    assert [(r.option, r.value) for r in fragments.parse(text, "a")] == [(r.option, r.value) for r in asked]
    assert fragments.unmet(asked, fragments.values(text)) == []


@given(st.text())
def test_a_text_with_any_other_line_is_refused(text: str) -> None:
    kinds = r"\s*(#.*|CONFIG_\w+=\S.*|)"
    if all(re.fullmatch(kinds, line, re.DOTALL) for line in text.split("\n")):
        return
    with pytest.raises(Failure, match=r"^a\.config:[1-9]\d*: expected CONFIG_NAME=value"):
        fragments.parse(text, "a.config")


def test_requests_know_their_line() -> None:
    text = "# why\n\nCONFIG_A=y\n  # CONFIG_B is not set\nCONFIG_C=n\r\n"
    assert fragments.parse(text, "k/a.config") == [
        Request("A", "y", "k/a.config", 3),
        Request("B", "n", "k/a.config", 4),
        Request("C", "n", "k/a.config", 5),
    ]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("CONFIG_A=y # on", id="comment-behind-a-value"),
        pytest.param("CONFIG_A = y", id="spaces-around-the-sign"),
        pytest.param("A=y", id="no-prefix"),
        pytest.param("CONFIG_A=yes", id="no-such-value"),
        pytest.param('CONFIG_A="a', id="open-string"),
        pytest.param('CONFIG_A="a" b"', id="quote-inside-a-string"),
        pytest.param("CONFIG_A=", id="no-value"),
        pytest.param("CONFIG_A is not set", id="unset-without-the-hash"),
        pytest.param("#CONFIG_A is not set", id="unset-that-kconfig-takes-for-a-comment"),
        pytest.param("# CONFIG_A is not set.", id="unset-with-a-full-stop"),
        pytest.param("source other.config", id="include"),
    ],
)
def test_a_line_that_kconfig_would_misread_is_refused(line: str) -> None:
    with pytest.raises(Failure, match=r"^k\.config:2: expected CONFIG_NAME=value"):
        fragments.parse(f"CONFIG_OK=y\n{line}\n", "k.config")


@pytest.mark.parametrize(
    ("asked", "found", "met"),
    [
        ("y", {"A": "y"}, True),
        ("n", {}, True),
        ("y", {}, False),
        ("y", {"A": "m"}, False),
        ("m", {"A": "y"}, False),
        ("n", {"A": "y"}, False),
        ('""', {}, False),
        ('""', {"A": '""'}, True),
    ],
)
def test_what_counts_as_fulfilled(asked: str, found: dict[str, str], met: bool) -> None:
    assert (fragments.unmet([Request("A", asked, "f", 1)], found) == []) == met


# Configuration


class Kconfig(Make):
    """kconfig's part played by a function: from what was asked for to the .config."""

    __slots__ = ()
    answer: Callable[[str], str] = staticmethod(lambda asked: asked)

    def run(self, *targets: str, **variables: str) -> None:
        assert targets == ("allnoconfig",)
        asked = Path(variables["KCONFIG_ALLCONFIG"]).read_text()
        (self.source / ".config").write_text(type(self).answer(asked))


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    """A source tree as far as configuring needs one."""
    tree = tmp_path / "linux"
    for name, text in {
        "kernel/configs/tiny-base.config": "CONFIG_EXPERT=y\n",
        "kernel/configs/tiny.config": "CONFIG_SMALL=y\nCONFIG_KERNEL_XZ=y\n",
        "arch/x86/configs/tiny.config": "CONFIG_NOHIGHMEM=y\n",
        "fs/Kconfig": "menuconfig EXT4_FS\n\ttristate\n\tdepends on BLOCK && EXPERT\n\tdepends on MMU\n\n"
        "config BLOCK\n\tbool\nmenu x\n\tdepends on NOTHING\nconfig EXPERT\n\tbool\nconfig MMU\n\tbool\n",
    }.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    return tree


def configure(tree: Path, *texts: str, answer: Callable[[str], str] = lambda asked: asked) -> dict[str, str]:
    made = type("Answering", (Kconfig,), {"__slots__": (), "answer": staticmethod(answer)})
    asked = [fragments.parse(text, f"{name}.config") for name, text in zip("abc", texts, strict=False)]
    return kconfig.configure(made(tree, AMD64, EPOCH), AMD64, asked)


def test_fragments_come_after_the_tiny_base(linux: Path) -> None:
    found = configure(linux, "# CONFIG_SMALL is not set\nCONFIG_B=m\n", "CONFIG_B=y\n")
    assert found == {"EXPERT": "y", "KERNEL_XZ": "y", "NOHIGHMEM": "y", "B": "y"}


def test_the_base_may_give_way_and_a_fragment_may_not(linux: Path) -> None:
    def gzip_for_xz(asked: str) -> str:
        return asked.replace("CONFIG_KERNEL_XZ=y\n", "")

    assert "KERNEL_XZ" not in configure(linux, "CONFIG_GZIP=y\n", answer=gzip_for_xz)
    with pytest.raises(Failure, match=r"^a\.config:1: CONFIG_KERNEL_XZ: expected y, found n"):
        configure(linux, "CONFIG_KERNEL_XZ=y\n", answer=gzip_for_xz)


def test_an_option_that_did_not_stick_is_named_with_what_it_needs(
    linux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(asked: str) -> str:
        return asked.replace("CONFIG_EXT4_FS=y\n", "").replace("CONFIG_EXT5=y\n", "") + "CONFIG_MMU=y\n"

    with pytest.raises(Failure) as caught:
        configure(
            linux,
            "CONFIG_EXT4_FS=m\n",
            "\nCONFIG_EXT4_FS=y\nCONFIG_EXT4_F=n\nCONFIG_EXT5=y\n",
            answer=without,
        )
    assert caught.value.what == (
        "b.config:2: CONFIG_EXT4_FS: expected y, found n: it depends on BLOCK && EXPERT && MMU; off: BLOCK "
        "(and 1 more, see the log)"
    )
    assert caught.value.details == ("EXT4_FS", "EXT5")
    assert (
        "b.config:4: CONFIG_EXT5: expected y, found n: no such option, did you mean"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("option", sorted(kconfig.IRREPRODUCIBLE))
def test_what_makes_builds_differ_is_refused(linux: Path, option: str) -> None:
    with pytest.raises(Failure, match=rf"^b\.config:1: CONFIG_{option}=y .*no two builds"):
        configure(linux, "CONFIG_OK=y\n", f"CONFIG_{option}=y\n")
    with pytest.raises(Failure, match=rf"^CONFIG_{option}=y "):
        configure(linux, "CONFIG_OK=y\n", answer=lambda asked: f"{asked}CONFIG_{option}=y\n")
    assert "OK" in configure(linux, f"CONFIG_OK=y\n# CONFIG_{option} is not set\n")


def test_the_architectures_images() -> None:
    assert architecture("amd64") == Architecture("x86_64", "x86", "bzImage", "arch/x86/boot/bzImage")
    assert architecture("arm64") == Architecture("arm64", "arm64", "Image", "arch/arm64/boot/Image")
    with pytest.raises(Failure, match="expected one of amd64, arm64, found 'x86_64'"):
        architecture("x86_64")


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

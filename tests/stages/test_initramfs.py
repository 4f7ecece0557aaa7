"""The initramfs stage: the archive's form, the libraries by closure, bytecode and modules, and the same
bytes each time.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import lzma
import marshal
import os
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from stages.initramfs import __main__ as stage
from stages.initramfs import bytecode, elf, modules, newc
from stages.initramfs.archive import Archive
from stages.shared import canonical_tar
from stages.shared.job import Failure, Job

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
EPOCH = 1767225600
RELEASE = "6.12.0-test"


@dataclass(frozen=True)
class Member:
    """One entry of an archive as the test's own reader sees it."""

    name: str
    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    mtime: int
    devices: tuple[int, ...]
    content: bytes


def read_newc(data: bytes) -> list[Member]:
    """Written from the format's description, apart from the writer."""
    members: list[Member] = []
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        ino, mode, uid, gid, nlink, mtime, size, *devices, name_size, check = fields
        assert check == 0
        name = data[at + 110 : at + 110 + name_size]
        assert name[-1:] == b"\0"
        at += 110 + name_size
        assert data[at : at + -at % 4].strip(b"\0") == b""
        at += -at % 4
        content = data[at : at + size]
        assert len(content) == size
        at += size
        assert data[at : at + -at % 4].strip(b"\0") == b""
        at += -at % 4
        if name == b"TRAILER!!!\0":
            assert (at, ino, mode, size, nlink) == (len(data), 0, 0, 0, 1)
            return members
        members.append(
            Member(name[:-1].decode(), ino, mode, uid, gid, nlink, mtime, tuple(devices), content)
        )


# The archive

PARTS = st.text("ab-.~é", min_size=1, max_size=4).filter(lambda part: part not in (".", ".."))


@given(
    st.dictionaries(
        st.lists(PARTS, min_size=1, max_size=3).map("/".join),
        st.binary(max_size=9),
        max_size=8,
    )
)  # fmt: skip
def test_what_goes_in_comes_out_in_one_order(files: dict[str, bytes]) -> None:
    folders = {path.rpartition("/")[0] for path in files}

    def clear(path: str) -> bool:
        return not any(f"{folder}/".startswith(f"{path}/") for folder in folders)

    files = {path: content for path, content in files.items() if clear(path)}
    archive, reversed_archive = Archive(), Archive()
    for path, content in files.items():
        archive.file(path, 0o640, content)
    for path, content in reversed(files.items()):
        reversed_archive.file(path, 0o640, content)
    data = archive.to_bytes(7)
    assert data == reversed_archive.to_bytes(7)
    members = read_newc(data)
    assert {m.name: m.content for m in members if stat.S_ISREG(m.mode)} == files
    names = [os.fsencode(member.name) for member in members]
    assert names == sorted(names)
    assert [member.ino for member in members] == list(range(1, len(members) + 1))
    seen = {""}
    for member in members:
        assert member.name.rpartition("/")[0] in seen, "a parent comes first"
        seen.add(member.name)
        assert (member.uid, member.gid, member.mtime, member.devices) == (0, 0, 7, (0, 0, 0, 0))
        if stat.S_ISDIR(member.mode):
            inside = [other for other in members if other.name.rpartition("/")[0] == member.name]
            assert member.nlink == 2 + sum(stat.S_ISDIR(other.mode) for other in inside)
        else:
            assert member.nlink == 1


@pytest.mark.parametrize(
    "path", ["/abs", "a//b", "a/", "./a", "a/../b", "..", "", "TRAILER!!!", "a\0b"],
    ids=["absolute", "empty-part", "trailing-slash", "dot", "dot-dot", "leaves", "empty", "trailer", "nul"],
)  # fmt: skip
def test_unsafe_names_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="plain relative path"):
        newc.Writer(io.BytesIO(), 0).file(path, 0o644, b"")


def test_the_writer_refuses_disorder_orphans_and_large_times() -> None:
    writer = newc.Writer(io.BytesIO(), 0)
    writer.file("b", 0o644, b"")
    with pytest.raises(ValueError, match="out of order"):
        writer.file("a", 0o644, b"")
    with pytest.raises(ValueError, match="out of order"):
        writer.file("b", 0o644, b"")
    with pytest.raises(ValueError, match="no parent"):
        writer.file("c/d", 0o644, b"")
    with pytest.raises(ValueError, match="32 bits"):
        newc.Writer(io.BytesIO(), 1 << 32)


@pytest.mark.parametrize(
    ("first", "second"),
    [("init", "init"), ("usr/lib", "usr/lib/x"), ("usr/lib/x", "usr/lib")],
    ids=["twice", "below-a-file", "over-a-directory"],
)
def test_two_things_at_one_path_are_refused(first: str, second: str) -> None:
    archive = Archive()
    archive.file(first, 0o644, b"")
    with pytest.raises(Failure, match="two things want this path"):
        archive.file(second, 0o644, b"")


def test_the_frame_is_one_with_a_window_that_every_decoder_grants() -> None:
    plain = os.urandom(1 << 20) * 12
    packed = stage.compress(plain)
    parameters = zstandard.get_frame_parameters(packed)
    assert parameters.window_size <= 8 << 20
    assert parameters.has_checksum
    assert parameters.content_size == len(plain)
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    assert decompressor.decompress(packed) == plain
    assert decompressor.unused_data == b""


# Programs and libraries


def make_elf(interpreter: str = "", libraries: tuple[str, ...] = ()) -> bytes:
    """The smallest dynamic ELF file with these needs, at virtual address 0x1000 above its file offset."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in libraries)
    offsets = [1, *itertools.accumulate((len(name) + 1 for name in libraries), initial=1)][1:]
    count = 2 + bool(interpreter)
    at = 64 + 56 * count
    path = interpreter.encode() + b"\0" if interpreter else b""
    dynamic_at = at + len(path) + len(strings)
    dynamic = b"".join(struct.pack("<qQ", 1, offset) for offset in offsets[: len(libraries)])
    dynamic += struct.pack("<qQqQ", 5, 0x1000 + at + len(path), 0, 0)
    size = dynamic_at + len(dynamic)

    def program(kind: int, offset: int, length: int) -> bytes:
        return struct.pack("<IIQQQQQQ", kind, 4, offset, 0x1000 + offset, 0, length, length, 1)

    table = program(1, 0, size) + program(2, dynamic_at, len(dynamic))
    if interpreter:
        table += program(3, at, len(path))
    numbers = (3, 62, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    header = struct.pack("<6s10xHHIQQQIHHHHHH", b"\x7fELF\x02\x01", *numbers)
    return header + table + path + strings + dynamic


def test_needs_of_a_made_file() -> None:
    content = make_elf("/lib64/ld.so.2", ("libc.so.6", "libm.so.6"))
    assert elf.needs(content, "x") == elf.Needs("/lib64/ld.so.2", ("libc.so.6", "libm.so.6"))
    assert elf.needs(make_elf(), "x") == elf.Needs("", ())


def test_needs_of_a_real_program_as_readelf_says() -> None:
    program = Path("/bin/ls").resolve()
    if shutil.which("readelf"):
        said = subprocess.run(["readelf", "-d", program], capture_output=True, text=True, check=True).stdout
        expected = [line.split("[")[1].split("]")[0] for line in said.splitlines() if "(NEEDED)" in line]
    else:
        said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        expected = []
    found = elf.needs(program.read_bytes(), "ls")
    assert Path(found.interpreter).exists()
    assert "libc.so.6" in found.libraries
    assert not expected or list(found.libraries) == expected


@given(st.binary(max_size=300), st.integers(0, 280))
def test_broken_programs_are_refused_by_name_or_read(tail: bytes, cut: int) -> None:
    for content in (tail, make_elf("/lib/ld.so", ("libc.so.6",))[:cut], b"\x7fELF\x02\x01" + tail):
        with contextlib.suppress(Failure):
            assert isinstance(elf.needs(content, "usr/bin/broken"), elf.Needs)
    with pytest.raises(Failure, match="usr/bin/broken: not a program or library"):
        elf.needs(b"#!" + tail, "usr/bin/broken")


# Bytecode


def test_bytecode_does_not_depend_on_company_or_place() -> None:
    a, b = b'NAMES = ("shared", {1, 2, "x"})\n', b'"doc"\nNAMES = ("shared",)\n'
    sources = {"usr/lib/a.py": a, "usr/lib/b.py": b}
    together = bytecode.compile_all(sources, PYTHON)
    alone = [bytecode.compile_all({path: content}, PYTHON) for path, content in sources.items()]
    assert together == alone[0] | alone[1]
    content = together["usr/lib/a.pyc"]
    # PEP 552: magic number, flags (hash-based, unchecked), hash of the source
    assert struct.unpack_from("<I", content, 4) == (0b01,)
    assert marshal.loads(content[16:]).co_filename == "/usr/lib/a.py"
    assert b"doc" not in together["usr/lib/b.pyc"]


def test_another_python_or_a_broken_source_is_refused() -> None:
    with pytest.raises(Failure, match=rf"holds python2\.7, expected {PYTHON}"):
        bytecode.compile_all({}, "python2.7")
    with pytest.raises(Failure, match=r"/usr/lib/x\.py: does not compile: .*SyntaxError"):
        bytecode.compile_all({"usr/lib/x.py": b"def ("}, PYTHON)


# Kernel modules

DEPENDENCIES = """\
kernel/fs/erofs/erofs.ko.xz: kernel/fs/netfs/netfs.ko.gz kernel/lib/lz4/lz4-decompress.ko
kernel/fs/netfs/netfs.ko.gz: kernel/lib/base.ko.zst
kernel/lib/lz4/lz4-decompress.ko:
kernel/lib/base.ko.zst:
kernel/fs/overlayfs/overlay.ko:
"""
INDEX = modules.parse(DEPENDENCIES, "kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio_pci.ko\n")


def test_dependencies_come_first_and_once() -> None:
    order = modules.load_order(INDEX, ["erofs", "overlay", "ext4", "lz4-decompress"])
    assert order == ["lz4_decompress", "base", "netfs", "erofs", "overlay"]
    assert modules.load_order(INDEX, ["virtio_pci", "ext4"]) == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("overlayfs", "did you mean 'overlay'?"),
        ("virtio-pcie", "did you mean 'virtio_pci'?"),
        ("zzz", "5 modules"),
    ],
    ids=["near-a-module", "near-a-built-in", "near-nothing"],
)
def test_an_unknown_module_is_named_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(Failure, match=f"no module '{name.replace('-', '_')}'") as failure:
        modules.load_order(INDEX, [name])
    assert hint in failure.value.hint


def test_a_cycle_and_a_dangling_dependency_are_refused() -> None:
    with pytest.raises(Failure, match="a → b → a is a cycle"):
        modules.load_order(modules.parse("a.ko: b.ko\nb.ko: a.ko\n", ""), ["a"])
    with pytest.raises(Failure, match="a needs gone, which the kernel lacks"):
        modules.load_order(modules.parse("a.ko: gone.ko\n", ""), ["a"])
    with pytest.raises(Failure, match="expected `path: paths`"):
        modules.parse("no colon\n", "")


@pytest.mark.parametrize(
    ("suffix", "packed"),
    [
        (".ko", b"module"),
        (".ko.xz", lzma.compress(b"module")),
        (".ko.gz", gzip.compress(b"module")),
        (".ko.zst", zstandard.ZstdCompressor().compress(b"module")),
    ],
    ids=["plain", "xz", "gz", "zst"],
)
def test_modules_are_unpacked(suffix: str, packed: bytes) -> None:
    assert modules.decompress(f"x{suffix}", packed) == b"module"
    if suffix != ".ko":
        with pytest.raises(Failure, match="broken compression"):
            modules.decompress(f"x{suffix}", b"\0" + packed[1:])


# The whole stage


def make_deb(path: Path, files: dict[str, bytes | str]) -> None:
    """A package with these files; a text is a symbolic link's target."""

    def tar(members: dict[str, bytes | str]) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:xz") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(f"./{name}")
                if isinstance(content, str):
                    info.type, info.linkname = tarfile.SYMTYPE, content
                    archive.addfile(info)
                else:
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        return stream.getvalue()

    ar = b"!<arch>\n"
    for name, content in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", tar({"control": b"Package: x\n"})),
        ("data.tar.xz", tar(files)),
    ):
        ar += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content
        ar += b"\n" * (len(content) % 2)
    path.write_bytes(ar)


LIBRARIES = "usr/lib/xxx-linux-gnu"
STANDARD = (
    "ctypes/__init__", "ctypes/_endian", "encodings/__init__", "encodings/aliases", "encodings/utf_8",
    "os", "struct", "types",
)  # fmt: skip


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job folder with a made-up runtime of two packages and a kernel with two modules."""
    for folder in ("in/repository/pool", "out"):
        (tmp_path / folder).mkdir(parents=True)
    pool = tmp_path / "in" / "repository" / "pool"
    standard = {f"usr/lib/{PYTHON}/{name}.py": f"# {name}\n".encode() for name in (*STANDARD, "not_wanted")}
    interpreter = "/lib64/ld-xxx.so.1"
    make_deb(
        pool / "python.deb",
        {
            f"usr/bin/{PYTHON}": make_elf(interpreter, ("libz.so.1", "libc.so.6")),
            f"usr/lib/{PYTHON}/lib-dynload/_ctypes.cpython.so": make_elf(libraries=("libc.so.6",)),
            f"usr/lib/{PYTHON}/lib-dynload/_other.cpython.so": make_elf(libraries=("libgone.so.1",)),
            **standard,
        },
    )
    make_deb(
        pool / "libs.deb",
        {
            f"{LIBRARIES}/libc.so.6": make_elf(interpreter, ("ld-xxx.so.1",)),
            f"{LIBRARIES}/ld-xxx.so.1": make_elf(),
            "usr/lib64/ld-xxx.so.1": "../lib/xxx-linux-gnu/ld-xxx.so.1",
            f"{LIBRARIES}/libz.so.1": "libz.so.1.3",
            f"{LIBRARIES}/libz.so.1.3": make_elf(libraries=("libc.so.6",)),
            f"{LIBRARIES}/libunused.so.1": make_elf(),
            "usr/share/doc/libs/copyright": b"text",
        },
    )
    base = tmp_path / "kernel" / "usr" / "lib" / "modules" / RELEASE
    (base / "kernel").mkdir(parents=True)
    (base / "kernel" / "erofs.ko.xz").write_bytes(lzma.compress(b"the erofs module"))
    (base / "kernel" / "netfs.ko").write_bytes(b"the netfs module")
    (base / "modules.dep").write_text("kernel/erofs.ko.xz: kernel/netfs.ko\nkernel/netfs.ko:\n")
    (base / "modules.builtin").write_text("kernel/ext4.ko\n")
    canonical_tar.pack(tmp_path / "kernel", tmp_path / "in" / "modules", EPOCH)
    (tmp_path / "in" / "release").write_text(RELEASE + "\n")
    (tmp_path / "in" / "file-0000").write_bytes(b"firmware")
    files = [{"path": "/usr/lib/firmware/card.bin", "mode": "0600", "input": "file-0000"}]
    return Job(tmp_path, "initramfs", EPOCH, {"modules": ["erofs", "ext4"], "files": files})


def contents(job: Job) -> dict[str, Member]:
    packed = job.output("initramfs").read_bytes()
    return {member.name: member for member in read_newc(zstandard.ZstdDecompressor().decompress(packed))}


def test_the_archive_holds_what_is_listed_and_nothing_else(job: Job) -> None:
    stage.program(job)
    found = contents(job)
    links = {name: member.content.decode() for name, member in found.items() if stat.S_ISLNK(member.mode)}
    assert links == {
        "lib64": "usr/lib64",
        "usr/lib64/ld-xxx.so.1": "../lib/xxx-linux-gnu/ld-xxx.so.1",
        f"{LIBRARIES}/libz.so.1": "libz.so.1.3",
    }
    files = {name for name, member in found.items() if stat.S_ISREG(member.mode)}
    home = "usr/lib/disk-image"
    room = Path(__file__).parents[2] / "initramfs"
    init_modules = {f"{home}/initramfs/{path.stem}.pyc" for path in room.glob("*.py")}
    assert len(init_modules) > 5
    standard = {f"usr/lib/{PYTHON}/{name}.pyc" for name in STANDARD}
    assert files == {
        "init",
        f"usr/bin/{PYTHON}",
        f"usr/lib/{PYTHON}/lib-dynload/_ctypes.cpython.so",
        *(f"{LIBRARIES}/{name}" for name in ("libc.so.6", "ld-xxx.so.1", "libz.so.1.3")),
        *standard,
        *init_modules,
        *(f"{home}/modules/{name}" for name in ("order", "erofs.ko", "netfs.ko")),
        "usr/lib/firmware/card.bin",
    }
    for folder in ("proc", "sys", "dev", "sysroot", "layers/disk", "layers/metadata", "layers/writes"):
        assert stat.S_ISDIR(found[folder].mode)
    assert found["init"].mode == stat.S_IFREG | 0o755
    assert found["init"].content.startswith(f"#!/usr/bin/{PYTHON} -ISB\n".encode())
    assert found["usr/lib/firmware/card.bin"].mode == stat.S_IFREG | 0o600
    assert found[f"{home}/modules/order"].content == b"netfs.ko\nerofs.ko\n"
    assert found[f"{home}/modules/erofs.ko"].content == b"the erofs module"
    assert {member.mtime for member in found.values()} == {EPOCH}


def test_the_same_bytes_twice_with_package_names_in_another_order(job: Job) -> None:
    stage.program(job)
    first = job.output("initramfs").read_bytes()
    pool = job.input("repository") / "pool"
    (pool / "python.deb").rename(pool / "a-python.deb")
    stage.program(job)
    assert job.output("initramfs").read_bytes() == first


def test_a_library_no_package_holds_is_named(job: Job) -> None:
    pool = job.input("repository") / "pool"
    make_deb(pool / "libs.deb", {f"{LIBRARIES}/libc.so.6": make_elf()})
    with pytest.raises(Failure, match=rf"/usr/bin/{PYTHON} needs libz\.so\.1, which no package"):
        stage.program(job)


def test_a_repository_without_python_is_named(job: Job) -> None:
    (job.input("repository") / "pool" / "python.deb").unlink()
    with pytest.raises(Failure, match="expected one Python with _ctypes in the packages, found none"):
        stage.program(job)


def test_a_module_named_but_missing_from_the_tree_is_named(job: Job) -> None:
    job.input("release").write_text("6.99\n")
    with pytest.raises(Failure, match=r"expected /usr/lib/modules/6\.99/modules\.dep"):
        stage.program(job)


def test_a_recipe_file_over_the_runtime_is_refused(job: Job) -> None:
    params = json.loads(json.dumps(job.params))
    params["files"][0]["path"] = "/init"
    with pytest.raises(Failure, match="/init: two things want this path"):
        stage.program(Job(job.folder, job.name, job.source_date_epoch, params))

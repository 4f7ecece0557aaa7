"""The boot check without a guest: layouts, disks, consoles, processes that end or don't, verdicts."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.boot import __main__ as stage
from stages.boot import disk, guest, layout, machine
from stages.boot.console import Console, Result
from stages.boot.ext4_verity import Disk
from stages.shared import fsverity, packs
from stages.shared.job import Failure, Job

DIGEST = "5a" * 32
VERIFIED = f"disk-image: root verified sha256:{DIGEST}"
MULTI_USER = (
    "[\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mmulti-user.target\x1b[0m - Multi-User System."
)
VENDOR = "application/vnd.powernode.disk_image."


# Layouts


class Layout:
    """A layout under construction: blobs by content, then one manifest."""

    def __init__(self, folder: Path, objects: Sequence[bytes] = (), **config: Any) -> None:
        self.folder = folder
        (folder / "blobs" / "sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self.metadata = b"metadata image" * 1000
        self.config = {
            "arch": "amd64",
            "cmdline": f"console=ttyS0 composefs={fsverity.digest(self.metadata)}",
            "fsverity_algorithm": "sha256",
            "fsverity_digest": fsverity.digest(self.metadata),
            **config,
        }
        source = b"".join(objects)
        wanted, at = [], 0
        for content in objects:
            wanted.append(packs.Object(fsverity.digest(content), at, len(content)))
            at += len(content)
        pack = folder.parent / "made.pack"
        with pack.open("wb") as stream:
            packs.write(memoryview(source), wanted, stream)
        self.layers = [
            self.blob(b"the build manifest", VENDOR + "v1+manifest"),
            self.blob(b"the kernel", VENDOR + "kernel.v1"),
            self.blob(b"the initramfs", VENDOR + "initramfs.v1+zstd"),
            self.blob(self.metadata, "application/vnd.erofs"),
            self.blob(pack.read_bytes(), VENDOR + "objects.v1+zstd"),
        ]

    def blob(self, content: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (self.folder / "blobs" / "sha256" / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def finish(self, **fields: Any) -> Path:
        config = self.blob(json.dumps(self.config).encode(), VENDOR + "config.v1+json")
        manifest = json.dumps(
            {"schemaVersion": 2, "config": config, "layers": self.layers, **fields}
        ).encode()
        index = {"manifests": [self.blob(manifest, "application/vnd.oci.image.manifest.v1+json")]}
        (self.folder / "index.json").write_text(json.dumps(index))
        return self.folder


def test_a_layout_is_read(tmp_path: Path) -> None:
    made = Layout(tmp_path / "layout")
    image = layout.read(made.finish())
    assert image.kernel.read_bytes() == b"the kernel"
    assert image.initramfs.read_bytes() == b"the initramfs"
    assert image.metadata.read_bytes() == made.metadata
    assert (image.arch, image.digest) == ("amd64", fsverity.digest(made.metadata))
    assert len(image.packs) == 1
    index = json.loads((tmp_path / "layout" / "index.json").read_text())
    assert image.manifest_digest == index["manifests"][0]["digest"]


def _spoil_kernel(made: Layout) -> Path:
    folder = made.finish()
    path = folder / "blobs" / "sha256" / made.layers[1]["digest"].partition(":")[2]
    path.write_bytes(b"the Kernel")
    return folder


def _lose_kernel(made: Layout) -> Path:
    folder = made.finish()
    (folder / "blobs" / "sha256" / made.layers[1]["digest"].partition(":")[2]).unlink()
    return folder


def _longer_size(made: Layout) -> Path:
    made.layers[2]["size"] += 1
    return made.finish()


def _two_kernels(made: Layout) -> Path:
    made.layers.append(made.layers[1])
    return made.finish()


def _escaping_digest(made: Layout) -> Path:
    made.layers[1]["digest"] = "sha256:../../../../etc/passwd"
    return made.finish()


def _other_algorithm(made: Layout) -> Path:
    made.config["fsverity_algorithm"] = "sha512"
    return made.finish()


def _config_digest_no_hex(made: Layout) -> Path:
    made.config["fsverity_digest"] = "../x"
    return made.finish()


def _no_command_line(made: Layout) -> Path:
    del made.config["cmdline"]
    return made.finish()


def _config_of_other_type(made: Layout) -> Path:
    return made.finish(config=made.blob(b"{}", "application/vnd.oci.image.config.v1+json"))


def _layers_no_list(made: Layout) -> Path:
    return made.finish(layers={"a": 1})


def _no_manifest(made: Layout) -> Path:
    folder = made.finish()
    (folder / "index.json").write_text('{"manifests":[]}')
    return folder


def _index_no_json(made: Layout) -> Path:
    folder = made.finish()
    (folder / "index.json").write_text("<html>")
    return folder


def _no_layout(made: Layout) -> Path:
    return made.folder.parent


def _nested_json(made: Layout) -> Path:
    folder = made.finish()
    (folder / "index.json").write_text("[" * 100_000)
    return folder


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_spoil_kernel, r"layers\[1\]: expected sha256:[0-9a-f]{64} of 10 bytes, found sha256"),
        (_lose_kernel, r"layers\[1\]: expected the blob [0-9a-f]{64}, found none"),
        (_longer_size, r"layers\[2\]: expected sha256:.* of 14 bytes, found .* of 13"),
        (_two_kernels, r"expected one layer of type .*kernel\.v1, found 2"),
        (_escaping_digest, r"layers\[1\]: expected a sha256 digest, found 'sha256:\.\./"),
        (_other_algorithm, r"expected fsverity_algorithm sha256, found 'sha512'"),
        (_config_digest_no_hex, r"expected fsverity_digest as 64 hex digits, found '\.\./x'"),
        (_no_command_line, r"expected a text as cmdline, found None"),
        (_config_of_other_type, r"expected a config of type .*found 'application/vnd\.oci"),
        (_layers_no_list, r"expected a list of descriptors as layers"),
        (_no_manifest, r"index\.json: expected at least one manifest"),
        (_index_no_json, r"index\.json: expected JSON"),
        (_no_layout, r"expected the file oci-layout in the layout"),
        (_nested_json, r"index\.json: expected JSON"),
    ],
)
def test_a_wrong_layout_is_refused(tmp_path: Path, spoil: Callable[[Layout], Path], said: str) -> None:
    with pytest.raises(Failure, match=said):
        layout.read(spoil(Layout(tmp_path / "layout")))


# Disks

SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"
needs_e2fsprogs = pytest.mark.skipif(
    shutil.which("debugfs", path=SBIN) is None, reason="e2fsprogs is not installed (mke2fs, debugfs)"
)


def debugfs(image: Path, request: str) -> str:
    argv = ["debugfs", "-R", request, str(image)]
    return subprocess.run(argv, capture_output=True, text=True, check=True, env={"PATH": SBIN}).stdout


def stored(image: Path, path: str) -> bytes:
    """Every block that a file has on disk, beyond its size too, holes as zeros."""
    content = bytearray()
    data = image.read_bytes()
    for line in debugfs(image, f"ex -l {path}").splitlines()[1:]:
        first, last, physical = re.findall(r"\s*\d+/\s*\d+\s+\d+/\s*\d+\s+(\d+) -\s+(\d+)\s+(\d+)", line)[0]
        start, length = int(first) * 4096, (int(last) - int(first) + 1) * 4096
        content.extend(bytes(start - len(content)))
        content += data[int(physical) * 4096 : int(physical) * 4096 + length]
    return bytes(content)


@needs_e2fsprogs
def test_files_have_the_shape_that_the_kernel_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", SBIN)
    generator = random.Random(1)
    sizes = (1, 65, 4096, 4097, 65536, 65537, 524288, 700_001, 3 << 20)
    staging, image = tmp_path / "staging", tmp_path / "disk.img"
    made = Disk(staging)
    contents = {
        f"composefs/objects/{n:02x}/{'a' * 62}": generator.randbytes(size) for n, size in enumerate(sizes)
    }
    # Blocks of zeros inside become holes, which must read as zeros.
    contents["composefs/images/zeros.cfs"] = b"x" + bytes(200_000) + b"x"
    for path, content in contents.items():
        assert made.add(path, (content[:10], content[10:])) == fsverity.digest(content)
    made.write(image, "disk-image")
    checked = subprocess.run(
        ["e2fsck", "-fn", image], capture_output=True, text=True, check=False, env={"PATH": SBIN}
    )
    assert checked.returncode == 0, checked.stdout
    assert "disk-image" in debugfs(image, "show_super_stats -h")
    for path, content in contents.items():
        said = debugfs(image, f"stat /{path}")
        assert re.search(r"Flags: 0x180000\b", said), said
        assert re.search(rf"Size: {len(content)}\b", said), said
        on_disk = stored(image, f"/{path}")
        merkle = fsverity.merkle(content)
        tree_at = -(-len(content) // 65536) * 65536
        assert on_disk[: len(content)] == content
        assert on_disk[len(content) : tree_at].strip(b"\0") == b""
        end = on_disk[tree_at:]
        assert end[: len(merkle.tree)] == merkle.tree
        last = end[len(merkle.tree) :]
        assert len(last) == 4096
        assert last[:256] == merkle.descriptor
        assert int.from_bytes(last[-4:], "little") == 256


@needs_e2fsprogs
def test_a_layout_becomes_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", SBIN)
    objects = [bytes([n]) * (100 + n) for n in range(40)]
    image = layout.read(Layout(tmp_path / "layout", objects).finish())
    disk.write(image, tmp_path / "disk.img")
    for content in objects:
        digest = fsverity.digest(content)
        found = stored(tmp_path / "disk.img", f"/composefs/objects/{digest[:2]}/{digest[2:]}")
        assert found[: len(content)] == content
    assert image.digest in debugfs(tmp_path / "disk.img", "ls -p /composefs/images")


def test_a_metadata_image_that_the_config_does_not_name_is_refused(tmp_path: Path) -> None:
    made = Layout(tmp_path / "layout", fsverity_digest=DIGEST)
    with pytest.raises(Failure, match=f"expected fs-verity sha256 {DIGEST}, found"):
        disk.write(layout.read(made.finish()), tmp_path / "disk.img")


@needs_e2fsprogs
def test_what_debugfs_could_not_do_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", SBIN)
    made = Disk(tmp_path / "staging")
    made.add("file", [b"content"])
    (tmp_path / "staging" / "file").rename(tmp_path / "staging" / "other")
    with pytest.raises(Failure, match=r"debugfs: .*File not found"):
        made.write(tmp_path / "disk.img", "disk-image")


# Consoles


def feed(*parts: str) -> Console:
    console = Console()
    for part in parts:
        console.feed(part.encode())
    return console


def test_a_boot_is_verified_then_multi_user() -> None:
    console = feed(f"SeaBIOS\r\n\r\n{VERIFIED}\r\n")
    assert (console.verified, console.result) == (DIGEST, None)
    console.feed(f"{MULTI_USER}\r\n".encode())
    assert (console.result, console.reason) == (Result.BOOTED, "Reached target multi-user.target")


def test_multi_user_without_a_verified_root_is_no_boot() -> None:
    assert feed(MULTI_USER + "\n", MULTI_USER + "\n").result is None


def test_what_runs_in_the_root_can_not_change_the_digest() -> None:
    console = feed(VERIFIED + "\n", f"disk-image: root verified sha256:{'0' * 64}\n", MULTI_USER + "\n")
    assert (console.verified, console.result) == (DIGEST, Result.BOOTED)


@pytest.mark.parametrize(
    ("line", "result", "reason"),
    [
        ("disk-image: refused: expected a, found b\r", Result.REFUSED, "expected a, found b"),
        (
            "[    1.5] Kernel panic - not syncing: Attempted to kill init!",
            Result.PANIC,
            "Attempted to kill init!",
        ),
        ("disk-image: root verified sha256:" + "g" * 64, None, ""),
        ("disk-image: root verified sha256:" + DIGEST[:-1], None, ""),
        ("Reached target multi-user-net.target", None, ""),
    ],
    ids=["refused", "panic", "no-hex", "short", "another-target"],
)
def test_lines(line: str, result: Result | None, reason: str) -> None:
    console = feed(line + "\n")
    assert (console.result, console.reason, console.verified) == (result, reason, None)


@given(st.lists(st.integers(1, 40), max_size=12))
def test_how_the_bytes_arrive_does_not_matter(cuts: list[int]) -> None:
    data = f"noise é\r\n{VERIFIED}\r\n{MULTI_USER}\r\n".encode()
    console = Console()
    lines: list[str] = []
    for cut in (*cuts, len(data)):
        lines += console.feed(data[:cut])
        data = data[cut:]
    assert lines == ["noise é", VERIFIED, "[  OK  ] Reached target multi-user.target - Multi-User System."]
    assert (console.verified, console.result) == (DIGEST, Result.BOOTED)


@given(st.binary(max_size=400))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    console = Console()
    for line in console.feed(data):
        assert not re.search(r"[\x00-\x08\x1b]", line)


# Guests: a Python process stands for QEMU


def run(tmp_path: Path, code: str, timeout_seconds: float = 20) -> tuple[guest.Boot, list[str]]:
    said: list[str] = []
    argv = [sys.executable, "-u", "-c", f"import os, sys, time\n{code}"]
    return guest.boot(argv, Console(), tmp_path / "console", timeout_seconds, said.append), said


def test_a_guest_that_boots_is_ended_and_its_line_repeated(tmp_path: Path) -> None:
    code = f"print('{VERIFIED}')\ntime.sleep(0.3)\nprint({MULTI_USER!r})\ntime.sleep(60)"
    started = time.monotonic()
    seen, said = run(tmp_path, code)
    assert time.monotonic() - started < 20
    assert (seen.result, seen.digest) == (Result.BOOTED, DIGEST)
    assert said == [VERIFIED]
    assert seen.verified_seconds is not None
    assert seen.verified_seconds + 0.2 < seen.seconds
    assert VERIFIED in (tmp_path / "console").read_text()


def test_time_ends_a_silent_guest(tmp_path: Path) -> None:
    seen, _ = run(tmp_path, f"print('{VERIFIED}')\nprint('stuck here')\ntime.sleep(60)", 0.8)
    assert (seen.result, seen.reason) == (None, "no end of the boot within 0.8 s")
    assert seen.last_lines[-1] == "stuck here"


def test_time_ends_a_talkative_guest(tmp_path: Path) -> None:
    seen, _ = run(tmp_path, "while True: print('x' * 80)", 0.8)
    assert (seen.result, seen.reason) == (None, "no end of the boot within 0.8 s")


def test_a_guest_that_powers_off_early(tmp_path: Path) -> None:
    seen, _ = run(tmp_path, f"print('{VERIFIED}')")
    assert (seen.result, seen.reason) == (None, "the guest powered off before its boot ended")


def test_a_guest_that_ignores_the_signal_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "_GRACE_SECONDS", 0.3)
    ignore = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(os.getpid())\n"
    code = f"{ignore}print('{VERIFIED}')\nprint({MULTI_USER!r})\ntime.sleep(60)"
    seen, _ = run(tmp_path, code)
    assert seen.result is Result.BOOTED
    pid = int((tmp_path / "console").read_text().split()[0])
    assert not Path(f"/proc/{pid}").exists()


def test_qemu_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"exit code 1: qemu: no such machine"):
        run(tmp_path, "sys.exit('qemu: no such machine')")
    with pytest.raises(Failure, match="nonexistent-qemu: not found in the tools tree"):
        guest.boot(["nonexistent-qemu"], Console(), tmp_path / "console", 1, print)


def test_the_machine_of_each_architecture() -> None:
    for arch in ("amd64", "arm64"):
        argv = machine.command(
            machine.machine(arch),
            kernel=Path("k"),
            initramfs=Path("i"),
            command_line="c d",
            disk=Path("x"),
            memory_mib=512,
        )
        assert argv[argv.index("-accel") + 1] == "tcg"
        assert argv[argv.index("-append") + 1] == "c d"
        assert not any("kvm" in word or "netdev" in word for word in argv)
    with pytest.raises(Failure, match="no machine to boot 'sparc' in"):
        machine.machine("sparc")


# The whole stage, with a process in QEMU's place


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("PATH", SBIN)
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    Layout(tmp_path / "in" / "layout", [b"object" * 50]).finish()
    return Job(tmp_path, "boot", 1, {"arch": "amd64", "memory_mib": 512, "timeout_seconds": 20})


def qemu(monkeypatch: pytest.MonkeyPatch, *lines: str) -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = []

    def command(hardware: object, **settings: Any) -> list[str]:
        asked.append(settings)
        return [sys.executable, "-c", f"print({chr(10).join(lines)!r})"]

    monkeypatch.setattr(stage, "command", command)
    return asked


@needs_e2fsprogs
def test_the_verdict_of_a_good_boot(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = layout.read(job.input("layout")).digest
    asked = qemu(monkeypatch, f"disk-image: root verified sha256:{digest}", MULTI_USER)
    stage.program(job)
    verdict = json.loads(job.output("verdict").read_text())
    assert (verdict["booted"], verdict["composefs_digest"]) == (True, digest)
    assert 0 < verdict["verified_seconds"] <= verdict["seconds"]
    assert verdict["command_line"] == f"console=ttyS0 composefs={digest} systemd.show_status=1"
    assert asked[0]["command_line"] == verdict["command_line"]
    assert capsys.readouterr().out == f"disk-image: root verified sha256:{digest}\n"
    assert "multi-user" in job.output("console").read_text()


@needs_e2fsprogs
@pytest.mark.parametrize(
    ("lines", "code", "said"),
    [
        (
            ["disk-image: refused: expected a, found b"],
            "refused",
            "the guest did not boot: expected a, found b",
        ),
        (["Kernel panic - not syncing: no init"], "panic", "the guest did not boot: no init"),
        (
            [VERIFIED, MULTI_USER],
            "digest_mismatch",
            f"expected sha256:[0-9a-f]{{64}}, found sha256:{DIGEST}",
        ),
        (["@error {}", "hello"], "timeout", "powered off before its boot ended"),
    ],
    ids=["refused", "panic", "another-root", "poweroff"],
)
def test_the_verdict_of_a_bad_boot(
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lines: list[str],
    code: str,
    said: str,
) -> None:
    qemu(monkeypatch, *lines)
    with pytest.raises(Failure, match=said) as failure:
        stage.program(job)
    assert failure.value.code == code
    assert json.loads(job.output("verdict").read_text())["booted"] is False
    told = capsys.readouterr().out
    assert all(f"| {line}" in told for line in lines)
    assert not any(line.startswith("@") for line in told.splitlines())


def test_an_image_of_another_architecture_is_refused(job: Job) -> None:
    params = {**job.params, "arch": "arm64"}
    with pytest.raises(Failure, match="the image is for amd64, this check boots arm64"):
        stage.program(Job(job.folder, job.name, 1, params))

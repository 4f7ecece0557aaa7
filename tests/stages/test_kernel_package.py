"""The packaged kernel: taken apart whatever its package's layout, and refused when it is not one kernel."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from stages.kernel_package import __main__ as kernel_package
from stages.shared import canonical_tar
from stages.shared.job import Failure, Job
from tests.stages.conftest import EPOCH

RELEASE = "6.12.117+deb13-cloud-amd64"
DEPMOD = f"""#!/bin/sh
[ "$1 $3" = "--basedir {RELEASE}" ] || exit 9
cd "$2/lib/modules/$3" && ls kernel > modules.dep
"""


def image_package(modules: str = "usr/lib/modules", release: str = RELEASE) -> dict[str, str]:
    return {
        f"boot/System.map-{release}": "not taken",
        f"boot/config-{release}": "CONFIG_MODULES=y\n",
        f"boot/vmlinuz-{release}": "MZ kernel",
        f"{modules}/{release}/kernel/erofs.ko.xz": "module",
        f"{modules}/{release}/modules.builtin": "kernel/fs/ext4/ext4.ko\n",
        f"usr/share/doc/linux-image-{release}/copyright": "not taken",
    }


@pytest.fixture
def take(
    debs: Any, make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Job]:
    """Run the program over packages with these files, with a depmod that lists the modules it is shown."""

    def run(*packages: Mapping[str, str], depmod: str = DEPMOD) -> Job:
        for index, files in enumerate(packages):
            debs.make(f"linux-image-{index}", files)
        debs.folder.mkdir(exist_ok=True)
        programs = tmp_path / "bin"
        programs.mkdir()
        (programs / "depmod").write_text(depmod)
        (programs / "depmod").chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        monkeypatch.setattr(kernel_package, "_TREE", tmp_path / "modules")
        monkeypatch.setattr(kernel_package, "_MODULES", tmp_path / "modules/usr/lib/modules")
        job = make_job("kernel", {}, inputs={"repository": debs.folder})
        kernel_package.program(job)
        return job

    return run


@pytest.mark.parametrize("modules", ["lib/modules", "usr/lib/modules"])
def test_the_four_outputs_from_either_layout(take: Callable[..., Job], modules: str) -> None:
    job = take(image_package(modules), {"usr/share/doc/meta": "a package without a kernel beside it"})
    assert job.output("vmlinuz").read_text() == "MZ kernel"
    assert job.output("config").read_text() == "CONFIG_MODULES=y\n"
    assert job.output("release").read_text() == f"{RELEASE}\n"
    data = job.output("modules").read_bytes()
    entries = {entry.path: (entry, offset) for entry, offset in canonical_tar.read(job.output("modules"))}
    base = f"usr/lib/modules/{RELEASE}"
    assert list(entries) == [
        ".",
        "usr",
        "usr/lib",
        "usr/lib/modules",
        base,
        f"{base}/kernel",
        f"{base}/kernel/erofs.ko.xz",
        f"{base}/modules.builtin",
        f"{base}/modules.dep",
    ]
    entry, offset = entries[f"{base}/modules.dep"]
    assert data[offset : offset + entry.size] == b"erofs.ko.xz\n"
    assert {entry.mtime for entry, _ in entries.values()} == {EPOCH}


def without(name: str) -> dict[str, str]:
    return {path: text for path, text in image_package().items() if name not in path}


@pytest.mark.parametrize(
    ("packages", "found"),
    [
        pytest.param([], "among 0 packages, found none", id="empty-repository"),
        pytest.param([without("vmlinuz")], "among 1 packages, found none", id="no-kernel"),
        pytest.param(
            [image_package(), image_package(release="6.1.0-56-amd64")],
            r"among 2 packages, found 6\.12.* in linux-image-0_1\.0_all\.deb, 6\.1\.0-56-amd64 in ",
            id="two-kernels",
        ),
        pytest.param(
            [image_package(), image_package()],
            r"found 6\.12.* in linux-image-0_1\.0_all\.deb, 6\.12.* in linux-image-1_1\.0_all\.deb",
            id="one-kernel-twice",
        ),
        pytest.param([without("config")], r"expected boot/config-6\.12.*, found none", id="no-config"),
        pytest.param([without("modules/")], r"expected modules/6\.12.*, found none", id="no-modules"),
        pytest.param(
            [{**image_package(), "lib/modules/6.1.0/kernel/a.ko": ""}],
            r"expected modules/6\.12.* and no other, found modules/6\.1\.0, modules/6\.12",
            id="modules-of-another-kernel",
        ),
    ],
)
def test_anything_but_one_whole_kernel_is_refused(
    take: Callable[..., Job], packages: list[dict[str, str]], found: str
) -> None:
    with pytest.raises(Failure, match=found):
        take(*packages)


def test_depmods_failure_is_the_stages(take: Callable[..., Job]) -> None:
    with pytest.raises(Failure, match=r"^depmod --basedir .*: exit code 3$"):
        take(image_package(), depmod="#!/bin/sh\nexit 3\n")

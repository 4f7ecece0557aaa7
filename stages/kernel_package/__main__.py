"""The distribution's packaged kernel: its image, its modules with depmod's indexes, its configuration, its release."""

from __future__ import annotations

import os
import re
import tarfile
from pathlib import Path

from stages.shared import canonical_tar, deb
from stages.shared.job import Failure, Job, main, run

_TREE = Path("/tmp/modules")
_IMAGE = re.compile(r"(?:usr/)?boot/vmlinu[xz]-(?P<release>[^/]+)")
_HINT = "name one kernel image package in the recipe's kernel.package, then lock it again"


def program(job: Job) -> None:
    """Take the four outputs from the one linux-image package in the repository."""
    (_TREE / "usr" / "lib").mkdir(parents=True)
    # depmod looks below lib/modules, which a merged-/usr tree reaches by this link.
    (_TREE / "lib").symlink_to("usr/lib")
    packages = sorted(job.input("repository").glob("pool/**/*.deb"))
    found: dict[str, Path] = {}
    for package in packages:
        for release in _unpack(package, job):
            found[release] = package
    if len(found) != 1:
        held = ", ".join(f"{release} in {package.name}" for release, package in sorted(found.items())) or "none"
        raise Failure(f"expected one kernel among {len(packages)} packages, found {held}", _HINT)
    (release,) = found
    # The package's maintainer script would run depmod on the machine it is installed on.
    run(["depmod", "--basedir", os.fspath(_TREE), release], hint="look at the modules in the kernel's package")
    canonical_tar.pack(
        _TREE, job.output("modules"), job.source_date_epoch, exclude=lambda path: path == "lib"
    )
    job.output("release").write_text(f"{release}\n")


def _unpack(package: Path, job: Job) -> list[str]:
    """Write image and configuration to the outputs and modules below _TREE; the releases of the images seen."""
    releases = []
    with deb.data(package) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if match := _IMAGE.fullmatch(name):
                releases.append(match["release"])
                _write(archive, member, job.output("vmlinuz"))
            elif re.fullmatch(r"(?:usr/)?boot/config-[^/]+", name):
                _write(archive, member, job.output("config"))
            elif re.match(r"(?:usr/)?lib/modules/", name):
                path = _TREE / "usr" / name.removeprefix("usr/")
                if member.isdir():
                    path.mkdir(parents=True, exist_ok=True)
                elif member.isreg():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _write(archive, member, path)
                    os.utime(path, (member.mtime, member.mtime))
    return releases


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    content = archive.extractfile(member)
    assert content is not None
    path.write_bytes(content.read())
    path.chmod(0o644)


if __name__ == "__main__":
    main(program)

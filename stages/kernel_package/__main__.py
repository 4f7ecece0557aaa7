"""The distribution's packaged kernel: image, modules with depmod's indexes, .config, release."""

from __future__ import annotations

import os
import re
import tarfile
from pathlib import Path

from stages.shared import canonical_tar, deb
from stages.shared.job import Failure, Job, main, run

_TREE = Path("/tmp/modules")
_MODULES = _TREE / "usr/lib/modules"
# Before and after Debian's move to a merged /usr; modules always end up below usr/lib/modules.
_IMAGE = re.compile(r"(?:usr/)?boot/vmlinu[xz]-(?P<release>[^/]+)")
_CONFIG = re.compile(r"(?:usr/)?boot/config-(?P<release>[^/]+)")
_MODULE = re.compile(r"(?:usr/)?lib/modules/(?P<path>.+)")
_HINT = "name one kernel image package in the recipe's kernel.package, then lock it again"


def program(job: Job) -> None:
    """Write the outputs vmlinuz, modules, config and release.

    Raises Failure unless the repository's packages hold exactly one kernel with .config and modules.
    """
    _MODULES.mkdir(parents=True)
    # depmod knows lib/modules, which a merged-/usr tree reaches by this link.
    (_TREE / "lib").symlink_to("usr/lib")
    packages = sorted(job.input("repository").rglob("*.deb"))
    images: list[tuple[str, str]] = []
    configs: list[str] = []
    for package in packages:
        _unpack(package, job, images, configs)
    if len(images) != 1:
        held = ", ".join(f"{release} in {name}" for release, name in images) or "none"
        raise Failure(f"expected one kernel among {len(packages)} packages, found {held}", _HINT)
    release = images[0][0]
    for what, found in (("boot/config-", configs), ("modules/", sorted(os.listdir(_MODULES)))):
        if found != [release]:
            held = ", ".join(what + other for other in found) or "none"
            raise Failure(f"{images[0][1]}: expected {what}{release} and no other, found {held}", _HINT)
    # The package's maintainer script would run depmod on the machine it is installed on.
    run(
        ["depmod", "--basedir", os.fspath(_TREE), release],
        hint="look at the modules in the kernel's package",
    )
    # Every file was made by this run, at a time that means nothing: all have the image's one time.
    canonical_tar.pack(
        _TREE, job.output("modules"), job.source_date_epoch, exclude=lambda path: path == "lib", made_since=0
    )
    job.output("release").write_text(f"{release}\n")


def _unpack(package: Path, job: Job, images: list[tuple[str, str]], configs: list[str]) -> None:
    """Write image and .config to their outputs and modules below _MODULES; note the releases seen.

    Links are left out: the only ones lead to the headers for building modules, which no image has.
    """
    with deb.data(package) as archive:
        for member in archive:
            name = os.path.normpath(member.name)
            if not member.isreg():
                continue
            if match := _IMAGE.fullmatch(name):
                images.append((match["release"], package.name))
                _write(archive, member, job.output("vmlinuz"))
            elif match := _CONFIG.fullmatch(name):
                configs.append(match["release"])
                _write(archive, member, job.output("config"))
            elif match := _MODULE.fullmatch(name):
                path = _MODULES / match["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(archive, member, path)


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    content = archive.extractfile(member)
    assert content is not None
    path.write_bytes(content.read())


if __name__ == "__main__":
    main(program)

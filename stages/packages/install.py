"""The installation itself: mmdebstrap, told to install one exact list."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from stages.shared.job import Failure, run

_HINT = "read the package's own message above; for a set that does not fit together: disk-image lock"


def install(root: Path, repository: Path, suite: str, arch: str, packages: Sequence[str]) -> None:
    """Install `packages` (`name:arch=version`) from `repository` into the new folder `root`.

    Variant `custom` installs what is named and nothing else; it unpacks everything and then lets the
    root's own dpkg install it all in one go. Mounts are skipped because a stage has none to give
    (docs/design.md, the stage environment). `trusted=yes` because this repository is not signed: each of
    its files was compared with the lock before it got here.
    """
    argv = [
        "mmdebstrap",
        "--mode=root",
        "--variant=custom",
        "--format=directory",
        f"--architectures={arch}",
        "--skip=chroot/mount,check/empty",
        "--include=" + ",".join(packages),
        "--aptopt=APT::Install-Recommends false",
        # The root is a pure function of its inputs: after a crash it is made again, never repaired.
        "--dpkgopt=force-unsafe-io",
        "--verbose",
        suite,
        str(root),
        f"deb [trusted=yes] copy:{repository} ./",
    ]
    environment = {**os.environ, "TMPDIR": str(root.parent), "HOME": "/root"}
    try:
        run(argv, hint=_HINT, env=environment)
    except Failure as failure:
        # The command names every package; only its end says anything.
        _, _, end = failure.what.rpartition(": ")
        raise Failure(f"mmdebstrap: {end}", failure.hint) from None

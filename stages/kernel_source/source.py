"""The kernel's source tree: unpacked from the source package, and patched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from stages.shared import deb
from stages.shared.job import Failure

_TARBALL = re.compile(r"(?:\./)?usr/src/linux-source-[^/]+\.tar\.xz")
# What patch(1) says of a hunk that does not apply, or of a patch that is none.
_REFUSED = re.compile(
    r"^(?:Hunk #\d+ FAILED at \d+|.*(?:can't find file to patch|malformed patch|"
    r"previously applied|Only garbage|Ignoring potentially dangerous|Not deleting)).*",
    re.MULTILINE,
)
_FILE = re.compile(r"^(?:patching|checking) file (.+?)(?: \(.*\))?$", re.MULTILINE)


def unpack(repository: Path, source: Path) -> None:
    """Unpack the one linux-source package of `repository` to `source`, without the tarball's own top folder.

    Raises Failure when not exactly one package holds a kernel's source.
    """
    packages = sorted(repository.rglob("*.deb"))
    holders = [package.name for package in packages if _extract(package, source)]
    if len(holders) != 1:
        raise Failure(
            f"expected one package with usr/src/linux-source-*.tar.xz among {len(packages)}, "
            f"found {', '.join(holders) or 'none'}",
            "name a linux-source package in the recipe's kernel.source, then lock it again",
        )


def _extract(package: Path, source: Path) -> bool:
    with deb.data(package) as archive:
        for member in archive:
            if member.isreg() and _TARBALL.fullmatch(member.name):
                content = archive.extractfile(member)
                assert content is not None
                source.mkdir(parents=True, exist_ok=True)
                # xz has the tarball's blocks decompressed side by side.
                argv = [
                    "tar",
                    "--extract",
                    "--use-compress-program=xz -T0",
                    "--strip-components=1",
                    "--no-same-owner",
                    f"--directory={source}",
                ]
                with subprocess.Popen(argv, stdin=subprocess.PIPE) as tar:
                    assert tar.stdin is not None
                    try:
                        shutil.copyfileobj(content, tar.stdin, 1 << 20)
                    except BrokenPipeError:
                        pass  # tar says why in the log, and by its exit code
                    finally:
                        tar.stdin.close()
                if tar.returncode:
                    raise Failure(
                        f"{package.name}: {member.name}: tar: exit code {tar.returncode}",
                        "the log shows what tar said: a full /tmp (2 GiB are needed), or a damaged package",
                    )
                return True
    return False


def patch(source: Path, file: Path, name: str) -> None:
    """Apply one patch, exactly: no fuzz, nothing reversed. `name` is the recipe's name for it.

    Raises Failure naming the patch, the file and the first hunk that does not apply.
    """
    argv = ["patch", "--strip=1", "--batch", "--forward", "--fuzz=0", "--reject-file=-"]
    with file.open("rb") as text:
        done = subprocess.run(
            [*argv, "--no-backup-if-mismatch"],
            cwd=source,
            stdin=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"},
            check=False,
        )
    print(f"{name}:\n{done.stdout}", end="", flush=True)
    if done.returncode == 0:
        return
    failed = _REFUSED.search(done.stdout)
    reason = failed[0].strip() if failed else f"patch: exit code {done.returncode}"
    before = _FILE.findall(done.stdout[: failed.start()] if failed else done.stdout)
    raise Failure(
        f"{name} does not apply: {before[-1] + ': ' if before else ''}{reason}",
        "refresh the patch against the locked kernel source, or drop it from kernel.patches",
        code="patch",
        details=[name],
    )

"""The root, against mkosi building the same package set: cold, from a filled cache, and with nothing
changed.

`MKOSI` names a checkout of mkosi (its `bin/mkosi` is run with the system's python3). Both use the host's
apt sources, both work on
the fastest scratch there is (/dev/shm when it is tmpfs), and both install the same packages: the recipe
is derived here.
What differs, and is part of the figures: mkosi uses the host's tools and writes tar + zstd -3; we fetch
and unpack our own tools (in
the cold run) and write one canonical tar; our cold run starts from an empty store.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.measure import Command, in_turn, report, run_once

ROOT = Path(__file__).parents[1]
PACKAGES = ("systemd-sysv", "udev", "iproute2")
EPOCH = 1767225600


def _disk_image(*argv: str | Path) -> list[str]:
    return [sys.executable, "-m", "pipelines", *(os.fspath(word) for word in argv)]


def _recipe(folder: Path) -> None:
    """The quick recipe's kernel, with exactly mkosi's packages and nothing of our own in the root."""
    quick = ROOT / "recipes" / "quick"
    shutil.copytree(quick, folder, dirs_exist_ok=True)
    _write_recipe(folder, EPOCH)
    subprocess.run(_disk_image("lock", folder), cwd=ROOT, check=True)


def _write_recipe(folder: Path, epoch: int) -> None:
    # Another epoch is another input: both stages of the root run anew, the mirror and the tools don't.
    kernel = [
        line
        for line in (ROOT / "recipes" / "quick" / "recipe.toml").read_text().splitlines()
        if line.startswith(("package =", "modules ="))
    ]
    lines = [
        'platform_slug = "bench"', 'suite = "trixie"', 'arch = "amd64"', f"source_date_epoch = {epoch}",
        'hostname = "bench"', f"packages = {json.dumps(PACKAGES)}", "[kernel]", *kernel,
    ]  # fmt: skip
    (folder / "recipe.toml").write_text("\n".join(lines) + "\n")


def _sources() -> str:
    """The trixie archives, at the roots that the host's own apt sources name."""
    from pipelines.archive import archives

    stanzas = []
    for root in archives(()):
        suites = "trixie-security" if "security" in root else "trixie trixie-updates"
        stanzas.append(
            f"Types: deb\nURIs: {root}\nSuites: {suites}\nComponents: main\n"
            "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        )
    return "\n".join(stanzas)


def main(runs: int) -> None:
    """Three tables: cold, filled, nothing changed."""
    checkout = os.environ.get("MKOSI")
    if not checkout or not (Path(checkout) / "bin" / "mkosi").exists():
        print("mkosi: not measured: set MKOSI to a checkout of mkosi (its bin/mkosi is run)")
        return
    scratch_root = "/dev/shm" if os.path.ismount("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="bench-mkosi-", dir=scratch_root) as name:
        _measure(Path(name), Path(checkout), runs)


def _measure(scratch: Path, checkout: Path, runs: int) -> None:
    recipe, config, work = scratch / "recipe", scratch / "config", scratch / "work"
    _recipe(recipe)
    sources = config / "mkosi.sandbox" / "etc" / "apt" / "sources.list.d" / "mkosi.sources"
    sources.parent.mkdir(parents=True)
    sources.write_text(_sources())
    (config / "mkosi.conf").write_text(
        f"[Distribution]\nDistribution=debian\nRelease=trixie\n[Output]\nFormat=tar\n"
        f"[Content]\nPackages={','.join(PACKAGES)}\nSourceDateEpoch={EPOCH}\n"
    )
    env = {"TMPDIR": os.fspath(scratch), "MKOSI_INTERPRETER": "/usr/bin/python3"}

    def mkosi(state: str, *flags: str) -> list[str]:
        folders = {key: work / state / key for key in ("cache", "package-cache", "workspace", "output")}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        directories = [f"--{key}-directory={folder}" for key, folder in folders.items()]
        return [os.fspath(checkout / "bin" / "mkosi"), *directories, *flags, "build"]

    def forget(folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    store, output, empty = scratch / "store", scratch / "out", scratch / "cold"
    incremental = ("--incremental=yes", "-f")

    def ours(*flags: str | Path, into: Path = store) -> list[str]:
        return _disk_image("build", recipe, "--store", into, *flags)

    def ours_root(_: int) -> list[str]:
        return ours("--target", "rootfs")

    def compare(title: str, goal: str, pairs: int, a: Command, b: Command) -> None:
        report(title, in_turn((a, b), pairs), a.name, b.name, goal)

    compare(
        "root, cold (downloads included; ours also fetches and unpacks its tools)",
        "none; said for honesty",
        max(1, runs // 3),
        Command(
            "disk-image, empty store",
            lambda _: ours("--target", "rootfs", into=empty),
            lambda _: forget(empty),
            env,
            ROOT,
        ),
        Command(
            "mkosi, empty caches", lambda _: mkosi("cold"), lambda _: forget(work / "cold"), env, config
        ),
    )
    forget(empty)

    run_once(Command("fill ours", ours_root, env=env, cwd=ROOT), 0)
    run_once(Command("fill mkosi's", lambda _: mkosi("warm"), env=env, cwd=config), 0)
    compare(
        "root, from a filled mirror",
        "ratio at most 0.6; no process above 2048 MiB",
        runs,
        Command(
            "disk-image, filled mirror",
            ours_root,
            lambda index: _write_recipe(recipe, EPOCH - 1 - index),
            env,
            ROOT,
        ),
        Command("mkosi -f, filled cache", lambda _: mkosi("warm", "-f"), env=env, cwd=config),
    )

    _write_recipe(recipe, EPOCH)
    run_once(Command("fill ours", lambda _: ours("--output", output), env=env, cwd=ROOT), 0)
    run_once(Command("fill mkosi's", lambda _: mkosi("inc", *incremental), env=env, cwd=config), 0)
    compare(
        "nothing changed (ours: the whole image)",
        "at most 0.25 s, inputs checked",
        runs,
        Command("disk-image, nothing changed", lambda _: ours("--output", output), env=env, cwd=ROOT),
        Command("mkosi --incremental -f", lambda _: mkosi("inc", *incremental), env=env, cwd=config),
    )

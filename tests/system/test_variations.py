"""The same manifest digest, SBOM and build definition, whoever builds it, wherever and whenever.

Each build starts from an empty store, with the mirror filled (`--pool`), and varies several things at
once; its id says what.
"""

from __future__ import annotations

import os
import shutil
import stat
import textwrap
from pathlib import Path

import pytest

from tests.system.command import ROOT, Built, OrdinaryUser, build

pytestmark = [pytest.mark.sandbox, pytest.mark.network, pytest.mark.timeout(1800)]
YEAR = "+365d"


def _pool(store: Path) -> Path:
    return store / "blobs" / "sha256"


def _same(again: Built, quick: Built) -> None:
    assert again.manifest_digest == quick.manifest_digest
    assert again.sbom == quick.sbom
    assert again.definition == quick.definition


def _clock_a_year_ahead(folder: Path) -> Path | None:
    """A folder whose `runc` hands the container a clock a year ahead (libfaketime, bind-mounted and
    preloaded).
    """
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    runc = shutil.which("runc", path="/usr/sbin:/usr/bin")
    if library is None or runc is None:
        return None
    folder.mkdir()
    wrapper = folder / "runc"
    wrapper.write_text(
        textwrap.dedent(f"""\
        #!/usr/bin/python3
        import json, os, pathlib, sys
        if "run" in sys.argv:
            bundle = sys.argv[sys.argv.index("--bundle" if "--bundle" in sys.argv else "-b") + 1]
            path = pathlib.Path(bundle) / "config.json"
            config = json.loads(path.read_text())
            config["process"]["env"] += ["LD_PRELOAD=/tmp/libfaketime.so.1", "FAKETIME={YEAR}"]
            config["mounts"].append({{"destination": "/tmp/libfaketime.so.1", "type": "bind",
                                      "source": {os.fspath(library)!r}, "options": ["bind", "ro"]}})
            path.write_text(json.dumps(config))
            pathlib.Path({os.fspath(folder)!r}, "used").touch()
        os.execv({runc!r}, ["runc", *sys.argv[1:]])
        """)
    )
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return folder


def test_root_from_an_empty_store_in_another_folder(quick: Built, warm_store: Path, tmp_path: Path) -> None:
    again = build(
        ROOT / "recipes" / "quick", tmp_path / "elsewhere" / "layout", tmp_path / "store",
        "--pool", _pool(warm_store), "--lock", quick.lock, "--tools-lock", quick.tools_lock,
        env={"TMPDIR": os.fspath(tmp_path)},
    )  # fmt: skip
    assert set(again.stages.values()) == {"ran"}
    _same(again, quick)


def test_ordinary_user_other_umask_timezone_locale_folder_and_scratch_on_disk(
    quick: Built, warm_store: Path, ordinary_user: OrdinaryUser
) -> None:
    user = ordinary_user
    pool = user.home / "pool"
    shutil.copytree(_pool(warm_store), pool)
    scratch = user.home / "scratch"
    scratch.mkdir(mode=0o777)
    for lock, name in ((quick.lock, "lock.json"), (quick.tools_lock, "tools.lock")):
        shutil.copy(lock, user.home / name)
    for path in (pool, scratch, user.home / "lock.json", user.home / "tools.lock"):
        shutil.chown(path, user.name, user.name)
    environment = user.env(
        TZ="Pacific/Kiritimati",
        LC_ALL="tr_TR.UTF-8",
        LANG="tr_TR.UTF-8",
        TMPDIR=os.fspath(scratch),
        PATH=os.environ["PATH"],
    )
    again = build(
        user.code / "recipes" / "quick", user.home / "layout", user.home / "store",
        "--pool", pool, "--lock", user.home / "lock.json", "--tools-lock", user.home / "tools.lock",
        prefix=["sh", "-c", 'umask 077; exec "$0" "$@"', *user.prefix(), *environment],
        cwd=user.code, python="/usr/bin/python3",
    )  # fmt: skip
    assert set(again.stages.values()) == {"ran"}
    _same(again, quick)


@pytest.mark.skipif(
    os.geteuid() != 0, reason="changing the hostname and making network namespaces needs root"
)
def test_one_processor_other_hostname_clock_a_year_ahead_and_no_network(
    quick: Built, warm_store: Path, tmp_path: Path
) -> None:
    wrapper = _clock_a_year_ahead(tmp_path / "bin")
    if wrapper is None:
        pytest.skip("libfaketime is not installed (Debian package libfaketime)")
    again = build(
        ROOT / "recipes" / "quick", tmp_path / "layout", tmp_path / "store",
        "--pool", _pool(warm_store), "--lock", quick.lock, "--tools-lock", quick.tools_lock,
        prefix=["unshare", "--uts", "--net", "sh", "-c", 'hostname elsewhere; exec "$0" "$@"', "taskset",
        "-c", "0"], env={"PATH": f"{wrapper}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert (wrapper / "used").exists(), "the clock was not varied"
    assert set(again.stages.values()) == {"ran"}
    _same(again, quick)

"""The quick image and an ordinary user, each made once a session."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.command import ROOT, Built, OrdinaryUser, build

CODE = ("pipelines", "stages", "initramfs", "supply_chain")


@pytest.fixture(scope="session")
def quick(warm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The quick recipe, built once; everything the archive has to give is in `warm_store` afterwards."""
    return build(
        ROOT / "recipes" / "quick", tmp_path_factory.mktemp("quick") / "layout", warm_store, "--relock"
    )


@pytest.fixture(scope="session")
def minimal(warm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The only place where the test suite builds a kernel from source."""
    output = tmp_path_factory.mktemp("minimal") / "layout"
    return build(ROOT / "recipes" / "debian-minimal", output, warm_store, "--relock")


@pytest.fixture(scope="session")
def ordinary_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrdinaryUser]:
    """A throwaway user; needs root to make one."""
    if os.geteuid() != 0:
        pytest.skip("making a throwaway user needs root")
    name = "disk-image-test"
    with contextlib.suppress(KeyError):
        pwd.getpwnam(name)
        subprocess.run(["userdel", "--remove", name], check=True, capture_output=True)
    subprocess.run(["useradd", "--create-home", name], check=True)
    try:
        home = Path(pwd.getpwnam(name).pw_dir)
        code, site = home / "code", home / "site-packages"
        for folder in (*CODE, "recipes"):
            shutil.copytree(ROOT / folder, code / folder, ignore=shutil.ignore_patterns("__pycache__"))
        import pydantic

        shutil.copytree(Path(pydantic.__file__).parents[1], site)
        subprocess.run(["chown", "-R", f"{name}:{name}", home], check=True)
        yield OrdinaryUser(name, home, code, site)
    finally:
        subprocess.run(["pkill", "-KILL", "-u", name], check=False)
        subprocess.run(["userdel", "--remove", "--force", name], check=False, capture_output=True)

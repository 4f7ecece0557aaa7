"""The peers where `make test-peers` puts them, and what the quick recipe's stages wrote for them to read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.store import Store
from pipelines.trees import unpack
from tests.peers.encoders import Encoder
from tests.peers.gitea import gitea
from tests.peers.oras import Oras
from tests.peers.programs import cargo_program, go_program
from tests.peers.registries import Registry, debian_registry, distribution, referrers_registry
from tests.system.command import ROOT, disk_image


@pytest.fixture(scope="session")
def cfsctl() -> str:
    """composefs-rs's program; a test that needs it asks for it first, before anything is built."""
    return cargo_program("cfsctl")


@pytest.fixture(
    scope="session",
    params=[debian_registry, distribution, referrers_registry, gitea],
    ids=lambda start: start.__name__,
)
def registry_running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registry]:
    """Each of the registries, running until all tests that want it are done."""
    with request.param(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def registry(registry_running: Registry, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Each of the registries, with its login in this process's environment."""
    for name, value in registry_running.env.items():
        monkeypatch.setenv(name, value)
    return registry_running


@pytest.fixture(scope="session")
def oras() -> Oras:
    """oras, the command."""
    return Oras(go_program("oras"))


@dataclass(frozen=True)
class QuickRoot:
    """Files of the quick recipe's build: stage outputs as they are in the store, and the image tools."""

    tree: Path
    dump: Path
    metadata: Path
    digest: str
    tools: Path


@pytest.fixture(scope="session")
def quick_root(warm_store: Path) -> QuickRoot:
    """The quick recipe built up to its composefs stage, by the command."""
    recipe = ROOT / "recipes" / "quick"
    common: list[str | Path] = ["build", recipe, "--store", warm_store, "--target"]
    done = disk_image(*common, "composefs", "--relock", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    store = Store(warm_store)
    digests: dict[str, str] = {}
    for stage in ("composefs", "rootfs", "tools-image"):
        done = disk_image(*common, stage, "--lock", told["lock"], "--tools-lock", told["tools_lock"])
        assert done.returncode == 0, done.stderr
        digests |= dict(re.findall(r"^(\S+) +sha256:([0-9a-f]{64})", done.stdout, re.MULTILINE))
    with store.use():
        return QuickRoot(
            tree=store.blob(digests["rootfs.tree"]),
            dump=store.blob(digests["composefs.dump"]),
            metadata=store.blob(digests["composefs.metadata"]),
            digest=store.blob(digests["composefs.digest"]).read_text().strip(),
            tools=unpack(store, digests["tools-image.tree"]),
        )


@dataclass(frozen=True)
class ToolsTree:
    """Programs of a tools tree, run with the tree's own loader and libraries: as any user, in any folder."""

    tree: Path

    def argv(self, program: str) -> list[str]:
        """How a command that runs `program` begins."""
        libraries = next((self.tree / "usr/lib").glob("*/libc.so.6")).parent
        loader = next(libraries.glob("ld-linux*.so.*"))
        words = (loader, "--library-path", libraries, self.tree / "usr/bin" / program)
        return [os.fspath(word) for word in words]


@pytest.fixture(scope="session")
def tools(quick_root: QuickRoot) -> ToolsTree:
    """The image tools, mkcomposefs among them."""
    return ToolsTree(quick_root.tools)


@pytest.fixture(scope="session")
def mkcomposefs(tools: ToolsTree) -> Encoder:
    """composefs's own encoder, of the image tools."""
    return Encoder(tools.argv("mkcomposefs"))


@pytest.fixture(scope="session")
def cfsctl_mkcomposefs(cfsctl: str) -> Encoder:
    """cfsctl's encoder, under the other's command line."""
    return Encoder((cfsctl, "mkcomposefs"))

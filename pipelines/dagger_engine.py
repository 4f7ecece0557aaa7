"""A real Dagger engine behind engine.py, through the Python SDK, and the way to reach one."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from secrets import token_hex
from tempfile import TemporaryFile
from typing import TypeAlias
from urllib.parse import urlsplit

import anyio
import dagger
from dagger import dag

from pipelines.engine import ANSWER, OUT, Exec, ExecFailed, Handle
from pipelines.errors import DiskImageError
from pipelines.sources import PROJECT

# The bootstrap image: any with python3 ≥ 3.11 and tar(1). Pinned, and in no key: it adds nothing of its own.
BASE = "python:3.14-slim@sha256:486b8092bfb12997e10d4920897213a06563449c951c5506c2a2cfaf591c599f"
# The engine, the CLI and the SDK speak one version; pyproject.toml pins the same.
VERSION = "v0.21.8"

_CLI = "_EXPERIMENTAL_DAGGER_CLI_BIN"
_RUNNER_HOST = "_EXPERIMENTAL_DAGGER_RUNNER_HOST"
_PROBE_SECONDS = 10.0
# Colours (ECMA-48 SGR), the number and the frame in front of a line of the CLI's log.
_DECORATION = re.compile(r"\x1b\[[0-9;]*m|\[traceparent:[^]]*\]|^\d+\s*:|┆")
_OTHER_WAY = "or build without an engine: --executor local"


class EngineError(DiskImageError):
    """No engine, an engine of another version, or one that can't do its work."""


@dataclass(frozen=True, slots=True)
class DaggerExecuted:
    """A container that ended well."""

    answer: str
    container: dagger.Container

    def file(self, name: str) -> Handle:
        """The file `name` of OUT."""
        return self.container.file(f"{OUT}/{name}")

    def folder(self, name: str) -> Handle:
        """The folder `name` of OUT."""
        return self.container.directory(f"{OUT}/{name}")


# Gives some of the project's files to the engine, by their paths in the project.
Project: TypeAlias = Callable[[tuple[str, ...]], dagger.Directory]


def on_host(paths: tuple[str, ...]) -> dagger.Directory:
    """From the project that this process runs from, through the session."""
    return dag.host().directory(str(PROJECT), include=list(paths))


class DaggerEngine:
    """Runs containers on the engine that the SDK is connected to.

    `base` is the bootstrap image, `project` hands over the programs.
    """

    def __init__(self, base: str = BASE, project: Project = on_host) -> None:
        self._base = base
        self._project = project
        self._programs: dict[tuple[str, ...], dagger.Directory] = {}

    async def execute(self, asked: Exec) -> DaggerExecuted:
        """Run, or answer from the engine's cache. Raises ExecFailed, and EngineError for all else."""
        try:
            container = await (await self.container(asked)).with_exec(list(asked.command)).sync()
            return DaggerExecuted(await container.file(f"{OUT}/{ANSWER}").contents(), container)
        except dagger.ExecError as error:
            raise ExecFailed(error.exit_code, error.stdout, error.stderr) from None
        except dagger.QueryError as error:
            raise EngineError(
                f"the engine refused: {_DECORATION.sub('', str(error)).strip()}",
                f"--base IMAGE names another bootstrap image than {self._base}"
                if self._base.partition("@")[0] in str(error)
                else f"read the engine's log, {_OTHER_WAY}",
            ) from None
        except dagger.TransportError as error:
            raise EngineError(
                f"the connection to the engine was lost: {error}",
                "run the same command again: what is finished is kept",
            ) from None

    async def container(self, asked: Exec) -> dagger.Container:
        """The container as it is before its command runs."""
        container = dag.container()
        container = container.from_(self._base) if asked.tree is None else self._rooted(asked.tree)
        container = container.with_mounted_temp("/tmp").with_mounted_directory(OUT, dag.directory())
        for path, project_paths in sorted(asked.programs.items()):
            container = container.with_mounted_directory(path, await self._program(project_paths))
        for path, text in sorted(asked.texts.items()):
            container = container.with_mounted_file(path, dag.file(path.rpartition("/")[2], text))
        for path, file in sorted(asked.files.items()):
            assert isinstance(file, dagger.File)
            container = container.with_mounted_file(path, file)
        for path, given in sorted(asked.folders.items()):
            assert isinstance(given, dagger.Directory)
            container = container.with_mounted_directory(path, given)
        for path, name in sorted(asked.volumes.items()):
            container = container.with_mounted_cache(path, dag.cache_volume(name))
        if asked.fresh:
            container = container.with_env_variable("DISK_IMAGE_FRESH", token_hex(8))
        return container.with_workdir("/runner")

    def _rooted(self, tar: Handle) -> dagger.Container:
        """A container whose root is a tools tree, unpacked once by the engine and shared by its stages."""
        assert isinstance(tar, dagger.File)
        unpack = ["tar", "--extract", "--preserve-permissions", "--no-same-owner", "--directory", "/tree"]
        tree = (
            dag.container()
            .from_(self._base)
            .with_mounted_directory("/tree", dag.directory())
            .with_mounted_file("/tree.tar", tar)
            .with_exec([*unpack, "--file", "/tree.tar"])
            .directory("/tree")
        )
        return dag.container().with_rootfs(tree)

    async def _program(self, paths: tuple[str, ...]) -> dagger.Directory:
        """Some of the project's files."""
        if paths not in self._programs:
            self._programs[paths] = await self._project(paths).sync()
        return self._programs[paths]


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """A session of an engine of the expected version. Raises EngineError that says what is missing.

    A CLI on PATH is used; nothing is downloaded.
    """
    if "DAGGER_SESSION_PORT" not in os.environ and _CLI not in os.environ:
        cli = shutil.which("dagger")
        if cli is None:
            raise EngineError(
                "no Dagger CLI on PATH, which starts or reaches an engine",
                f"install Dagger {VERSION} (docs/how-to/dagger.md), {_OTHER_WAY}",
            )
        os.environ[_CLI] = cli
    check_address(os.environ.get(_RUNNER_HOST, ""))
    # A file, so that what the CLI said is still there when it gives up.
    with TemporaryFile("w+") as log:
        manager = dagger.connection(dagger.Config(log_output=log))
        try:
            await manager.__aenter__()
        except (dagger.ProvisionError, dagger.ClientError) as error:
            log.seek(0)
            # Where the CLI did its part, its last words are of something else.
            said = _last_words(log.read()) if isinstance(error, dagger.ProvisionError) else ""
            raise _unreachable(said or str(error)) from None
        try:
            await check_version()
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await manager.__aexit__(*sys.exc_info())


def check_address(address: str) -> None:
    """Raise EngineError when nothing listens at unix://PATH or tcp://HOST:PORT.

    The CLI would try for many minutes. Addresses of other kinds (docker-container://, kube-pod://) are its
    own to judge.
    """
    parts = urlsplit(address)
    try:
        if parts.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(_PROBE_SECONDS)
                probe.connect(parts.path)
        elif parts.scheme == "tcp":
            socket.create_connection((parts.hostname or "", parts.port or 0), _PROBE_SECONDS).close()
    except (OSError, ValueError) as error:
        raise _unreachable(f"{_RUNNER_HOST}={address}: {error}") from None


def _unreachable(why: str) -> EngineError:
    return EngineError(
        f"no Dagger engine could be reached: {why}",
        f"start Docker or Podman, or name a running engine in {_RUNNER_HOST}"
        f" (docs/how-to/dagger.md), {_OTHER_WAY}",
    )


async def check_version() -> None:
    """Raise EngineError unless the engine has the SDK's version."""
    found = await dag.version()
    if found != VERSION:
        raise EngineError(
            f"the engine's version: expected {VERSION}, found {found}",
            f"install Dagger {VERSION}, or point to an engine of it, {_OTHER_WAY}",
        )


def _last_words(log: str) -> str:
    """The last line of the CLI's log that says something, without its colours and numbers."""
    lines = [_DECORATION.sub("", line).strip() for line in log.splitlines()]
    return next((line for line in reversed(lines) if line), "")

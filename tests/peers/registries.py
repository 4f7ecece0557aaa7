"""The registries that images are pushed to, all on loopback, all alike to a test."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.peers.docker_registry import docker_registry, missing
from tests.peers.programs import go_program
from tests.peers.server import serving
from tests.ports import free_port


@dataclass(frozen=True)
class Registry:
    """`host` is host:port, `owner` the first part of a repository's path; `docker_config`, when it wants a
    login, is the folder with Docker's config.json.
    """

    name: str
    host: str
    owner: str = "team"
    referrers_api: bool = False
    docker_config: Path | None = None

    def repository(self, name: str) -> str:
        """host/path of a repository."""
        return f"{self.host}/{self.owner}/{name}"

    @property
    def env(self) -> Mapping[str, str]:
        """How clients find the login."""
        return {} if self.docker_config is None else {"DOCKER_CONFIG": os.fspath(self.docker_config)}


@contextmanager
def debian_registry(folder: Path, *, network: Sequence[str] = ()) -> Iterator[Registry]:
    """Debian's docker-registry: distribution 2.8."""
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with docker_registry(folder, network=network) as host:
        yield Registry("docker-registry", host)


@contextmanager
def distribution(folder: Path, *, network: Sequence[str] = ()) -> Iterator[Registry]:
    """distribution 3."""
    with docker_registry(folder, go_program("distribution"), network=network) as host:
        yield Registry("distribution", host)


@contextmanager
def referrers_registry(folder: Path, *, network: Sequence[str] = ()) -> Iterator[Registry]:
    """go-containerregistry's, which has the referrers API. It keeps everything in memory."""
    host = f"127.0.0.1:{free_port()}"
    argv = [go_program("referrers-registry"), host]
    with serving(argv, f"http://{host}/v2/", folder / "log", network=network):
        yield Registry("referrers-registry", host, referrers_api=True)

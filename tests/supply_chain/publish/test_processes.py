"""The command as a process: killed anywhere, and with canaries for every secret it is given."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from supply_chain.layout import Layout
from supply_chain.trust import Trust
from tests.platform_client.webhook_server import SECRET, Fault, Planned, WebhookServer
from tests.supply_chain.publish.conftest import SLUG, entries
from tests.supply_chain.registry_server import Fault as RegistryFault
from tests.supply_chain.registry_server import Planned as RegistryPlanned
from tests.supply_chain.registry_server import RegistryServer

ROOT = Path(__file__).parents[3]
ALWAYS = 1_000_000


def start(*argv: str, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """The command with nothing in its environment but this and what Python needs."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", *argv],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code, standard output and standard error."""
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def words(layout: Layout, registry: RegistryServer, trust: Trust) -> list[str]:
    ref = f"{registry.host}/os/debian:13"
    where = ["publish", str(layout.folder), ref, "--trust", str(trust.path), "--plain-http"]
    return [*where, "--platform-slug", SLUG]


class Killer:
    """Kills a process the first time it is asked to."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.killed = False

    def __call__(self) -> None:
        while self.process is None:
            time.sleep(0.01)
        if not self.killed:
            self.killed = True
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def at(self, method: str, path: str) -> Callable[[str, str], bool]:
        """At the first request to the registry with this method and this in its path."""

        def hits(its_method: str, its_path: str) -> bool:
            if its_method == method and path in its_path:
                self()
            return False

        return hits


@pytest.mark.parametrize(
    "moment",
    [
        ("HEAD", "/blobs/"),
        ("POST", "/blobs/uploads/"),
        ("PUT", "/manifests/13"),
        ("PUT", "/manifests/sha256:"),
        ("GET", "/referrers/"),
        "arrival",
        "answer",
    ],
    ids=str,
)
def test_killed_and_run_again(
    moment: str | tuple[str, str],
    layout: Layout,
    server: RegistryServer,
    platform: WebhookServer,
    trust: Trust,
) -> None:
    kill = Killer()
    if isinstance(moment, tuple):
        server.faults = [RegistryPlanned(RegistryFault.ERROR, where=kill.at(*moment), times=ALWAYS)]
    elif moment == "arrival":
        platform.on_arrival = kill
    else:
        platform.on_answer = kill
    kill.process = start(*words(layout, server, trust), environment=platform.environment())
    assert finish(kill.process)[0] == -signal.SIGKILL
    assert kill.killed
    assert entries(trust.path) == 3
    code, out, err = finish(start(*words(layout, server, trust), environment=platform.environment()))
    assert (code, "told the platform" in out) == (0, True), err
    assert entries(trust.path) == 3
    assert len({one.headers["webhook-id"] for one in platform.seen}) == 1
    assert len(platform.taken) == 1


HELPER = """#!/bin/sh
p=$$
while [ "$p" -gt 1 ]; do
    tr '\\0' ' ' </proc/$p/cmdline; echo
    p=$(sed -n 's/^PPid:[[:space:]]*//p' /proc/$p/status)
done >>"$ARGUMENTS_SEEN"
cat "$PASSWORD_FILE"
"""


def test_no_secret_is_shown_or_kept(
    tmp_path: Path, layout: Layout, server: RegistryServer, platform: WebhookServer, trust: Trust
) -> None:
    """Runs that succeed and that fail at each service, with a traceback too; then everything is searched."""
    assert trust.embedded is not None
    password, query = "p4ssword-canary", "qu3ry-canary"
    token = trust.embedded.issue_token("https://git.example/os/job")
    hidden = [password, query, SECRET, token, token.rpartition(".")[2], "00000000beef"]
    environment = _planted(tmp_path, server, password)
    environment |= platform.environment() | {"DISK_IMAGE_IDENTITY_TOKEN": token}
    environment["POWERNODE_DISK_IMAGE_WEBHOOK_URL"] += f"?token={query}"
    server.auth, server.echo_authorization = "bearer", True
    publish = [*words(layout, server, trust), "--patience", "0.3"]
    notify = ["notify", publish[2], *publish[-5:]]
    texts: list[str] = []

    def run(*argv: str, code: int) -> None:
        done, out, err = finish(start(*argv, environment=environment))
        assert done == code, err
        texts.extend((out, err))

    server.users = {"pusher": "another password"}
    run(*publish, "--debug", code=1)
    server.users = {"pusher": password}
    platform.faults = [Planned(Fault.ERROR, ALWAYS)]
    run(*publish, "--debug", code=1)
    platform.echo = f"{environment['POWERNODE_DISK_IMAGE_WEBHOOK_URL']} {query} {SECRET}"
    platform.faults = [Planned(Fault.ALWAYS_200_ERROR)]
    run(*publish, "--json", code=1)
    platform.faults = [Planned(Fault.ALWAYS_200_ERROR)]
    run(*notify, code=1)
    run(*publish, code=0)
    run(*notify, "--json", code=0)
    texts.append((tmp_path / "arguments").read_text())
    assert texts[-1].count("docker-credential-canary get") == texts[-1].count(" -m pipelines ") > 0
    texts.extend(_files(tmp_path, but=tmp_path / "planted"))
    for secret in hidden:
        assert not [text for text in texts if secret in text], secret
    for given in server.tokens:
        assert not [text for text in texts if given in text]


def _planted(folder: Path, server: RegistryServer, password: str) -> dict[str, str]:
    """A Docker configuration whose credential helper notes the arguments of all processes above it."""
    planted = folder / "planted"
    planted.mkdir()
    (planted / "config.json").write_text(json.dumps({"credHelpers": {server.host: "canary"}}))
    (planted / "password").write_text(json.dumps({"Username": "pusher", "Secret": password}))
    helper = planted / "docker-credential-canary"
    helper.write_text(HELPER)
    helper.chmod(0o755)
    return {
        "DOCKER_CONFIG": str(planted),
        "PATH": f"{planted}:{os.environ['PATH']}",
        "PASSWORD_FILE": str(planted / "password"),
        "ARGUMENTS_SEEN": str(folder / "arguments"),
    }


def _files(folder: Path, but: Path) -> list[str]:
    """What stands in every file below `folder`: the layout, the state, the trust with its logs."""
    return [
        path.read_bytes().decode("latin-1")
        for path in folder.rglob("*")
        if path.is_file() and not path.is_relative_to(but)
    ]

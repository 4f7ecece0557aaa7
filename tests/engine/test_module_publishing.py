"""The module signs, pushes, publishes and verifies by services that listen on this machine's loopback.

They are reached through the engine's tunnels. `DISK_IMAGE_TEST_ENGINE_FILES` names files and folders of the
engine (its log, its state), which the search for secrets then reads as well.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from pipelines.dagger_engine import BASE
from pipelines.sources import PROJECT
from supply_chain.beside import build_record_path, sbom_path
from supply_chain.layout import Layout, open_layout
from supply_chain.oci import DOCUMENT_LIMIT, parse_manifest
from supply_chain.provenance import parse_provenance, read_build_record
from supply_chain.referrer import BUNDLE_LIMIT
from supply_chain.statement import PROVENANCE, SBOM
from supply_chain.trust import Trust, init_embedded, load_trust, running
from supply_chain.trust.documents import client_trust_config
from supply_chain.trust.embedded.create import signing_config
from supply_chain.verify.image import Verified, verify_image
from supply_chain.verify.policy import signer_policy
from supply_chain.verify.source import LayoutSource
from tests.engine.module_copy import LOADING, TEST_BASE, dagger, run_dagger
from tests.platform_client.webhook_server import WebhookServer, webhook_server
from tests.supply_chain.publish.builds import built
from tests.supply_chain.registry_server import RegistryServer, registry
from tests.supply_chain.signing.faulty import Reply, Request, serving

pytestmark = [pytest.mark.engine, pytest.mark.timeout(2 * LOADING)]

RECIPE, COMMIT = PROJECT / "recipes" / "quick", "1f" * 20
IDENTITY = "https://git.example/os/images/.gitea/workflows/image.yml@refs/heads/main"
BEARER, QUERY, PASSWORD = "c4n4ry-request-token", "c4n4ry-query", "c4n4ry-password"


@dataclass
class Place:
    """A built image, and all that it is published with."""

    module: Path
    layout: Layout
    trust: Trust
    trust_file: Path
    registry: RegistryServer
    local: list[str]

    @property
    def issuer(self) -> str:
        assert self.trust.embedded is not None
        return self.trust.embedded.issuer

    @property
    def image(self) -> list[str]:
        """The words that hand it in."""
        folder = self.layout.folder
        sbom, record = str(sbom_path(folder)), str(build_record_path(folder))
        return ["--layout", str(folder), "--sbom", sbom, "--build-record", record]

    @property
    def services(self) -> list[str]:
        """The words for the trust and the tunnels."""
        tunnels = [word for address in self.local for word in ("--local", f"tcp://{address}")]
        return ["--trust", str(self.trust_file), *tunnels]

    @property
    def ref(self) -> str:
        return f"{self.registry.host}/os/debian:13"

    def verified(self, folder: Path) -> Verified:
        """Verify by the library, on this machine."""
        policy = signer_policy(identity=IDENTITY, issuer=self.issuer)
        return anyio.run(lambda: verify_image(LayoutSource(open_layout(folder)), self.trust, policy))


@pytest.fixture
def place(module: Path, tmp_path: Path) -> Iterator[Place]:
    init_embedded(tmp_path / "trust")
    trust = load_trust(tmp_path / "trust")
    with (
        registry() as server,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(running(trust)) as served,
    ):
        assert served.config is not None
        url = served.config.ca_urls[0].url
        root = json.loads((tmp_path / "trust" / "trusted_root.json").read_text())
        file = tmp_path / "trust.json"
        file.write_text(json.dumps(client_trust_config(root, signing_config(url, datetime.now(UTC)))))
        local = [server.host, urlsplit(url).netloc]
        yield Place(module, built(tmp_path / "image"), trust, file, server, local)


def test_sign_push_and_verify(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place.trust.embedded is not None
    monkeypatch.setenv("TOKEN", place.trust.embedded.issue_token(IDENTITY))
    signed = tmp_path / "signed"
    words = ["call", "sign", *place.image, *place.services, "--identity-token", "env://TOKEN"]
    dagger(place.module, *words, "export", "--path", str(signed))
    assert place.verified(signed).digest == place.layout.image.digest

    to_registry = ["--plain-http", "--local", f"tcp://{place.registry.host}"]
    push = ["call", "push", "--layout", str(signed), "--ref", place.ref, *to_registry]
    assert f"{place.ref} is {place.layout.image.digest}" in dagger(place.module, *push)
    assert dagger(place.module, *push).endswith("sent 0 bytes of blobs\n")

    who = ["--identity", IDENTITY, "--issuer", place.issuer, "--trust", str(place.trust_file)]
    verify = ["call", "verify", *who, "--ref", place.ref, *to_registry]
    said = dagger(place.module, *verify)
    assert [line.split()[:3] for line in said.splitlines()[:-1]] == [
        [str(number), step, "ok"]
        for number, step in enumerate(
            ("manifest", "content", "referrers", "signatures", "sbom", "provenance"), 1
        )
    ]
    assert said.splitlines()[-1] == f"{place.ref} is {place.layout.image.digest}"
    stranger = ["--identity", "https://git.example/stranger", *who[2:]]
    refused = dagger(place.module, "call", "verify", *stranger, "--layout", str(signed), code=1)
    assert IDENTITY in refused
    assert "to do:" in refused
    assert "Traceback" not in refused


@pytest.fixture
def pool(warm_store: Path, tmp_path: Path) -> Path:
    """What the local executor brought for the quick recipe, so that no file is downloaded twice."""
    locks = (RECIPE / "lock.json").read_text() + (PROJECT / "stages" / "tools.lock").read_text()
    folder = tmp_path / "pool"
    folder.mkdir()
    for sha256 in set(re.findall(r'"([0-9a-f]{64})"', locks)):
        blob = warm_store / "blobs" / "sha256" / sha256[:2] / sha256[2:]
        if blob.is_file():
            shutil.copyfile(blob, folder / sha256)
    return folder


@pytest.mark.sandbox
@pytest.mark.network
@pytest.mark.timeout(3600)
def test_a_recipe_is_attested_as_the_command_attests_it(
    place: Place, warm_store: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, signed, sbom = tmp_path / "local", tmp_path / "signed", tmp_path / "sbom.json"
    command = [sys.executable, "-m", "pipelines", "build", str(RECIPE), "--git-sha", COMMIT]
    command += ["--store", str(warm_store), "--output", str(local)]
    subprocess.run(command, cwd=PROJECT, check=True)
    embedded = place.trust.embedded
    assert embedded is not None
    asked: list[datetime] = []

    def forge(request: Request) -> Reply:
        asked.append(datetime.now(UTC))
        return Reply(200, json.dumps({"value": embedded.issue_token(IDENTITY)}).encode())

    with serving(forge) as jobs:
        monkeypatch.setenv("URL", f"{jobs.url}/idtoken")
        monkeypatch.setenv("BEARER", BEARER)
        call = ["call", "--base", TEST_BASE or BASE, "--pool", str(pool)]
        words = ["--recipe", str(RECIPE), "--git-sha", COMMIT, *place.services]
        words += ["--local", f"tcp://{urlsplit(jobs.url).netloc}"]
        words += ["--request-url", "env://URL", "--request-token", "env://BEARER"]
        dagger(place.module, *call, "sign", *words, "export", "--path", str(signed))
    dagger(place.module, *call, "sbom", "--recipe", str(RECIPE), "export", "--path", str(sbom))

    assert sbom.read_bytes() == sbom_path(local).read_bytes()
    verified = place.verified(signed)
    assert verified.digest == open_layout(local).image.digest
    assert verified.git_sha == COMMIT
    assert attested(signed, SBOM) == json.loads(sbom.read_bytes())
    provenance = parse_provenance(attested(signed, PROVENANCE), "provenance")
    assert provenance.build_definition == read_build_record(local).build_definition
    assert len(asked) == 1
    assert asked[0] >= datetime.fromisoformat(provenance.run_details.metadata.finished_on)


def attested(folder: Path, kind: str) -> dict[str, Any]:
    """The predicate of that type that hangs on a layout's image."""
    layout = open_layout(folder)
    for entry in layout.index.manifests[1:]:
        manifest = parse_manifest(layout.read(entry, limit=DOCUMENT_LIMIT), "referrer")
        envelope = json.loads(layout.read(manifest.layers[0], limit=BUNDLE_LIMIT))["dsseEnvelope"]
        statement = json.loads(base64.b64decode(envelope["payload"]))
        if statement["predicateType"] == kind:
            predicate: dict[str, Any] = statement["predicate"]
            return predicate
    raise AssertionError(f"no {kind}")


@pytest.fixture
def platform() -> Iterator[WebhookServer]:
    with webhook_server() as server:
        yield server


def test_publish_in_a_forges_job_shows_no_secret(
    place: Place, platform: WebhookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = place.trust.embedded
    assert embedded is not None
    place.registry.auth, place.registry.users = "basic", {"robot": PASSWORD}
    minted: list[str] = []

    def forge(request: Request) -> Reply:
        if request.headers.get("authorization") != f"Bearer {BEARER}" or QUERY not in request.path:
            return Reply(401)
        minted.append(embedded.issue_token(IDENTITY))
        return Reply(200, json.dumps({"value": minted[-1]}).encode())

    with serving(forge) as jobs:
        secrets = {
            "request-url": f"{jobs.url}/idtoken?key={QUERY}",
            "request-token": BEARER,
            "password": PASSWORD,
            "webhook-url": platform.url,
            "webhook-secret": platform.secret,
        }
        words = ["--username", "robot", "--plain-http", "--platform-slug", "debian"]
        for number, (name, secret) in enumerate(secrets.items()):
            monkeypatch.setenv(f"GIVEN_{number}", secret)
            words += [f"--{name}", f"env://GIVEN_{number}"]
        for url in (jobs.url, platform.url):
            words += ["--local", f"tcp://{urlsplit(url).netloc}"]
        call = ["call", "publish", "--ref", place.ref, *place.image, *place.services, *words]
        done = run_dagger(place.module, "--progress", "plain", "-vvv", *call)
        assert done.returncode == 0, done.stderr
    assert f"{place.ref} is {place.layout.image.digest}" in done.stdout
    assert len(minted) == 1
    assert len(platform.publications) == 1
    assert all(one.verified for one in platform.seen)

    path = urlsplit(platform.url).path.rpartition("/")[2]
    wanted = [BEARER, QUERY, PASSWORD, platform.secret, path]
    # A token's header says nothing; its other parts are secret while it lasts.
    wanted += [part for token in minted for part in token.split(".")[1:]]
    wanted += [base64.b64encode(f"robot:{PASSWORD}".encode()).decode()]
    shown = [done.stdout.encode(), done.stderr.encode()]
    shown += [content for repo in place.registry.repos.values() for content in repo.blobs.values()]
    shown += [content for repo in place.registry.repos.values() for _, content in repo.manifests.values()]
    assert found([place.registry.host, str(place.layout.image.hex)], shown) != []
    assert found(wanted, shown) == []
    assert in_files(wanted, os.environ.get("DISK_IMAGE_TEST_ENGINE_FILES", "")) == []


def found(wanted: list[str], contents: list[bytes]) -> list[str]:
    """Which of the secrets are in one of the contents."""
    return [secret for secret in wanted if any(secret.encode() in content for content in contents)]


def in_files(wanted: list[str], paths: str) -> list[str]:
    """Which secrets are in which files of `paths`, that os.pathsep parts."""
    leaks = []
    for top in filter(None, paths.split(os.pathsep)):
        files = [Path(top)] if Path(top).is_file() else list(Path(top).rglob("*"))
        for path in files:
            if not path.is_symlink() and path.is_file():
                leaks += [f"{secret}: {path}" for secret in found(wanted, [path.read_bytes()])]
    return leaks


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no identity token"),
        (["--identity-token", "env://TOKEN"], "expected --recipe or --layout"),
        (["--identity-token", "env://TOKEN", "--layout", "recipes"], "its SBOM and its build record"),
    ],
    ids=["no token", "no image", "no record"],
)
def test_what_sign_lacks_is_said_before_anything_is_built(
    place: Place, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "never read")
    refused = dagger(
        place.module, "call", "sign", *words, "--trust", str(place.trust_file), "entries", code=1
    )
    assert said in refused
    assert "to do:" in refused

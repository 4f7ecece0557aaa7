"""Signing with a private Sigstore of the real services."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.cosign import Cosign, Refused
from tests.peers.private_sigstore import IDENTITY, ISSUER, PrivateSigstore, private_sigstore
from tests.peers.programs import go_program
from tests.peers.registries import distribution
from tests.supply_chain.verify.signed_image import make_image, write_built
from tests.system.command import disk_image

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSigstore]:
    """All of them, running."""
    with private_sigstore(tmp_path_factory.mktemp("sigstore")) as running:
        yield running


@pytest.fixture(scope="module")
def trust(services: PrivateSigstore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trust in them, made by the command."""
    folder = tmp_path_factory.mktemp("trust") / "trust"
    done = disk_image("trust", "init", folder, *services.init, prefix=services.network)
    assert done.returncode == 0, done.stderr
    return folder


def test_each_service_answers(services: PrivateSigstore, trust: Path) -> None:
    done = disk_image("trust", "check", trust, "--json", prefix=services.network)
    assert done.returncode == 0, done.stderr + done.stdout
    checks = json.loads(done.stdout)["checks"]
    assert checks
    assert all(check["ok"] for check in checks)


def test_sign_push_verify(services: PrivateSigstore, trust: Path, tmp_path: Path) -> None:
    """The certificate names the workflow, which the token's subject does not: Fulcio makes it of claims."""
    image = make_image()
    layout = write_built(tmp_path / "image", image)
    token = services.token(tmp_path / "token")
    done = disk_image(
        "sign", layout, "--trust", trust, "--identity-token-file", token, "--json", prefix=services.network
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["identity"], told["issuer"], told["signed"]) == (IDENTITY, ISSUER, True)
    offline = disk_image("verify", layout, "--trust", trust, "--identity", IDENTITY, "--issuer", ISSUER)
    assert offline.returncode == 0, offline.stdout + offline.stderr

    (tmp_path / "registry").mkdir()
    cosign = Cosign(go_program("cosign"), trust, tmp_path, services.network)
    with distribution(tmp_path / "registry", network=services.network) as registry:
        ref = f"{registry.repository('private')}@{image.digest}"
        done = disk_image("push", layout, ref, "--plain-http", prefix=services.network)
        assert done.returncode == 0, done.stderr
        cosign.verify(ref, IDENTITY, ISSUER)
        for kind in ("spdxjson", "slsaprovenance1"):
            assert len(cosign.verify_attestation(ref, kind, IDENTITY, ISSUER)) == 1
        with pytest.raises(Refused, match="expected SAN value"):
            cosign.verify(ref, f"{IDENTITY}x", ISSUER)

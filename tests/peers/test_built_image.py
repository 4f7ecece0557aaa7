"""A real image, built by the command: signed, pushed, and taken by cosign, oras and us."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from supply_chain.beside import sbom_path
from supply_chain.image import TITLE
from supply_chain.layout import open_layout
from supply_chain.oci import digest_of
from tests.peers.cosign import Cosign
from tests.peers.oras import Oras
from tests.peers.programs import go_program
from tests.peers.registries import debian_registry
from tests.system.command import ROOT, build, disk_image

pytestmark = [pytest.mark.peers, pytest.mark.network, pytest.mark.sandbox, pytest.mark.timeout(1800)]

IDENTITY = "builder@localhost"


def _told(*argv: str | Path) -> dict[str, object]:
    done = disk_image(*argv, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


def test_sign_push_verify_pull(warm_store: Path, oras: Oras, tmp_path: Path) -> None:
    trust, layout = tmp_path / "trust", tmp_path / "quick"
    (tmp_path / "registry").mkdir()
    built = build(ROOT / "recipes" / "quick", layout, warm_store, "--relock")
    _told("trust", "init", trust)
    signed = _told("sign", layout, "--trust", trust, "--as", IDENTITY)
    who = (IDENTITY, str(signed["issuer"]))
    cosign = Cosign(go_program("cosign"), trust, tmp_path)
    with debian_registry(tmp_path / "registry") as registry:
        repository = registry.repository("quick")
        push = ("push", layout, f"{repository}:v1", "--plain-http")
        _told(*push)
        again = _told(*push)
        assert (again["blobs_sent"], again["blob_bytes_sent"]) == (0, 0)
        ref = f"{repository}@{built.manifest_digest}"
        cosign.verify(ref, *who)
        (sbom,) = cosign.verify_attestation(ref, "spdxjson", *who)
        assert sbom["predicate"] == json.loads(sbom_path(layout).read_bytes())
        (provenance,) = cosign.verify_attestation(ref, "slsaprovenance1", *who)
        assert provenance["predicate"]["runDetails"]["builder"]["id"] == IDENTITY
        verified = _told(
            "verify", ref, "--trust", trust, "--identity", who[0], "--issuer", who[1], "--plain-http"
        )
        assert verified["digest"] == built.manifest_digest
        assert len(oras.discover(ref)) == 3
        oras.pull(ref, tmp_path / "pulled")
        for layer in open_layout(layout).manifest.layers:
            assert layer.annotations is not None
            assert digest_of((tmp_path / "pulled" / layer.annotations[TITLE]).read_bytes()) == layer.digest

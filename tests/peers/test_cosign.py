"""cosign verifies what we sign and push, we verify what cosign signs, and both refuse what was changed."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import pytest

from pipelines.definition import canonical_json
from supply_chain.errors import VerificationError
from supply_chain.layout import open_layout
from supply_chain.oci import DOCUMENT_LIMIT, parse_manifest
from supply_chain.push import push
from supply_chain.referrer import PREDICATE_TYPE
from supply_chain.statement import PROVENANCE, SBOM, SIGNATURE
from supply_chain.trust import init_embedded, load_trust
from supply_chain.verify.image import verify_image
from supply_chain.verify.policy import signer_policy
from supply_chain.verify.source import open_source
from supply_chain.verify.steps import Step
from tests.peers.cosign import Cosign, Refused
from tests.peers.oras import Oras
from tests.peers.programs import go_program
from tests.peers.registries import Registry
from tests.peers.server import serving
from tests.ports import free_port
from tests.supply_chain.verify.forge import IDENTITY
from tests.supply_chain.verify.signed_image import (
    Image,
    layout_files,
    make_image,
    provenance_of,
    sbom_of,
    write,
    write_built,
)
from tests.system.command import disk_image

pytestmark = pytest.mark.peers

ATTESTATIONS = {"spdxjson": SBOM, "slsaprovenance1": PROVENANCE}


@dataclass(frozen=True)
class Embedded:
    """An embedded trust's folder and the URL of its issuer."""

    folder: Path
    issuer: str


@dataclass(frozen=True)
class Published:
    """What is pushed, and who is asked for: an image, its bundles by predicate type, a signer, a trust."""

    image: Image
    bundles: Mapping[str, bytes]
    identity: str
    issuer: str
    trust: Path


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Embedded:
    """An embedded trust."""
    folder, port = tmp_path_factory.mktemp("trust") / "trust", free_port()
    init_embedded(folder, port=port)
    return Embedded(folder, f"http://127.0.0.1:{port}")


@pytest.fixture(scope="module")
def served(embedded: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """The same with its services up, for cosign to sign with."""
    argv: list[str | Path] = [sys.executable, "-m", "pipelines", "trust", "serve", embedded.folder]
    with serving(argv, f"{embedded.issuer}/jwks", tmp_path_factory.mktemp("served") / "log"):
        yield embedded


@pytest.fixture(scope="module")
def signed(embedded: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """An image that `disk-image sign` signed."""
    image = make_image()
    folder = write_built(tmp_path_factory.mktemp("signed") / "image", image)
    done = disk_image("sign", folder, "--trust", embedded.folder, "--as", IDENTITY)
    assert done.returncode == 0, done.stderr
    layout = open_layout(folder)
    bundles = {}
    for entry in layout.index.manifests[1:]:
        manifest = parse_manifest(layout.read(entry, limit=DOCUMENT_LIMIT), entry.digest)
        assert manifest.annotations is not None
        bundles[manifest.annotations[PREDICATE_TYPE]] = layout.read(manifest.layers[0], limit=DOCUMENT_LIMIT)
    return Published(image, bundles, IDENTITY, embedded.issuer, embedded.folder)


@pytest.fixture(scope="module")
def cosign(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Cosign]:
    """cosign with the trust of a folder."""
    program, home = go_program("cosign"), tmp_path_factory.mktemp("cosign")
    return lambda trust: Cosign(program, trust, home)


def _push(published: Published, repository: str, folder: Path) -> str:
    """Gives host/path@digest."""
    files = layout_files(published.image, list(published.bundles.items()))
    anyio.run(lambda: push(write(folder, files), f"{repository}:v1", plain_http=True))
    return f"{repository}@{published.image.digest}"


def test_cosign_accepts_what_is_pushed(
    registry: Registry, signed: Published, cosign: Callable[[Path], Cosign], oras: Oras, tmp_path: Path
) -> None:
    ref = _push(signed, registry.repository("signed"), tmp_path / "image")
    trusting = cosign(signed.trust)
    trusting.verify(ref, signed.identity, signed.issuer)
    (sbom,) = trusting.verify_attestation(ref, "spdxjson", signed.identity, signed.issuer)
    (provenance,) = trusting.verify_attestation(ref, "slsaprovenance1", signed.identity, signed.issuer)
    for statement, kind, predicate in (
        (sbom, SBOM, sbom_of(signed.image)),
        (provenance, PROVENANCE, provenance_of(signed.image, IDENTITY)),
    ):
        assert statement["predicateType"] == kind
        assert statement["predicate"] == predicate
        assert [each["digest"] for each in statement["subject"]] == [{"sha256": signed.image.digest[7:]}]
    assert _accepted(ref, signed)
    kinds = {one["annotations"][PREDICATE_TYPE] for one in oras.discover(ref)}
    assert kinds == {SIGNATURE, SBOM, PROVENANCE}


def _changed_statements(published: Published, scratch: Path) -> Published:
    bundles = {}
    for kind, content in published.bundles.items():
        bundle = json.loads(content)
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        statement["predicate"]["changed"] = True
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
        bundles[kind] = json.dumps(bundle).encode()
    return replace(published, bundles=bundles)


def _another_trust(published: Published, scratch: Path) -> Published:
    init_embedded(scratch / "another")
    return replace(published, trust=scratch / "another")


CHANGES: dict[str, Callable[[Published, Path], Published]] = {
    "another signer": lambda one, _: replace(one, identity=f"{IDENTITY}x"),
    "another issuer": lambda one, _: replace(one, issuer=f"{one.issuer}/x"),
    "another trust": _another_trust,
    "no signature": lambda one, _: replace(one, bundles={}),
    "a changed image under the same bundles": lambda one, _: replace(
        one, image=one.image.changed(annotations={"changed": "yes"})
    ),
    "another image under the same bundles": lambda one, _: replace(one, image=make_image("another")),
    "changed statements": _changed_statements,
}


@pytest.mark.parametrize("change", CHANGES)
def test_cosign_and_we_refuse(
    registry: Registry,
    signed: Published,
    cosign: Callable[[Path], Cosign],
    change: str,
    tmp_path: Path,
) -> None:
    changed = CHANGES[change](signed, tmp_path)
    ref = _push(changed, registry.repository(f"refused-{list(CHANGES).index(change)}"), tmp_path / "image")
    trusting = cosign(changed.trust)
    with pytest.raises(Refused):
        trusting.verify(ref, changed.identity, changed.issuer)
    for kind in ATTESTATIONS:
        with pytest.raises(Refused):
            trusting.verify_attestation(ref, kind, changed.identity, changed.issuer)
    assert not _accepted(ref, changed)


@pytest.mark.parametrize("missing", [SIGNATURE, SBOM, PROVENANCE])
def test_what_is_missing_is_refused(
    registry: Registry,
    signed: Published,
    cosign: Callable[[Path], Cosign],
    missing: str,
    tmp_path: Path,
) -> None:
    """cosign takes any of them for a signature; we want all three."""
    left = {kind: bundle for kind, bundle in signed.bundles.items() if kind != missing}
    part = replace(signed, bundles=left)
    name = f"missing-{list(signed.bundles).index(missing)}"
    ref = _push(part, registry.repository(name), tmp_path / "image")
    for kind, predicate_type in ATTESTATIONS.items():
        if predicate_type == missing:
            with pytest.raises(Refused, match="none of the attestations matched the predicate type"):
                cosign(signed.trust).verify_attestation(ref, kind, signed.identity, signed.issuer)
    assert not _accepted(ref, part)


def test_we_accept_what_cosign_signs(
    registry: Registry, served: Embedded, cosign: Callable[[Path], Cosign], tmp_path: Path
) -> None:
    unsigned = Published(make_image("by cosign"), {}, IDENTITY, served.issuer, served.folder)
    ref = _push(unsigned, registry.repository("by-cosign"), tmp_path / "image")
    signing = cosign(served.folder)
    signing.sign(ref, _token(served, tmp_path))
    assert not _accepted(ref, unsigned)
    predicates = {"spdxjson": sbom_of(unsigned.image), "slsaprovenance1": provenance_of(unsigned.image)}
    for kind, predicate in predicates.items():
        (tmp_path / kind).write_bytes(canonical_json(predicate))
        signing.attest(ref, kind, tmp_path / kind, _token(served, tmp_path))
    assert _accepted(ref, unsigned)
    assert not _accepted(ref, replace(unsigned, identity=f"{IDENTITY}x"))


def _token(trust: Embedded, scratch: Path) -> Path:
    told = disk_image("trust", "token", trust.folder, "--as", IDENTITY)
    assert told.returncode == 0, told.stderr
    (scratch / "token").write_text(told.stdout.strip())
    return scratch / "token"


def _accepted(ref: str, asked: Published) -> bool:
    """Whether we verify it; we may refuse it only for what hangs on the image."""
    policy = signer_policy(identity=asked.identity, issuer=asked.issuer)

    async def verify() -> None:
        async with open_source(ref, plain_http=True) as source:
            await verify_image(source, load_trust(asked.trust), policy)

    try:
        anyio.run(verify)
    except VerificationError as error:
        if error.step != Step.SIGNATURES:
            raise
        return False
    return True

"""Attacks on the platform by the registry that an image is reported in: whether it is asked, and what it
answers.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import threading
from contextlib import suppress
from dataclasses import replace
from typing import Any

import anyio
import pytest
import zstandard

from pipelines.definition import canonical_json
from platform_server.registries import check_trusted, is_public, open_trusted
from platform_server.settings import Registries
from platform_server.states import Status
from supply_chain.image import KERNEL
from supply_chain.oci import digest_of
from supply_chain.reference import parse_reference
from supply_chain.statement import PROVENANCE, SBOM, SIGNATURE
from tests.platform_server.images import REPOSITORY, Images
from tests.platform_server.verifying import Trial
from tests.supply_chain.images import noise
from tests.supply_chain.registry_server import registry
from tests.supply_chain.verify.forge import Names
from tests.supply_chain.verify.signed_image import Signed, bundle, make_image, statements_of

pytestmark = pytest.mark.one_database


@pytest.mark.parametrize(
    ("oci_ref", "trusted"),
    [
        ("evil.example/os/debian:13", ["registry.example"]),
        ("registry.example.evil.example/os/debian:13", ["registry.example"]),
        ("evil-registry.example/os/debian:13", ["registry.example"]),
        ("registry.example:5000/os/debian:13", ["registry.example"]),
        ("registry.example/osx/debian:13", ["registry.example/os"]),
        ("registry.example/o/s:13", ["registry.example/os"]),
        ("registry.example/os/debian:13", []),
    ],
)
def test_an_unknown_registry_is_not_asked(trial: Trial, oci_ref: str, trusted: list[str]) -> None:
    trial.change(trusted_registries=trusted)
    error = trial.refused("untrusted_registry", oci_ref)
    assert oci_ref.split(":13")[0] in error


@pytest.mark.parametrize(
    ("oci_ref", "trusted"),
    [
        ("registry.example/os/debian:13", "registry.example"),
        ("Registry.example/os/debian:13", "registry.EXAMPLE"),
        ("registry.example/os/debian:13", "registry.example/os"),
        ("registry.example/os/debian:13", "registry.example/os/debian"),
        ("registry.example:5000/os/debian:13", "registry.example:5000"),
    ],
)
def test_a_known_registry_is(oci_ref: str, trusted: str) -> None:
    check_trusted(parse_reference(oci_ref), [trusted])


PRIVATE = (
    "127.0.0.1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "fd00::1",
    "fe80::1",
    "::ffff:127.0.0.1",
    "64:ff9b::a00:1",
    "2002:7f00:1::",
    "ff02::1",
    "::",
)


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_that_resolves_to_a_private_address_is_not_asked(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    assert not is_public(ipaddress.ip_address(address))

    async def resolve(host: str, port: int, **_: object) -> list[Any]:
        assert (host, port) == ("registry.example", 443)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port))
        return [public, (family, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(anyio, "getaddrinfo", resolve)
    trial.change(trusted_registries=["registry.example"])
    error = trial.refused("untrusted_registry", "registry.example/os/debian:13")
    assert f"expected a public address, found {address}" in error


@pytest.mark.parametrize("host", ["127.0.0.1:5000", "localhost:5000", "[::1]:5000", "192.168.1.1"])
def test_a_private_address_is_not_asked_unless_it_is_listed(trial: Trial, host: str) -> None:
    settings = replace(trial.platform.settings, registries=Registries())
    trial.platform = replace(trial.platform, settings=settings)
    trial.change(trusted_registries=[host])
    trial.refused("untrusted_registry", f"{host}/os/debian:13")


def test_a_name_is_resolved_once_so_that_it_can_not_move_to_a_private_address(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the second answer would be another address."""
    host, port = images.server.server_address[:2]
    answers = iter([str(host), "10.0.0.1", "10.0.0.2"])

    async def resolve(name: str, wanted: int, **_: object) -> list[Any]:
        assert name == "localhost"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), wanted))]

    monkeypatch.setattr(anyio, "getaddrinfo", resolve)
    images.push()
    settings = Registries(plain_http=True)

    async def ask() -> None:
        reference = parse_reference(f"localhost:{port}/{REPOSITORY}:13")
        async with open_trusted(reference, [f"localhost:{port}"], settings) as repository:
            for _ in range(3):
                assert (await repository.manifests.get("13")).content

    anyio.run(ask)
    assert next(answers) == "10.0.0.1"


def test_a_redirect_to_another_service_of_this_machine_is_not_followed(trial: Trial) -> None:
    trial.images.push()
    with registry() as elsewhere:
        trial.images.server.redirect_blobs = f"http://{elsewhere.host}"
        error = trial.refused("untrusted_registry")
        assert "expected a public address, found 127.0.0.1" in error
        assert elsewhere.seen == []


def test_a_tag_moved_between_steps_changes_nothing(trial: Trial) -> None:
    """The tag is moved to another signed image after it was resolved; what is verified is the first one."""
    first = trial.images.push()
    second = trial.images.push("second", tag="other", commit="2" * 40)
    tags = trial.images.server.repo(REPOSITORY).tags
    real = trial.verifier

    async def moved(*arguments: Any) -> Any:
        tags["13"] = second.image.digest
        return await real(*arguments)

    trial.verifier = moved
    row = trial.verify()
    assert (row.status, row.oci_digest) == (Status.PUBLISHED, first.image.digest)
    asked = [one.path for one in trial.images.server.seen if one.path.endswith("/manifests/13")]
    assert len(asked) == 1


# what is signed


def _put(trial: Trial, signed: Signed) -> None:
    trial.images.put(signed.files)
    trial.images.server.repo(REPOSITORY).tags["13"] = signed.image.digest


def test_a_bundle_for_another_digest_is_refused(trial: Trial) -> None:
    other = trial.images.push("other", tag="other")
    image = make_image()
    _put(trial, Signed(image, other.bundles))
    assert "another image" in trial.refused("verification_failed")


@pytest.mark.parametrize("kinds", [(), (SBOM,), (SIGNATURE,), (SBOM, SIGNATURE), (PROVENANCE, SBOM)])
def test_an_sbom_only_signature_is_refused(trial: Trial, kinds: tuple[str, ...]) -> None:
    signed = trial.images.push()
    trial.images.server.repos.clear()
    _put(trial, Signed(signed.image, {kind: signed.bundles[kind] for kind in kinds}))
    assert "expected signature, SBOM and provenance" in trial.refused("verification_failed")


@pytest.mark.parametrize(
    ("regexp", "identity"),
    [
        ("https://git[.]example/org", "https://git.example/org/os"),
        ("git[.]example/org/.+", "https://git.example/org/os"),
        ("https://git.example/org/.+", "https://evil.example/?https://git.example/org/os"),
        ("https://git.example/org/.+", "https://gitxexample.evil.example/https://git.example/org/x"),
        ("a|https://git[.]example/org/os", "a|https://git.example/org/os"),
        ("(?i)HTTPS://GIT[.]EXAMPLE/ORG", "https://git.example/org/os"),
    ],
)
def test_unanchored_regexp_tricks_do_not_match(trial: Trial, regexp: str, identity: str) -> None:
    trial.images.push(names=Names(identity=identity))
    trial.change(cosign_identity_regexp=regexp)
    assert "identity" in trial.refused("verification_failed")


def test_another_issuer_is_refused(trial: Trial) -> None:
    trial.images.push(names=Names(issuer="https://evil.example"))
    assert "issuer" in trial.refused("verification_failed")


def test_a_regexp_that_takes_for_ever_does_not(trial: Trial) -> None:
    trial.images.push()
    trial.change(cosign_identity_regexp="(a|aa|https://git[.]example/|.)+x")
    assert "identity" in trial.refused("verification_failed")


def test_a_layer_with_other_bytes_than_its_digest_is_refused(trial: Trial) -> None:
    signed = trial.images.push()
    digest = signed.image.of_title(KERNEL)["digest"]
    blobs = trial.images.server.repo(REPOSITORY).blobs
    blobs[digest] = b"x" + blobs[digest][1:]
    assert digest in trial.refused("verification_failed")


# what is too much


class _Endless(threading.Thread):
    """A registry that answers every request with 10 GB, as long as anybody reads."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.sent = 0

    def run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                with connection, suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\n"
                        b"Content-Length: 10737418240\r\n\r\n{"
                    )
                    while True:
                        self.sent += connection.send(b" " * 65536)


def test_a_10_gb_manifest_is_not_read(trial: Trial) -> None:
    endless = _Endless()
    endless.start()
    host = f"127.0.0.1:{endless.listening.getsockname()[1]}"
    trial.change(trusted_registries=[host])
    error = trial.exhausted(f"{host}/os/debian:13")
    endless.listening.close()
    assert "more than 4194304 bytes" in error
    assert endless.sent < 100_000_000


def test_zip_bomb_layers_are_never_unpacked(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of 100 kB that is 1 GiB of zeros: the platform reads it as bytes and nothing else."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    zeros = b"\x00" * (1 << 24)
    bomb = b"".join(compressor.compress(zeros) for _ in range(64)) + compressor.flush()
    assert len(bomb) < 200_000
    with monkeypatch.context() as patched:
        patched.setattr(
            "tests.supply_chain.verify.signed_image.noise",
            lambda name, size: bomb if "objects" in name else noise(name, size),
        )
        signed = trial.images.push()
    assert signed.image.of_title("objects-00.pack")["size"] == len(bomb)
    monkeypatch.setattr(zstandard, "ZstdDecompressor", None)
    monkeypatch.setattr(zstandard, "decompress", None)
    assert trial.verify().status is Status.PUBLISHED


@pytest.mark.parametrize("said", [1, 2**62])
def test_a_layer_of_another_size_than_it_says_is_refused(trial: Trial, said: int) -> None:
    image = make_image()
    manifest = json.loads(image.manifest)
    manifest["layers"][1]["size"] = said
    lying = image.changed(layers=manifest["layers"])
    statements = statements_of(lying)
    bundles = {kind: bundle(trial.images.forge, each) for kind, each in statements.items()}
    _put(trial, Signed(lying, bundles))
    trial.refused("verification_failed")


def test_a_referrers_list_without_end_is_refused(trial: Trial) -> None:
    signed = trial.images.push()
    repo = trial.images.server.repo(REPOSITORY)
    template = json.loads(
        next(content for kind, content in repo.manifests.values() if b"subject" in content)
    )
    for number in range(1100):
        content = canonical_json({**template, "annotations": {"number": str(number)}})
        repo.manifests[digest_of(content)] = (template["mediaType"], content)
    error = trial.exhausted(trial.images.ref(signed.image.digest))
    assert "more than 1000" in error

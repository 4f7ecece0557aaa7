"""The transparency log over HTTP: what it takes, and that anyone can check what it says."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import (
    load_der_public_key,
)

from supply_chain.trust import Trust, init_embedded, load_trust, running
from supply_chain.trust.certificates import spki
from supply_chain.trust.checkpoint import read_checkpoint
from supply_chain.trust.embedded.merkle import MerkleTree, leaf_hash, node_hash

ORIGIN = "log.disk-image.internal"


@pytest.fixture
def url(embedded_trust: Trust) -> str:
    assert embedded_trust.config is not None
    return embedded_trust.config.ca_urls[0].url


@pytest.fixture(scope="module")
def young(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A log of its own, so that it has fewer entries than a tile."""
    folder = tmp_path_factory.mktemp("young") / "trust"
    init_embedded(folder)
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(running(load_trust(folder))) as trust,
    ):
        assert trust.config is not None
        yield trust.config.ca_urls[0].url


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def entry(content: bytes = b"hello") -> dict[str, Any]:
    """A request that the log takes: a P-256 signature over the content's digest."""
    key, digest = ec.generate_private_key(ec.SECP256R1()), hashlib.sha256(content).digest()
    signature = key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    verifier = {
        "publicKey": {"rawBytes": b64(spki(key.public_key()))},
        "keyDetails": "PKIX_ECDSA_P256_SHA_256",
    }
    return {
        "hashedRekordRequestV002": {
            "digest": b64(digest),
            "signature": {"content": b64(signature), "verifier": verifier},
        }
    }


def add(url: str, body: object) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{url}/api/v2/log/entries", content=content)


def included(answer: dict[str, Any]) -> bool:
    """Verify an inclusion proof from the leaf up, as RFC 9162 section 2.1.3.2 does."""
    proof = answer["inclusionProof"]
    node, last = int(proof["logIndex"]), int(proof["treeSize"]) - 1
    found = leaf_hash(base64.b64decode(answer["canonicalizedBody"]))
    for one in map(base64.b64decode, proof["hashes"]):
        if node & 1 or node == last:
            found = node_hash(one, found)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            found = node_hash(found, one)
        node, last = node >> 1, last >> 1
    return last == 0 and found == base64.b64decode(proof["rootHash"])


@pytest.mark.parametrize("number", range(3))
def test_an_entry_is_in_the_tree_that_is_answered(url: str, embedded_trust: Trust, number: int) -> None:
    answer = add(url, entry(b"%d" % number))
    assert answer.status_code == 201
    proof = answer.json()["inclusionProof"]
    assert included(answer.json())
    checkpoint = read_checkpoint(proof["checkpoint"]["envelope"], url)
    assert (checkpoint.origin, checkpoint.tree_size) == (ORIGIN, int(proof["treeSize"]))
    assert proof["rootHash"] in checkpoint.signed.decode()
    key = load_der_public_key(embedded_trust.root.tlogs[0].public_key.raw_bytes or b"")
    assert checkpoint.signed_by(ORIGIN, key)
    assert not checkpoint.signed_by("other.example", key)
    assert not checkpoint.signed_by(ORIGIN, ec.generate_private_key(ec.SECP256R1()).public_key())


def test_an_entry_sent_again_keeps_its_index(url: str) -> None:
    request = entry()
    first, _, again = add(url, request), add(url, entry()), add(url, request)
    assert first.json()["logIndex"] == again.json()["logIndex"]
    assert included(again.json())


def test_rsa_keys_are_taken(url: str) -> None:
    key, digest = rsa.generate_private_key(65537, 2048), hashlib.sha256(b"x").digest()
    request = entry()["hashedRekordRequestV002"]
    request["digest"] = b64(digest)
    request["signature"] = {
        "content": b64(key.sign(digest, padding.PKCS1v15(), Prehashed(hashes.SHA256()))),
        "verifier": {
            "publicKey": {"rawBytes": b64(spki(key.public_key()))},
            "keyDetails": "PKIX_RSA_PKCS1V15_2048_SHA256",
        },
    }
    assert add(url, {"hashedRekordRequestV002": request}).status_code == 201


Change = Callable[[dict[str, Any]], object]
ED25519 = b64(spki(ed25519.Ed25519PrivateKey.generate().public_key()))
BAD: dict[str, tuple[Change, str]] = {
    "another digest": (lambda r: r.update(digest=b64(bytes(32))), "verifying signature"),
    "another signature": (lambda r: r["signature"].update(content=b64(b"x" * 70)), "verifying signature"),
    "another key": (
        lambda r: r["signature"]["verifier"].update(
            publicKey={"rawBytes": b64(spki(ec.generate_private_key(ec.SECP256R1()).public_key()))}
        ),
        "verifying signature",
    ),
    "a digest of another length": (lambda r: r.update(digest=b64(bytes(48))), "digest length"),
    "another algorithm than the key's": (
        lambda r: r["signature"]["verifier"].update(keyDetails="PKIX_RSA_PKCS1V15_2048_SHA256"),
        "not of the algorithm",
    ),
    "another curve than the algorithm's": (
        lambda r: r["signature"]["verifier"].update(
            publicKey={"rawBytes": b64(spki(ec.generate_private_key(ec.SECP384R1()).public_key()))}
        ),
        "not of the algorithm",
    ),
    "an algorithm without a digest of its own": (
        lambda r: r["signature"]["verifier"].update(
            keyDetails="PKIX_ED25519", publicKey={"rawBytes": ED25519}
        ),
        "unsupported entry algorithm",
    ),
    "what is no key": (
        lambda r: r["signature"]["verifier"].update(publicKey={"rawBytes": "AAAA"}),
        "parsing verifier",
    ),
    "what is no certificate": (
        lambda r: (
            r["signature"]["verifier"].pop("publicKey"),
            r["signature"]["verifier"].update(x509Certificate={"rawBytes": "AAAA"}),
        ),
        "parsing verifier",
    ),
    "a key and a certificate": (
        lambda r: r["signature"]["verifier"].update(x509Certificate={"rawBytes": "AAAA"}),
        "either a public key or X.509 certificate",
    ),
    "neither": (lambda r: r["signature"]["verifier"].pop("publicKey"), "either a public key or X.509"),
    "no signature": (lambda r: r.pop("signature"), "invalid hashedrekord request"),
    "an empty signature": (lambda r: r["signature"].update(content=""), "invalid hashedrekord request"),
    "base64 with something between": (
        lambda r: r.update(digest=r["digest"][:8] + "\n%" + r["digest"][8:]),
        "invalid hashedrekord request",
    ),
    "no base64": (lambda r: r.update(digest="%%"), "invalid hashedrekord request"),
    "an unknown field": (lambda r: r.update(more=1), "invalid hashedrekord request"),
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_entry_is_refused_and_not_logged(url: str, how: str) -> None:
    change, message = BAD[how]
    request = entry()
    change(request["hashedRekordRequestV002"])
    before = httpx.get(f"{url}/api/v2/checkpoint").text.splitlines()[1]
    answer = add(url, request)
    assert answer.status_code == 400
    assert message in answer.json()["message"]
    assert httpx.get(f"{url}/api/v2/checkpoint").text.splitlines()[1] == before


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"[" * 60_000, b'{"dsseRequestV002": {}}', b"\xff"])
def test_what_is_no_entry_is_refused(url: str, body: bytes) -> None:
    assert add(url, body).status_code == 400


def test_its_tiles_lead_to_its_checkpoint(young: str) -> None:
    url = young
    for number in range(5):
        add(url, entry(b"tile %d" % number))
    checkpoint = read_checkpoint(httpx.get(f"{url}/api/v2/checkpoint").text, url)
    width = checkpoint.tree_size
    assert 0 < width < 256
    bundle = httpx.get(f"{url}/api/v2/tile/entries/000.p/{width}").content
    tree, at = MerkleTree(), 0
    while at < len(bundle):
        (length,) = struct.unpack_from(">H", bundle, at)
        tree.append(leaf_hash(bundle[at + 2 : at + 2 + length]))
        at += 2 + length
    assert b64(tree.root()) in checkpoint.signed.decode()
    hashes_ = httpx.get(f"{url}/api/v2/tile/0/000.p/{width}").content
    assert hashes_ == b"".join(tree.nodes(0, 0, width))


@pytest.mark.parametrize(
    "path",
    [
        "0/000",
        "entries/000",
        "0/000.p/255",
        "entries/000.p/255",
        "0/000.p/256",
        "1/000",
        "63/000.p/1",
        "64/000",
        "0/x999/x999/x999/x999/x999/999",
        "0/0",
        "0/-01",
        "0/000.p/0",
        "..%2f",
    ],
)
def test_tiles_that_are_not_there(young: str, path: str) -> None:
    assert httpx.get(f"{young}/api/v2/tile/{path}").status_code == 404

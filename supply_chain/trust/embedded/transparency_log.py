"""A transparency log: Rekor's version 2 HTTP interface, and its tiles.

https://github.com/sigstore/rekor-tiles/blob/main/CLIENTS.md, and
https://github.com/C2SP/C2SP/blob/main/tlog-tiles.md for reading. The one kind of entry is hashedrekord
0.0.2.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Annotated, Any

import rfc8785
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from supply_chain.trust.certificates import key_id, spki
from supply_chain.trust.checkpoint import sign_checkpoint
from supply_chain.trust.embedded.answers import Answer, Refused, Request, as_json
from supply_chain.trust.embedded.log_file import LogFile
from supply_chain.trust.embedded.merkle import MerkleTree

# Leaves of a tile, and hashes of a tile on each level above.
_TILE = 256
_PATH = re.compile(
    r"/api/v2/tile/(?P<level>entries|0|[1-9]|[1-5][0-9]|6[0-3])/(?P<index>(x[0-9]{3}/){0,5}[0-9]{3})"
    r"(\.p/(?P<width>[1-9][0-9]{0,2}))?"
)


def _decoded(value: object) -> object:
    return base64.b64decode(value, validate=True) if isinstance(value, str) else value


# bytes in JSON, as protobuf writes them
_Content = Annotated[bytes, BeforeValidator(_decoded), Field(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, strict=True, extra="forbid", frozen=True)


class _Raw(_Model):
    raw_bytes: _Content


class _Verifier(_Model):
    """One of both, and the algorithm that the signature was made with."""

    x509_certificate: _Raw | None = None
    public_key: _Raw | None = None
    key_details: str


class _Signature(_Model):
    content: _Content
    verifier: _Verifier


class _HashedRekord(_Model):
    digest: _Content
    signature: _Signature


class _CreateEntryRequest(_Model):
    hashed_rekord_request_v002: _HashedRekord = Field(alias="hashedRekordRequestV002")


class TransparencyLog:
    """The log named `origin`, with its key."""

    def __init__(self, log: LogFile, key: ec.EllipticCurvePrivateKey, origin: str) -> None:
        self._log = log
        self._key = key
        self._origin = origin
        self._id = key_id(key.public_key())

    def begin(self) -> None:
        """Add the first entry, the log's own signature over its origin.

        No client's entry may be the first: protobuf writes no number that is 0 into JSON, so the bundle that
        cosign makes of entry 0 has no index, which sigstore-python does not read.
        """
        digest = hashlib.sha256(self._origin.encode()).digest()
        signature = self._key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256())))
        verifier = {
            "publicKey": {"rawBytes": _base64(spki(self._key.public_key()))},
            "keyDetails": "PKIX_ECDSA_P256_SHA_256",
        }
        signed = {"content": _base64(signature), "verifier": verifier}
        request = {"hashedRekordRequestV002": {"digest": _base64(digest), "signature": signed}}
        self._add(json.dumps(request).encode())

    def answer(self, request: Request) -> Answer:
        """The HTTP interface below /api/v2/. Raises Refused, TrustError."""
        match request.method, request.path:
            case "POST", "/api/v2/log/entries":
                return self._add(request.body)
            case "GET", "/api/v2/checkpoint":
                head = self._log.head()
                text = sign_checkpoint(self._origin, head.tree_size, head.root, self._key)
                return Answer(200, text.encode(), "text/plain; charset=utf-8")
            case "GET", path if tile := _PATH.fullmatch(path):
                return self._tile(tile)
        raise Refused("the transparency log has no such method", 404)

    def _add(self, body: bytes) -> Answer:
        """(1) The request is whole, (2) the signature over the digest is by the given key, with its one
        algorithm, (3) the entry is on disk and in the tree whose checkpoint is answered.
        """
        try:
            request = _CreateEntryRequest.model_validate_json(body).hashed_rekord_request_v002  # (1)
        except ValidationError:
            raise Refused("invalid hashedrekord request") from None
        algorithm = _verify(request)  # (2)
        entry = _canonical_entry(request, algorithm)
        included = self._log.append(entry)  # (3)
        checkpoint = sign_checkpoint(self._origin, included.tree_size, included.root, self._key)
        return as_json(
            {
                "logIndex": str(included.index),
                "logId": {"keyId": _base64(self._id)},
                "kindVersion": {"kind": "hashedrekord", "version": "0.0.2"},
                "inclusionProof": {
                    "logIndex": str(included.index),
                    "rootHash": _base64(included.root),
                    "treeSize": str(included.tree_size),
                    "hashes": [_base64(one) for one in included.proof],
                    "checkpoint": {"envelope": checkpoint},
                },
                "canonicalizedBody": _base64(entry),
            },
            201,
        )

    def _tile(self, tile: re.Match[str]) -> Answer:
        index = int(tile["index"].replace("x", "").replace("/", ""))
        width = int(tile["width"] or _TILE)
        start, end = index * _TILE, index * _TILE + width
        try:
            if width > _TILE or (tile["width"] and width == _TILE):
                raise IndexError
            if tile["level"] == "entries":
                found = self._log.entries(start, end)
                if len(found) < width:
                    raise IndexError
                content = b"".join(len(entry).to_bytes(2, "big") + entry for entry, _ in found)
            else:
                level = int(tile["level"]) * 8

                def read(tree: MerkleTree) -> list[bytes]:
                    return tree.nodes(level, start, end)

                content = b"".join(self._log.read(read))
        except IndexError:
            raise Refused("the log has no such tile", 404) from None
        return Answer(200, content, "application/octet-stream")


@dataclass(frozen=True, slots=True)
class _Algorithm:
    """What a key's details stand for. `name` is the digest's, the key has `key_size` bits."""

    name: str
    hash: hashes.HashAlgorithm
    key_size: int
    rsa: bool = False


_SHA256, _SHA384, _SHA512 = hashes.SHA256(), hashes.SHA384(), hashes.SHA512()
_ALGORITHMS = {
    "PKIX_ECDSA_P256_SHA_256": _Algorithm("SHA2_256", _SHA256, 256),
    "PKIX_ECDSA_P384_SHA_384": _Algorithm("SHA2_384", _SHA384, 384),
    "PKIX_ECDSA_P521_SHA_512": _Algorithm("SHA2_512", _SHA512, 521),
    "PKIX_RSA_PKCS1V15_2048_SHA256": _Algorithm("SHA2_256", _SHA256, 2048, rsa=True),
    "PKIX_RSA_PKCS1V15_3072_SHA256": _Algorithm("SHA2_256", _SHA256, 3072, rsa=True),
    "PKIX_RSA_PKCS1V15_4096_SHA256": _Algorithm("SHA2_256", _SHA256, 4096, rsa=True),
}


def _verify(request: _HashedRekord) -> str:
    """The name of the digest's algorithm. Raises Refused unless the signature holds."""
    verifier = request.signature.verifier
    algorithm = _ALGORITHMS.get(verifier.key_details)
    if algorithm is None:
        raise Refused(f"unsupported entry algorithm: {', '.join(_ALGORITHMS)} are supported")
    if len(request.digest) != algorithm.hash.digest_size:
        raise Refused(f"digest length does not match {algorithm.name}")
    try:
        match verifier.x509_certificate, verifier.public_key:
            case certificate, None if certificate is not None:
                key: object = x509.load_der_x509_certificate(certificate.raw_bytes).public_key()
            case None, public if public is not None:
                key = load_der_public_key(public.raw_bytes)
            case _:
                raise Refused("must contain either a public key or X.509 certificate")
        digest, prehashed = request.digest, Prehashed(algorithm.hash)
        match key:
            case rsa.RSAPublicKey() if algorithm.rsa and key.key_size == algorithm.key_size:
                key.verify(request.signature.content, digest, padding.PKCS1v15(), prehashed)
            case ec.EllipticCurvePublicKey() if not algorithm.rsa and key.key_size == algorithm.key_size:
                key.verify(request.signature.content, digest, ec.ECDSA(prehashed))
            case _:
                raise Refused("the key is not of the algorithm that keyDetails names")
    except InvalidSignature:
        raise Refused("verifying signature: it is not by this key over this digest") from None
    except (ValueError, UnsupportedAlgorithm):
        raise Refused("parsing verifier: neither certificate nor public key") from None
    return algorithm.name


def _canonical_entry(request: _HashedRekord, algorithm: str) -> bytes:
    """The entry as JSON after RFC 8785: what stands in the tree, and what verifiers rebuild."""
    verifier = request.signature.verifier
    raw = verifier.x509_certificate or verifier.public_key
    assert raw is not None
    kind = "x509Certificate" if verifier.x509_certificate else "publicKey"
    entry: dict[str, Any] = {
        "apiVersion": "0.0.2",
        "kind": "hashedrekord",
        "spec": {
            "hashedRekordV002": {
                "data": {"algorithm": algorithm, "digest": _base64(request.digest)},
                "signature": {
                    "content": _base64(request.signature.content),
                    "verifier": {
                        "keyDetails": verifier.key_details,
                        kind: {"rawBytes": _base64(raw.raw_bytes)},
                    },
                },
            }
        },
    }
    return rfc8785.dumps(entry)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()

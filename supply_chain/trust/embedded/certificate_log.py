"""A certificate transparency log: RFC 6962 sections 3 and 4, over precertificates.

It takes precertificates that one of its roots issued, so that a Fulcio elsewhere can use it too
(`--ct-log-url`). An entry is in the tree before its timestamp is given: the maximum merge delay is 0.
"""

from __future__ import annotations

import base64
import binascii
import struct
import time
from collections.abc import Sequence
from typing import Annotated

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from supply_chain.trust.certificates import der, key_id
from supply_chain.trust.embedded.answers import Answer, Refused, Request, as_json, json_object
from supply_chain.trust.embedded.log_file import LogFile

_POISON = x509.PrecertPoison.oid
# hash sha256(4), signature ecdsa(3): RFC 5246 section 7.4.1.4.1
_SHA256_ECDSA = b"\x04\x03"
# At most so many entries an answer: RFC 6962 section 4.6 lets a log say how many.
_PAGE = 64
_CHAIN_LIMIT = 8


@asn1.sequence
class _Extension:
    oid: x509.ObjectIdentifier
    critical: Annotated[bool, asn1.Default(False)]
    value: bytes


@asn1.sequence
class _TbsCertificate:
    """RFC 5280 section 4.1, version 3, without the unique identifiers that no authority uses."""

    version: Annotated[int, asn1.Explicit(0)]
    serial_number: int
    signature: asn1.TLV
    issuer: asn1.TLV
    validity: asn1.TLV
    subject: asn1.TLV
    subject_public_key_info: asn1.TLV
    extensions: Annotated[list[_Extension], asn1.Explicit(3)]


class CertificateLog:
    """The log whose key is `key`, for certificates of `roots`."""

    def __init__(
        self, log: LogFile, key: ec.EllipticCurvePrivateKey, roots: Sequence[x509.Certificate]
    ) -> None:
        self._log = log
        self._key = key
        self._roots = tuple(roots)
        self._id = key_id(key.public_key())

    def add(self, chain: Sequence[x509.Certificate]) -> bytes:
        """A SignedCertificateTimestamp (RFC 6962 section 3.2) for the precertificate that leads `chain`.

        (1) It carries the poison, (2) each certificate is issued by the next one, the last by a root or a
        root itself, (3) the entry is over its TBSCertificate without the poison and the issuer's key.
        Raises Refused, TrustError.
        """
        if not 0 < len(chain) <= _CHAIN_LIMIT:
            raise Refused("a chain has between 1 and 8 certificates")
        precertificate = chain[0]
        tbs = _without_poison(precertificate)  # (1)
        issuer = self._issuer(chain)  # (2)
        timestamp = time.time_ns() // 1_000_000
        signed = (
            struct.pack(">QH", timestamp, 1) + key_id(issuer.public_key()) + _opaque(tbs) + b"\0\0"
        )  # (3)
        rest = b"".join(_opaque(der(one)) for one in chain[1:])
        leaf = b"\0\0" + signed
        extra = _opaque(der(precertificate)) + _opaque(rest)
        self._log.append(leaf, extra)
        signature = self._key.sign(b"\0\0" + signed, ec.ECDSA(hashes.SHA256()))
        return b"\0" + self._id + struct.pack(">QH", timestamp, 0) + _digitally_signed(signature)

    def answer(self, request: Request) -> Answer:
        """The log's HTTP interface below /ct/v1/. Raises Refused, TrustError."""
        match request.method, request.path.removeprefix("/ct/v1/"):
            case "POST", "add-pre-chain":
                return self._add_pre_chain(request)
            case "GET", "get-sth":
                return self._signed_tree_head()
            case "GET", "get-sth-consistency":
                return self._consistency(_number(request, "first"), _number(request, "second"))
            case "GET", "get-proof-by-hash":
                return self._proof(request.query.get("hash", ""), _number(request, "tree_size"))
            case "GET", "get-entries":
                return self._entries(_number(request, "start"), _number(request, "end"))
            case "GET", "get-roots":
                return as_json({"certificates": [_base64(der(root)) for root in self._roots]})
        raise Refused("the certificate log has no such method", 404)

    def _add_pre_chain(self, request: Request) -> Answer:
        encoded = json_object(request.body).get("chain")
        if not isinstance(encoded, list):
            raise Refused("chain is not a list of certificates")
        try:
            chain = [x509.load_der_x509_certificate(base64.b64decode(one, validate=True)) for one in encoded]
        except (ValueError, TypeError, binascii.Error):
            raise Refused("the chain holds what is no certificate") from None
        sct = self.add(chain)
        return as_json(
            {
                "sct_version": 0,
                "id": _base64(self._id),
                "timestamp": struct.unpack_from(">Q", sct, 33)[0],
                "extensions": "",
                "signature": _base64(sct[43:]),
            }
        )

    def _issuer(self, chain: Sequence[x509.Certificate]) -> x509.Certificate:
        """The issuer of the chain's first certificate. Raises Refused unless the chain leads to a root."""
        rest = list(chain[1:])
        if not rest or rest[-1] not in self._roots:
            rest += [root for root in self._roots if root.subject == chain[-1].issuer][:1]
        if not rest or rest[-1] not in self._roots:
            raise Refused("the chain does not lead to a root of this log")
        for subject, issuer in zip(chain, rest, strict=False):
            if not _is_authority(issuer):
                raise Refused("a certificate of the chain is no authority's")
            try:
                subject.verify_directly_issued_by(issuer)
            except (ValueError, TypeError, InvalidSignature):
                raise Refused("a certificate of the chain is not issued by the next one") from None
        return rest[0]

    def _signed_tree_head(self) -> Answer:
        head, timestamp = self._log.head(), time.time_ns() // 1_000_000
        signed = b"\0\1" + struct.pack(">QQ", timestamp, head.tree_size) + head.root
        signature = self._key.sign(signed, ec.ECDSA(hashes.SHA256()))
        return as_json(
            {
                "tree_size": head.tree_size,
                "timestamp": timestamp,
                "sha256_root_hash": _base64(head.root),
                "tree_head_signature": _base64(_digitally_signed(signature)),
            }
        )

    def _consistency(self, first: int, second: int) -> Answer:
        try:
            proof = self._log.read(lambda tree: tree.consistency_proof(first, second))
        except IndexError:
            raise Refused("the log has no such trees") from None
        return as_json({"consistency": [_base64(one) for one in proof]})

    def _proof(self, leaf: str, tree_size: int) -> Answer:
        try:
            found = self._log.find(base64.b64decode(leaf, validate=True), tree_size)
        except binascii.Error:
            raise Refused("hash is not base64") from None
        if found is None:
            raise Refused("the tree has no such entry", 404)
        return as_json({"leaf_index": found.index, "audit_path": [_base64(one) for one in found.proof]})

    def _entries(self, start: int, end: int) -> Answer:
        try:
            found = self._log.entries(start, min(end + 1, start + _PAGE))
        except IndexError:
            raise Refused("the log has no such entries") from None
        entries = [{"leaf_input": _base64(leaf), "extra_data": _base64(extra)} for leaf, extra in found]
        return as_json({"entries": entries})


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _without_poison(precertificate: x509.Certificate) -> bytes:
    """The TBSCertificate as the final certificate has it but for its timestamps. Raises Refused."""
    try:
        tbs = asn1.decode_der(_TbsCertificate, precertificate.tbs_certificate_bytes)
    except ValueError:
        raise Refused("the precertificate is not as RFC 5280 has it") from None
    kept = [extension for extension in tbs.extensions if extension.oid != _POISON]
    if len(kept) != len(tbs.extensions) - 1:
        raise Refused("the chain's first certificate is no precertificate")
    tbs.extensions = kept
    return asn1.encode_der(tbs)


def _digitally_signed(signature: bytes) -> bytes:
    """RFC 5246 section 4.7."""
    return _SHA256_ECDSA + struct.pack(">H", len(signature)) + signature


def _opaque(content: bytes) -> bytes:
    """opaque<0..2^24-1> of RFC 5246 section 4.3."""
    return len(content).to_bytes(3, "big") + content


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _number(request: Request, name: str) -> int:
    value = request.query.get(name, "")
    if not (value.isascii() and value.isdigit() and len(value) < 19):
        raise Refused(f"{name} is not a number")
    return int(value)

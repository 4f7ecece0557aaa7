"""A time-stamping authority: RFC 3161, with the HTTP interface of Sigstore's timestamp authority.

The token is a CMS SignedData (RFC 5652) with one signer, whose signed attributes are content type, message
digest and the certificate's digest (ESSCertIDv2, RFC 5816).
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime
from typing import Annotated

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ObjectIdentifier

from supply_chain.trust.certificates import der, pem
from supply_chain.trust.embedded.answers import Answer, Refused, Request

_SIGNED_DATA = ObjectIdentifier("1.2.840.113549.1.7.2")
_TST_INFO = ObjectIdentifier("1.2.840.113549.1.9.16.1.4")
_CONTENT_TYPE = ObjectIdentifier("1.2.840.113549.1.9.3")
_MESSAGE_DIGEST = ObjectIdentifier("1.2.840.113549.1.9.4")
_SIGNING_CERTIFICATE_V2 = ObjectIdentifier("1.2.840.113549.1.9.16.2.47")
_ECDSA_WITH_SHA256 = ObjectIdentifier("1.2.840.10045.4.3.2")
_SHA256 = ObjectIdentifier("2.16.840.1.101.3.4.2.1")
# Digest sizes of the imprints that are taken: SHA-256, SHA-384, SHA-512.
_IMPRINTS = {
    _SHA256: 32,
    ObjectIdentifier("2.16.840.1.101.3.4.2.2"): 48,
    ObjectIdentifier("2.16.840.1.101.3.4.2.3"): 64,
}
# The one policy: that of Sigstore's timestamp authority.
_POLICY = ObjectIdentifier("1.3.6.1.4.1.57264.2")


@asn1.sequence
class _Algorithm:
    algorithm: ObjectIdentifier
    parameters: asn1.Null | None


@asn1.sequence
class _Imprint:
    hash_algorithm: _Algorithm
    hashed_message: bytes


@asn1.sequence
class _Request:
    """TimeStampReq, RFC 3161 section 2.4.1."""

    version: int
    message_imprint: _Imprint
    req_policy: ObjectIdentifier | None
    nonce: int | None
    cert_req: Annotated[bool, asn1.Default(False)]
    extensions: Annotated[list[asn1.TLV] | None, asn1.Implicit(0)]


@asn1.sequence
class _Accuracy:
    seconds: int


@asn1.sequence
class _Info:
    """TSTInfo, RFC 3161 section 2.4.2."""

    version: int
    policy: ObjectIdentifier
    message_imprint: _Imprint
    serial_number: int
    gen_time: asn1.GeneralizedTime
    accuracy: _Accuracy
    nonce: int | None


@asn1.sequence
class _Attribute:
    type: ObjectIdentifier
    values: asn1.SetOf[asn1.TLV]


@asn1.sequence
class _EssCertificate:
    """ESSCertIDv2 whose hash is SHA-256, the default."""

    certificate_hash: bytes


@asn1.sequence
class _SigningCertificate:
    certificates: list[_EssCertificate]


@asn1.sequence
class _IssuerAndSerial:
    issuer: x509.Name
    serial_number: int


@asn1.sequence
class _SignerInfo:
    version: int
    sid: _IssuerAndSerial
    digest_algorithm: _Algorithm
    signed_attributes: Annotated[asn1.SetOf[_Attribute], asn1.Implicit(0)]
    signature_algorithm: _Algorithm
    signature: bytes


@asn1.sequence
class _Encapsulated:
    content_type: ObjectIdentifier
    content: Annotated[bytes, asn1.Explicit(0)]


@asn1.sequence
class _SignedData:
    version: int
    digest_algorithms: asn1.SetOf[_Algorithm]
    encapsulated: _Encapsulated
    certificates: Annotated[asn1.SetOf[x509.Certificate] | None, asn1.Implicit(0)]
    signer_infos: asn1.SetOf[_SignerInfo]


@asn1.sequence
class _ContentInfo:
    content_type: ObjectIdentifier
    content: Annotated[_SignedData, asn1.Explicit(0)]


@asn1.sequence
class _Status:
    status: int


@asn1.sequence
class _Response:
    """TimeStampResp of a granted request."""

    status: _Status
    token: _ContentInfo


class Timestamper:
    """The authority of `chain`, its own certificate first, the root last."""

    def __init__(self, chain: tuple[x509.Certificate, ...], key: ec.EllipticCurvePrivateKey) -> None:
        self._chain = chain
        self._key = key

    def answer(self, request: Request) -> Answer:
        """The HTTP interface below /api/v1/timestamp. Raises Refused."""
        match request.method, request.path:
            case "POST", "/api/v1/timestamp":
                if request.headers.get("content-type") != "application/timestamp-query":
                    raise Refused("the content type is not application/timestamp-query")
                return Answer(201, self.stamp(request.body), "application/timestamp-reply")
            case "GET", "/api/v1/timestamp/certchain":
                text = "".join(pem(certificate) for certificate in self._chain)
                return Answer(200, text.encode(), "application/pem-certificate-chain")
        raise Refused("the timestamp authority has no such method", 404)

    def stamp(self, query: bytes) -> bytes:
        """The TimeStampResp to a TimeStampReq, both DER. Raises Refused for what RFC 3161 refuses."""
        try:
            request = asn1.decode_der(_Request, query)
        except ValueError:
            raise Refused("the query is not a TimeStampReq") from None
        imprint = request.message_imprint
        if request.version != 1:
            raise Refused("the query's version is not 1")
        if _IMPRINTS.get(imprint.hash_algorithm.algorithm) != len(imprint.hashed_message):
            raise Refused("the imprint is not a SHA-256, SHA-384 or SHA-512 digest")
        if request.req_policy not in (None, _POLICY):
            raise Refused(f"the one policy is {_POLICY.dotted_string}")
        if request.extensions:
            raise Refused("no extension is supported")
        info = _Info(
            version=1,
            policy=_POLICY,
            message_imprint=imprint,
            serial_number=secrets.randbits(127) + 1,
            gen_time=asn1.GeneralizedTime(datetime.now(UTC).replace(microsecond=0)),
            accuracy=_Accuracy(seconds=1),
            nonce=request.nonce,
        )
        signed = self._sign(asn1.encode_der(info), certificates=request.cert_req)
        token = _ContentInfo(content_type=_SIGNED_DATA, content=signed)
        return asn1.encode_der(_Response(status=_Status(status=0), token=token))

    def _sign(self, content: bytes, *, certificates: bool) -> _SignedData:
        certificate = self._chain[0]
        ess = _EssCertificate(certificate_hash=hashlib.sha256(der(certificate)).digest())
        attributes = asn1.SetOf(
            [
                _attribute(_CONTENT_TYPE, _TST_INFO),
                _attribute(_MESSAGE_DIGEST, hashlib.sha256(content).digest()),
                _attribute(_SIGNING_CERTIFICATE_V2, _SigningCertificate(certificates=[ess])),
            ]
        )
        # RFC 5652 section 5.4: signed with the tag of SET OF, written with [0]
        signature = self._key.sign(asn1.encode_der(attributes), ec.ECDSA(hashes.SHA256()))
        sha256 = _Algorithm(algorithm=_SHA256, parameters=None)
        signer = _SignerInfo(
            version=1,
            sid=_IssuerAndSerial(issuer=certificate.issuer, serial_number=certificate.serial_number),
            digest_algorithm=sha256,
            signed_attributes=attributes,
            signature_algorithm=_Algorithm(algorithm=_ECDSA_WITH_SHA256, parameters=None),
            signature=signature,
        )
        return _SignedData(
            version=3,
            digest_algorithms=asn1.SetOf([sha256]),
            encapsulated=_Encapsulated(content_type=_TST_INFO, content=content),
            certificates=asn1.SetOf(list(self._chain)) if certificates else None,
            signer_infos=asn1.SetOf([signer]),
        )


def _attribute(type_: ObjectIdentifier, value: object) -> _Attribute:
    return _Attribute(type=type_, values=asn1.SetOf([asn1.decode_der(asn1.TLV, asn1.encode_der(value))]))

"""The certificate authority gives a certificate only to whom a token names and who has the key."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from supply_chain.trust import Trust
from supply_chain.trust.embedded.private import load_key

ISSUER = "http://127.0.0.1:9462"
ME = "builder@git.example"


@pytest.fixture
def url(embedded_trust: Trust) -> str:
    """Where the services are."""
    assert embedded_trust.config is not None
    return embedded_trust.config.ca_urls[0].url


@pytest.fixture
def issuer_key(embedded_trust: Trust) -> ec.EllipticCurvePrivateKey:
    assert embedded_trust.embedded is not None
    return load_key(embedded_trust.embedded.folder, "issuer")


@pytest.fixture
def token(embedded_trust: Trust) -> str:
    assert embedded_trust.embedded is not None
    return embedded_trust.embedded.issue_token(ME)


def signing_request(
    key: ec.EllipticCurvePrivateKey, name: str | None = None
) -> x509.CertificateSigningRequest:
    attributes = [] if name is None else [x509.NameAttribute(x509.NameOID.EMAIL_ADDRESS, name)]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    return builder.sign(key, hashes.SHA256())


def by_request(request: bytes) -> dict[str, object]:
    return {"certificateSigningRequest": base64.b64encode(request).decode()}


def pem(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def by_proof(key: ec.EllipticCurvePrivateKey, signed: str, public: str | None = None) -> dict[str, object]:
    """A request with a signature over the subject, as cosign sends it."""
    algorithm = {256: hashes.SHA256(), 384: hashes.SHA384()}[key.curve.key_size]
    proof = key.sign(signed.encode(), ec.ECDSA(algorithm))
    content = public or pem(key.public_key())
    return {
        "publicKeyRequest": {
            "publicKey": {"algorithm": "ECDSA", "content": content},
            "proofOfPossession": base64.b64encode(proof).decode(),
        }
    }


def ask(url: str, body: object, token: str | None) -> httpx.Response:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{url}/api/v2/signingCert", content=content, headers=headers)


def certificate(answer: httpx.Response) -> x509.Certificate:
    assert answer.status_code == 200, answer.text
    chain = answer.json()["signedCertificateEmbeddedSct"]["chain"]["certificates"]
    leaf, root = (x509.load_pem_x509_certificate(one.encode()) for one in chain)
    leaf.verify_directly_issued_by(root)
    return leaf


def names(leaf: x509.Certificate) -> list[str]:
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return found.get_values_for_type(x509.RFC822Name)


def refused(answer: httpx.Response, message: str, status: int = 400) -> None:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"code", "message", "details"}
    assert message in answer.json()["message"]


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_either_proof_gets_a_certificate(url: str, token: str, curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    for body in (by_request(signing_request(key).public_bytes(Encoding.PEM)), by_proof(key, ME)):
        leaf = certificate(ask(url, body, token))
        assert names(leaf) == [ME]
        assert leaf.public_key() == key.public_key()
        assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds() == 600
        constraints = [one for one in leaf.extensions if one.oid == x509.BasicConstraints.oid]
        assert not constraints


def test_the_name_is_the_token_s_whatever_the_request_says(url: str, token: str) -> None:
    request = signing_request(ec.generate_private_key(ec.SECP256R1()), "root@git.example")
    leaf = certificate(ask(url, by_request(request.public_bytes(Encoding.PEM)), token))
    assert names(leaf) == [ME]
    assert not list(leaf.subject)


def claims(**changed: object) -> dict[str, Any]:
    now = int(time.time())
    whole = {
        "iss": ISSUER,
        "sub": ME,
        "aud": "sigstore",
        "iat": now,
        "nbf": now,
        "exp": now + 60,
        "email": ME,
        "email_verified": True,
        **changed,
    }
    return {name: value for name, value in whole.items() if value is not None}


def test_the_claims_that_the_refusals_change_are_taken(
    url: str, issuer_key: ec.EllipticCurvePrivateKey
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    for whole in (claims(), claims(aud=["other", "sigstore"])):
        certificate(ask(url, by_proof(key, ME), jwt.encode(whole, issuer_key, "ES256")))


NOW = int(time.time())
CLAIMS: dict[str, dict[str, object]] = {
    "expired": {"exp": NOW - 1},
    "not yet valid": {"nbf": NOW + 3600},
    "issued in the future": {"iat": NOW + 3600},
    "another audience": {"aud": "other"},
    "a list of other audiences": {"aud": ["other", "sigstore2"]},
    "no audience": {"aud": None},
    "another issuer": {"iss": "https://issuer.example"},
    "an issuer that begins the same": {"iss": ISSUER + "/"},
    "no issuer": {"iss": None},
    "no subject": {"sub": None},
    "no expiry": {"exp": None},
    "an expiry that is no number": {"exp": "never"},
    "a subject that is no name": {"sub": "builder\u0000@git.example"},
    "another email than the subject": {"email": "root@git.example"},
    "an email that is not verified": {"email_verified": False},
    "an email that is verified by a word": {"email_verified": "true"},
    "no email": {"email": None},
}


@pytest.mark.parametrize("how", CLAIMS)
def test_a_token_with_other_claims_is_refused(
    url: str, issuer_key: ec.EllipticCurvePrivateKey, how: str
) -> None:
    token = jwt.encode(claims(**CLAIMS[how]), issuer_key, "ES256")
    key = ec.generate_private_key(ec.SECP256R1())
    body = by_request(signing_request(key).public_bytes(Encoding.PEM))
    refused(ask(url, body, token), "There was an error processing the identity token")


def unsigned(_: ec.EllipticCurvePrivateKey) -> str:
    return jwt.encode(claims(), None, "none")  # type: ignore[arg-type]


def stripped(key: ec.EllipticCurvePrivateKey) -> str:
    return jwt.encode(claims(), key, "ES256").rpartition(".")[0] + "."


def by_another_key(_: ec.EllipticCurvePrivateKey) -> str:
    return jwt.encode(claims(), ec.generate_private_key(ec.SECP256R1()), "ES256")


def by_the_public_key_as_a_secret(key: ec.EllipticCurvePrivateKey) -> str:
    """HS256 keyed with what everybody knows, the old confusion of algorithms."""
    raw = jwt.api_jws.PyJWS()
    _, payload, _ = jwt.encode(claims(), key, "ES256").split(".")
    changed = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=").decode()
    signing_input = f"{changed}.{payload}".encode()
    secret = pem(key.public_key()).encode()
    mac = raw.get_algorithm_by_name("HS256").sign(signing_input, secret)
    return f"{changed}.{payload}." + base64.urlsafe_b64encode(mac).rstrip(b"=").decode()


def with_a_key_of_its_own(_: ec.EllipticCurvePrivateKey) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    return jwt.encode(claims(), key, "ES256", headers={"jwk": jwk, "jku": "http://127.0.0.1:1/jwks"})


def another_subject_under_the_signature(key: ec.EllipticCurvePrivateKey) -> str:
    header, _, signature = jwt.encode(claims(), key, "ES256").split(".")
    body = json.dumps(claims(sub="root@git.example", email="root@git.example")).encode()
    return f"{header}.{base64.urlsafe_b64encode(body).rstrip(b'=').decode()}.{signature}"


FORGERIES = [
    unsigned,
    stripped,
    by_another_key,
    by_the_public_key_as_a_secret,
    with_a_key_of_its_own,
    another_subject_under_the_signature,
    lambda _: "no.token.atall",
    lambda _: "....",
    lambda _: "Ã¿",
]


@pytest.mark.parametrize("forge", FORGERIES)
def test_a_forged_token_is_refused(
    url: str, issuer_key: ec.EllipticCurvePrivateKey, forge: Callable[[ec.EllipticCurvePrivateKey], str]
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    answer = httpx.post(
        f"{url}/api/v2/signingCert",
        json=by_request(signing_request(key).public_bytes(Encoding.PEM)),
        headers=[(b"Authorization", f"Bearer {forge(issuer_key)}".encode())],
    )
    refused(answer, "There was an error processing the identity token")


@pytest.mark.parametrize("header", [None, "Basic Zm9v", "Bearer"])
def test_no_token_is_refused(url: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    refused(httpx.post(f"{url}/api/v2/signingCert", json={}, headers=headers), "no identity token", 401)


def test_a_proof_for_another_identity_is_refused(url: str, token: str) -> None:
    body = by_proof(ec.generate_private_key(ec.SECP256R1()), "root@git.example")
    refused(ask(url, body, token), "could not be verified")


def test_a_proof_by_another_key_is_refused(url: str, token: str) -> None:
    other = pem(ec.generate_private_key(ec.SECP256R1()).public_key())
    refused(
        ask(url, by_proof(ec.generate_private_key(ec.SECP256R1()), ME, other), token),
        "could not be verified",
    )


def test_a_request_signed_by_another_key_is_refused(url: str, token: str) -> None:
    content = bytearray(signing_request(ec.generate_private_key(ec.SECP256R1())).public_bytes(Encoding.DER))
    content[-1] ^= 1
    request = x509.load_der_x509_csr(bytes(content)).public_bytes(Encoding.PEM)
    refused(ask(url, by_request(request), token), "could not be verified")


@pytest.mark.parametrize("kind", ["secp256k1", "P-224", "RSA"])
def test_a_key_of_another_kind_is_refused(url: str, token: str, kind: str) -> None:
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    match kind:
        case "secp256k1":
            key = ec.generate_private_key(ec.SECP256K1())
        case "P-224":
            key = ec.generate_private_key(ec.SECP224R1())
        case _:
            key = rsa.generate_private_key(65537, 2048)
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    refused(ask(url, by_request(request.public_bytes(Encoding.PEM)), token), "insecure")


GARBAGE: list[object] = [
    b"",
    b"[]",
    b"[" * 60_000,
    b"\x00\xff",
    {},
    {"certificateSigningRequest": 1},
    {"certificateSigningRequest": "!"},
    {"certificateSigningRequest": base64.b64encode(b"no request").decode()},
    {"publicKeyRequest": []},
    {"publicKeyRequest": {"publicKey": {"content": "no key"}, "proofOfPossession": "AAAA"}},
    {"publicKeyRequest": {"publicKey": {"content": 1}, "proofOfPossession": "AAAA"}},
]


@pytest.mark.parametrize("body", GARBAGE)
def test_what_is_no_request_is_refused(url: str, token: str, body: object) -> None:
    answer = ask(url, body, token)
    assert answer.status_code == 400, answer.text
    assert token not in answer.text


def test_its_root_and_its_issuer_are_told(url: str, embedded_trust: Trust) -> None:
    bundle = httpx.get(f"{url}/api/v2/trustBundle").json()
    (chain,) = bundle["chains"]
    root = embedded_trust.root.certificate_authorities[0].cert_chain.certificates[0].raw_bytes
    assert (
        x509.load_pem_x509_certificate(chain["certificates"][0].encode()).public_bytes(Encoding.DER) == root
    )
    assert httpx.get(f"{url}/api/v2/configuration").json() == {
        "issuers": [{"issuerUrl": ISSUER, "audience": "sigstore"}]
    }


def test_the_issuer_serves_its_keys_and_no_token(url: str, token: str) -> None:
    discovery = httpx.get(f"{url}/.well-known/openid-configuration").json()
    assert discovery["issuer"] == ISSUER
    assert discovery["jwks_uri"] == f"{url}/jwks"
    client = jwt.PyJWKClient(discovery["jwks_uri"])
    key = client.get_signing_key_from_jwt(token)
    assert jwt.decode(token, key, algorithms=["ES256"], audience="sigstore")["sub"] == ME
    for path in ("/token", "/auth"):
        assert httpx.post(f"{url}{path}", json={}).status_code == 404

"""The timestamper, against a client that is not ours, and against openssl."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from rfc3161_client import (
    HashAlgorithm,
    TimestampRequestBuilder,
    VerificationError,
    VerifierBuilder,
    decode_timestamp_response,
)

from supply_chain.trust import Trust

MESSAGE = b"a signature"


@pytest.fixture
def url(embedded_trust: Trust) -> str:
    assert embedded_trust.config is not None
    return embedded_trust.config.tsa_urls[0].url


@pytest.fixture
def chain(embedded_trust: Trust) -> list[x509.Certificate]:
    (authority,) = embedded_trust.root.timestamp_authorities
    return [x509.load_der_x509_certificate(one.raw_bytes) for one in authority.cert_chain.certificates]


def ask(url: str, query: bytes, content_type: str = "application/timestamp-query") -> httpx.Response:
    return httpx.post(url, content=query, headers={"content-type": content_type})


@pytest.mark.parametrize("algorithm", [HashAlgorithm.SHA256, HashAlgorithm.SHA512])
@pytest.mark.parametrize("certificates", [True, False])
def test_a_timestamp_verifies(
    url: str, chain: list[x509.Certificate], algorithm: HashAlgorithm, certificates: bool
) -> None:
    builder = TimestampRequestBuilder().data(MESSAGE).hash_algorithm(algorithm).nonce(nonce=True)
    query = builder.cert_request(cert_request=certificates).build()
    answer = ask(url, query.as_bytes())
    assert (answer.status_code, answer.headers["content-type"]) == (201, "application/timestamp-reply")
    response = decode_timestamp_response(answer.content)
    verifier = (
        VerifierBuilder.from_request(query).tsa_certificate(chain[0]).add_root_certificate(chain[1]).build()
    )
    assert verifier.verify_message(response, MESSAGE)
    assert abs(datetime.now(UTC) - response.tst_info.gen_time) < timedelta(minutes=1)
    assert len(response.signed_data.certificates) == (2 if certificates else 0)
    with pytest.raises(VerificationError):
        verifier.verify_message(response, b"another signature")
    with pytest.raises(VerificationError):
        verifier.verify_message(decode_timestamp_response(flipped(answer.content)), MESSAGE)


def flipped(content: bytes) -> bytes:
    """With another signature: the last byte of the response is the signature's."""
    return content[:-1] + bytes([content[-1] ^ 1])


def test_no_two_timestamps_have_one_serial_number(url: str) -> None:
    query = TimestampRequestBuilder().data(MESSAGE).build().as_bytes()
    serials = {decode_timestamp_response(ask(url, query).content).tst_info.serial_number for _ in range(5)}
    assert len(serials) == 5


def test_openssl_verifies_a_timestamp(url: str, chain: list[x509.Certificate], tmp_path: Path) -> None:
    (tmp_path / "message").write_bytes(MESSAGE)
    (tmp_path / "root.pem").write_bytes(chain[1].public_bytes(Encoding.PEM))

    def openssl(*arguments: str) -> None:
        subprocess.run(
            ["openssl", "ts", *arguments], cwd=tmp_path, check=True, capture_output=True, timeout=20
        )

    openssl("-query", "-data", "message", "-sha256", "-cert", "-out", "query")
    (tmp_path / "reply").write_bytes(ask(url, (tmp_path / "query").read_bytes()).content)
    openssl("-verify", "-queryfile", "query", "-in", "reply", "-CAfile", "root.pem")
    (tmp_path / "message").write_bytes(b"another signature")
    with pytest.raises(subprocess.CalledProcessError):
        openssl("-verify", "-data", "message", "-in", "reply", "-CAfile", "root.pem")


def test_its_chain_is_told(url: str, chain: list[x509.Certificate]) -> None:
    assert x509.load_pem_x509_certificates(httpx.get(f"{url}/certchain").content) == chain


def der(tag: int, content: bytes) -> bytes:
    return bytes([tag, len(content)]) + content


def query(
    *, version: int = 1, oid: str = "608648016503040201", digest: bytes = bytes(32), more: bytes = b""
) -> bytes:
    """A TimeStampReq, byte for byte."""
    algorithm = der(0x30, der(0x06, bytes.fromhex(oid)))
    return der(0x30, der(0x02, bytes([version])) + der(0x30, algorithm + der(0x04, digest)) + more)


def test_the_query_that_the_refusals_change_is_taken(url: str) -> None:
    assert ask(url, query()).status_code == 201


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a TimeStampReq"),
        (b"\x30\x80", "not a TimeStampReq"),
        (b"\x30\x84\xff\xff\xff\xff", "not a TimeStampReq"),
        (query() + b"\0", "not a TimeStampReq"),
        (query(version=2), "version is not 1"),
        (query(oid="2b0e03021a", digest=bytes(20)), "not a SHA-256, SHA-384 or SHA-512"),
        (query(digest=bytes(31)), "not a SHA-256, SHA-384 or SHA-512"),
        (query(more=der(0x06, b"\x2a\x03")), "the one policy is 1.3.6.1.4.1.57264.2"),
        (
            query(more=der(0xA0, der(0x30, der(0x06, b"\x2a\x03") + der(0x04, b"")))),
            "no extension is supported",
        ),
    ],
)
def test_a_bad_query_is_refused(url: str, content: bytes, message: str) -> None:
    answer = ask(url, content)
    assert answer.status_code == 400
    assert message in answer.json()["message"]


def test_another_content_type_is_refused(url: str) -> None:
    assert ask(url, query(), "application/json").status_code == 400

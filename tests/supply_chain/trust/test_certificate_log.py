"""The certificate log: whose precertificates it takes, and that anyone can check what it says."""

from __future__ import annotations

import base64
import json
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from supply_chain.trust.certificates import key_id
from supply_chain.trust.embedded.answers import Refused, Request
from supply_chain.trust.embedded.certificate_log import CertificateLog
from supply_chain.trust.embedded.log_file import LogFile
from supply_chain.trust.embedded.merkle import MerkleTree, leaf_hash


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture
def authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Another certificate authority, for instance a Fulcio."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = certificate(key, key, "authority", "authority")
    return key, builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(
        key, hashes.SHA256()
    )


def certificate(
    key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, name: str, issuer: str
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)

    def named(common_name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])

    return (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(minutes=10))
    )


Authority = tuple[ec.EllipticCurvePrivateKey, x509.Certificate]


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    """The log's key."""
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def log(tmp_path: Path, key: ec.EllipticCurvePrivateKey, authority: Authority) -> CertificateLog:
    """A log that takes the authority's certificates."""
    return CertificateLog(LogFile.create(tmp_path / "ct"), key, [authority[1]])


def chain_request(*chain: x509.Certificate) -> Request:
    body = json.dumps({"chain": [b64(one.public_bytes(Encoding.DER)) for one in chain]}).encode()
    return Request("POST", "/ct/v1/add-pre-chain", body=body)


def precertificate(authority: Authority) -> x509.Certificate:
    key, _ = authority
    builder = certificate(ec.generate_private_key(ec.SECP256R1()), key, "leaf", "authority")
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.PrecertPoison(), critical=True)
    return builder.sign(key, hashes.SHA256())


def get(log: CertificateLog, method: str, **query: object) -> dict[str, Any]:
    answer = log.answer(
        Request("GET", f"/ct/v1/{method}", {name: str(value) for name, value in query.items()})
    )
    loaded = json.loads(answer.body)
    assert isinstance(loaded, dict)
    return loaded


def add(log: CertificateLog, *chain: x509.Certificate) -> dict[str, Any]:
    loaded = json.loads(log.answer(chain_request(*chain)).body)
    assert isinstance(loaded, dict)
    return loaded


def test_its_timestamp_is_for_the_final_certificate(
    log: CertificateLog, key: ec.EllipticCurvePrivateKey, authority: Authority
) -> None:
    poisoned = precertificate(authority)
    answer = add(log, poisoned, authority[1])
    assert answer["sct_version"] == 0
    assert base64.b64decode(answer["id"]) == key_id(key.public_key())
    (entry,) = get(log, "get-entries", start=0, end=0)["entries"]
    leaf = base64.b64decode(entry["leaf_input"])
    timestamp, kind = struct.unpack_from(">QH", leaf, 2)
    assert (leaf[:2], timestamp, kind) == (b"\0\0", answer["timestamp"], 1)
    assert leaf[12:44] == key_id(authority[0].public_key())
    length = int.from_bytes(leaf[44:47], "big")
    tbs = leaf[47 : 47 + length]
    assert leaf[47 + length :] == b"\0\0"
    # the final certificate, with any extension for the timestamps, is what was signed without it
    final = final_certificate(authority, poisoned)
    assert final.tbs_precertificate_bytes == tbs
    signature = base64.b64decode(answer["signature"])
    assert signature[:2] == b"\x04\x03"
    key.public_key().verify(signature[4:], b"\0\0" + leaf[2:], ec.ECDSA(hashes.SHA256()))
    der = poisoned.public_bytes(Encoding.DER)
    extra = base64.b64decode(entry["extra_data"])
    assert extra.startswith(len(der).to_bytes(3, "big") + der)
    assert extra.endswith(authority[1].public_bytes(Encoding.DER))


def final_certificate(authority: Authority, poisoned: x509.Certificate) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(poisoned.subject)
        .issuer_name(poisoned.issuer)
        .public_key(poisoned.public_key())
        .serial_number(poisoned.serial_number)
        .not_valid_before(poisoned.not_valid_before_utc)
        .not_valid_after(poisoned.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    timestamps = x509.UnrecognizedExtension(
        x509.PrecertificateSignedCertificateTimestamps.oid, b"\x04\x02\x00\x00"
    )
    return builder.add_extension(timestamps, critical=False).sign(authority[0], hashes.SHA256())


def test_its_head_proofs_and_entries_fit_together(
    log: CertificateLog, key: ec.EllipticCurvePrivateKey, authority: Authority
) -> None:
    for _ in range(5):
        add(log, precertificate(authority), authority[1])
    head = get(log, "get-sth")
    assert head["tree_size"] == 5
    root = base64.b64decode(head["sha256_root_hash"])
    signed = b"\0\1" + struct.pack(">QQ", head["timestamp"], 5) + root
    signature = base64.b64decode(head["tree_head_signature"])[4:]
    key.public_key().verify(signature, signed, ec.ECDSA(hashes.SHA256()))
    tree = MerkleTree()
    entries = get(log, "get-entries", start=0, end=99)["entries"]
    for entry in entries:
        tree.append(leaf_hash(base64.b64decode(entry["leaf_input"])))
    assert tree.root() == root
    leaf = leaf_hash(base64.b64decode(entries[2]["leaf_input"]))
    proof = get(log, "get-proof-by-hash", hash=b64(leaf), tree_size=4)
    assert (proof["leaf_index"], [*map(base64.b64decode, proof["audit_path"])]) == (
        2,
        tree.inclusion_proof(2, 4),
    )
    consistency = get(log, "get-sth-consistency", first=3, second=5)["consistency"]
    assert [*map(base64.b64decode, consistency)] == tree.consistency_proof(3, 5)


def test_the_root_may_be_left_out_of_a_chain(log: CertificateLog, authority: Authority) -> None:
    assert add(log, precertificate(authority))["sct_version"] == 0


def test_what_a_leaf_issued_is_refused(log: CertificateLog, authority: Authority) -> None:
    holder = ec.generate_private_key(ec.SECP256R1())
    builder = certificate(holder, authority[0], "holder", "authority")
    leaf = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True).sign(
        authority[0], hashes.SHA256()
    )
    builder = certificate(ec.generate_private_key(ec.SECP256R1()), holder, "leaf", "holder")
    forged = builder.add_extension(x509.PrecertPoison(), critical=True).sign(holder, hashes.SHA256())
    with pytest.raises(Refused, match="is no authority's"):
        add(log, forged, leaf, authority[1])


def test_its_roots_are_told(log: CertificateLog, authority: Authority) -> None:
    assert get(log, "get-roots") == {"certificates": [b64(authority[1].public_bytes(Encoding.DER))]}


def test_a_final_certificate_is_no_precertificate(log: CertificateLog, authority: Authority) -> None:
    final = final_certificate(authority, precertificate(authority))
    with pytest.raises(Refused, match="no precertificate"):
        add(log, final, authority[1])


def test_a_root_that_only_bears_the_name_is_refused(log: CertificateLog, authority: Authority) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    builder = certificate(stranger, stranger, "authority", "authority")
    root = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(
        stranger, hashes.SHA256()
    )
    forged = precertificate((stranger, root))
    for chain in ((forged, root), (forged,), (forged, authority[1])):
        with pytest.raises(Refused, match=r"not issued by|does not lead to a root"):
            add(log, *chain)
    assert get(log, "get-sth")["tree_size"] == 0


def test_chains_that_are_none_are_refused(log: CertificateLog, authority: Authority) -> None:
    for body in (
        b"{}",
        b'{"chain": 1}',
        b'{"chain": ["AAAA"]}',
        b'{"chain": [1]}',
        b"[]",
        b'{"chain": ["%"]}',
    ):
        with pytest.raises(Refused):
            log.answer(Request("POST", "/ct/v1/add-pre-chain", body=body))
    with pytest.raises(Refused, match="between 1 and 8"):
        add(log)
    with pytest.raises(Refused, match="between 1 and 8"):
        add(log, precertificate(authority), *[authority[1]] * 8)


@pytest.mark.parametrize(
    ("method", "query"),
    [
        ("get-entries", {"start": 0, "end": 0}),
        ("get-entries", {"start": -1, "end": 0}),
        ("get-entries", {"start": "9" * 30, "end": 0}),
        ("get-entries", {}),
        ("get-sth-consistency", {"first": 1, "second": 2}),
        ("get-proof-by-hash", {"hash": "%", "tree_size": 1}),
        ("get-proof-by-hash", {"hash": "AAAA", "tree_size": 1}),
        ("no-such-method", {}),
    ],
)
def test_what_it_does_not_have_is_refused(
    log: CertificateLog, method: str, query: dict[str, object]
) -> None:
    with pytest.raises(Refused):
        get(log, method, **query)

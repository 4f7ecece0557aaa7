"""Statements: canonical when written, strict when read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supply_chain.errors import InvalidDocument
from supply_chain.statement import (
    PROVENANCE,
    SBOM,
    SIGNATURE,
    STATEMENT_LIMIT,
    Statement,
    parse_statement,
    statement_bytes,
)

HEX = "ab" * 32
DIGEST = f"sha256:{HEX}"
SUBJECT = {"digest": {"sha256": HEX}}


def parsed(content: bytes) -> Statement:
    return parse_statement(content, "statement")


def changed(**fields: Any) -> bytes:
    plain = json.loads(statement_bytes(DIGEST, SBOM, {"spdxVersion": "SPDX-2.3"}))
    return json.dumps({**plain, **fields}).encode()


def test_is_written_canonically() -> None:
    assert statement_bytes(DIGEST, SIGNATURE, {}) == (
        b'{"_type":"https://in-toto.io/Statement/v1","predicate":{},'
        b'"predicateType":"https://sigstore.dev/cosign/sign/v1",'
        b'"subject":[{"digest":{"sha256":"' + HEX.encode() + b'"}}]}'
    )


def test_is_read_as_written() -> None:
    statement = parsed(statement_bytes(DIGEST, PROVENANCE, {"a": [1, {"b": None}]}, name="debian"))
    assert statement.digest == DIGEST
    assert statement.predicate_type == PROVENANCE
    assert statement.predicate == {"a": [1, {"b": None}]}
    assert statement.subject[0].name == "debian"


def test_reads_what_cosign_sign_writes() -> None:
    statement = parsed(
        b'{"_type":"https://in-toto.io/Statement/v1", "subject":[{"digest":{"sha256":"'
        + HEX.encode()
        + b'"}, '
        b'"annotations":{}}], "predicateType":"https://sigstore.dev/cosign/sign/v1", "predicate":{}}'
    )
    assert statement.digest == DIGEST


def test_reads_the_older_type_that_cosign_attest_writes() -> None:
    statement = parsed(
        b'{"_type":"https://in-toto.io/Statement/v0.1","subject":[{"name":"127.0.0.1:5000/os",'
        b'"digest":{"sha256":"' + HEX.encode() + b'"}}],"predicateType":"https://spdx.dev/Document",'
        b'"predicate":{"spdxVersion":"SPDX-2.3"}}'
    )
    assert statement.digest == DIGEST


BAD = {
    "no subject": (changed(subject=[]), "subject.0: Field required"),
    "second subject": (changed(subject=[SUBJECT, SUBJECT]), "subject: Tuple should have at most 1 item"),
    "subject that is no list": (changed(subject=SUBJECT), "subject: Input should be a valid tuple"),
    "no digest": (changed(subject=[{"digest": {}}]), "sha256: Field required"),
    "another algorithm": (changed(subject=[{"digest": {"sha512": HEX}}]), "sha256: Field required"),
    "two algorithms": (changed(subject=[{"digest": {"sha256": HEX, "sha512": HEX}}]), "sha512: Extra"),
    "upper case": (changed(subject=[{"digest": {"sha256": HEX.upper()}}]), "sha256: String should match"),
    "newline after the hex": (changed(subject=[{"digest": {"sha256": HEX + "\n"}}]), "sha256: String"),
    "digest in a list": (changed(subject=[{"digest": {"sha256": [HEX]}}]), "sha256: Input should be"),
    "content inside": (changed(subject=[{**SUBJECT, "content": "aGk="}]), "content: Extra"),
    "later type": (changed(_type="https://in-toto.io/Statement/v2"), "_type: Input should be"),
    "no predicate type": (changed(predicateType=""), "predicateType: String should have at least 1"),
    "null predicate type": (changed(predicateType=None), "predicateType: Input should be"),
    "null predicate": (changed(predicate=None), "predicate: Input should be"),
    "predicate as text": (changed(predicate="{}"), "predicate: Input should be"),
    "another spelling": (changed(predicate_type=SIGNATURE), "predicate_type: Extra"),
    "unknown field": (changed(signed=True), "signed: Extra"),
    "duplicate key": (changed().replace(b'{"spdx', b'{"spdxVersion": "x", "spdx'), "a key stands twice"),
    "truncated": (changed()[:-1], "expected a JSON object"),
    "second document": (changed() + b"{}", "expected a JSON object"),
    "byte order mark": (b"\xef\xbb\xbf" + changed(), "expected a JSON object"),
    "list": (b"[" + changed() + b"]", "expected a JSON object"),
    "empty": (b"", "found nothing"),
    "page": (b"<html>", "an HTML or XML page"),
    "nested too deeply": (b'{"predicate":' + b"[" * 100_000, "nested too deeply"),
    "not a number": (changed(predicate={"n": float("nan")}), "NaN is not JSON"),
    "half a surrogate pair": (changed(predicate={"name": "\ud800"}), "surrogates not allowed"),
    "too large": (b" " * (STATEMENT_LIMIT + 1), f"expected at most {STATEMENT_LIMIT} bytes"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_refuses(content: bytes, message: str) -> None:
    with pytest.raises(InvalidDocument) as refused:
        parsed(content)
    assert refused.value.what.startswith("statement: ")
    assert message in refused.value.what


def test_does_not_write_what_it_would_not_read() -> None:
    with pytest.raises(InvalidDocument, match="sha256"):
        statement_bytes("sha256:short", SIGNATURE, {})


@given(st.recursive(st.none() | st.booleans() | st.text() | st.integers(), st.lists, max_leaves=5))
def test_any_predicate_comes_back(value: Any) -> None:
    statement = parsed(statement_bytes(DIGEST, SBOM, {"value": value}))
    assert statement.predicate == {"value": value}


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parser(content: bytes) -> None:
    with pytest.raises(InvalidDocument):
        parsed(content)

"""Reading identity tokens: what they say, what is wrong with one, and never the token itself."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supply_chain.errors import TokenError
from supply_chain.signing.tokens import CLOCK_SKEW, IdentityToken, read_token
from tests.supply_chain.signing.jwt_texts import GITEA, WORKFLOW, claims, encoded, token


def read(**changes: Any) -> IdentityToken:
    return read_token(token(**changes), "the forge")


@pytest.mark.parametrize("aud", ["sigstore", ["sigstore"], ["https://git.example/os", "sigstore"]])
def test_the_audience_may_be_a_text_or_a_list(aud: object) -> None:
    read(aud=aud).check(time.time())


@pytest.mark.parametrize("aud", ["https://git.example/os", [], ["sigstore2"], "Sigstore"])
def test_a_token_for_someone_else_is_refused(aud: object) -> None:
    with pytest.raises(TokenError, match="the identity token from the forge is not for sigstore") as caught:
        read(aud=aud).check(time.time())
    assert f"issuer {GITEA}" in caught.value.what
    assert "audience" in caught.value.what


@pytest.mark.parametrize("ago", [-300, 0, CLOCK_SKEW - 5])
def test_clocks_may_be_off_a_little(ago: int) -> None:
    now = int(time.time())
    read(iat=None, nbf=None, exp=now - ago).check(now)
    read(iat=now + ago, nbf=now + ago, exp=now + 400).check(now)


def test_an_expired_token_is_refused_with_both_times() -> None:
    with pytest.raises(
        TokenError, match="has expired; this machine's clock says 2026-01-02T04:00:00Z"
    ) as caught:
        read(exp=1767322800).check(1767326400)
    assert "expires 2026-01-02T03:00:00Z" in caught.value.what
    assert "set the clock" in caught.value.hint


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_a_token_from_the_future_is_refused(claim: str) -> None:
    with pytest.raises(TokenError, match="is valid only from 2026-01-02T05:00:00Z on") as caught:
        read(**{"iat": None, "nbf": None, "exp": 1767333000, claim: 1767330000}).check(1767326400)
    assert "this machine's clock says 2026-01-02T04:00:00Z" in caught.value.what


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "0 characters of something else"),
        ("<html>log in</html>", "19 characters of something else"),
        ("a.b", "3 characters of something else"),
        ("a.b.c.d", "7 characters of something else"),
        (f"Bearer {token()}", "characters of something else"),
        (token().replace(".", ".+", 1), "characters of something else"),
        (token() + "." * 20_000, "characters of something else"),
        (encoded(b"not JSON"), "claims as a JSON object, found something else"),
        (encoded(b"[]"), "claims as a JSON object, found something else"),
        (encoded(b'{"iss": "a", "iss": "b"}'), "claims as a JSON object, found something else"),
        (encoded(b"\xff\xfe"), "claims as a JSON object, found something else"),
        (encoded(b"[" * 5000), "claims as a JSON object, found something else"),
        ("e30.e.e30", "claims as a JSON object, found something else"),
        (token(iss=None), "the claim iss, found none"),
        (token(sub=None), "the claim sub, found none"),
        (token(aud=None), "the claim aud, found none"),
        (token(exp=None), "the claim exp, found none"),
        (token(exp="soon"), "the claim exp, found one of another type"),
        (token(exp=True), "the claim exp, found one of another type"),
        (token(exp=1e300), "the claim exp, found one of another type"),
        (token(aud={"a": 1}), "the claim aud, found one of another type"),
        (token(iss=["https://git.example"]), "the claim iss, found one of another type"),
    ],
)
def test_what_is_no_token_is_refused_without_quoting_it(text: str, found: str) -> None:
    with pytest.raises(TokenError, match=r"^what the forge gives is no identity token: expected ") as caught:
        read_token(text, "the forge")
    assert found in caught.value.what
    assert len(caught.value.what) < 300
    for part in text.split("."):
        assert len(part) < 8 or part not in f"{caught.value.what}{caught.value.hint}"


@given(
    st.one_of(
        st.text(),
        st.binary().map(encoded),
        st.dictionaries(st.text(), st.integers()).map(lambda found: encoded(json.dumps(found).encode())),
    )
)
def test_any_text_is_a_token_or_an_error_of_ours(text: str) -> None:
    with pytest.raises(TokenError):
        read_token(text, "the forge")


@given(
    st.fixed_dictionaries(
        {}, optional={name: st.text() | st.floats() | st.lists(st.text()) for name in claims()}
    )
)
def test_any_claims_are_described_or_refused(changes: dict[str, Any]) -> None:
    try:
        found = read_token(encoded(json.dumps({**claims(), **changes}).encode()), "the forge")
    except TokenError:
        return
    assert found.describe().isprintable()
    assert found.fulcio_line().isprintable()
    found.may_name("someone")


def test_white_space_around_it_is_none_of_it() -> None:
    text = token()
    assert read_token(f"\n {text}\r\n", "a file").secret == text


def test_the_token_is_in_no_representation() -> None:
    text = token()
    found = read_token(text, "the forge")
    shown = f"{found} {found!r} {found.describe()} {found.fulcio_line()}"
    assert all(part not in shown for part in text.split("."))


def test_control_characters_of_a_claim_reach_no_terminal() -> None:
    assert "\x1b" not in read(sub="me\x1b[2J", iss="https://x/\n").describe()
    assert read(iss="https://git.example/" + "x" * 5000).describe().count("x") < 500


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "type: ci-provider, ci-provider: gitea-workflow}"),
        (
            {"workflow_ref": "o/r/.forgejo/workflows/x.yml@refs/heads/main"},
            "type: ci-provider, ci-provider: forgejo-workflow}",
        ),
        ({"workflow_ref": None, "email": "me@example.org"}, "type: email}"),
        (
            {"workflow_ref": None, "sub": "https://people.example/me"},
            'type: uri, subject-domain: "https://people.example"}',
        ),
        ({"workflow_ref": None, "sub": "me"}, 'type: username, subject-domain: "git.example"}'),
    ],
)
def test_the_line_for_fulcios_configuration(changes: dict[str, Any], line: str) -> None:
    assert (
        read(**changes).fulcio_line() == f'"{GITEA}": {{issuer-url: "{GITEA}", client-id: sigstore, {line}'
    )


def test_whom_a_certificate_may_name() -> None:
    workflow = read()
    assert workflow.may_name(f"https://git.example/{WORKFLOW}")
    assert workflow.may_name("repo:os/images:ref:refs/heads/main")
    for other in (f"https://git.example/x/{WORKFLOW}", f"https://git.example/{WORKFLOW}2", WORKFLOW, ""):
        assert not workflow.may_name(other)
    assert read(email="me@example.org").may_name("me@example.org")

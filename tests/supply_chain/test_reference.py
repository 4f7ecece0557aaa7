"""References: what is one, what is refused, and that no refusal repeats a password."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supply_chain.errors import InvalidReference
from supply_chain.reference import Reference, is_loopback, parse_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4

COMPONENT = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
HOST = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?(\.[a-z][a-z0-9]{0,8}){1,3}", fullmatch=True),
    st.just("localhost"),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)
REGISTRY = st.builds(
    lambda host, port: host if port is None else f"{host}:{port}", HOST, st.none() | st.integers(1, 65535)
)
REFERENCE = st.builds(
    lambda registry, path, tag, digest: Reference(
        registry, "/".join(path), None if digest else tag, digest if digest else None
    ),
    REGISTRY,
    st.lists(COMPONENT, min_size=1, max_size=4),
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True),
    st.none() | st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True),
)


@given(REFERENCE)
def test_what_is_written_is_read(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference


@given(st.text(max_size=300))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    refusal = None
    try:
        assert str(parse_reference(text)) == text
    except InvalidReference as error:
        refusal = error
    if refusal is not None:
        assert refusal.hint
        assert refusal.exit_code == 2
        assert "\n" not in str(refusal)


@given(REFERENCE, st.integers(0, 400), st.text(max_size=3))
def test_a_mutated_reference_never_becomes_another_path(reference: Reference, at: int, new: str) -> None:
    text = str(reference)
    mutated = text[:at] + new + text[at + 1 :]
    try:
        found = parse_reference(mutated)
    except InvalidReference:
        return
    assert str(found) == mutated
    assert ".." not in f"/{found.repository}/".split("/")
    assert not {"", ".", ".."} & set(found.repository.split("/"))


def test_parts() -> None:
    found = parse_reference("registry.example.org:5000/team/os_images/debian-13:v1.2_rc")
    assert (found.registry, found.repository) == ("registry.example.org:5000", "team/os_images/debian-13")
    assert (found.tag, found.digest, found.target) == ("v1.2_rc", None, "v1.2_rc")
    pinned = found.at(DIGEST)
    assert str(pinned) == f"registry.example.org:5000/team/os_images/debian-13@{DIGEST}"
    assert pinned.target == DIGEST


@pytest.mark.parametrize(
    ("attack", "text"),
    [
        ("flag", "--output=/etc/passwd"),
        ("flag in front", "-h.example.org/a:b"),
        ("newline", "host.example.org/a:b\nX-Header: 1"),
        ("trailing newline", "host.example.org/a:b\n"),
        ("carriage return", "host.example.org/a:b\r"),
        ("null byte", "host.example.org/a\0:b"),
        ("space", "host.example.org/a :b"),
        ("shell", "host.example.org/$(id):b"),
        ("scheme", "https://host.example.org/a:b"),
        ("other scheme", "oci://host.example.org/a:b"),
        ("query", "host.example.org/a?x=1:b"),
        ("fragment", "host.example.org/a#b:c"),
        ("percent escape", "host.example.org/a%2f..%2fb:c"),
        ("parent path", "host.example.org/a/../b:c"),
        ("leading parent", "host.example.org/../b:c"),
        ("dot path", "host.example.org/./b:c"),
        ("empty component", "host.example.org/a//b:c"),
        ("absolute path", "host.example.org//a:b"),
        ("trailing slash", "host.example.org/a/:b"),
        ("local path", "./layout:latest"),
        ("backslash", "host.example.org\\a:b"),
        ("upper case path", "host.example.org/Team/a:b"),
        ("no host", "team/a:b"),
        ("no path", "host.example.org:b"),
        ("neither tag nor digest", "host.example.org/a"),
        ("empty tag", "host.example.org/a:"),
        ("tag with dash first", "host.example.org/a:-rf"),
        ("tag too long", "host.example.org/a:" + "x" * 129),
        ("tag and digest", f"host.example.org/a:b@{DIGEST}"),
        ("short digest", "host.example.org/a@sha256:abc"),
        ("upper case digest", f"host.example.org/a@sha256:{'A' * 64}"),
        ("other algorithm", f"host.example.org/a@sha512:{'a' * 128}"),
        ("weak algorithm", f"host.example.org/a@md5:{'a' * 32}"),
        ("two digests", f"host.example.org/a@{DIGEST}@{DIGEST}"),
        ("port zero", "host.example.org:0/a:b"),
        ("port too large", "host.example.org:65536/a:b"),
        ("port no number", "host.example.org:http/a:b"),
        ("empty port", "host.example.org:/a:b"),
        ("host with dash first", "host.-example.org/a:b"),
        ("octal address", "127.1/a:b"),
        ("decimal address", "2130706433.0/a:b"),
        ("broken IPv6", "[::1/a:b"),
        ("no IPv6 in brackets", "[example.org]/a:b"),
        ("look-alike letter", "host.ex\u0430mple.org/a:b"),
        ("name too long", "host.example.org/" + "/".join(["a" * 60] * 5) + ":b"),
        ("nothing", ""),
    ],
)
def test_refused(attack: str, text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        parse_reference(text)
    assert caught.value.hint, attack
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "user:c4n4ry@host.example.org/a:b",
        "https://user:c4n4ry@host.example.org/a:b",
        "c4n4ry@host.example.org/a:b",
        "user:c4n4ry/x@host.example.org/a:b",
        "user:c4n4ry@sha256.example.org/a:b",
        f"user:c4n4ry/x@sha256:5000/a@{DIGEST}",
        "-u user:c4n4ry@host.example.org/a:b",
    ],
)
def test_credentials_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        parse_reference(text)
    assert "c4n4ry" not in f"{caught.value} {caught.value.hint} {caught.value!r}"


@pytest.mark.parametrize(
    ("registry", "loopback"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("127.9.9.9", True),
        ("[::1]:5000", True),
        ("0.0.0.0:5000", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("[fe80::1]", False),
    ],
)
def test_loopback(registry: str, loopback: bool) -> None:
    assert is_loopback(registry) is loopback

"""Control fields in an SBOM: whatever a package says of itself stays one bounded, harmless line."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.sbom import packages
from stages.sbom.packages import Locked
from stages.shared import purl
from stages.shared.job import Failure

_ACTOR = re.compile(r"NOASSERTION|(Person|Organization): [^()\x00-\x1f\x7f-\x9f]+( \([^()\s]+\))?")


@pytest.mark.parametrize(
    ("maintainer", "supplier"),
    [
        ("Santiago Vila <sanvila@debian.org>", "Person: Santiago Vila (sanvila@debian.org)"),
        ("Theodore Y. Ts'o <tytso@mit.edu>", "Person: Theodore Y. Ts'o (tytso@mit.edu)"),
        ("Debian OpenSSL Team <x@y.example>", "Organization: Debian OpenSSL Team (x@y.example)"),
        ("Ncurses <ncurses@packages.debian.org>", "Organization: Ncurses (ncurses@packages.debian.org)"),
        ("Glibc <debian-glibc@lists.debian.org>", "Organization: Glibc (debian-glibc@lists.debian.org)"),
        ("No Address <>", "Person: No Address"),
        ("<only@address.example>", "NOASSERTION"),
    ],
)
def test_a_maintainer_as_a_supplier(maintainer: str, supplier: str) -> None:
    assert packages.supplier(maintainer) == supplier


@given(st.one_of(st.text(), st.tuples(st.text(), st.text()).map(lambda both: f"{both[0]} <{both[1]}>")))
def test_any_maintainer_is_one_actor(maintainer: str) -> None:
    supplier = packages.supplier(maintainer)
    assert _ACTOR.fullmatch(supplier)
    assert len(supplier) < 600


@pytest.mark.parametrize(
    ("field", "source"),
    [
        ("", ("bash", "5.2-1+b1")),
        ("Source: shells\n", ("shells", "5.2-1+b1")),
        ("Source: shells (1:5.2-1)\n", ("shells", "1:5.2-1")),
        ("Source:\n", ("bash", "5.2-1+b1")),
    ],
)
def test_the_source_package(field: str, source: tuple[str, str]) -> None:
    text = f"Package: bash\nVersion: 5.2-1+b1\nArchitecture: amd64\n{field}"
    (stanza,) = packages._stanzas(text.encode()).values()
    element = packages.source(stanza, "debian-13")
    assert (element.name, element.version) == source


@given(st.binary(max_size=400))
def test_any_bytes_are_stanzas_or_a_clear_failure(content: bytes) -> None:
    try:
        found = packages._stanzas(b"Package: a\nVersion: 1\nArchitecture: all\n" + content)
    except Failure:
        return
    assert found


_NAMES = st.from_regex(r"[a-z0-9][a-z0-9+.-]{1,20}", fullmatch=True)
_VERSIONS = st.from_regex(r"([0-9]:)?[0-9][A-Za-z0-9.+~]{0,9}(-[0-9A-Za-z+.~]{1,9})?", fullmatch=True)


@given(_NAMES, _VERSIONS, _NAMES, _VERSIONS)
def test_a_package_url_keeps_the_whole_version(one: str, first: str, other: str, second: str) -> None:
    url = purl.deb(one, first, "amd64", "debian-13")
    found = re.fullmatch(r"pkg:deb/debian/([^@?#/]+)@([^@?#/]+)\?arch=amd64&distro=debian-13", url)
    assert found is not None
    assert (unquote(found[1]), unquote(found[2])) == (one, first)
    assert "+" not in url
    assert (url == purl.deb(other, second, "amd64", "debian-13")) == ((one, first) == (other, second))


def test_a_lock_entry_is_found_under_its_full_name() -> None:
    locked = Locked("bash", "1:5.2-1", "amd64", "00" * 32)
    content = b"Package: bash\nVersion: 1:5.2-1\nArchitecture: amd64\n"
    assert str(locked) in packages._stanzas(content)

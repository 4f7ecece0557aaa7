"""Copyright files as license expressions: what is translated, what stands for itself, what is left open."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.sbom import licenses
from stages.sbom.copyright import MOST_BYTES, declared
from stages.sbom.spdx import identifier
from tests.spdx import license_names, unknown_licenses

HEADER = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n"
TEXT = "License: Made-Up\n Do what you like.\n\n"


def _of(synopsis: str, rest: str = "") -> str:
    return declared(f"{HEADER}Files: *\nLicense: {synopsis}\n\n{rest}".encode()).expression


@pytest.mark.parametrize(
    ("synopsis", "expression"),
    [
        ("GPL-2+", "GPL-2.0-or-later"),
        ("GPL-2", "GPL-2.0-only"),
        ("gpl-2.0-or-later", "GPL-2.0-or-later"),
        ("LGPL-2.1+", "LGPL-2.1-or-later"),
        ("GFDL-NIV-1.3+", "GFDL-1.3-no-invariants-or-later"),
        ("Expat", "MIT"),
        ("bsd-3-CLAUSE", "BSD-3-Clause"),
        ("GPL-2+ or Expat", "GPL-2.0-or-later OR MIT"),
        ("Expat and ISC and Expat", "ISC AND MIT"),
        ("GPL-2+ or AFL-2.1, and Expat", "(GPL-2.0-or-later OR AFL-2.1) AND MIT"),
        ("Expat, or ISC and Zlib", "MIT OR ISC AND Zlib"),
        ("GPL-2 with Linux-syscall-note exception", "GPL-2.0-only WITH Linux-syscall-note"),
        ("GPL-2 OR BSD-2-clause", "GPL-2.0-only OR BSD-2-Clause"),
        ("GPL-1+ or GPL-1+", "GPL-1.0-or-later"),
    ],
)
def test_translated(synopsis: str, expression: str) -> None:
    assert _of(synopsis) == expression
    assert unknown_licenses(expression) == []


@pytest.mark.parametrize(
    "synopsis",
    [
        "",
        "Made-Up",
        "GPL",
        "MIT",
        "Artistic",
        "GPL-7+",
        "GPL-NIV-2",
        "GPL-2+ with Made-Up exception",
        "A | B",
        "(MIT)",
    ],
)
def test_a_name_without_meaning_or_text_is_left_open(synopsis: str) -> None:
    assert _of(synopsis) == "NOASSERTION"


def test_one_open_name_leaves_the_whole_package_open() -> None:
    assert _of("Expat and Nameless", TEXT) == "NOASSERTION"


def test_a_text_stands_for_a_license_without_a_name() -> None:
    found = declared(f"{HEADER}Files: *\nLicense: Expat or made-up\n\n{TEXT}".encode())
    ((reference, (name, text)),) = found.texts.items()
    assert found.expression == f"MIT OR {reference}"
    assert (name, text) == ("made-up", "Do what you like.")


def test_a_text_may_be_of_a_whole_choice() -> None:
    found = declared(f"{HEADER}Files: *\nLicense: Nameless or Other\n Either.\n".encode())
    assert [text for _, text in found.texts.values()] == ["Either."]
    assert found.expression == next(iter(found.texts))


def test_one_name_with_two_texts_is_two_licenses() -> None:
    one, other = (
        declared(f"{HEADER}Files: *\nLicense: Mine\n {text}\n".encode()).expression for text in ("a", "b")
    )
    assert one != other


def test_all_files_and_the_header_count_and_unused_texts_do_not() -> None:
    text = (
        HEADER.rstrip() + "\nLicense: ISC\n\nFiles: a\nLicense: Expat\n\nFiles: b\nLicense: Zlib\n\n" + TEXT
    )
    found = declared(text.encode())
    assert (found.expression, dict(found.texts)) == ("ISC AND MIT AND Zlib", {})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"This is free software.\n",
        b"\x00\xff" * 99,
        HEADER.encode(),
        b"Format: something else\nLicense: ISC\n",
        HEADER.encode() + b"Files: *\nLicense: ISC\n" + b"#\n" * MOST_BYTES,
    ],
    ids=["empty", "blank", "prose", "binary", "header_alone", "other_format", "huge"],
)
def test_no_machine_readable_file_is_left_open(content: bytes) -> None:
    assert declared(content).expression == "NOASSERTION"


def test_every_name_that_is_translated_is_one_of_spdx() -> None:
    assert {name for name in licenses.NAMES.values() if name not in license_names()} == set()
    assert set(licenses.EXCEPTIONS.values()) <= license_names()


_names = st.sampled_from(
    ["GPL-2+", "Expat", "Made-Up", "made-up", "Other", "BSD-3-clause", "LGPL-2.1", "A&B", "{}", "é"]
)
_words = st.sampled_from([" and ", " or ", ", and ", ", or ", " with ", " exception", ",", " | ", "(", " "])
_synopses = st.lists(st.one_of(_names, _words), min_size=1, max_size=9).map("".join)
_paragraphs = st.lists(
    st.tuples(st.sampled_from(["Files: *\n", "", "Comment: x\n", "#\n"]), _synopses, st.text(max_size=40)),
    max_size=6,
)


@given(_paragraphs)
def test_whatever_a_file_says_the_expression_is_valid(paragraphs: list[tuple[str, str, str]]) -> None:
    stanzas = [f"{files}License: {name}\n {text}\n\n" for files, name, text in paragraphs]
    found = declared((HEADER + "".join(stanzas)).encode("utf-8", "surrogatepass"))
    if found.expression == "NOASSERTION":
        assert found.texts == {}
        return
    assert unknown_licenses(found.expression) == []
    assert set(re.findall(r"LicenseRef-[A-Za-z0-9.-]+", found.expression)) == set(found.texts)
    for name, text in found.texts.values():
        assert name
        assert text.strip()


@given(st.binary(max_size=300))
def test_no_content_breaks_the_parser(content: bytes) -> None:
    declared(HEADER.encode() + content)


@given(
    st.lists(st.text(max_size=20), min_size=1, max_size=3),
    st.lists(st.text(max_size=20), min_size=1, max_size=3),
)
def test_identifiers_are_sanitised_and_unique(one: list[str], other: list[str]) -> None:
    first, second = identifier("Package", *one), identifier("Package", *other)
    assert re.fullmatch(r"SPDXRef-[A-Za-z0-9.-]+", first)
    assert (first == second) == (one == other)

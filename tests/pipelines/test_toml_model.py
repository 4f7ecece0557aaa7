"""TOML files of any model: what is no TOML, and on which line a value stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from pipelines.errors import RecipeError
from pipelines.toml_model import MAXIMUM_BYTES, line_of, load

GOOD = 'name = "small"\nsuite = "trixie"\narch = "amd64"\n'


class _Model(BaseModel):
    name: str
    suite: str
    arch: str


def _refused(folder: Path, data: bytes) -> str:
    path = folder / "model.toml"
    path.write_bytes(data)
    with pytest.raises(RecipeError) as told:
        load(path, _Model)
    assert told.value.what.startswith(str(path))
    return told.value.what.removeprefix(str(path))


def test_a_good_file_is_its_model(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(GOOD)
    assert load(tmp_path / "model.toml", _Model) == _Model(name="small", suite="trixie", arch="amd64")


def test_broken_toml_names_the_line(tmp_path: Path) -> None:
    what = _refused(tmp_path, GOOD.replace('"trixie"', '"trixie').encode())
    assert what.startswith(": not TOML: ")
    assert "line 2" in what


def test_a_key_twice_names_the_line(tmp_path: Path) -> None:
    assert "line 3" in _refused(tmp_path, GOOD.replace("arch =", "suite =").encode())


def test_another_encoding_names_the_line(tmp_path: Path) -> None:
    data = GOOD.replace("trixie", "tr\xefxie").encode("latin-1")
    assert _refused(tmp_path, data) == ":2: byte 0xef is not UTF-8"


def test_a_file_of_absurd_size_is_refused(tmp_path: Path) -> None:
    assert f"more than {MAXIMUM_BYTES} bytes" in _refused(tmp_path, GOOD.encode() + b"#" * MAXIMUM_BYTES)


def test_arrays_nested_without_end_are_refused(tmp_path: Path) -> None:
    assert "nested without end" in _refused(tmp_path, b"x = " + b"[" * 100_000)


SHAPES = """\
a = 1
b = '''
a = 2
'''
c = [
  "x",

  # not this one
  "y",
]
d.e = { f = [1, 2] }

[g]  # table
h = "a = 3"

[[i]]
j = 1
[[i]]
j = 2
k = [
  { l = 1 },
  { l = 2 },
]
"""


@pytest.mark.parametrize(
    ("loc", "line"),
    [
        ((), 1),
        (("a",), 1),
        (("b",), 2),
        (("c",), 5),
        (("c", 0), 6),
        (("c", 1), 9),
        (("d", "e"), 11),
        (("d", "e", "f", 1), 11),
        (("g",), 13),
        (("g", "h"), 14),
        (("g", "missing"), 13),
        (("missing",), 1),
        (("i", 0, "j"), 17),
        (("i", 1), 18),
        (("i", 1, "j"), 19),
        (("i", 1, "k", 1, "l"), 22),
    ],
)
def test_the_locator_finds_where_a_value_starts(loc: tuple[int | str, ...], line: int) -> None:
    assert line_of(SHAPES, loc) == line


@given(
    st.lists(st.sampled_from(["# c", "", "  # d = 1"]), max_size=5), st.integers(0, 20), st.integers(0, 20)
)
def test_the_locator_counts_lines_as_they_are_whatever_stands_between(
    gap: list[str], before: int, after: int
) -> None:
    lines = [*(f"a{number} = {number}" for number in range(before)), *gap, "wanted = [", *gap, "1,", "]"]
    text = "\n".join([*lines, *(f"b{number} = {number}" for number in range(after))])
    assert line_of(text, ("wanted",)) == lines.index("wanted = [") + 1
    assert line_of(text, ("wanted", 0)) == lines.index("1,") + 1

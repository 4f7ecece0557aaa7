"""A kernel's configuration: fragments read, merged, and held against what kconfig made of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.kernel_source import fragments, kconfig
from stages.kernel_source.arch import Architecture, architecture
from stages.kernel_source.fragments import Request
from stages.kernel_source.make import Make
from stages.shared.job import Failure

AMD64 = architecture("amd64")
EPOCH = 1767225600

options = st.sampled_from(["A", "B", "64BIT", "EXT4_FS", "SND_SOC_88PM860X", "_x"])
values = st.one_of(
    st.sampled_from(["y", "m", "n", "0", "-7", "0x1F", '""', r'"a \"b\" # c"']),
    st.integers(0, 1 << 40).map(str),
)
requests = st.builds(Request, options, values, st.just("a.config"), st.integers(1, 99))


# Fragments


@given(st.lists(st.lists(requests)))
def test_the_last_request_for_an_option_counts(parts: list[list[Request]]) -> None:
    last = {request.option: request for part in parts for request in part}
    assert fragments.merge(parts) == last


@given(st.lists(requests, unique_by=lambda request: request.option))
def test_what_is_written_reads_back_and_fulfils_itself(asked: list[Request]) -> None:
    text = fragments.to_config(asked)
    assert [(r.option, r.value) for r in fragments.parse(text, "a")] == [(r.option, r.value) for r in asked]
    assert fragments.unmet(asked, fragments.values(text)) == []


@given(st.text())
def test_a_text_with_any_other_line_is_refused(text: str) -> None:
    kinds = r"\s*(#.*|CONFIG_\w+=\S.*|)"
    if all(re.fullmatch(kinds, line, re.DOTALL) for line in text.split("\n")):
        return
    with pytest.raises(Failure, match=r"^a\.config:[1-9]\d*: expected CONFIG_NAME=value"):
        fragments.parse(text, "a.config")


def test_requests_know_their_line() -> None:
    text = "# why\n\nCONFIG_A=y\n  # CONFIG_B is not set\nCONFIG_C=n\r\n"
    assert fragments.parse(text, "k/a.config") == [
        Request("A", "y", "k/a.config", 3),
        Request("B", "n", "k/a.config", 4),
        Request("C", "n", "k/a.config", 5),
    ]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("CONFIG_A=y # on", id="comment-behind-a-value"),
        pytest.param("CONFIG_A = y", id="spaces-around-the-sign"),
        pytest.param("A=y", id="no-prefix"),
        pytest.param("CONFIG_A=yes", id="no-such-value"),
        pytest.param('CONFIG_A="a', id="open-string"),
        pytest.param('CONFIG_A="a" b"', id="quote-inside-a-string"),
        pytest.param("CONFIG_A=", id="no-value"),
        pytest.param("CONFIG_A is not set", id="unset-without-the-hash"),
        pytest.param("#CONFIG_A is not set", id="unset-that-kconfig-takes-for-a-comment"),
        pytest.param("# CONFIG_A is not set.", id="unset-with-a-full-stop"),
        pytest.param("source other.config", id="include"),
    ],
)
def test_a_line_that_kconfig_would_misread_is_refused(line: str) -> None:
    with pytest.raises(Failure, match=r"^k\.config:2: expected CONFIG_NAME=value"):
        fragments.parse(f"CONFIG_OK=y\n{line}\n", "k.config")


@pytest.mark.parametrize(
    ("asked", "found", "met"),
    [
        ("y", {"A": "y"}, True),
        ("n", {}, True),
        ("y", {}, False),
        ("y", {"A": "m"}, False),
        ("m", {"A": "y"}, False),
        ("n", {"A": "y"}, False),
        ('""', {}, False),
        ('""', {"A": '""'}, True),
    ],
)
def test_what_counts_as_fulfilled(asked: str, found: dict[str, str], met: bool) -> None:
    assert (fragments.unmet([Request("A", asked, "f", 1)], found) == []) == met


# Configuration


class Kconfig(Make):
    """kconfig's part played by a function: from what was asked for to the .config."""

    __slots__ = ()
    answer: Callable[[str], str] = staticmethod(lambda asked: asked)

    def run(self, *targets: str, **variables: str) -> None:
        assert targets == ("allnoconfig",)
        asked = Path(variables["KCONFIG_ALLCONFIG"]).read_text()
        (self.source / ".config").write_text(type(self).answer(asked))


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    """A source tree as far as configuring needs one."""
    tree = tmp_path / "linux"
    for name, text in {
        "kernel/configs/tiny-base.config": "CONFIG_EXPERT=y\n",
        "kernel/configs/tiny.config": "CONFIG_SMALL=y\nCONFIG_KERNEL_XZ=y\n",
        "arch/x86/configs/tiny.config": "CONFIG_NOHIGHMEM=y\n",
        "fs/Kconfig": "menuconfig EXT4_FS\n\ttristate\n\tdepends on BLOCK && EXPERT\n\tdepends on MMU\n\n"
        "config BLOCK\n\tbool\nmenu x\n\tdepends on NOTHING\nconfig EXPERT\n\tbool\nconfig MMU\n\tbool\n",
    }.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    return tree


def configure(tree: Path, *texts: str, answer: Callable[[str], str] = lambda asked: asked) -> dict[str, str]:
    made = type("Answering", (Kconfig,), {"__slots__": (), "answer": staticmethod(answer)})
    asked = [fragments.parse(text, f"{name}.config") for name, text in zip("abc", texts, strict=False)]
    return kconfig.configure(made(tree, AMD64, EPOCH), AMD64, asked)


def test_fragments_come_after_the_tiny_base(linux: Path) -> None:
    found = configure(linux, "# CONFIG_SMALL is not set\nCONFIG_B=m\n", "CONFIG_B=y\n")
    assert found == {"EXPERT": "y", "KERNEL_XZ": "y", "NOHIGHMEM": "y", "B": "y"}


def test_the_base_may_give_way_and_a_fragment_may_not(linux: Path) -> None:
    def gzip_for_xz(asked: str) -> str:
        return asked.replace("CONFIG_KERNEL_XZ=y\n", "")

    assert "KERNEL_XZ" not in configure(linux, "CONFIG_GZIP=y\n", answer=gzip_for_xz)
    with pytest.raises(Failure, match=r"^a\.config:1: CONFIG_KERNEL_XZ: expected y, found n"):
        configure(linux, "CONFIG_KERNEL_XZ=y\n", answer=gzip_for_xz)


def test_an_option_that_did_not_stick_is_named_with_what_it_needs(
    linux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(asked: str) -> str:
        return asked.replace("CONFIG_EXT4_FS=y\n", "").replace("CONFIG_EXT5=y\n", "") + "CONFIG_MMU=y\n"

    with pytest.raises(Failure) as caught:
        configure(
            linux,
            "CONFIG_EXT4_FS=m\n",
            "\nCONFIG_EXT4_FS=y\nCONFIG_EXT4_F=n\nCONFIG_EXT5=y\n",
            answer=without,
        )
    assert caught.value.what == (
        "b.config:2: CONFIG_EXT4_FS: expected y, found n: it depends on BLOCK && EXPERT && MMU; off: BLOCK "
        "(and 1 more, see the log)"
    )
    assert caught.value.details == ("EXT4_FS", "EXT5")
    assert (
        "b.config:4: CONFIG_EXT5: expected y, found n: no such option, did you mean"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("option", sorted(kconfig.IRREPRODUCIBLE))
def test_what_makes_builds_differ_is_refused(linux: Path, option: str) -> None:
    with pytest.raises(Failure, match=rf"^b\.config:1: CONFIG_{option}=y .*no two builds"):
        configure(linux, "CONFIG_OK=y\n", f"CONFIG_{option}=y\n")
    with pytest.raises(Failure, match=rf"^CONFIG_{option}=y "):
        configure(linux, "CONFIG_OK=y\n", answer=lambda asked: f"{asked}CONFIG_{option}=y\n")
    assert "OK" in configure(linux, f"CONFIG_OK=y\n# CONFIG_{option} is not set\n")


def test_the_architectures_images() -> None:
    assert architecture("amd64") == Architecture("x86_64", "x86", "bzImage", "arch/x86/boot/bzImage")
    assert architecture("arm64") == Architecture("arm64", "arm64", "Image", "arch/arm64/boot/Image")
    with pytest.raises(Failure, match="expected one of amd64, arm64, found 'x86_64'"):
        architecture("x86_64")

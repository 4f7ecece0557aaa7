"""Recipes: what is read, and each way of being wrong with the file, line, field, value and rule told."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from pipelines.errors import RecipeError
from pipelines.recipe import PackagedKernel, SourceKernel, check_host_arch, host_arch, load_recipe

PROJECT = Path(__file__).parents[2]

GOOD = """\
# A comment, so that lines and statements differ.
platform_slug = "small"
suite = "trixie"
arch = "amd64"
source_date_epoch = 1767225600
hostname = "small"
packages = [
    "systemd-sysv",  # init
    "udev",
]
cmdline = ["console=ttyS0"]

[kernel]
source = "linux-source-6.12"
fragments = ["kernel/base.config"]
patches = ["kernel/fix.patch"]
modules = ["overlay"]

[[initramfs.files]]
path = "/lib/firmware/blob"
source = "blob"
mode = "0600"

[[files]]
path = "/etc/motd"
source = "motd"

[[files]]
path = "/etc/localtime"
symlink = "/usr/share/zoneinfo/UTC"

[[users]]
name = "operator"
uid = 1000
groups = ["adm"]
home = "/home/operator"
shell = "/bin/bash"

[units]
enable = ["a.service"]
mask = ["b.timer"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "small"
    for name in ("kernel/base.config", "kernel/fix.patch", "blob", "motd"):
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (made / "recipe.toml").write_text(GOOD)
    return made


def _refused(folder: Path, text: str) -> RecipeError:
    (folder / "recipe.toml").write_text(text)
    with pytest.raises(RecipeError) as told:
        load_recipe(folder)
    return told.value


def _line(text: str, start: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if line.strip().startswith(start))


def test_every_field_is_read(folder: Path) -> None:
    recipe = load_recipe(folder)
    assert recipe.packages == ("systemd-sysv", "udev")
    assert isinstance(recipe.kernel, SourceKernel)
    assert (recipe.kernel.patches, recipe.kernel.modules) == (("kernel/fix.patch",), ("overlay",))
    assert [(file.path, file.source, file.mode) for file in recipe.initramfs.files] == [
        ("/lib/firmware/blob", "blob", "0600")
    ]
    assert [(file.path, file.source, file.symlink) for file in recipe.files] == [
        ("/etc/motd", "motd", None),
        ("/etc/localtime", None, "/usr/share/zoneinfo/UTC"),
    ]
    assert recipe.users[0].groups == ("adm",)
    assert (recipe.units.enable, recipe.units.disable, recipe.units.mask) == (
        ("a.service",),
        (),
        ("b.timer",),
    )
    assert recipe.variants == ("kernel-initrd-composefs-oci",)


def test_a_packaged_kernel_has_a_package(folder: Path) -> None:
    head, tail = GOOD.split("[kernel]")[0], GOOD[GOOD.index("[[initramfs.files]]") :]
    (folder / "recipe.toml").write_text(head + '[kernel]\npackage = "linux-image-amd64"\n\n' + tail)
    assert load_recipe(folder).kernel == PackagedKernel(package="linux-image-amd64")


@pytest.mark.parametrize("name", ["quick", "debian-minimal"])
def test_the_committed_recipes_are_good(name: str) -> None:
    assert load_recipe(PROJECT / "recipes" / name).platform_slug == name


# What is replaced by what; start of the line that the error names; its field; words of its rule and hint.
WRONG = {
    "an unknown key": ("hostname =", "hostnam =", "hostnam =", "hostnam", "unknown key", "'hostname'"),
    "an unknown key in a table":
        ("symlink =", "simlink =", "simlink =", "files[1].simlink", "unknown key", "'symlink'"),
    "an unknown key in the kernel":
        ("patches =", "patch =", "patch =", "kernel.patch", "unknown key", "'patches'"),
    "an unknown suite":
        ('"trixie"', '"trixi"', "suite", "suite", "expected 'trixie', found 'trixi'", "'trixie'"),
    "an unknown architecture": ('"amd64"', '"arm46"', "arch", "arch", "found 'arm46'", "'arm64'"),
    "a number for a word":
        ('"small"\nsuite', "7\nsuite", "platform", "platform_slug", "a valid string, found 7", ""),
    "a word for a number":
        ("1767225600", '"1767225600"', "source_date", "source_date_epoch", "a valid integer", ""),
    "a time before zip's":
        ("1767225600", "0", "source_date", "source_date_epoch", "greater than or equal", ""),
    "a word for a list":
        ('["console=ttyS0"]', '"quiet"', "cmdline", "cmdline", "an array, found 'quiet'", "type"),
    "a list of tables for a table":
        ("[units]", "[[units]]", "[[units]]", "units", "expected a table, found", "type"),
    "a package no archive can have": ('"udev"', '"Udev"', '"Udev"', "packages[1]", "found 'Udev'", ""),
    "a space in a command line's word": ("console=ttyS0", "a b", "cmdline", "cmdline[0]", "found 'a b'", ""),
    "the build's own word":
        ("console=ttyS0", "composefs=0", "cmdline", "cmdline[0]", "the build's own word", "drop"),
    "a package twice":
        ('"udev"', '"systemd-sysv"', '"systemd-sysv",\n', "packages[1]", "there twice", "drop one"),
    "a path twice":
        ("/etc/localtime", "/etc/motd", "path", "files[1].path", "'/etc/motd' is there twice", "drop one"),
    "a unit in two states":
        ("b.timer", "a.service", "mask", "units.mask[0]", "'a.service' is there twice", "drop one"),
    "a patch twice":
        ('h"]', 'h", "kernel/fix.patch"]', "patches", "kernel.patches[1]", "there twice", "drop one"),
    "a relative path in the image":
        ("/etc/motd", "etc/motd", "path", "files[0].path", "normalised absolute", ""),
    "a path out of the image":
        ("/etc/motd", "/etc/../../x", "path", "files[0].path", "normalised absolute", ""),
    "a newline in a path":
        ("/etc/motd", "/etc/motd\\n", "path", "files[0].path", "no control characters", ""),
    "a path out of the recipe": ('"motd"', '"../motd"', "source", "files[0].source", "without '..'", ""),
    "an absolute source":
        ('"motd"', '"/etc/shadow"', "source", "files[0].source", "below the recipe's folder", ""),
    "a file that is not there":
        ('"motd"', '"mtod"', "source", "files[0].source", "'mtod' does not exist", "readable"),
    "a folder for a file":
        ('"motd"', '"kernel"', "source", "files[0].source", "'kernel' is not a regular file", ""),
    "a fragment that is not there":
        ("base.config", "b.config", "fragments", "kernel.fragments[0]", "not exist", ""),
    "no content": ('source = "motd"', "", "[[files]]", "files[0]", "give either source or symlink", ""),
    "two contents":
        ('source = "motd"', 'source = "motd"\nsymlink = "x"', "[[files]]", "files[0]", "either", ""),
    "a mode of three digits": ('"0600"', '"600"', "mode", "initramfs.files[0].mode", "found '600'", ""),
    "a system user's number":
        ("uid = 1000", "uid = 0", "uid", "users[0].uid", "greater than or equal to 1000", ""),
    "a user without a number":
        ("uid = 1000\n", "", "[[users]]", "users[0].uid", "required, and not there", "add it"),
    "a field in a user's gecos":
        ("uid = 1000", 'uid = 1000\ngecos = "a:b"', "gecos", "users[0].gecos", "'a:b'", ""),
    "no such unit type": ("a.service", "a.servce", "enable", "units.enable[0]", "found 'a.servce'", ""),
    "no fragments": ('["kernel/base.config"]', "[]", "fragments", "kernel.fragments", "at least 1 item", ""),
    "two kernels":
        ("[kernel]", '[kernel]\npackage = "linux-image-amd64"', "[kernel]", "kernel", "either source", ""),
    "a misspelt choice of the kernel":
        ('source = "linux', 'sorce = "linux', "[kernel]", "kernel", "either source", "'source'"),
    "no kernel": ('source = "linux-source-6.12"\n', "", "[kernel]", "kernel", "either source", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_told_with_file_line_field_value_and_rule(case: str, folder: Path) -> None:
    old, new, start, field, message, hint = WRONG[case]
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    error = _refused(folder, text)
    where = f"{folder}/recipe.toml:"
    line, name, rest = error.what.removeprefix(where).split(": ", 2)
    assert error.what.startswith(where)
    assert name == field
    assert message in rest
    assert hint in error.hint
    assert text.splitlines()[int(line) - 1].strip().startswith(start.strip())


def test_the_line_is_that_of_the_second_of_two_equal_keys(folder: Path) -> None:
    text = GOOD.replace("/etc/localtime", "etc/localtime")
    line = _line(text, 'path = "etc/localtime"')
    assert f":{line}: files[1].path:" in _refused(folder, text).what


def test_a_missing_field_names_the_file_and_the_field(folder: Path) -> None:
    error = _refused(folder, GOOD.replace('hostname = "small"\n', ""))
    assert error.what == f"{folder}/recipe.toml:1: hostname: required, and not there"


def test_further_errors_are_counted(folder: Path) -> None:
    assert "(and 1 more)" in _refused(folder, GOOD.replace('"trixie"', "1").replace('"amd64"', "2")).what


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("qcow2", "variant 'qcow2' is not built yet", "built are: kernel-initrd-composefs-oci"),
        ("qcow3", "unknown variant 'qcow3'", "did you mean 'qcow2'?"),
        ("floppy", "unknown variant 'floppy'", "valid names: kernel-initrd-composefs-oci, "),
    ],
)
def test_a_variant_not_built_yet_is_not_an_unknown_one(
    name: str, message: str, hint: str, folder: Path
) -> None:
    error = _refused(folder, f'variants = ["{name}"]\n{GOOD}')
    assert error.what == f"{folder}/recipe.toml:1: variants[0]: {message}"
    assert error.hint.startswith(hint)


def test_a_folder_without_a_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file or directory"):
        load_recipe(tmp_path / "nowhere")


def test_a_recipe_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").mkdir()
    with pytest.raises(RecipeError, match="Is a directory"):
        load_recipe(tmp_path)


def test_a_symbolic_link_out_of_the_recipe_is_refused(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (folder / "motd").unlink()
    (folder / "motd").symlink_to(secret)
    error = _refused(folder, GOOD)
    assert f"files[0].source: 'motd' leads to {secret}, outside the recipe's folder" in error.what


def test_a_symbolic_link_to_a_folder_outside_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "motd").write_text("")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert "outside the recipe's folder" in _refused(folder, GOOD.replace('"motd"', '"linked/motd"')).what


def test_a_symbolic_link_inside_the_recipe_is_followed(folder: Path) -> None:
    (folder / "motd").rename(folder / "text")
    (folder / "motd").symlink_to("text")
    assert load_recipe(folder).files[0].source == "motd"


def test_a_symbolic_link_to_itself_is_refused(folder: Path) -> None:
    (folder / "motd").unlink()
    (folder / "motd").symlink_to("motd")
    assert "files[0].source: 'motd' can't be used: Too many levels" in _refused(folder, GOOD).what


def test_a_file_that_may_not_be_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may read everything, so the answer of access(2) is given here.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "motd")
    assert "'motd' is not readable" in _refused(folder, GOOD).what


def test_a_recipe_folder_that_is_a_link_is_its_target(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert load_recipe(tmp_path / "link").hostname == "small"


@pytest.mark.parametrize(
    ("machine", "arch"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("riscv64", "riscv64")]
)
def test_the_hosts_architecture_has_debians_name(
    machine: str, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert host_arch() == arch


def test_an_architecture_that_is_not_the_hosts_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(folder)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    check_host_arch(recipe)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(RecipeError, match="arch: expected 'arm64', found 'amd64'") as told:
        check_host_arch(recipe)
    assert told.value.hint == "build it on an amd64 machine"

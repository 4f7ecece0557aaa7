"""Which source package a path belongs to: what dpkg writes down, and what damage to it does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pytest

from stages.shared.dpkg_files import source_packages
from stages.shared.job import Failure


def stanza(package: str, *, source: str = "", status: str = "install ok installed", more: str = "") -> str:
    named = f"Source: {source}\n" if source else ""
    return f"Package: {package}\nStatus: {status}\nArchitecture: amd64\n{named}Version: 1.0\n{more}"


class Root:
    """Files by path, links by path, and what dpkg says of them."""

    def __init__(self, *stanzas: str, links: Mapping[str, str] = {}, **lists: str) -> None:
        self.files = {"var/lib/dpkg/status": "\n".join(stanzas).encode()}
        for name, listed in lists.items():
            self.files[f"var/lib/dpkg/info/{name.replace('_', '-')}.list"] = listed.encode()
        self.links = links

    def add(self, path: str, content: bytes = b"") -> None:
        self.files[path] = content

    def sources(self) -> dict[str, str]:
        paths = {**dict.fromkeys(self.files), **self.links}
        return source_packages(paths, self.files.get)


def test_a_file_belongs_to_its_package_s_source() -> None:
    root = Root(
        stanza("bash"),
        stanza("libc6", source="glibc"),
        stanza("login", source="shadow (1:4.17.4-2)"),
        bash="/.\n/usr\n/usr/bin/bash\n",
        libc6="/.\n/usr\n/usr/lib/libc.so.6\n",
        login="/usr/bin/login\n",
    )
    for path in ("usr", "usr/bin/bash", "usr/lib/libc.so.6", "usr/bin/login", "etc/hostname"):
        root.add(path)
    assert root.sources() == {
        "usr": "bash",
        "usr/bin/bash": "bash",
        "usr/lib/libc.so.6": "glibc",
        "usr/bin/login": "shadow",
    }


def test_the_lists_of_multi_arch_packages_carry_the_architecture() -> None:
    root = Root(stanza("libc6", source="glibc"))
    root.add("var/lib/dpkg/info/libc6:amd64.list", b"/usr/lib/libc.so.6\n")
    root.add("usr/lib/libc.so.6")
    assert root.sources() == {"usr/lib/libc.so.6": "glibc"}


def test_paths_are_followed_through_links_to_directories() -> None:
    listed = "/lib/x.so\n/bin/sh\n/var/run/x\n/usr/share/doc/a/copyright\n/bin\n"
    links = {
        "bin": "usr/bin",
        "lib": "usr/lib",
        "var/run": "/run",
        "usr/share/doc/a": "../doc/b",
        "usr/bin/sh": "dash",
    }
    root = Root(stanza("old"), links=links, old=listed)
    for path in ("usr/lib/x.so", "run/x", "usr/share/doc/b/copyright"):
        root.add(path)
    # A link that is the last component is itself what the package ships.
    assert root.sources() == dict.fromkeys(
        ("usr/lib/x.so", "usr/bin/sh", "run/x", "usr/share/doc/b/copyright", "bin"), "old"
    )


def test_a_diverted_file_belongs_to_whom_it_came_from() -> None:
    root = Root(stanza("first"), stanza("second"), first="/usr/bin/tool\n", second="/usr/bin/tool\n")
    root.add("var/lib/dpkg/diversions", b"/usr/bin/tool\n/usr/bin/tool.orig\nsecond\n")
    root.add("usr/bin/tool")
    root.add("usr/bin/tool.orig")
    assert root.sources() == {"usr/bin/tool": "second", "usr/bin/tool.orig": "first"}


def test_a_local_diversion_moves_every_package_s_file() -> None:
    root = Root(stanza("first"), first="/usr/bin/tool\n")
    root.add("var/lib/dpkg/diversions", b"/usr/bin/tool\n/usr/bin/tool.distrib\n:\n")
    root.add("usr/bin/tool", b"the recipe's own")
    root.add("usr/bin/tool.distrib")
    assert root.sources() == {"usr/bin/tool.distrib": "first"}


def test_configuration_that_was_changed_is_no_package_s_content() -> None:
    shipped = hashlib.md5(b"shipped").hexdigest()
    conffiles = (
        "Conffiles:\n"
        f" /etc/kept {shipped}\n /etc/changed {shipped}\n /etc/with blank {shipped}\n"
        f" /etc/gone {shipped} remove-on-upgrade\n /etc/left {shipped} obsolete\n"
        "Description: x\n a folded line\n"
    )
    root = Root(stanza("p", more=conffiles), p="/etc/kept\n/etc/changed\n/etc/with blank\n")
    for path in ("etc/kept", "etc/with blank", "etc/left"):
        root.add(path, b"shipped")
    root.add("etc/changed", b"by the recipe")
    assert root.sources() == {"etc/kept": "p", "etc/with blank": "p", "etc/left": "p"}


def test_dpkg_s_own_database_belongs_to_nobody() -> None:
    root = Root(stanza("dpkg"), dpkg="/var/lib/dpkg\n/var/lib/dpkg/info\n/var/lib/dpkg/alternatives/x\n")
    root.add("var/lib/dpkg/alternatives/x")
    assert root.sources() == {}


@pytest.mark.parametrize("status", ["deinstall ok config-files", "unknown ok not-installed"])
def test_packages_that_are_not_there_own_nothing(status: str) -> None:
    root = Root(stanza("gone", status=status), stanza("here"), here="/usr/a\n")
    root.add("usr/a")
    assert root.sources() == {"usr/a": "here"}


def test_of_several_packages_the_smallest_source_name_owns() -> None:
    root = Root(stanza("zz", source="aa"), stanza("bb"), zz="/usr/shared\n", bb="/usr/shared\n")
    root.add("usr/shared")
    assert root.sources() == {"usr/shared": "aa"}


def test_names_that_are_not_utf_8_are_found() -> None:
    root = Root(stanza("p"))
    root.files["var/lib/dpkg/info/p.list"] = b"/usr/\xff\n"
    root.add("usr/\udcff")
    assert root.sources() == {"usr/\udcff": "p"}


def test_a_root_without_dpkg_has_no_packages() -> None:
    assert source_packages({"etc": None}, lambda path: None) == {}


def test_a_missing_list_is_refused() -> None:
    with pytest.raises(Failure, match="no list of the files of bash:amd64"):
        Root(stanza("bash")).sources()


def test_a_stanza_without_a_package_is_refused() -> None:
    with pytest.raises(Failure, match="a stanza without Package"):
        Root("Status: install ok installed\nArchitecture: amd64\n").sources()


def test_a_cut_diversions_file_is_refused() -> None:
    root = Root()
    root.add("var/lib/dpkg/diversions", b"/usr/bin/tool\n/usr/bin/tool.orig\n")
    with pytest.raises(Failure, match="expected three lines a diversion, found 2 lines"):
        root.sources()


def test_links_that_lead_in_circles_are_refused() -> None:
    root = Root(stanza("p"), links={"a": "b", "b": "a"}, p="/a/x\n")
    with pytest.raises(Failure, match="more than 40 symbolic links"):
        root.sources()

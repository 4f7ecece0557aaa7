"""Archives: which roots are used, what is told when none serves a suite, and which keyrings are refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipelines.archive import KEYRING, PINNED, archives, host_roots, keyring, redacted, serving
from pipelines.errors import ArchiveError, UsageError
from tests.pipelines.local_archive import Key

SOURCES = """\
# Types: deb
Types: deb deb-src
URIs: http://mirror.example/debian/
  http://second.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://disabled.example/debian
Suites: trixie
Components: main
Enabled: no

Types: deb-src
URIs: http://sources.example/debian
Suites: trixie
Components: main

Types: deb
URIs: https://vendor.example/debian
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/vendor.gpg

Types: deb
URIs: https://vendor.example/tool
Suites: nodistro
Components: main
"""
LIST = """\
# deb http://commented.example/debian trixie main
deb http://list.example/debian trixie main  # a comment
deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] file:/srv/debian trixie main
deb [signed-by=/etc/keys/vendor.asc] http://vendor.example/debian trixie main
deb http://vendor.example/apt cloud-sdk-bookworm main
deb http://extras.example/debian trixie contrib
deb-src http://list.example/debian trixie main
"""


@pytest.fixture
def apt_folder(tmp_path: Path) -> Path:
    parts = tmp_path / "apt" / "sources.list.d"
    parts.mkdir(parents=True)
    (parts / "debian.sources").write_text(SOURCES)
    (parts / "old.list").write_text(LIST)
    (parts / "old.list.save").write_text("deb http://saved.example/debian trixie main\n")
    (parts.parent / "sources.list").write_text("deb http://first.example/debian stable main\n")
    return parts.parent


def test_debians_own_sources_of_the_host_are_found_in_apts_order(apt_folder: Path) -> None:
    assert archives((), {}, apt_folder) == (
        "http://first.example/debian",
        "http://mirror.example/debian",
        "http://second.example/debian",
        "http://mirror.example/debian-security",
        "http://list.example/debian",
        "/srv/debian",
    )


def test_what_is_given_goes_before_the_variable_and_that_before_the_host(
    apt_folder: Path, tmp_path: Path
) -> None:
    variable = {"DISK_IMAGE_ARCHIVE": f"http://variable.example/debian/ {tmp_path}"}
    assert archives(("http://given.example/debian/",), variable, apt_folder) == (
        "http://given.example/debian",
    )
    assert archives((), variable, apt_folder) == ("http://variable.example/debian", str(tmp_path))
    assert archives((), {"DISK_IMAGE_ARCHIVE": " "}, apt_folder) == archives((), {}, apt_folder)


def test_a_folder_is_an_absolute_path_whether_by_url_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert archives((".", f"file://{tmp_path}")) == (str(tmp_path),)


@pytest.mark.parametrize(
    "value", ["ftp://a.example/debian", "/nowhere/at/all", "https:///debian", "", "file://relative"]
)
def test_what_is_no_archive_is_wrong_use(value: str) -> None:
    with pytest.raises(
        UsageError, match="--archive: expected an http or https URL or an existing folder, found"
    ):
        archives((value,), {})


def test_a_machine_without_debians_sources_is_told_what_to_name(tmp_path: Path) -> None:
    assert list(host_roots(tmp_path)) == []
    with pytest.raises(ArchiveError, match="no Debian archive among the apt sources") as told:
        archives((), {}, tmp_path)
    assert "--archive" in told.value.hint
    assert "DISK_IMAGE_ARCHIVE" in told.value.hint


def test_credentials_are_redacted_wherever_they_stand() -> None:
    text = "http://user:pass@a.example/x and https://token@b.example/y but not http://c.example/d@e"
    assert (
        redacted(text) == "http://***@a.example/x and https://***@b.example/y but not http://c.example/d@e"
    )


def test_a_wrong_root_is_told_without_its_credentials() -> None:
    with pytest.raises(UsageError) as told:
        archives(("ftp://user:secret@a.example/debian",), {})
    assert "secret" not in told.value.what + told.value.hint


class _Archive(BaseHTTPRequestHandler):
    """Serves trixie to whoever knows the password, forky to everybody, and is broken for sid."""

    def do_GET(self) -> None:
        status = 404
        if self.path.endswith("/dists/sid/InRelease"):
            status = 503
        elif self.path.endswith("/dists/forky/InRelease"):
            status = 200
        elif self.path.endswith("/dists/trixie/InRelease"):
            status = 200 if self.headers["Authorization"] == "Basic dXNlcjpwQHNz" else 401
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Tests print nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Archive) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"127.0.0.1:{made.server_address[1]}"
        made.shutdown()
        thread.join()


def test_each_suite_comes_from_the_first_root_that_has_it(server: str, tmp_path: Path) -> None:
    release = tmp_path / "dists/trixie/InRelease"
    release.parent.mkdir(parents=True)
    release.touch()
    roots = (str(tmp_path), f"http://{server}/debian")
    assert serving(roots, ["trixie", "forky"]) == {"trixie": roots[0], "forky": roots[1]}


def test_a_roots_credentials_are_sent_and_never_told(server: str) -> None:
    root = f"http://user:p%40ss@{server}/debian"
    assert serving((root,), ["trixie"]) == {"trixie": root}
    with pytest.raises(ArchiveError, match="no archive serves the suite bookworm") as told:
        serving((root,), ["bookworm"])
    assert "HTTP 404" in told.value.what
    assert "p%40ss" not in told.value.what


def test_a_wrong_password_is_told_as_the_servers_answer(server: str) -> None:
    with pytest.raises(ArchiveError, match="HTTP 401"):
        serving((f"http://user:wrong@{server}/debian",), ["trixie"])


def test_a_broken_server_is_not_a_missing_suite(server: str) -> None:
    with pytest.raises(ArchiveError, match="dists/sid/InRelease: HTTP 503") as told:
        serving((f"http://{server}/debian",), ["sid"])
    assert "network" in told.value.hint


def test_an_unreachable_server_is_named_without_credentials() -> None:
    with pytest.raises(
        ArchiveError, match=r"http://\*\*\*@127\.0\.0\.1:1/dists/trixie/InRelease: .*refused"
    ):
        serving(("http://user:secret@127.0.0.1:1",), ["trixie"])


def test_the_committed_keyring_holds_exactly_the_pinned_keys() -> None:
    assert keyring() == KEYRING


def test_a_keyring_with_one_more_key_is_refused_by_name(tmp_path: Path) -> None:
    more = tmp_path / "more.gpg"
    more.write_bytes(KEYRING.read_bytes() + Key("mallory").keyring())
    with pytest.raises(ArchiveError, match=f"unknown {Key('mallory').fingerprint}; missing none"):
        keyring(more)


def test_a_keyring_with_one_key_less_is_refused_by_name(tmp_path: Path) -> None:
    there, missing = Key("there"), Key("missing")
    less = tmp_path / "less.gpg"
    less.write_bytes(there.keyring())
    with pytest.raises(
        ArchiveError, match=f"expected the 2 .* found 1: unknown none; missing {missing.fingerprint}"
    ):
        keyring(less, (there.fingerprint, missing.fingerprint))


def test_a_keyring_cut_short_is_refused(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gpg"
    cut.write_bytes(KEYRING.read_bytes()[:-1])
    with pytest.raises(ArchiveError, match="not a usable keyring: packet of type 2 has"):
        keyring(cut)


def test_a_missing_keyring_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="not a usable keyring"):
        keyring(tmp_path / "none.gpg")


def test_a_changed_key_is_another_key(tmp_path: Path) -> None:
    data = bytearray(KEYRING.read_bytes())
    data[40] ^= 1
    changed = tmp_path / "changed.gpg"
    changed.write_bytes(data)
    with pytest.raises(ArchiveError, match=f"missing {PINNED[0]}"):
        keyring(changed)

"""The mirror: from which place files come, and every way in which a place can be wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from stages.mirror import bring
from stages.mirror.__main__ import program
from stages.mirror.download import Limits
from stages.shared.job import Failure, Job

QUICK = Limits(tries=4, timeout=0.5, first_pause=0.01, longest_pause=1, window=0.3, least_rate=1000)


class Archive:
    """A loopback archive; `answer` replaces how a request is answered."""

    def __init__(self, root: Path) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.answer: Callable[[BaseHTTPRequestHandler, bytes], None] = serve
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.requests.append((self.path, dict(self.headers.items())))
                path = root / unquote(self.path.partition("?")[0]).lstrip("/")
                if not path.is_file():
                    refuse(self, 404)
                    return
                outer.answer(self, path.read_bytes())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def serve(request: BaseHTTPRequestHandler, content: bytes) -> None:
    """As a good server: whole files, and the rest of one for a Range."""
    wanted = request.headers.get("Range")
    start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
    request.send_response(206 if start else 200)
    if start:
        request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    request.send_header("Content-Length", str(len(content) - start))
    request.end_headers()
    request.wfile.write(content[start:])


def refuse(request: BaseHTTPRequestHandler, status: int, **headers: str) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("Content-Length", "0")
    request.end_headers()


def once(
    first: Callable[[BaseHTTPRequestHandler, bytes], None],
) -> Callable[[BaseHTTPRequestHandler, bytes], None]:
    """Answer the first request in a bad way, all others in a good one."""
    count = iter(range(1000))

    def answer(request: BaseHTTPRequestHandler, content: bytes) -> None:
        (serve if next(count) else first)(request, content)

    return answer


@pytest.fixture
def archive(debs: Any) -> Iterator[Archive]:
    server = Archive(debs.folder)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bring.Bringer.__init__, "__kwdefaults__", {"limits": QUICK})


@pytest.fixture
def mirror(make_job: Callable[..., Job], tmp_path: Path) -> Callable[..., Path]:
    """Run the program for these locked files and places; the repository."""

    def run(files: list[dict[str, Any]], **places: Any) -> Path:
        transport = {
            "archives": [str(place) for place in places.get("archives", ())],
            "pools": [str(place) for place in places.get("pools", ())],
            "store": str(places.get("store", tmp_path / "store")),
            "partial": str(tmp_path / "partial"),
        }
        job = make_job("mirror", {"files": files}, transport=transport)
        program(job)
        return job.output("repository")

    return run


def _listing(repository: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(repository)): path.read_bytes()
        for path in sorted(repository.rglob("*"))
        if path.is_file()
    }


def test_every_place_gives_the_same_repository(
    debs: Any, archive: Archive, mirror: Callable[..., Path], tmp_path: Path
) -> None:
    paths = [
        debs.make("b", {"usr/b": "b"}),
        debs.make("a", {"usr/a": "a"}, version="2:1.0+x"),
        debs.make("c", {"usr/c": "c" * 9999}),
    ]
    files = [debs.locked(path) for path in paths]
    flat, blobs, apt, store = (tmp_path / name for name in ("flat", "blobs", "apt", "full"))
    for folder in (flat, blobs, apt):
        folder.mkdir()
    for path, file in zip(paths, files, strict=True):
        shutil.copy(path, flat)
        shutil.copy(path, blobs / file["sha256"])
        shutil.copy(path, apt / f"{file['name']}_{file['version'].replace(':', '%3a')}_{file['arch']}.deb")
        (store / file["sha256"][:2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, store / file["sha256"][:2] / file["sha256"][2:])
    repositories = [
        mirror(files, store=store),
        *(mirror(files, pools=[pool]) for pool in (debs.folder, flat, blobs, apt)),
        *(
            mirror(files, archives=[root])
            for root in (debs.folder, f"file://{debs.folder}", archive.url, f"{archive.url}/")
        ),
    ]
    listings = [_listing(repository) for repository in repositories]
    assert all(listing == listings[0] for listing in listings)
    assert [*listings[0]] == sorted(["Packages", *(file["pool_path"] for file in files)])


def test_the_index_is_sorted_and_complete(debs: Any, mirror: Callable[..., Path]) -> None:
    files = [debs.locked(debs.make(name, {}, control="Size: 1\nFilename: x\n y\n")) for name in ("b", "a")]
    index = (mirror(files, pools=[debs.folder]) / "Packages").read_text()
    stanzas = index.split("\n\n")
    assert [stanza.splitlines()[0] for stanza in stanzas] == ["Package: a", "Package: b"]
    locked = files[1]
    assert stanzas[0].splitlines()[-3:] == [
        f"Filename: {locked['pool_path']}",
        f"Size: {locked['size']}",
        f"SHA256: {locked['sha256']}",
    ]
    assert "Filename: x" not in index
    assert index.count("Size:") == 2


def test_a_source_is_brought_and_not_indexed(debs: Any, mirror: Callable[..., Path]) -> None:
    path = debs.folder / "pool/main/l/linux/linux_6.12.orig.tar.xz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"source")
    file = {
        "name": "linux",
        "version": "6.12",
        "arch": "source",
        "sha256": hashlib.sha256(b"source").hexdigest(),
    }
    repository = mirror(
        [file | {"size": 6, "pool_path": str(path.relative_to(debs.folder))}], pools=[debs.folder]
    )
    assert [*_listing(repository)] == ["Packages", "pool/main/l/linux/linux_6.12.orig.tar.xz"]
    assert (repository / "Packages").read_text() == ""


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt is not installed")
def test_apt_accepts_the_repository(debs: Any, mirror: Callable[..., Path], tmp_path: Path) -> None:
    repository = mirror([debs.locked(debs.make("hello", {"usr/bin/hello": "hi"}))], pools=[debs.folder])
    for folder in ("lists/partial", "archives/partial", "etc"):
        (tmp_path / "apt" / folder).mkdir(parents=True)
    (tmp_path / "apt/status").touch()
    (tmp_path / "apt/etc/sources.list").write_text(f"deb [trusted=yes] copy:{repository} ./\n")
    options = {
        "Dir::State": tmp_path / "apt",
        "Dir::State::status": tmp_path / "apt/status",
        "Dir::Cache": tmp_path / "apt",
        "Dir::Etc": tmp_path / "apt/etc",
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "true",
    }
    apt = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items())]
    subprocess.run([*apt, "update"], check=True, capture_output=True)
    subprocess.run([*apt, "download", "hello"], check=True, capture_output=True, cwd=tmp_path)
    assert (tmp_path / "hello_1.0_all.deb").read_bytes() == next(repository.rglob("*.deb")).read_bytes()


def test_hard_links_within_one_file_system(debs: Any, mirror: Callable[..., Path], tmp_path: Path) -> None:
    file = debs.locked(debs.make("hello", {}))
    blob = tmp_path / "store" / file["sha256"][:2] / file["sha256"][2:]
    blob.parent.mkdir(parents=True)
    shutil.copy(debs.folder / file["pool_path"], blob)
    assert (mirror([file]) / file["pool_path"]).samefile(blob)


def test_copies_where_links_are_refused(
    debs: Any, mirror: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    file = debs.locked(debs.make("hello", {}))
    assert (mirror([file], pools=[debs.folder]) / file["pool_path"]).is_file()


def _html_page(request: BaseHTTPRequestHandler, content: bytes) -> None:
    page = b"<html>log in</html>".ljust(len(content))
    request.send_response(200)
    request.send_header("Content-Type", "text/html; charset=utf-8")
    request.send_header("Content-Length", str(len(page)))
    request.end_headers()
    request.wfile.write(page)


def _wrong_byte(request: BaseHTTPRequestHandler, content: bytes) -> None:
    serve(request, content[:-1] + bytes([content[-1] ^ 1]))


def _other_size(request: BaseHTTPRequestHandler, content: bytes) -> None:
    serve(request, content + b"x")


def _endless(request: BaseHTTPRequestHandler, content: bytes) -> None:
    request.send_response(200)
    request.send_header("Connection", "close")
    request.end_headers()
    request.close_connection = True
    try:
        while True:
            request.wfile.write(bytes(1 << 16))
    except OSError:
        pass


def _truncated(request: BaseHTTPRequestHandler, content: bytes) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content[: len(content) // 2])
    request.wfile.flush()
    request.close_connection = True


def _stall(request: BaseHTTPRequestHandler, content: bytes) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content[:10])
    request.wfile.flush()
    time.sleep(1)
    request.close_connection = True


def _drip(request: BaseHTTPRequestHandler, content: bytes) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.close_connection = True
    try:
        for byte in content[:40]:
            request.wfile.write(bytes([byte]))
            request.wfile.flush()
            time.sleep(0.05)
    except OSError:
        pass


def _redirect_loop(request: BaseHTTPRequestHandler, content: bytes) -> None:
    refuse(request, 302, Location=request.path)


def _redirect_to_a_file(request: BaseHTTPRequestHandler, content: bytes) -> None:
    refuse(request, 301, Location="file:///etc/passwd")


def _status(status: int, **headers: str) -> Callable[[BaseHTTPRequestHandler, bytes], None]:
    return lambda request, content: refuse(request, status, **headers)


@pytest.mark.parametrize(
    ("attack", "code", "says"),
    [
        (_html_page, "mismatch", "expected a package of .* found an HTML page"),
        (_wrong_byte, "mismatch", "expected sha256 [0-9a-f]{64}, found [0-9a-f]{64}"),
        (_other_size, "mismatch", r"expected \d+ bytes, found \d+"),
        (_endless, "mismatch", r"expected \d+ bytes, found more"),
        (_truncated, "unusable", r"truncated|IncompleteRead"),
        (_stall, "unusable", "stalled"),
        (_drip, "unusable", "stalled: "),
        (_redirect_loop, "unusable", "redirects without end"),
        (_redirect_to_a_file, "unusable", "not http or https"),
        (_status(503), "unusable", r"HTTP 503 \(4 tries\)"),
        (_status(429, Retry_After="3600"), "unusable", "HTTP 429, asks to wait 3600 s"),
        (_status(401), "unusable", "HTTP 401"),
        (_status(404), "gone", "gone from 1 archive"),
    ],
    ids=lambda value: value.__name__.lstrip("_") if callable(value) else None,
)
def test_a_bad_archive_is_named(
    attack: Callable[[BaseHTTPRequestHandler, bytes], None],
    code: str,
    says: str,
    debs: Any,
    archive: Archive,
    mirror: Callable[..., Path],
) -> None:
    archive.answer = attack
    file = debs.locked(debs.make("hello", {"usr/x": os.urandom(5000)}))
    with pytest.raises(Failure, match=says) as caught:
        mirror([file], archives=[archive.url])
    assert caught.value.code == code
    assert caught.value.details == ("hello",)
    assert caught.value.what.startswith("hello 1.0 (all): ")


@pytest.mark.parametrize(
    "first",
    [
        _status(503),
        _status(429, Retry_After="0"),
        _status(500, Retry_After="Thu, 01 Jan 1970 00:00:00 GMT"),
        _truncated,
        _stall,
        _drip,
    ],
    ids=[
        "503_then_ok",
        "429_then_ok",
        "500_with_a_date_then_ok",
        "truncated_then_ok",
        "stall_then_ok",
        "drip_then_ok",
    ],
)
def test_another_try_succeeds(
    first: Callable[[BaseHTTPRequestHandler, bytes], None],
    debs: Any,
    archive: Archive,
    mirror: Callable[..., Path],
) -> None:
    archive.answer = once(first)
    file = debs.locked(debs.make("hello", {"usr/x": os.urandom(5000)}))
    repository = mirror([file], archives=[archive.url])
    assert (repository / file["pool_path"]).read_bytes() == (debs.folder / file["pool_path"]).read_bytes()
    # a busy machine may stall once more
    assert len(archive.requests) >= 2


def test_resume_asks_only_for_the_rest(
    debs: Any, archive: Archive, mirror: Callable[..., Path], tmp_path: Path
) -> None:
    file = debs.locked(debs.make("hello", {"usr/x": os.urandom(5000)}))
    content = (debs.folder / file["pool_path"]).read_bytes()
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / file["sha256"]).write_bytes(content[:1234])
    assert (mirror([file], archives=[archive.url]) / file["pool_path"]).read_bytes() == content
    assert [headers.get("Range") for _, headers in archive.requests] == ["bytes=1234-"]
    assert not [*(tmp_path / "partial").iterdir()]


def _no_ranges(request: BaseHTTPRequestHandler, content: bytes) -> None:
    del request.headers["Range"]
    serve(request, content)


def _range_refused(request: BaseHTTPRequestHandler, content: bytes) -> None:
    if "Range" in request.headers:
        refuse(request, 416)
    else:
        serve(request, content)


@pytest.mark.parametrize("answer", [serve, _no_ranges, _range_refused])
@pytest.mark.parametrize(
    "left", [b"wrong" * 100, b"w" * 100_000, b""], ids=["other_bytes", "too_long", "empty"]
)
def test_a_foreign_partial_does_no_harm(
    answer: Callable[[BaseHTTPRequestHandler, bytes], None],
    left: bytes,
    debs: Any,
    archive: Archive,
    mirror: Callable[..., Path],
    tmp_path: Path,
) -> None:
    archive.answer = answer
    file = debs.locked(debs.make("hello", {"usr/x": os.urandom(5000)}))
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / file["sha256"]).write_bytes(left)
    content = (debs.folder / file["pool_path"]).read_bytes()
    assert (mirror([file], archives=[archive.url]) / file["pool_path"]).read_bytes() == content


def test_a_failed_run_keeps_what_it_has(
    debs: Any, archive: Archive, mirror: Callable[..., Path], tmp_path: Path
) -> None:
    good, bad = (debs.locked(debs.make(name, {"usr/x": os.urandom(5000)})) for name in ("good", "bad"))
    gone = bad | {"name": "bad", "pool_path": "pool/main/b/bad/bad_0.9_all.deb"}
    with pytest.raises(Failure) as caught:
        mirror([good, gone], archives=[archive.url])
    assert (caught.value.code, caught.value.details) == ("gone", ("bad",))
    before = len(archive.requests)
    mirror([good], archives=[archive.url])
    assert len(archive.requests) == before


def test_archives_are_asked_in_turn(
    debs: Any, archive: Archive, mirror: Callable[..., Path], tmp_path: Path
) -> None:
    file = debs.locked(debs.make("hello", {}))
    (tmp_path / "empty").mkdir()
    repository = mirror([file], archives=[tmp_path / "empty", "http://127.0.0.1:1/none", archive.url])
    assert (repository / file["pool_path"]).is_file()


def test_all_that_is_gone_is_named(debs: Any, mirror: Callable[..., Path]) -> None:
    files = [debs.locked(debs.make(name, {})) for name in ("one", "three", "two")]
    for file in files[::2]:
        (debs.folder / file["pool_path"]).unlink()
    with pytest.raises(Failure) as caught:
        mirror(files, archives=[debs.folder])
    assert (caught.value.code, caught.value.details) == ("gone", ("one", "two"))


def test_a_damaged_pool_is_passed_over_and_told(
    debs: Any,
    archive: Archive,
    mirror: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = debs.locked(debs.make("hello", {"usr/x": "y"}))
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / file["sha256"]).write_bytes(b"x" * file["size"])
    assert (mirror([file], pools=[pool], archives=[archive.url]) / file["pool_path"]).is_file()
    with pytest.raises(Failure, match="expected sha256") as caught:
        mirror([file], pools=[pool])
    assert caught.value.code == "mismatch"


def test_credentials_reach_their_origin_and_nothing_else(
    debs: Any,
    archive: Archive,
    mirror: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    other = Archive(debs.folder)
    try:
        archive.answer = lambda request, content: refuse(request, 302, Location=f"{other.url}{request.path}")
        file = debs.locked(debs.make("hello", {}))
        with_secret = f"http://user:s3cret@{archive.host}"
        mirror([file], archives=[with_secret])
        assert [headers["Authorization"] for _, headers in archive.requests] == ["Basic dXNlcjpzM2NyZXQ="]
        assert ["Authorization" in headers for _, headers in other.requests] == [False]
        archive.answer = _status(503)
        with pytest.raises(Failure) as caught:
            mirror([file], archives=[with_secret])
    finally:
        other.close()
    said = json.dumps([caught.value.what, caught.value.hint, *caught.value.details]) + "".join(
        capfd.readouterr()
    )
    assert "s3cret" not in said
    assert "dXNlcjpzM2NyZXQ" not in said


def test_progress_ends_at_the_total(
    debs: Any, mirror: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    files = [debs.locked(debs.make(name, {"usr/x": "y" * 500})) for name in "abc"]
    mirror(files, pools=[debs.folder])
    lines = [
        line.removeprefix("@progress ")
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("@progress ")
    ]
    total = sum(file["size"] for file in files)
    assert json.loads(lines[-1]) == {"done": total, "total": total, "unit": "bytes"}


def test_two_mirrors_share_one_download(debs: Any, archive: Archive, mirror: Callable[..., Path]) -> None:
    def slow(request: BaseHTTPRequestHandler, content: bytes) -> None:
        time.sleep(0.2)
        serve(request, content)

    archive.answer = slow
    file = debs.locked(debs.make("hello", {}))
    done: list[Path] = []
    threads = [
        threading.Thread(target=lambda: done.append(mirror([file], archives=[archive.url])))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 2
    assert all((repository / file["pool_path"]).is_file() for repository in done)


@pytest.mark.parametrize("path", ["../x.deb", "pool/../../x.deb", "/etc/x.deb", "pool//x.deb", "x.deb"])
def test_an_escaping_pool_path_is_refused(path: str, debs: Any, mirror: Callable[..., Path]) -> None:
    file = debs.locked(debs.make("hello", {})) | {"pool_path": path}
    with pytest.raises(Failure, match="pool path"):
        mirror([file], pools=[debs.folder])


def test_a_full_disk_is_told(
    debs: Any, mirror: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/out")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(Failure, match="No space left") as caught:
        mirror([debs.locked(debs.make("hello", {}))], pools=[debs.folder])
    assert caught.value.code == "disk"

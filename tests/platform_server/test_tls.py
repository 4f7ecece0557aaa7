"""HTTPS by the real process: which certificates are taken, what is spoken, and renewal without a restart."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from platform_server.errors import StateError
from platform_server.tls import Tls
from tests.platform_server.conftest import Made
from tests.platform_server.process import Process, process

pytestmark = pytest.mark.one_database


def write_pair(
    folder: Path, name: str, *, days: int = 1, passphrase: bytes | None = None
) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 with that common name, by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    end = datetime.now(UTC) + timedelta(days=days)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=10))
        .not_valid_after(end)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].touch(0o600)
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(passphrase)
            if passphrase
            else serialization.NoEncryption(),
        )
    )
    return paths


def _served(port: int, context: ssl.SSLContext | None = None) -> tuple[str, str | None]:
    """The common name of the certificate that is served, and the protocol."""
    if context is None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), 30) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        shown = x509.load_der_x509_certificate(wrapped.getpeercert(binary_form=True) or b"")
        (name,) = shown.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(name.value), wrapped.version()


def test_https_with_a_certificate_that_is_renewed_while_it_serves(
    made: Made, tmp_path: Path, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    certificate, key = write_pair(tmp_path, "first")
    with process(made, "--tls-certificate", certificate, "--tls-key", key) as served:
        assert served.url.startswith("https://127.0.0.1:")
        assert _served(served.port) == ("first", "TLSv1.3")
        assert (
            httpx.get(f"{served.url}/healthz", verify=False, trust_env=False, timeout=60).status_code == 200
        )
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{served.port}/healthz", trust_env=False)

        other, its_key = write_pair(tmp_path, "second")
        certificate.write_bytes(other.read_bytes())
        served.signal(signal.SIGHUP)
        wait_for(lambda: bool(served.lines(level="error")))
        (refused,) = served.lines(level="error")
        assert "not the key of" in refused["message"]
        assert _served(served.port)[0] == "first"

        key.write_bytes(its_key.read_bytes())
        served.signal(signal.SIGHUP)
        wait_for(lambda: bool(served.lines("the certificate was read again")))
        assert _served(served.port)[0] == "second"
        assert served.stop() == 0


def test_old_protocols_and_ciphers_are_not_spoken(made: Made, tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path, "platform")
    with process(made, "--tls-certificate", certificate, "--tls-key", key) as served:
        for version, ciphers, spoken in (
            (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES256-GCM-SHA384", True),
            (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES256-SHA", False),
            (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0", False),
        ):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_ciphers(ciphers)
            old = pytest.warns(DeprecationWarning, match="deprecated")
            with old if version < ssl.TLSVersion.TLSv1_2 else nullcontext():
                context.minimum_version = context.maximum_version = version
            if spoken:
                assert _served(served.port, context)[1] == "TLSv1.2"
            else:
                with pytest.raises(ssl.SSLError):
                    _served(served.port, context)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path, "platform")
    key.chmod(0o644)
    with pytest.raises(StateError, match="expected a key that others can't read, found mode 0644"):
        Tls(certificate, key)
    key.chmod(0o640)
    Tls(certificate, key)


def test_a_certificate_and_another_ones_key_are_refused(tmp_path: Path) -> None:
    certificate, _ = write_pair(tmp_path, "platform")
    _, key = write_pair(tmp_path, "other")
    with pytest.raises(StateError, match=r"other[.]key: not the key of .*platform[.]pem"):
        Tls(certificate, key)


def test_files_that_are_no_pair_are_refused(tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path, "platform")
    _, locked = write_pair(tmp_path, "locked", passphrase=b"secret")
    empty = tmp_path / "empty"
    empty.touch(0o600)
    for pair, error in (
        ((certificate, tmp_path / "none"), "none: No such file"),
        ((tmp_path / "none", key), "No such file"),
        ((empty, key), "expected a certificate and its key in PEM"),
        ((certificate, empty), "expected a certificate and its key in PEM"),
        ((key, key), "expected a certificate and its key in PEM"),
        ((certificate, locked), "the key has a passphrase"),
    ):
        with pytest.raises(StateError, match=error) as refused:
            Tls(*pair)
        assert "secret" not in refused.value.what


def test_a_certificate_that_expired_is_served_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Tls(*write_pair(tmp_path, "platform", days=-1))
    assert "no longer valid" in caplog.text


@contextmanager
def _https(made: Made, tmp_path: Path, *limits: str) -> Iterator[Process]:
    certificate, key = write_pair(tmp_path, "platform")
    words = [word for limit in limits for word in ("--limit", limit)]
    with process(made, "--tls-certificate", certificate, "--tls-key", key, *words) as served:
        yield served


def _client() -> tuple[ssl.MemoryBIO, ssl.MemoryBIO, ssl.SSLObject]:
    """A client's side without a connection: what comes, what goes, and the session."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    comes, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(comes, goes, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        session.do_handshake()
    return comes, goes, session


def _half_hello() -> bytes:
    hello = _client()[1].read()
    return hello[: len(hello) // 2]


def _is_closed(connection: socket.socket) -> bool:
    """Whether the other side closed it; waits for that."""
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("said", [b"", _half_hello()], ids=["nothing", "half a ClientHello"])
def test_a_handshake_under_way_is_a_connection_of_its_address(
    made: Made, tmp_path: Path, said: bytes, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    def connected() -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", served.port), 60)
        connection.sendall(said)
        return connection

    def answers() -> bool:
        with suppress(httpx.HTTPError):
            return (
                httpx.get(f"{served.url}/healthz", verify=False, trust_env=False, timeout=60).status_code
                == 200
            )
        return False

    with _https(made, tmp_path, "address_connections=3", "handshake_seconds=300") as served:
        held = [connected() for _ in range(3)]
        for _ in range(10):
            with connected() as one_more:
                assert _is_closed(one_more)
        assert not answers()
        held.pop().close()
        wait_for(answers)
        assert served.stop() == 0
        for each in held:
            assert _is_closed(each)
            each.close()


def test_a_connection_counts_once_when_its_handshake_is_done(made: Made, tmp_path: Path) -> None:
    with _https(made, tmp_path, "address_connections=3") as served, ExitStack() as stack:
        for _ in range(3):
            client = stack.enter_context(httpx.Client(verify=False, trust_env=False, timeout=60))
            for _ in range(2):
                assert client.get(f"{served.url}/healthz").status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{served.url}/healthz", verify=False, trust_env=False, timeout=60)


@pytest.mark.parametrize(
    "said",
    [b"", _half_hello(), b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"],
    ids=["nothing", "half a ClientHello", "no TLS"],
)
def test_a_handshake_that_does_not_end_is_closed(made: Made, tmp_path: Path, said: bytes) -> None:
    with _https(made, tmp_path, "handshake_seconds=0.5") as served:
        opened = len(os.listdir(f"/proc/{served.popen.pid}/fd"))
        held = [socket.create_connection(("127.0.0.1", served.port), 60) for _ in range(60)]
        for each in held:
            with suppress(ConnectionError):
                each.sendall(said)
        for each in held:
            while not _is_closed(each):
                pass
            each.close()
        counted = httpx.get(
            f"{served.url}/metrics",
            headers={"authorization": f"Bearer {made.admin_token}"},
            verify=False,
            trust_env=False,
            timeout=60,
        ).text
        late = f'disk_image_limited_total{{limit="handshake_seconds"}} {len(held)}.0'
        assert (late in counted.splitlines()) is not said.startswith(b"GET")
        # the database's may be opened meanwhile
        assert len(os.listdir(f"/proc/{served.popen.pid}/fd")) < opened + len(held) // 2
        assert _served(served.port)[0] == "platform"
        assert [line for line in served.lines() if line["level"] in ("warning", "error")] == [
            line for line in served.lines() if "--trust" in line["message"]
        ]


def test_a_request_that_comes_with_the_end_of_its_handshake_is_answered(made: Made, tmp_path: Path) -> None:
    with (
        _https(made, tmp_path) as served,
        socket.create_connection(("127.0.0.1", served.port), 60) as connection,
    ):
        comes, goes, session = _client()
        connection.sendall(goes.read())
        while True:
            comes.write(connection.recv(65536))
            with suppress(ssl.SSLWantReadError):
                session.do_handshake()
                break
        session.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        connection.sendall(goes.read())
        answer = b""
        while b'{"status":"ok"}' not in answer:
            received = connection.recv(65536)
            assert received, answer
            comes.write(received)
            with suppress(ssl.SSLWantReadError):
                # one record at a time, of which several may have come
                while b'{"status":"ok"}' not in answer:
                    answer += session.read(65536)
        assert answer.startswith(b"HTTP/1.1 200")

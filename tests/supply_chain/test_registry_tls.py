"""TLS: the system's authorities, a private one, and none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import pytest

from pipelines.errors import UsageError
from supply_chain.errors import BrokenAnswer, Unavailable
from supply_chain.oci import Descriptor, digest_of
from supply_chain.registry import Policy, open_repository
from supply_chain.registry.wire import proxy_for
from tests.supply_chain.registry_server import RegistryServer, registry
from tests.waits import Waits

FILES = Path(__file__).parent / "tls"
CONTENT = b"content"
BLOB = Descriptor(media_type="a/b", digest=digest_of(CONTENT), size=len(CONTENT))


@pytest.fixture
def tls_server() -> Iterator[RegistryServer]:
    """A registry whose certificate is for 127.0.0.1 and signed by the authority in ca.pem."""
    with registry((FILES / "server.pem", FILES / "server.key")) as running:
        running.repo("a").blobs[BLOB.digest] = CONTENT
        yield running


def _read(host: str, policy: Policy, *, plain_http: bool = False, ca_file: Path | None = None) -> bytes:
    async def run() -> bytes:
        async with open_repository(
            host, "a", policy=policy, plain_http=plain_http, ca_file=ca_file
        ) as repository:
            return await repository.read(BLOB, 100)

    return anyio.run(run)


def test_a_private_authority(tls_server: RegistryServer, policy: Policy) -> None:
    assert _read(tls_server.host, policy, ca_file=FILES / "ca.pem") == CONTENT


def test_an_unknown_authority_is_told_once(tls_server: RegistryServer, policy: Policy, waits: Waits) -> None:
    with pytest.raises(Unavailable, match="not trusted") as caught:
        _read(tls_server.host, policy)
    assert "--ca-file" in caught.value.hint
    assert waits.slept == []
    assert tls_server.seen == []


def test_a_certificate_for_another_name(tls_server: RegistryServer, policy: Policy) -> None:
    port = tls_server.host.rpartition(":")[2]
    with pytest.raises(Unavailable, match="not trusted"):
        _read(f"localhost:{port}", policy, ca_file=FILES / "ca.pem")


def test_https_to_a_plain_registry_names_the_flag(
    server: RegistryServer, policy: Policy, waits: Waits
) -> None:
    with pytest.raises(Unavailable, match="does not speak TLS") as caught:
        _read(server.host, policy)
    assert "--plain-http" in caught.value.hint
    assert waits.slept == []


def test_there_is_no_fall_back_to_plain_http(tls_server: RegistryServer, policy: Policy) -> None:
    with registry() as plain:
        tls_server.redirect_blobs = f"http://{plain.host}"
        with pytest.raises(BrokenAnswer, match="not https"):
            _read(tls_server.host, policy, ca_file=FILES / "ca.pem")
        assert plain.seen == []


def test_the_proxy_of_the_environment_is_never_between_us_and_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://proxy.example.org:3128")
    monkeypatch.setenv("no_proxy", "inside.example.org")
    assert proxy_for(httpx.URL("https://registry.example.org/v2/")) == "http://proxy.example.org:3128"
    assert proxy_for(httpx.URL("https://inside.example.org/v2/")) is None
    for host in ("127.0.0.1:5000", "localhost", "[::1]:5000"):
        assert proxy_for(httpx.URL(f"http://{host}/v2/")) is None


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_a_file_without_an_authority(content: str | None, policy: Policy, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=r"ca\.pem"):
        _read("registry.example.org", policy, ca_file=path)

"""The secret half of an embedded trust: who can read it, and whether it fits the trusted root."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from supply_chain.errors import TrustError
from supply_chain.trust import init_embedded, load_trust, running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    init_embedded(tmp_path / "trust")
    return tmp_path / "trust"


def start(folder: Path, port: int = 0) -> None:
    """Start and end the services."""

    async def once() -> None:
        async with running(load_trust(folder), port=port):
            pass

    anyio.run(once)


@pytest.mark.parametrize("path", ["private", "private/issuer.pem", "private/ca.pem", "private/log.pem"])
@pytest.mark.parametrize("mode", [0o040, 0o004, 0o020])
def test_keys_that_others_can_read_are_not_used(folder: Path, path: str, mode: int) -> None:
    (folder / path).chmod((folder / path).stat().st_mode | mode)
    with pytest.raises(TrustError, match="others than its owner can read it") as caught:
        start(folder)
    assert f"chmod go= {folder / path}" in caught.value.hint


@pytest.mark.parametrize("name", ["ca", "ct", "log", "tsa"])
def test_a_key_of_another_trust_does_not_fit(folder: Path, tmp_path: Path, name: str) -> None:
    init_embedded(tmp_path / "other")
    (tmp_path / "other" / "private" / f"{name}.pem").replace(folder / "private" / f"{name}.pem")
    with pytest.raises(TrustError, match=rf"{name}\.pem: is not the key that the trusted root names"):
        start(folder)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_named(folder: Path, content: bytes) -> None:
    (folder / "private" / "log.pem").write_bytes(content)
    with pytest.raises(TrustError, match=r"log\.pem: is no ECDSA P-256 key"):
        start(folder)


def test_a_missing_key_is_named(folder: Path) -> None:
    (folder / "private" / "tsa.pem").unlink()
    with pytest.raises(TrustError, match=r"tsa\.pem: No such file"):
        start(folder)


def test_a_port_that_is_taken_is_named(folder: Path) -> None:
    async def twice() -> None:
        async with running(load_trust(folder)) as trust:
            assert trust.config is not None
            port = int(trust.config.ca_urls[0].url.rpartition(":")[2])
            with pytest.raises(TrustError, match=f"127.0.0.1:{port}: can't be listened on"):
                async with running(load_trust(folder), port=port):
                    pass

    anyio.run(twice)

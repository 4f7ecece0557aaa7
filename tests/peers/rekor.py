"""Rekor with tiles (version 2), its storage a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.peers.programs import go_program
from tests.peers.server import serving

URL = "http://127.0.0.1:5820"


@contextmanager
def rekor(folder: Path, network: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Run it; gives its URL and the file of its public key. Its checkpoints are named by the URL's host."""
    key = ec.generate_private_key(ec.SECP256R1())
    secret, public = folder / "rekor-key.pem", folder / "rekor.pem"
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    argv: list[str | Path] = [
        go_program("rekor-tiles"), "serve", "--hostname=127.0.0.1", f"--storage-dir={folder / 'rekor'}",
        f"--signer-filepath={secret}", "--checkpoint-interval=1s",
        "--http-address=127.0.0.1", "--http-port=5820", "--grpc-address=127.0.0.1", "--grpc-port=5821",
        "--http-metrics-port=5822",
    ]  # fmt: skip
    with serving(argv, f"{URL}/healthz", folder / "rekor.log", network=network):
        yield URL, public

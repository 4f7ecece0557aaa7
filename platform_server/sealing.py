"""Webhook secrets at rest: AES-256-GCM under the key in the state folder; and signatures under a key that is
derived from it.

Each ciphertext is bound to what it belongs to, so that one copied to another row does not open there.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from platform_server.errors import StateError

KEY_BYTES = 32
_NONCE = 12
_RESTORE = "restore the key from a backup of the state folder: without it webhooks must be rotated"


class Sealer:
    """Seals and opens short texts, and signs those that may be read."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        # RFC 5869: what one key is for is of no use for the other
        self._signing = HKDF(SHA256(), KEY_BYTES, salt=None, info=b"signatures").derive(key)

    def sign(self, text: str) -> str:
        """The text's HMAC-SHA256, in hex."""
        return hmac.new(self._signing, text.encode(), hashlib.sha256).hexdigest()

    def is_signed(self, text: str, signature: str) -> bool:
        """Whether `signature` is the text's; takes the same time either way."""
        return hmac.compare_digest(self.sign(text).encode(), signature.encode())

    def seal(self, text: str, owner: str) -> bytes:
        """The ciphertext of `text`, which opens for the same `owner` only."""
        nonce = secrets.token_bytes(_NONCE)
        return nonce + self._cipher.encrypt(nonce, text.encode(), owner.encode())

    def open(self, sealed: bytes, owner: str) -> str:
        """The text. Raises StateError when it was sealed with another key, or for another owner."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], owner.encode()).decode()
        except (InvalidTag, ValueError):
            raise StateError(f"the secret of {owner} does not open with this key", _RESTORE) from None


def make_key(path: Path) -> None:
    """Write a new key that only its owner can read. An existing file is left as it is."""
    content = secrets.token_bytes(KEY_BYTES)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # A link, not a rename: whoever came first stays.
        try:
            os.link(new, path)
        except FileExistsError:
            return
    finally:
        new.unlink()


def read_key(path: Path) -> bytes:
    """The key. Raises StateError when it is missing, of another length, or readable by others."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            key = file.read(KEY_BYTES + 1)
    except OSError as error:
        raise StateError(f"{path}: {error.strerror or error}", _RESTORE) from None
    if stat.S_IMODE(mode) & 0o077:
        raise StateError(
            f"{path}: expected mode 0600, found {stat.S_IMODE(mode):04o}: others may have read the key",
            f"chmod 0600 {path}, and rotate every webhook's secret",
        )
    if len(key) != KEY_BYTES:
        raise StateError(f"{path}: expected {KEY_BYTES} bytes, found {len(key)}", _RESTORE)
    return key

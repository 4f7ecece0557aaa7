"""Webhook secrets at rest: AES-256-GCM under the key in the state folder.

Each ciphertext is bound to what it belongs to, so that one copied to another row does not open there.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from platform_server.errors import StateError

KEY_BYTES = 32
_NONCE = 12
_RESTORE = "restore the key from a backup of the state folder: without it webhooks must be rotated"


class Sealer:
    """Seals and opens short texts."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

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

"""A log's checkpoint: a signed note over its origin, size and root hash.

https://github.com/C2SP/C2SP/blob/main/tlog-checkpoint.md and signed-note.md. An ECDSA key's id in a note
is the first 4 bytes of the SHA-256 of its DER SubjectPublicKeyInfo, as rekor-tiles and sigstore-go compute
it, so that the log's id and the note's hint are the same digest.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from supply_chain.errors import TrustError
from supply_chain.trust.certificates import key_id

_MARK = "— "


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a note says, and its signatures by the name of who made them."""

    origin: str
    tree_size: int
    signed: bytes
    signatures: tuple[tuple[str, bytes], ...]

    def signed_by(self, name: str, key: PublicKeyTypes) -> bool:
        """Whether `key` made one of the signatures in this name. The hints before them are passed over."""
        return any(who == name and _holds(key, signature, self.signed) for who, signature in self.signatures)


def sign_checkpoint(origin: str, tree_size: int, root: bytes, key: ec.EllipticCurvePrivateKey) -> str:
    """The note's text. `origin` has neither whitespace nor "+"."""
    text = f"{origin}\n{tree_size}\n{base64.b64encode(root).decode()}\n"
    signature = key.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
    hint = key_id(key.public_key())[:4]
    return f"{text}\n{_MARK}{origin} {base64.b64encode(hint + signature).decode()}\n"


def read_checkpoint(text: str, where: str) -> Checkpoint:
    """Read a note; nothing in it is verified yet. Raises TrustError, which says `where` it came from."""
    body, blank, marks = text.rpartition("\n\n")
    lines = body.split("\n")
    try:
        if not blank or len(lines) < 3 or not lines[0]:
            raise ValueError
        signatures = []
        for line in marks.splitlines():
            name, _, encoded = line.removeprefix(_MARK).partition(" ")
            signatures.append((name, base64.b64decode(encoded, validate=True)[4:]))
        return Checkpoint(lines[0], int(lines[1]), f"{body}\n".encode(), tuple(signatures))
    except (ValueError, binascii.Error):
        raise TrustError(
            f"{where}: answers with no checkpoint",
            "see that the URL is the log's own, without the path of its API",
        ) from None


def _holds(key: PublicKeyTypes, signature: bytes, signed: bytes) -> bool:
    try:
        match key:
            case ec.EllipticCurvePublicKey():
                key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
            case ed25519.Ed25519PublicKey():
                key.verify(signature, signed)
            case rsa.RSAPublicKey():
                key.verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
            case _:
                return False
    except InvalidSignature:
        return False
    return True

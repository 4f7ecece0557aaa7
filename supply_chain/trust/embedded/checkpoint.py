"""A log's checkpoint: a signed note over its origin, size and root hash.

https://github.com/C2SP/C2SP/blob/main/tlog-checkpoint.md and signed-note.md. An ECDSA key's id in a note
is the first 4 bytes of the SHA-256 of its DER SubjectPublicKeyInfo, as rekor-tiles and sigstore-go compute
it, so that the log's id and the note's hint are the same digest.
"""

from __future__ import annotations

import base64

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from supply_chain.trust.certificates import key_id


def sign_checkpoint(origin: str, tree_size: int, root: bytes, key: ec.EllipticCurvePrivateKey) -> str:
    """The note's text. `origin` has neither whitespace nor "+"."""
    text = f"{origin}\n{tree_size}\n{base64.b64encode(root).decode()}\n"
    signature = key.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
    hint = key_id(key.public_key())[:4]
    return f"{text}\n— {origin} {base64.b64encode(hint + signature).decode()}\n"

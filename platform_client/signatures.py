"""How a webhook's body is signed, in both forms that platforms read.

The key is the same for both: the UTF-8 bytes of the whole secret, as it was shown once (`pndis_…`).

X-Powernode-Signature says that whoever sent the body knows the secret. The headers of Standard Webhooks 1.0
(https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md) also say when,
and which delivery it is, so that a recorded request can't be played again.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets

# Standard Webhooks joins id, time and body by full stops: an id with one could be read in two ways.
DELIVERY_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def new_delivery_id() -> str:
    """A random id for one delivery; all of its attempts have the same."""
    return f"msg_{secrets.token_hex(16)}"


def powernode_signature(key: bytes, body: bytes) -> str:
    """The value of X-Powernode-Signature: `sha256=` and the hex HMAC-SHA256 (RFC 2104) of the raw body."""
    return f"sha256={hmac.new(key, body, hashlib.sha256).hexdigest()}"


def standard_signature(key: bytes, delivery_id: str, timestamp: int, body: bytes) -> str:
    """The value of webhook-signature: `v1,` and the HMAC-SHA256 of `id.timestamp.body` in base64.

    `timestamp` is in seconds since the epoch.
    """
    content = f"{delivery_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()


def signed_headers(key: bytes, delivery_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """What an attempt at `timestamp` is sent with."""
    return {
        "x-powernode-signature": powernode_signature(key, body),
        "webhook-id": delivery_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": standard_signature(key, delivery_id, timestamp, body),
    }

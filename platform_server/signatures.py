"""The two forms of a webhook's signature, both HMAC-SHA256 under the UTF-8 bytes of the whole secret.

Plain: `X-Powernode-Signature`, over the body: `sha256=<hex>`, bare hex, or base64. It says nothing of when.
Standard Webhooks (https://www.standardwebhooks.com, version 1.0.0): `webhook-id`, `webhook-timestamp` in
seconds and `webhook-signature`, a list of `v1,<base64>`, over `id.timestamp.body`.

How long a check takes depends on neither the secret nor on what is wrong: it always computes one HMAC a
secret, and compares every form in constant time.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

# More signatures in one header than any rotation needs.
_MOST_SIGNATURES = 8
_ID = re.compile(r"[\x21-\x7e]{1,256}")
_TIMESTAMP = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class SignatureHeaders:
    """What came with a delivery; None: no such header."""

    plain: str | None = None
    webhook_id: str | None = None
    webhook_timestamp: str | None = None
    webhook_signature: str | None = None

    @property
    def is_standard(self) -> bool:
        """Whether any of Standard Webhooks' headers is there: then they decide, and nothing else."""
        return any(
            each is not None for each in (self.webhook_id, self.webhook_timestamp, self.webhook_signature)
        )


def is_signed(
    headers: SignatureHeaders,
    body: bytes,
    secrets: Sequence[str],
    now: datetime,
    tolerance: timedelta,
    *,
    plain_allowed: bool = True,
) -> bool:
    """Whether the headers sign `body` with one of the secrets, and not too long before or after `now`."""
    if headers.is_standard:
        return _standard(headers, body, secrets, now, tolerance)
    return _plain(headers.plain or "", body, secrets) and plain_allowed and bool(body)


def _plain(header: str, body: bytes, secrets: Sequence[str]) -> bool:
    sent = _bytes(header)
    held = False
    for secret in secrets:
        digest = hmac.digest(secret.encode(), body, hashlib.sha256)
        for form in (f"sha256={digest.hex()}", digest.hex(), base64.b64encode(digest).decode()):
            held |= hmac.compare_digest(form.encode(), sent)
    return held


def _standard(
    headers: SignatureHeaders, body: bytes, secrets: Sequence[str], now: datetime, tolerance: timedelta
) -> bool:
    identifier, timestamp = headers.webhook_id or "", headers.webhook_timestamp or ""
    signed = _bytes(f"{identifier}.{timestamp}.") + body
    sent = [_bytes(each) for each in (headers.webhook_signature or "").split(" ")[:_MOST_SIGNATURES]]
    held = False
    for secret in secrets:
        digest = hmac.digest(secret.encode(), signed, hashlib.sha256)
        form = b"v1," + base64.b64encode(digest)
        for each in sent:
            held |= hmac.compare_digest(form, each)
    # An id that can't be kept, or a time that is no number, is wrong whoever signed it.
    if not _ID.fullmatch(identifier) or not _TIMESTAMP.fullmatch(timestamp):
        return False
    apart = abs(now.timestamp() - int(timestamp))
    return held and apart <= tolerance.total_seconds()


def _bytes(text: str) -> bytes:
    """A header's text as bytes, whatever is in it."""
    return text.encode(errors="surrogatepass")

"""Identity tokens as forges write them; their signatures are noise, since nothing here verifies them."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

GITEA = "https://git.example/api/actions/oidc"
WORKFLOW = "os/images/.gitea/workflows/build.yml@refs/heads/main"


def claims(**changes: Any) -> dict[str, Any]:
    """A Gitea job's, valid for five minutes from now; None takes a claim away."""
    now = int(time.time())
    whole = {
        "iss": GITEA,
        "sub": "repo:os/images:ref:refs/heads/main",
        "aud": "sigstore",
        "iat": now,
        "nbf": now,
        "exp": now + 300,
        "workflow_ref": WORKFLOW,
        "repository": "os/images",
        **changes,
    }
    return {name: value for name, value in whole.items() if value is not None}


def token(**changes: Any) -> str:
    """The token with these claims."""
    return encoded(json.dumps(claims(**changes)).encode())


def encoded(payload: bytes, header: bytes = b'{"alg":"RS256","typ":"JWT"}') -> str:
    """Any bytes as a token's middle part."""
    parts = (header, payload, b"c4n4ry-signature" * 8)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)

"""An OpenID Connect issuer whose tokens are made where its key lies, never over HTTP.

Discovery and keys are served, so that a certificate authority elsewhere could check the tokens
(OpenID Connect Discovery 1.0, RFC 7517). Tokens are JWTs (RFC 7519) signed with ES256.
"""

from __future__ import annotations

import base64
import re
import time
import uuid

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from supply_chain.errors import TokenError
from supply_chain.trust.certificates import key_id

AUDIENCE = "sigstore"
# Seconds. A token serves one signing, minutes after it was made at the most.
TOKEN_LIFE = 300

_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")
_URI = re.compile(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+")


def is_email(identity: str) -> bool:
    """Whether a certificate names `identity` as an email address; else it must be an absolute URI.

    Raises TokenError when it is neither.
    """
    if len(identity) <= 1024:
        if _EMAIL.fullmatch(identity):
            return True
        if _URI.fullmatch(identity):
            return False
    raise TokenError(
        f"{identity[:100]!r} is neither an email address nor an absolute URI",
        "sign as for example builder@localhost or https://git.example/org/images",
    )


class Issuer:
    """The issuer named `url` with its key."""

    def __init__(self, url: str, key: ec.EllipticCurvePrivateKey) -> None:
        self.url = url
        self._key = key
        self._kid = key_id(key.public_key()).hex()[:16]

    def issue(self, identity: str) -> str:
        """A token for `identity`, valid for TOKEN_LIFE seconds from now. Raises TokenError."""
        email = {"email": identity, "email_verified": True} if is_email(identity) else {}
        now = int(time.time())
        claims = {
            "iss": self.url,
            "sub": identity,
            "aud": AUDIENCE,
            "iat": now,
            "nbf": now,
            "exp": now + TOKEN_LIFE,
            "jti": uuid.uuid4().hex,
            **email,
        }
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": self._kid})

    def identity(self, token: str) -> str:
        """Who the token is of. (1) Signature by this issuer's key, with its algorithm, (2) issuer, (3)
        audience, (4) time, (5) a subject that can stand in a certificate.

        Raises TokenError; its text holds nothing of the token.
        """
        try:
            claims = jwt.decode(  # (1), (2), (3), (4)
                token,
                self._key.public_key(),
                algorithms=["ES256"],
                issuer=self.url,
                audience=AUDIENCE,
                options={"require": ["iss", "sub", "aud", "iat", "exp"]},
            )
        except (jwt.InvalidTokenError, RecursionError) as error:
            raise TokenError(
                f"the identity token is refused: {type(error).__name__}",
                f"it must be of {self.url}, for the audience {AUDIENCE}, and not expired",
            ) from None
        subject = str(claims["sub"])
        if is_email(subject) and not (
            claims.get("email") == subject and claims.get("email_verified") is True
        ):
            raise TokenError(  # (5)
                "the identity token's subject is an email address that it does not vouch for",
                "have its claims email and email_verified say so",
            )
        return subject

    def discovery(self, base_url: str) -> dict[str, object]:
        """The document at /.well-known/openid-configuration, served at `base_url`."""
        return {
            "issuer": self.url,
            "jwks_uri": f"{base_url}/jwks",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        }

    def jwks(self) -> dict[str, object]:
        """The key set (RFC 7517): one P-256 key (RFC 7518 section 6.2.1)."""
        numbers = self._key.public_key().public_numbers()
        x, y = (
            base64.urlsafe_b64encode(n.to_bytes(32, "big")).rstrip(b"=").decode()
            for n in (numbers.x, numbers.y)
        )
        key = {"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": self._kid, "use": "sig", "alg": "ES256"}
        return {"keys": [key]}

"""Identity tokens: who signs, by an OpenID Connect issuer's word (OpenID Connect Core 1.0, section 2).

A token is read here only to say what is wrong with one. Nothing is verified: that is for the certificate
authority. The token itself is a secret while it lasts and stands in no error, log or repr.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from supply_chain.errors import InvalidDocument, TokenError
from supply_chain.oci import parse_object

AUDIENCE = "sigstore"
# How far this machine's clock may be from the issuer's, in seconds. Tokens last some minutes.
CLOCK_SKEW = 60
# GitHub's and Gitea's have some two kilobytes.
_LIMIT = 16 * 1024
# Three parts of base64url (RFC 7515, 7.1).
_JWT = re.compile(r"[A-Za-z0-9_-]+\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+")
_FORGE = re.compile(r"/\.([a-z]+)/workflows/")
_SHOWN = 400

_Seconds = Annotated[float, Field(ge=0, lt=1e11)]


class _Claims(BaseModel):
    """The claims that are used (RFC 7519, 4.1); others are an issuer's own business."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    iss: str
    sub: str
    # RFC 7519 allows one text in place of a list of one, and forges write either.
    aud: str | Annotated[tuple[str, ...], Field(strict=False)]
    exp: _Seconds
    nbf: _Seconds | None = None
    iat: _Seconds | None = None
    email: str | None = None
    workflow_ref: str | None = None
    job_workflow_ref: str | None = None


@dataclass(frozen=True, slots=True)
class IdentityToken:
    """A token from `source` (a name for people), with what it says of itself. `secret` is what is sent."""

    secret: str = field(repr=False)
    source: str
    claims: _Claims

    @property
    def issuer(self) -> str:
        """Who vouches, a URL."""
        return self.claims.iss

    @property
    def audiences(self) -> tuple[str, ...]:
        """Whom the token is meant for."""
        aud = self.claims.aud
        return (aud,) if isinstance(aud, str) else aud

    def describe(self) -> str:
        """Issuer, subject, audience and expiry: what a person needs to see why it was refused."""
        audiences = ", ".join(self.audiences) or "none"
        return (
            f"issuer {_shown(self.issuer)}, subject {_shown(self.claims.sub)}, "
            f"audience {_shown(audiences)}, expires {_time(self.claims.exp)}"
        )

    def check(self, now: float) -> None:
        """Raise TokenError unless the token can serve at `now` (seconds since the epoch), give or take
        CLOCK_SKEW.
        """
        said = f"the identity token from {self.source}"
        if AUDIENCE not in self.audiences:
            raise TokenError(
                f"{said} is not for {AUDIENCE} ({self.describe()})",
                f"ask its issuer for a token with the audience {AUDIENCE}",
            )
        if now >= self.claims.exp + CLOCK_SKEW:
            raise TokenError(
                f"{said} has expired; this machine's clock says {_time(now)} ({self.describe()})",
                "sign with a new token; if it is new, set the clock of this machine",
            )
        starts = max(filter(None, (self.claims.nbf, self.claims.iat)), default=now)
        if starts > now + CLOCK_SKEW:
            raise TokenError(
                f"{said} is valid only from {_time(starts)} on; this machine's clock says {_time(now)} "
                f"({self.describe()})",
                "set the clock of this machine, or the issuer's",
            )

    def may_name(self, identity: str) -> bool:
        """Whether a certificate authority would write `identity` into a certificate for this token.

        Fulcio writes the mail address, the subject, or for a workflow its URL at the forge
        (https://github.com/sigstore/fulcio/blob/main/docs/oidc.md); False when that can't be told.
        """
        claims = self.claims
        workflows = (claims.workflow_ref, claims.job_workflow_ref)
        return identity in (claims.sub, claims.email) or any(
            ref and re.fullmatch(rf"https?://[^/]+/{re.escape(ref)}", identity) for ref in workflows
        )

    def fulcio_line(self) -> str:
        """The line below `oidc-issuers` that has a Fulcio accept this issuer
        (https://github.com/sigstore/fulcio/blob/main/docs/setup.md).
        """
        claims, subject = self.claims, urlsplit(self.claims.sub)
        if workflow := claims.workflow_ref or claims.job_workflow_ref:
            forge = _FORGE.search(workflow)
            kind = f"ci-provider, ci-provider: {forge[1] if forge else 'gitea'}-workflow"
        elif claims.email:
            kind = "email"
        elif subject.netloc:
            kind = f"uri, subject-domain: {json.dumps(f'{subject.scheme}://{subject.netloc}')}"
        else:
            kind = f"username, subject-domain: {json.dumps(urlsplit(claims.iss).netloc)}"
        issuer = json.dumps(claims.iss)
        return _shown(f"{issuer}: {{issuer-url: {issuer}, client-id: {AUDIENCE}, type: {kind}}}")


def read_token(text: str, source: str) -> IdentityToken:
    """The token in `text`. Raises TokenError, which names `source` and never the text."""
    secret = text.strip()
    found = _JWT.fullmatch(secret) if len(secret) <= _LIMIT else None
    if found is None:
        raise _unreadable(source, "three parts of base64url", f"{len(secret)} characters of something else")
    try:
        content = base64.urlsafe_b64decode(found[1] + "=" * (-len(found[1]) % 4))
        return IdentityToken(secret, source, _Claims.model_validate(parse_object(content, "claims")))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        claim = first["loc"][0]
        raise _unreadable(source, f"the claim {claim}", _problem(first)) from None
    except (ValueError, InvalidDocument):
        # What these errors quote is of the token.
        raise _unreadable(source, "claims as a JSON object", "something else") from None


def _problem(error: Any) -> str:
    return "none" if error["type"] == "missing" else f"one of another type ({error['msg']})"


def _unreadable(source: str, expected: str, found: str) -> TokenError:
    return TokenError(
        f"what {source} gives is no identity token: expected {expected}, found {found}",
        "give the token as the issuer wrote it, a JSON Web Token",
    )


def _shown(text: str) -> str:
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean if len(clean) <= _SHOWN else f"{clean[:_SHOWN]}…"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

"""Whose signatures count: the signer's identity and who vouches for it, each exactly or by a regexp.

A regexp is matched against the whole text, so that `https://git.example/org/.*` does not also mean
`https://evil.example/?https://git.example/org/`. Its syntax is RE2's, which is also cosign's. RE2 takes time
linear in the text, so that a regexp from somebody's settings can't hang a verifier.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import re2
from cryptography import x509
from cryptography.hazmat import asn1

from pipelines.errors import UsageError
from supply_chain.errors import OtherSigner, VerificationError

# https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md
_ISSUER_OLD = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_USER_NAME = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.7")

_LONGEST = 2048


@dataclass(frozen=True, slots=True)
class Signer:
    """Who a certificate was made out to (a workflow's URL, a mail address, …) by which issuer's word."""

    identity: str
    issuer: str

    def __str__(self) -> str:
        return f"{self.identity} (issuer {self.issuer})"


@dataclass(frozen=True)
class Rule:
    """What a text must be: `text` exactly, or as a whole a match of the RE2 regexp `text`."""

    text: str
    regexp: bool = False

    def __post_init__(self) -> None:
        if not self.text or len(self.text) > _LONGEST or not self.text.isprintable():
            raise UsageError(
                f"expected 1 to {_LONGEST} printable characters to match a signer with, "
                f"found {len(self.text)}: {self.text[:80]!a}",
                "say who may sign: nobody is trusted by default",
            )
        if self.regexp and self._compiled.fullmatch("") is not None:
            raise UsageError(
                f"the regexp {self.text!r} also matches nothing at all",
                "name what is trusted; .+ if anyone whom the issuer vouches for may sign",
            )

    def matches(self, found: str) -> bool:
        """Whether the rule is met."""
        if not self.regexp:
            return found == self.text
        return self._compiled.fullmatch(found) is not None

    @cached_property
    def _compiled(self) -> Any:
        options = re2.Options()
        options.max_mem = 1 << 20
        options.log_errors = False
        try:
            return re2.compile(self.text, options)
        except re2.error as error:
            reason = error.args[0].decode(errors="replace") if error.args else "not a regexp"
            raise UsageError(
                f"the regexp {self.text!r}: {reason}", "its syntax is RE2's, as in cosign's options"
            ) from None

    def __str__(self) -> str:
        return f"to match {self.text}" if self.regexp else self.text


@dataclass(frozen=True, slots=True)
class SignerPolicy:
    """A signer counts when both rules are met."""

    identity: Rule
    issuer: Rule

    def check(self, signer: Signer) -> None:
        """Raises OtherSigner, naming who it is instead."""
        for what, rule, found in (
            ("identity", self.identity, signer.identity),
            ("issuer", self.issuer, signer.issuer),
        ):
            if not rule.matches(found):
                raise OtherSigner(
                    f"signed by {signer}, expected the {what} {rule}",
                    "if that signer may be trusted, name it with --identity and --issuer",
                    expected=str(rule),
                    found=found,
                    signer=str(signer),
                )


def signer_policy(
    *,
    identity: str | None = None,
    identity_regexp: str | None = None,
    issuer: str | None = None,
    issuer_regexp: str | None = None,
) -> SignerPolicy:
    """The policy of the four options: one of each pair must be given. Raises UsageError."""
    return SignerPolicy(
        identity=_rule("identity", identity, identity_regexp), issuer=_rule("issuer", issuer, issuer_regexp)
    )


def signer_of(certificate: x509.Certificate) -> Signer:
    """Identity and issuer of a signing certificate as Fulcio writes it. Raises VerificationError when either
    is missing or can be read in two ways.
    """
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if len(names) != 1:
        raise _unclear(f"expected one subject alternative name, found {len(names)}")
    (name,) = names
    if isinstance(name, x509.UniformResourceIdentifier | x509.RFC822Name):
        identity = name.value
    elif isinstance(name, x509.OtherName) and name.type_id == _USER_NAME:
        identity = _utf8_string(name.value)
    else:
        raise _unclear(f"expected a URI, mail address or user name, found {type(name).__name__}")
    issuers = {_utf8_string(content) for content in _extension(certificate, _ISSUER)} | {
        _text(content) for content in _extension(certificate, _ISSUER_OLD)
    }
    if len(issuers) != 1:
        raise _unclear(f"expected one issuer, found {' and '.join(sorted(issuers)) or 'none'}")
    (issuer,) = issuers
    for text in (identity, issuer):
        # A control character could make one signer look like another where it is printed.
        if not text or len(text) > _LONGEST or not text.isprintable():
            raise _unclear(f"expected 1 to {_LONGEST} printable characters, found {text[:80]!a}")
    return Signer(identity, issuer)


def _rule(what: str, exact: str | None, regexp: str | None) -> Rule:
    if (exact is None) == (regexp is None):
        raise UsageError(
            f"expected either the {what} or a regexp for it",
            f"give --{what} or --{what}-regexp",
        )
    return Rule(exact) if exact is not None else Rule(regexp or "", regexp=True)


def _extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> list[bytes]:
    try:
        found = certificate.extensions.get_extension_for_oid(oid).value
    except x509.ExtensionNotFound:
        return []
    assert isinstance(found, x509.UnrecognizedExtension)
    return [found.value]


def _utf8_string(content: bytes) -> str:
    try:
        return asn1.decode_der(str, content)
    except ValueError:
        raise _unclear("expected a DER UTF8String") from None


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise _unclear("expected UTF-8") from None


def _unclear(what: str) -> VerificationError:
    return VerificationError(
        f"signing certificate: {what}",
        "trust only certificates of an authority that follows Fulcio's profile",
    )

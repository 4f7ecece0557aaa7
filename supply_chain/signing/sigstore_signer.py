"""Signing with Sigstore's services: the one adapter of the port `Signer`, on sigstore-python.

What can be found wrong is found before the log has an entry, because an entry stays for ever:

1. The token can serve: audience, expiry, and for an embedded trust its issuer. Else no service is asked.
2. The authority gives a certificate, for as many statements as are signed in its ten minutes.
3. It is for our key, a certificate log of the trusted root has it, it chains to the trusted root, and it
   names one signer.
4. The statement is signed, and each timestamp authority has given a timestamp that the trusted root verifies
   and that lies in the certificate's time.
5. The log takes the entry.
6. The bundle verifies as a stranger would verify it: this trusted root, this signer, this statement.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from datetime import datetime
from functools import partial

import anyio
from cryptography.x509 import Certificate
from rfc3161_client import TimeStampResponse
from sigstore import dsse, errors, oidc, sign
from sigstore._internal.fulcio import ExpiredCertificate
from sigstore._internal.rekor.client import RekorClient
from sigstore._internal.rekor.client_v2 import RekorV2Client
from sigstore._internal.timestamp import (
    TimestampAuthorityClient,
    TimestampError,
    TimestampSource,
    TimestampVerificationResult,
)
from sigstore.models import SigningConfig
from sigstore.verify import Verifier
from sigstore_models.trustroot.v1 import TrustedRoot

from supply_chain.errors import SigningError, SupplyChainError, TokenError, TrustError, VerificationError
from supply_chain.registry.wire import Answer
from supply_chain.signing.requests_bridge import Bridge
from supply_chain.signing.services import Services, explanation, named
from supply_chain.signing.signer import SignedStatement, Signer
from supply_chain.signing.tokens import IdentityToken
from supply_chain.statement import parse_statement
from supply_chain.trust import Trust
from supply_chain.verify.bundle import BundleVerifier
from supply_chain.verify.policy import signer_of, signer_policy

_AUTHORITY, _LOG, _TIMESTAMPER = "certificate authority", "transparency log", "timestamp authority"
_CHECK = "check that the trust is the one of these services: disk-image trust check"
# What the service itself says it lacks, such as room on its disk; the token and the trust are fine.
_MEND = "mend that where the service runs, then run the same command again: the image stays as it was built"


async def open_signer(trust: Trust, token: IdentityToken, services: Services) -> Signer:
    """A signer with a certificate for the token's identity, from the services of `trust`, which are up.

    Raises TokenError before any service is asked, TrustError when the trust can't sign, SigningError and
    ServiceDown.
    """
    token.check(time.time())  # (1)
    if trust.embedded is not None and token.issuer != trust.embedded.issuer:
        raise TokenError(  # (1)
            f"the identity token from {token.source} is not of the embedded trust's issuer: expected "
            f"{trust.embedded.issuer}, found {token.describe()}",
            "leave the token out, or name the trust whose authority takes it",
        )
    return await anyio.to_thread.run_sync(_open, trust, token, services)


def signing_config(trust: Trust) -> SigningConfig:
    """Where to sign. Raises TrustError when the trust does not say it."""
    config = trust.signing_config
    if config is None:
        raise TrustError(
            f"{trust.path}: says whom to trust, but not where to sign", "name a trust.json that says both"
        )
    return config


def _open(trust: Trust, token: IdentityToken, services: Services) -> _SigstoreSigner:
    config = signing_config(trust)
    root = trust.trusted_root
    verifier = Verifier(trusted_root=root)
    fulcio, log = config.get_fulcio(), config.get_tlogs()[0]
    assert isinstance(log, RekorClient | RekorV2Client)
    timestampers = [_Timestamper(client.url, verifier) for client in config.get_tsas()]
    if not timestampers and isinstance(log, RekorV2Client):
        raise TrustError(
            f"{trust.path}: a log of version 2 tells no time, and there is no timestamp authority",
            "complete its signing configuration by tsaUrls",
        )
    context = sign.SigningContext(
        fulcio=fulcio, rekor=log, trusted_root=root, tsa_clients=list(timestampers)
    )
    where = named(_AUTHORITY, fulcio.url)
    Bridge(services, _AUTHORITY, partial(_refused_token, where, token)).carry(fulcio.session)
    with _usable(where, token.secret):
        client, certificate = _certificate(where, token, context, verifier)
        signer = _SigstoreSigner(client, certificate, log, timestampers, trust.root, services)
    for timestamper in timestampers:
        timestamper.certificate = certificate
    return signer


def _certificate(
    where: str, token: IdentityToken, context: sign.SigningContext, verifier: Verifier
) -> tuple[sign.Signer, Certificate]:
    """Steps 2 and 3, but for the signer's name."""
    try:
        client = sign.Signer(_Presented(token), context)  # (2); (3) its certificate log
        certificate = client._signing_cert()
        if certificate.public_key() != client._private_key.public_key():  # (3)
            raise SigningError(f"{where}: its certificate is for another key than was asked for", _CHECK)
        start = TimestampVerificationResult(
            TimestampSource.TIMESTAMP_AUTHORITY, certificate.not_valid_before_utc
        )
        verifier._verify_chain_at_time(certificate, start)  # (3)
    except ExpiredCertificate:
        raise SigningError(
            f"{where}: by the clock of this machine its new certificate has expired already",
            "set the clock of this machine, or the authority's",
        ) from None
    except errors.CertValidationError as error:
        raise SigningError(
            f"{where}: its certificate does not chain to the trusted root ({_short(error)})", _CHECK
        ) from None
    except errors.VerificationError as error:
        raise SigningError(
            f"{where}: no certificate log of the trusted root vouches for its certificate ({_short(error)})",
            f"have the authority log its certificates (Fulcio's --ct-log-url); {_CHECK}",
        ) from None
    return client, certificate


class _SigstoreSigner:
    def __init__(
        self,
        client: sign.Signer,
        certificate: Certificate,
        log: RekorClient | RekorV2Client,
        timestampers: Sequence[_Timestamper],
        root: TrustedRoot,
        services: Services,
    ) -> None:
        self._client = client
        self._log = log
        self._timestampers = timestampers
        self._verifier = BundleVerifier(root)
        self._services = services
        try:
            self._signer = signer_of(certificate)  # (3)
        except VerificationError as error:
            raise SigningError(error.what, error.hint) from None

    @property
    def identity(self) -> str:
        return self._signer.identity

    @property
    def issuer(self) -> str:
        return self._signer.issuer

    async def sign(self, statement: bytes) -> SignedStatement:
        return await anyio.to_thread.run_sync(self._sign, statement)

    def _sign(self, statement: bytes) -> SignedStatement:
        log = named(_LOG, self._log.url)
        # sigstore-python keeps one session a thread, and each statement may have another thread.
        Bridge(self._services, _LOG, partial(_refused, log)).carry(self._log._session)
        for timestamper in self._timestampers:
            refused = partial(_refused, timestamper.where)
            Bridge(self._services, _TIMESTAMPER, refused).carry(timestamper._session)
        with _usable(log):
            try:
                bundle = self._client.sign_dsse(_Statement(statement)).to_json().encode()  # (4), (5)
            except ExpiredCertificate:
                raise SigningError(
                    "the signing certificate expired before all was signed",
                    "run the same command again; if it stays so, see which service is slow",
                ) from None
        policy = signer_policy(identity=self.identity, issuer=self.issuer)
        try:
            verified = self._verifier.verify(bundle, policy, "the new bundle")  # (6)
        except VerificationError as error:
            raise SigningError(f"what was just signed does not verify: {error.what}", _CHECK) from None
        if verified.statement != parse_statement(statement, "the statement"):  # (6)
            raise SigningError("what was signed is not what was to be signed", _CHECK)
        return SignedStatement(bundle, verified.time)


class _Presented(oidc.IdentityToken):
    """The token as sigstore-python takes it, whose own reading allows no clock to be off."""

    def __init__(self, token: IdentityToken) -> None:
        self._raw_token = token.secret

    def in_validity_period(self) -> bool:
        """Step 1 has seen to it."""
        return True


class _Statement(dsse.Statement):
    """A statement as sigstore-python takes it, whose own model wants a name for the subject: ours have none,
    as cosign's.
    """

    def __init__(self, content: bytes) -> None:
        self._contents = content


class _Timestamper(TimestampAuthorityClient):
    """A timestamp authority whose failures are failures: sigstore-python's signer passes over them, and then
    the log has an entry that no bundle can use. `certificate` is the one that is to be valid.
    """

    certificate: Certificate

    def __init__(self, url: str, verifier: Verifier) -> None:
        super().__init__(url)
        self.where = named(_TIMESTAMPER, url)
        self._verifier = verifier

    def request_timestamp(self, signature: bytes) -> TimeStampResponse:
        """A verified timestamp of `signature`, step 4."""
        with _usable(self.where):
            try:
                response = super().request_timestamp(signature)
            except TimestampError as error:
                raise SigningError(f"{self.where}: {_short(error)}", _CHECK) from None
            said = response.tst_info.gen_time
            verified = self._verifier._verify_signed_timestamp(response, signature)
        if verified is None:
            raise SigningError(
                f"{self.where}: its timestamp, of {_time(said)}, does not verify with the trusted root",
                f"{_CHECK}; set the authority's clock if that is not the time",
            )
        start, end = self.certificate.not_valid_before_utc, self.certificate.not_valid_after_utc
        if not start <= verified.time <= end:
            raise SigningError(
                f"{self.where}: expected a time from {_time(start)} to {_time(end)}, when the signing "
                f"certificate is valid, found {_time(verified.time)}",
                "set the clock of the timestamp authority, or of the certificate authority",
            )
        return response


def _refused_token(where: str, token: IdentityToken, answer: Answer) -> SigningError:
    said = explanation(answer, (token.secret,))
    if answer.status >= 500:
        return SigningError(f"{where}: HTTP {answer.status}: {said}", _MEND)
    return SigningError(
        f"{where}: HTTP {answer.status}: {said} ({token.describe()})",
        f"if this issuer is to be trusted, add to Fulcio's oidc-issuers: {token.fulcio_line()}",
    )


def _refused(where: str, answer: Answer) -> SigningError:
    hint = _MEND if answer.status >= 500 else _CHECK
    return SigningError(f"{where}: HTTP {answer.status}: {explanation(answer)}", hint)


@contextmanager
def _usable(where: str, secret: str = "\n") -> Iterator[None]:
    """What an answer can break in sigstore-python has no end: an error that is not ours is the answer's."""
    try:
        yield
    except (SupplyChainError, CancelledError):
        raise
    except errors.MetadataError as error:
        raise TrustError(f"trusted root: {error}", "complete it, or name another trust") from None
    except Exception as error:
        raise SigningError(
            f"{where}: an answer that can't be used ({type(error).__name__}: {_short(error, secret)})",
            _CHECK,
        ) from None


def _short(error: Exception, secret: str = "\n") -> str:
    return " ".join(str(error).replace(secret, "…").split())[:200]


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"

"""sigstore-python, unmodified, as a client of a trust's services."""

from __future__ import annotations

from sigstore.models import Bundle
from sigstore.oidc import IdentityToken
from sigstore.sign import SigningContext
from sigstore.verify import Verifier
from sigstore.verify.policy import Identity

from supply_chain.trust import Trust


def sign(trust: Trust, content: bytes, identity: str | None = None) -> Bundle:
    """Sign with the services that `trust` names."""
    config = trust.signing_config
    assert config is not None
    assert trust.embedded is not None
    context = SigningContext(
        fulcio=config.get_fulcio(),
        rekor=config.get_tlogs()[0],
        trusted_root=trust.trusted_root,
        tsa_clients=config.get_tsas(),
    )
    with context.signer(IdentityToken(trust.embedded.issue_token(identity))) as signer:
        return signer.sign_artifact(content)


def verify(trust: Trust, content: bytes, bundle: Bundle, identity: str | None = None) -> None:
    """Verify offline that `identity` signed."""
    assert trust.embedded is not None
    policy = Identity(identity=identity or trust.embedded.default_identity, issuer=trust.embedded.issuer)
    Verifier(trusted_root=trust.trusted_root).verify_artifact(content, bundle, policy)

"""Verifying one publication: by whose word, from where, and against what its sender said.

1. policy: the platform says who may sign; none set means nobody.
2. source: the image is opened at the digest that is known by now, else at its tag, which is then resolved
   once (worker.py keeps the digest before anything else is asked); an uploaded one in its archive.
3. the numbered steps of supply_chain/verify/image.py, all layers read.
4. claims: each field that the sender gave is what the image and its provenance say.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from anyio import to_thread

from platform_server.registries import open_trusted
from platform_server.settings import Registries
from platform_server.tables import NodePlatform, Publication
from platform_server.uploads import upload_name
from supply_chain.archive import open_archive
from supply_chain.errors import TrustError
from supply_chain.reference import parse_reference
from supply_chain.trust import Trust, load_trust
from supply_chain.verify.image import Verified, verify_image
from supply_chain.verify.policy import SignerPolicy, signer_policy
from supply_chain.verify.source import LayoutSource, RegistrySource, Source

# What verifies an image: `supply_chain.verify` behind a signature of two arguments.
Verifier = Callable[[Source, SignerPolicy], Awaitable[Verified]]


class Rejected(Exception):
    """A publication is refused, for good: `reason` is a word for programs, `text` has got and expected."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason = reason
        self.text = text


def verifier_of(path: Path | None) -> Verifier:
    """The verifier for the trust at `path`; without one every image is refused. Raises TrustError."""
    trust: Trust | None = None if path is None else load_trust(path)

    async def verify(source: Source, policy: SignerPolicy) -> Verified:
        if trust is None:
            raise TrustError("the platform has no trust to verify with", "serve --trust DIR|FILE")
        return await verify_image(source, trust, policy, read_layers=True)

    return verify


def policy_of(platform: NodePlatform) -> SignerPolicy:
    """Step 1. Raises Rejected."""
    unset = [
        field for field in ("cosign_identity_regexp", "cosign_issuer_regexp") if not getattr(platform, field)
    ]
    if unset:
        raise Rejected(
            "no_trust_policy",
            f"platform {platform.name!r} has no cosign trust policy configured: expected "
            f"cosign_identity_regexp and cosign_issuer_regexp, found no {' and no '.join(unset)}",
        )
    return signer_policy(
        identity_regexp=platform.cosign_identity_regexp, issuer_regexp=platform.cosign_issuer_regexp
    )


@asynccontextmanager
async def source_of(
    row: Publication, platform: NodePlatform, settings: Registries, uploads: Path
) -> AsyncIterator[Source]:
    """Step 2; what was uploaded is in the folder `uploads`. Raises UntrustedRegistry, InvalidReference and
    LayoutError.
    """
    if row.oci_ref is None:
        yield LayoutSource(await to_thread.run_sync(open_archive, uploads / upload_name(row.id)))
        return
    reference = parse_reference(row.oci_ref)
    if row.oci_digest is not None:
        reference = reference.at(row.oci_digest)
    async with open_trusted(reference, platform.trusted_registries, settings) as repository:
        yield RegistrySource(reference, repository)


def check_claims(row: Publication, platform: NodePlatform, verified: Verified) -> None:
    """Step 4. Raises Rejected, naming every field that differs."""
    commits = " or ".join(verified.git_shas) or "no commit"
    claims = (
        ("oci_digest", row.oci_digest, verified.digest, row.oci_digest in (None, verified.digest)),
        ("arch", row.arch, verified.arch, row.arch == verified.arch),
        ("size_bytes", row.size_bytes, verified.size, row.size_bytes in (None, verified.size)),
        ("git_sha", row.git_sha, commits, row.git_sha is None or row.git_sha in verified.git_shas),
        ("firmware_ref", row.firmware_ref, "no firmware", row.firmware_ref is None),
        ("the platform's arch", platform.arch, verified.arch, platform.arch == verified.arch),
    )
    wrong = [f"{name}: expected {said}, got {found}" for name, said, found, holds in claims if not holds]
    if wrong:
        raise Rejected("claim_mismatch", "; ".join(wrong))

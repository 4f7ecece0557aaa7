"""`disk-image sign`: signature, SBOM and provenance of an image, beside it in its layout.

1. Nobody else signs the layout. Its image is read, and is its descriptor's bytes.
2. What `build` wrote beside the layout, the SBOM and the build record, is of this very image.
3. The trust says where to sign, and a token who signs (signing/token_sources.py).
4. If the layout holds the three statements already, by this signer and verified with this trust, that is
   all: nothing is signed twice.
5. The layout can be written to. A certificate names the signer (signing/sigstore_signer.py); if it alone
   could tell, 4 is asked again.
6. The three statements are made; the provenance's builder is whom the certificate names.
7. Each is signed, logged and verified.
8. Blobs, manifests and index are written, all or nothing (layout_write.py).

The image is not touched, and until 8 neither is the layout: after any failure the same command goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from pipelines.definition import Json
from supply_chain.errors import InvalidDocument, ServiceDown
from supply_chain.layout import Layout, open_layout
from supply_chain.layout_write import alone, check_writable, hang
from supply_chain.oci import parse_object
from supply_chain.provenance import BuildRecord, complete, parse_provenance, read_build_record
from supply_chain.referrer import write_referrer
from supply_chain.registry.retry import Policy
from supply_chain.sbom import read_sbom
from supply_chain.signing.services import POLICY, Services, services
from supply_chain.signing.sigstore_signer import open_signer, signing_config
from supply_chain.signing.token_sources import identity_token
from supply_chain.statement import PROVENANCE, SBOM, SIGNATURE, statement_bytes
from supply_chain.trust import Trust, running
from supply_chain.verify.bundle import BundleVerifier
from supply_chain.verify.policy import Rule, Signer, SignerPolicy
from supply_chain.verify.signatures import Statements, by_signer, read_bundles
from supply_chain.verify.source import LayoutSource

# The three statements, in the order of their manifests.
KINDS = (SIGNATURE, SBOM, PROVENANCE)
# A certificate lasts ten minutes; most signings take seconds.
DEADLINE = 300.0

_ANYONE = SignerPolicy(identity=Rule(".+", regexp=True), issuer=Rule(".+", regexp=True))


@dataclass(frozen=True, slots=True)
class SignResult:
    """What hangs on the image `digest`: by kind (predicate type) the digest of each bundle's manifest.
    `signed` says whether it was signed now, or had been.
    """

    digest: str
    identity: str
    issuer: str
    signed: bool
    manifests: Mapping[str, str]

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "manifest_digest": self.digest,
            "identity": self.identity,
            "issuer": self.issuer,
            "signed": self.signed,
            "referrers": dict(self.manifests),
        }


async def sign_layout(
    folder: Path,
    trust: Trust,
    environment: Mapping[str, str],
    *,
    token_file: Path | None = None,
    identity: str | None = None,
    policy: Policy = POLICY,
    deadline: float = DEADLINE,
) -> SignResult:
    """Sign the image in the layout at `folder`, within `deadline` seconds. The token comes from `token_file`
    or `environment`; `identity` is whom an embedded trust is to vouch for.

    Raises LayoutError, TrustError, TokenError, UsageError, SigningError, and ServiceDown when the same call
    later may succeed.
    """
    with alone(folder, "blobs", "signing"):  # (1)
        layout = await anyio.to_thread.run_sync(_read_image, folder)  # (1)
        parts = await anyio.to_thread.run_sync(_read_parts, layout)  # (2)
        signing_config(trust)  # (3)
        async with services(policy) as asking:
            with _within(deadline, asking):
                async with running(trust) as served:
                    return await _sign(layout, parts, served, asking, environment, token_file, identity)


async def is_signed_by(folder: Path, trust: Trust, signer: Signer) -> bool:
    """Whether the layout holds all that `sign_layout` would write as this signer, verified with this trust:
    steps 1, 2 and 4, for whom nobody shows a token now. Asks no service. Raises LayoutError and TrustError.
    """
    layout = await anyio.to_thread.run_sync(_read_image, folder)
    parts = await anyio.to_thread.run_sync(_read_parts, layout)
    return parts.are(signer, (await _bundles(layout, trust)).get(signer, {}))


@contextmanager
def _within(deadline: float, asking: Services) -> Iterator[None]:
    try:
        with anyio.fail_after(deadline):
            yield
    except TimeoutError:
        waiting = f", the last of it waiting for the {asking.asking}" if asking.asking else ""
        raise ServiceDown(
            f"signing was not done after {deadline:.0f} s{waiting}",
            "the image stays as it was built: run the same command again later",
        ) from None


async def _sign(
    layout: Layout,
    parts: _Parts,
    trust: Trust,
    asking: Services,
    environment: Mapping[str, str],
    token_file: Path | None,
    identity: str | None,
) -> SignResult:
    token = await identity_token(trust, asking, environment, file=token_file, identity=identity)  # (3)
    there = await _bundles(layout, trust)
    for who, said in there.items():
        if who.issuer == token.issuer and token.may_name(who.identity) and parts.are(who, said):  # (4)
            return _already(layout, who, said)
    check_writable(layout)  # (5)
    signer = await open_signer(trust, token, asking)  # (5)
    who = Signer(signer.identity, signer.issuer)
    old: Statements = there.get(who, {})
    if parts.are(who, old):  # (5)
        return _already(layout, who, old)
    referrers = []
    for kind, statement in parts.statements(who).items():  # (6)
        signed = await signer.sign(statement)  # (7)
        referrers.append(
            write_referrer(signed.bundle, layout.image, predicate_type=kind, created=signed.time)
        )
    replaced = {one.referrer for said in old.values() for one in said}
    await anyio.to_thread.run_sync(lambda: hang(layout, referrers, replacing=replaced))  # (8)
    manifests = dict(zip(KINDS, (one.descriptor.digest for one in referrers), strict=True))
    return SignResult(layout.image.digest, who.identity, who.issuer, True, manifests)


@dataclass(frozen=True)
class _Parts:
    """What is to be said of the image with the digest `image`."""

    image: str
    sbom: dict[str, Json]
    record: BuildRecord

    def statements(self, signer: Signer) -> dict[str, bytes]:
        """The three statements by predicate type, as this signer makes them."""
        predicates: dict[str, dict[str, Json]] = {
            SIGNATURE: {},
            SBOM: self.sbom,
            PROVENANCE: complete(self.record, signer.identity).to_json(),
        }
        return {kind: statement_bytes(self.image, kind, predicates[kind]) for kind in KINDS}

    def are(self, signer: Signer, found: Statements) -> bool:
        """Whether the newest of `found`, by this signer, say all of it. Provenance of another run of the
        same build says it too: it made this image, and is no reason to sign again.
        """
        if found.keys() != set(KINDS):
            return False
        predicates = {kind: said[0].bundle.statement.predicate for kind, said in found.items()}
        try:
            provenance = parse_provenance(predicates[PROVENANCE], "provenance")
        except InvalidDocument:
            return False
        return (
            predicates[SIGNATURE] == {}
            and predicates[SBOM] == self.sbom
            and provenance.build_definition == self.record.build_definition
            and provenance.run_details.builder.id == signer.identity
        )


def _read_image(folder: Path) -> Layout:
    """Step 1."""
    layout = open_layout(folder)
    _ = layout.config
    return layout


def _read_parts(layout: Layout) -> _Parts:
    """Step 2."""
    sbom = parse_object(read_sbom(layout.folder), "SBOM")
    return _Parts(layout.image.digest, sbom, read_build_record(layout.folder))


async def _bundles(layout: Layout, trust: Trust) -> Mapping[Signer, Statements]:
    """What hangs on the image already. What does not verify may be another trust's, and is none of our
    business.
    """
    source, image = LayoutSource(layout), layout.image.digest
    hanging = await source.referrers(image)
    signed, _ = await read_bundles(source, hanging, image, BundleVerifier(trust.root), _ANYONE)
    return by_signer(signed)


def _already(layout: Layout, who: Signer, said: Statements) -> SignResult:
    manifests = {kind: said[kind][0].referrer for kind in KINDS}
    return SignResult(layout.image.digest, who.identity, who.issuer, False, manifests)

"""Verify an image: that a trusted signer made it, and that what is attested of it is what is there.

1. manifest: the reference is resolved once; the manifest's bytes are of that digest, and it is an image's.
2. content: configuration and build manifest are of their digests, and agree with the manifest and each
   other; every layer is there, and where it is read, of its digest, and the root of its fs-verity digest.
3. referrers: what hangs on the image is listed. That listing fails is an error, never an empty list.
4. signatures: among the Sigstore bundles there, a signature, an SBOM and a provenance are about this digest
   and by one signer whom the policy names. What others signed is passed over, and named.
5. sbom: it describes this image and the parts that are there.
6. provenance: its builder is who signed it, it made what is there, and used every package that the SBOM has.
7. lock: where one is given, it is the one that the image was built from, package by package.

Only the source asks a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Generic, TypeVar

from supply_chain.errors import InvalidDocument, VerificationError
from supply_chain.statement import PROVENANCE, SBOM, SIGNATURE, Statement
from supply_chain.verify import compare
from supply_chain.verify.bundle import BundleVerifier
from supply_chain.verify.content import read_content, read_manifest
from supply_chain.verify.policy import SignerPolicy
from supply_chain.verify.signatures import Ignored, Signed, read_bundles, whole_set
from supply_chain.verify.source import Source
from supply_chain.verify.steps import Done, Step, within

if TYPE_CHECKING:
    from supply_chain.provenance import Provenance
    from supply_chain.trust import Trust

_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class Verified:
    """What is known of an image that was verified.

    `signature`, `sbom` and `provenance` are the digests of the referrers that it stands on, the newest of
    each kind. `git_shas` are the commits of all provenances that hold, the newest's first: the same bytes
    may come from several commits. `size` is that of all blobs in bytes; `layers_read` is False where the
    source only said that the layers are there.
    """

    image: str
    digest: str
    identity: str
    issuer: str
    signed_at: datetime
    arch: str
    kernel_version: str
    composefs_digest: str
    size: int
    layers_read: bool
    packages: int
    builder_id: str
    git_shas: tuple[str, ...]
    signature: str
    sbom: str
    provenance: str
    ignored: tuple[Ignored, ...]

    @property
    def git_sha(self) -> str | None:
        """The commit that it was last built from; None when its builds could not say."""
        return self.git_shas[0] if self.git_shas else None

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {**asdict(self), "signed_at": self.signed_at.isoformat(), "git_sha": self.git_sha}


def _nobody_listens(done: Done) -> None:
    """Without `on_step`."""


async def verify_image(
    source: Source,
    trust: Trust,
    policy: SignerPolicy,
    *,
    lock: bytes | None = None,
    read_layers: bool | None = None,
    on_step: Callable[[Done], None] = _nobody_listens,
) -> Verified:
    """Verify the image at `source`; `on_step` is called after each step that holds. `lock` is a recipe's
    lock.json.

    `read_layers` says whether the layers' content is read too; by default it is where that costs no
    traffic. Where it is not, the signed manifest still binds every layer by digest, and whoever fetches one
    checks it, as every OCI client does.

    Raises VerificationError with the step that failed; TrustError when the trust can't serve; RegistryErrors
    when a registry gives no usable answer, which says nothing about the image.
    """
    with within(Step.MANIFEST):  # 1
        document = await source.image()
        manifest = read_manifest(document)
        digest = document.descriptor.digest
        on_step(Done(Step.MANIFEST, digest))
    with within(Step.CONTENT):  # 2
        read_layers = source.on_disk if read_layers is None else read_layers
        content = await read_content(source, digest, manifest, read_layers=read_layers)
        how = "read" if read_layers else "there, not read"
        on_step(Done(Step.CONTENT, f"{len(content.layers)} layers {how}, {content.size} bytes in all"))
    with within(Step.REFERRERS):  # 3
        hanging = await source.referrers(digest)
        on_step(Done(Step.REFERRERS, f"{len(hanging)} listed"))
    with within(Step.SIGNATURES):  # 4
        verifier = BundleVerifier(trust.root)
        signed, ignored = await read_bundles(source, hanging, digest, verifier, policy)
        signer, statements = whole_set(signed, ignored)
        on_step(Done(Step.SIGNATURES, f"signature, SBOM and provenance by {signer}"))
    with within(Step.SBOM):  # 5
        sboms = _holding(statements[SBOM], ignored, lambda one: compare.sbom(one, content))
        sbom = sboms[0].read
        on_step(Done(Step.SBOM, f"{len(sbom.packages)} packages"))
    with within(Step.PROVENANCE):  # 6
        provenances = _holding(
            statements[PROVENANCE], ignored, lambda one: compare.provenance(one, content, signer, sbom)
        )
        on_step(Done(Step.PROVENANCE, f"built from {', '.join(_commits(provenances)) or 'no known commit'}"))
    if lock is not None:
        with within(Step.LOCK):  # 7
            provenances = _holding(
                [held.signed for held in provenances],
                ignored,
                lambda one: compare.lock(one, lock),
            )
            on_step(Done(Step.LOCK, "the one that it was built from"))
    signature = statements[SIGNATURE][0]
    return Verified(
        image=source.name,
        digest=digest,
        identity=signer.identity,
        issuer=signer.issuer,
        signed_at=signature.bundle.time,
        arch=content.config.arch,
        kernel_version=content.config.kernel_version,
        composefs_digest=f"sha256:{content.config.fsverity_digest}",
        size=content.size,
        layers_read=read_layers,
        packages=len(sbom.packages),
        builder_id=provenances[0].read.run_details.builder.id,
        git_shas=_commits(provenances),
        signature=signature.referrer,
        sbom=sboms[0].signed.referrer,
        provenance=provenances[0].signed.referrer,
        ignored=tuple(ignored),
    )


@dataclass(frozen=True, slots=True)
class _Held(Generic[_Read]):
    signed: Signed
    read: _Read


def _holding(
    signed: Sequence[Signed], ignored: list[Ignored], read: Callable[[Statement], _Read]
) -> list[_Held[_Read]]:
    """Those of one kind that hold, at least one. A signer may also have said what can't be compared here (by
    other tools, for other readers): it is passed over, and named.
    """
    held: list[_Held[_Read]] = []
    failures: list[tuple[Signed, VerificationError | InvalidDocument]] = []
    for each in signed:
        try:
            held.append(_Held(each, read(each.bundle.statement)))
        except (VerificationError, InvalidDocument) as error:
            failures.append((each, error))
    if not held:
        raise failures[0][1]
    ignored += [Ignored(each.referrer, error.what) for each, error in failures]
    return held


def _commits(provenances: Sequence[_Held[Provenance]]) -> tuple[str, ...]:
    found = (held.read.build_definition.git_sha for held in provenances)
    return tuple(dict.fromkeys(commit for commit in found if commit is not None))

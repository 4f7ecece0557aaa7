"""Who says what of an image: the Sigstore bundles among its referrers, sorted by whether they count."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anyio

from supply_chain.errors import BrokenAnswer, LayoutError, NotFound, VerificationError, WrongContent
from supply_chain.referrer import BUNDLE_LIMIT
from supply_chain.statement import PROVENANCE, SBOM, SIGNATURE
from supply_chain.verify.bundle import BundleVerifier, VerifiedBundle
from supply_chain.verify.policy import Signer, SignerPolicy
from supply_chain.verify.source import Hanging, Source

# What all bundles of an image may have together, in bytes: whoever may push can hang anything on it.
ALL_BUNDLES = 256 * 1024 * 1024

KINDS: Mapping[str, str] = {SIGNATURE: "signature", SBOM: "SBOM", PROVENANCE: "provenance"}


@dataclass(frozen=True, slots=True)
class Ignored:
    """A referrer, by its manifest's digest, that played no part, and why."""

    digest: str
    why: str


@dataclass(frozen=True, slots=True)
class Signed:
    """A bundle by a trusted signer about this image, and the digest of the referrer that it came in."""

    referrer: str
    bundle: VerifiedBundle


# What one signer says of the image: predicate type → statements, the newest first.
Statements = Mapping[str, Sequence[Signed]]


async def read_bundles(
    source: Source, hanging: Sequence[Hanging], image: str, verifier: BundleVerifier, policy: SignerPolicy
) -> tuple[list[Signed], list[Ignored]]:
    """Verify each bundle on its own. One that does not hold can't spoil the others: it is passed over, with
    the reason.

    Raises VerificationError when there is more to read than any image needs, and what the source raises when
    it can't serve.
    """
    signed: list[Signed] = []
    ignored: list[Ignored] = []
    total = 0
    for each in hanging:
        if each.bundle is None:
            ignored.append(Ignored(each.digest, each.why))
            continue
        total += each.bundle.size
        if total > ALL_BUNDLES:
            raise VerificationError(
                f"bundles: expected at most {ALL_BUNDLES} bytes in all, found more",
                "remove the referrers that nobody needs",
            )
        try:
            content = await source.read(each.bundle, BUNDLE_LIMIT)
            bundle = await anyio.to_thread.run_sync(verifier.verify, content, policy, "bundle")
        except (VerificationError, LayoutError, NotFound, BrokenAnswer, WrongContent) as error:
            ignored.append(Ignored(each.digest, error.what))
            continue
        if bundle.statement.digest != image:
            ignored.append(Ignored(each.digest, f"is about another image, {bundle.statement.digest}"))
        elif bundle.statement.predicate_type not in KINDS:
            ignored.append(Ignored(each.digest, f"says something else: {bundle.statement.predicate_type}"))
        else:
            signed.append(Signed(each.digest, bundle))
    return signed, ignored


def by_signer(signed: Sequence[Signed]) -> Mapping[Signer, Statements]:
    """What each signer says."""
    said: dict[Signer, dict[str, list[Signed]]] = defaultdict(lambda: defaultdict(list))
    for each in sorted(signed, key=lambda one: one.bundle.time, reverse=True):
        said[each.bundle.signer][each.bundle.statement.predicate_type].append(each)
    return said


def whole_set(signed: Sequence[Signed], ignored: Sequence[Ignored]) -> tuple[Signer, Statements]:
    """The signer who made all three, a signature, an SBOM and a provenance; of several, who signed last.

    Raises VerificationError when there is none.
    """
    said = by_signer(signed)
    whole = {signer: statements for signer, statements in said.items() if KINDS.keys() == statements.keys()}
    if whole:
        return max(whole.items(), key=lambda one: one[1][SIGNATURE][0].bundle.time)
    found = [
        f"{' and '.join(name for kind, name in KINDS.items() if kind in statements)} by {signer}"
        for signer, statements in said.items()
    ] or ["none"]
    expected = "signature, SBOM and provenance by one trusted signer"
    passed_over = Counter(one.why for one in ignored).most_common(3)
    listed = "; ".join([*found, *(f"{count} passed over: {why}" for why, count in passed_over)])
    raise VerificationError(
        f"expected {expected}, found {listed}",
        "sign the image and push it again, or trust who signed it",
        expected=expected,
        found=listed,
    )

"""The offline cases of sigstore-conformance, against the bundle verifier.

The suite is a public repository (sigstore/sigstore-conformance), not a package: SIGSTORE_CONFORMANCE names
a checkout. Its own runner needs a network for signing; here each case of `test/assets/bundle-verify` is
verified with its own trusted root, or with the public instance's that sigstore-python carries.

A plain signature, which no image has, is verified over its artifact by the same steps. There are two passes:
as it is the verifier takes only bundles v0.3, so that refusing an older one says little; with the older
versions let in all cases count.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from supply_chain.errors import SupplyChainError, VerificationError
from supply_chain.trust import load_trust
from supply_chain.verify import bundle
from supply_chain.verify.bundle import BundleVerifier, parse_bundle
from supply_chain.verify.policy import signer_policy

pytestmark = pytest.mark.peers

IDENTITY = (
    "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/.github/workflows/"
    "extremely-dangerous-oidc-beacon.yml@refs/heads/main"
)
ISSUER = "https://token.actions.githubusercontent.com"
OLDER = (
    "application/vnd.dev.sigstore.bundle+json;version=0.1",
    "application/vnd.dev.sigstore.bundle+json;version=0.2",
)

# Valid bundles that are refused, and why that is right or known.
_KEYS = "signed with a key alone: nobody's identity is in it, so no policy could name the signer"
REFUSED = {
    "managed-key-and-trusted-root": _KEYS,
    "managed-key-happy-path": _KEYS,
    "intoto-with-custom-trust-root": "a log entry of kind intoto, which sigstore-python does not read",
    "trust-root-tsa-validity-end-inclusive": "sigstore-python counts a period's end as outside",
}
REFUSED_AS_IT_IS = {
    **REFUSED,
    "happy-path-v0.1": "older than v0.3",
    "happy-path-v0.2": "older than v0.3",
    "trust-root-tlog-validity-end-inclusive": "older than v0.3",
}


@dataclass(frozen=True)
class Case:
    """A folder of the suite."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def valid(self) -> bool:
        return not self.name.endswith("_fail")

    def verify(self) -> None:
        """Raises SupplyChainError when the bundle, or its trust, is refused."""
        own = self.folder / "trusted_root.json"
        verifier = BundleVerifier(load_trust(own if own.exists() else _public_root()).root)
        policy = signer_policy(
            identity=self._text("identity", IDENTITY), issuer=self._text("issuer", ISSUER)
        )
        content = (self.folder / "bundle.sigstore.json").read_bytes()
        artifact = self.folder / "artifact"
        signed = (artifact if artifact.exists() else self.folder.parent / "a.txt").read_bytes()
        parsed = parse_bundle(content, self.name)
        if parsed._inner.dsse_envelope is None:
            verifier.hold(parsed, policy, self.name, lambda by, who: by.verify_artifact(signed, parsed, who))
            return
        found = verifier.verify(content, policy, self.name).statement.digest
        if found != f"sha256:{hashlib.sha256(signed).hexdigest()}":
            raise VerificationError(f"{self.name}: of another artifact", "")

    def _text(self, name: str, otherwise: str) -> str:
        path = self.folder / name
        return path.read_text().strip() if path.exists() else otherwise


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    checkout = os.environ.get("SIGSTORE_CONFORMANCE")
    if not checkout:
        pytest.skip("SIGSTORE_CONFORMANCE does not name a checkout of sigstore/sigstore-conformance")
    folder = Path(checkout) / "test" / "assets" / "bundle-verify"
    found = [Case(each) for each in sorted(folder.iterdir()) if each.is_dir()]
    assert len(found) >= 70
    return found


@pytest.mark.parametrize("older", [False, True], ids=["as it is", "with older versions let in"])
def test_the_suites_cases(
    cases: list[Case], older: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = REFUSED if older else REFUSED_AS_IT_IS
    if older:
        monkeypatch.setattr(bundle, "MEDIA_TYPES", (*bundle.MEDIA_TYPES, *OLDER))
    outcomes: Counter[str] = Counter()
    wrong = []
    for case in cases:
        try:
            case.verify()
            accepted = True
        except SupplyChainError as error:
            accepted = False
            by_version = isinstance(error, VerificationError) and "media type" in error.what
        if case.valid:
            outcomes[
                "valid, accepted" if accepted else f"valid, refused: {known.get(case.name, 'WHY?')}"
            ] += 1
        else:
            why = " for its version alone" if not accepted and by_version else ""
            outcomes[f"invalid, {'ACCEPTED' if accepted else 'refused'}{why}"] += 1
        if accepted != (case.valid and case.name not in known):
            wrong.append(case.name)
    with capsys.disabled():
        lines = [f"{count:4}  {outcome}" for outcome, count in sorted(outcomes.items())]
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
    assert wrong == []


def _public_root() -> Path:
    import sigstore

    (found,) = Path(sigstore.__file__).parent.glob("_store/*sigstore.dev/**/trusted_root.json")
    return found

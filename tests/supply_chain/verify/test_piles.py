"""Any pile of honest bundles on an image: it is accepted exactly when one signer whom the policy names has
said all three things of this image under this trust, whatever else lies there.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supply_chain.errors import VerificationError
from supply_chain.verify.policy import SignerPolicy, signer_policy
from supply_chain.verify.signatures import KINDS
from tests.supply_chain.verify.bench import Bench
from tests.supply_chain.verify.forge import IDENTITY, ISSUER, Forge, Names
from tests.supply_chain.verify.signed_image import Signed, layout_files, make_image, sign

OTHER_ISSUER = "https://elsewhere.example/oidc"
SIGNERS = (Names(), Names(identity="someone@git.example"), Names(issuer=OTHER_ISSUER))
POLICIES = {
    signer_policy(identity=IDENTITY, issuer=ISSUER): {0},
    signer_policy(identity_regexp=".+", issuer=ISSUER): {0, 1},
    signer_policy(identity=IDENTITY, issuer_regexp="https://.+"): {0, 2},
    signer_policy(identity_regexp=".+", issuer_regexp=".+"): {0, 1, 2},
    signer_policy(identity_regexp="https://git[.]example/", issuer_regexp=".+"): set(),
}

# Whose trust (0: the verifier's), which image (0: the one that is there), which signer, which kind.
Said = tuple[int, int, int, str]
EVERYTHING: Sequence[Said] = list(itertools.product(range(2), range(2), range(3), KINDS))

# What one signer says of one image: all of it, or all but one thing.
_SETS = st.tuples(
    st.integers(0, 1), st.integers(0, 1), st.integers(0, 2), st.sampled_from(("", *KINDS))
).map(lambda one: [said for said in EVERYTHING if said[:3] == one[:3] and said[3] != one[3]])


@pytest.fixture(scope="module")
def bundles(forge: Forge, stranger: Forge) -> dict[Said, bytes]:
    images = (make_image(), make_image("other"))
    made: dict[Said, bytes] = {}
    for trust, image, signer in itertools.product(range(2), range(2), range(3)):
        said: Signed = sign((forge, stranger)[trust], images[image], SIGNERS[signer])
        made.update({(trust, image, signer, kind): content for kind, content in said.bundles.items()})
    return made


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pile=st.lists(_SETS, max_size=6).map(lambda sets: list(dict.fromkeys(itertools.chain(*sets)))),
    # the signed material of one bundle around the envelope of another says nothing of anybody
    grafts=st.lists(st.tuples(st.sampled_from(EVERYTHING), st.sampled_from(EVERYTHING)), max_size=3),
    policy=st.sampled_from(list(POLICIES)),
)
def test_accepted_exactly_when_one_named_signer_said_it_all(
    bench: Bench,
    bundles: dict[Said, bytes],
    pile: list[Said],
    grafts: list[tuple[Said, Said]],
    policy: SignerPolicy,
) -> None:
    contents = [(said[3], bundles[said]) for said in pile]
    contents += [(one[3], _graft(bundles[one], bundles[two])) for one, two in grafts if one != two]
    whole = {signer for signer in POLICIES[policy] if all((0, 0, signer, kind) in pile for kind in KINDS)}
    files = layout_files(make_image(), contents)
    if whole:
        verified = bench.verify(files, policy)
        assert (verified.identity, verified.issuer) in {
            (SIGNERS[signer].identity, SIGNERS[signer].issuer) for signer in whole
        }
    else:
        with pytest.raises(VerificationError) as refused:
            bench.verify(files, policy)
        assert refused.value.step == "signatures"


def _graft(material: bytes, envelope: bytes) -> bytes:
    spliced = {**json.loads(material), "dsseEnvelope": json.loads(envelope)["dsseEnvelope"]}
    return json.dumps(spliced).encode()

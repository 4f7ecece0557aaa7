"""Changed bundles. The signature's stands for all three; the others give parts to swap."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping

from cryptography.hazmat import asn1

from supply_chain.statement import SIGNATURE
from supply_chain.trust.embedded import timestamper
from tests.supply_chain.verify.attacks import (
    Attack,
    Json,
    Path,
    base64_changes,
    cuts,
    dump,
    field_changes,
    flips,
    get,
    leaves,
    put,
    swaps,
    without,
)
from tests.supply_chain.verify.signed_image import Signed

MATERIAL = "verificationMaterial"
ENTRY: Path = (MATERIAL, "tlogEntries", 0)
PROOF: Path = (*ENTRY, "inclusionProof")
CHECKPOINT: Path = (*PROOF, "checkpoint", "envelope")
CERTIFICATE: Path = (MATERIAL, "certificate", "rawBytes")
TIMESTAMPS: Path = (MATERIAL, "timestampVerificationData", "rfc3161Timestamps")
STAMP: Path = (*TIMESTAMPS, 0, "signedTimestamp")
ENVELOPE: Path = ("dsseEnvelope",)
SIGNATURE_OF: Path = ("dsseEnvelope", "signatures", 0, "sig")


def changed(signed: Signed) -> Iterator[Attack]:
    """The bundle with something changed in its JSON or in what that holds."""
    content = signed.bundles[SIGNATURE]
    document = json.loads(content)
    for what, bundle in flips(content, step=9):
        in_stamp = _stamp_of(bundle)
        same = "unsigned part of the timestamp" if in_stamp and _same_stamp(document, in_stamp) else ""
        yield Attack("bundle: bit flipped", what, bundle, harmless=same or _same_note(document, bundle))
    for what, bundle in cuts(content, 60):
        yield Attack("bundle: truncated", what, bundle)
    for kind, what, bundle in field_changes(document):
        yield Attack(f"bundle: {kind}", what, bundle)
    for at, value in leaves(document):
        if not isinstance(value, str) or not _is_base64(value):
            continue
        name = "/".join(map(str, at))
        for bad in (
            value + "\n",
            " " + value,
            value.rstrip("="),
            value + "=",
            value.replace("=", "-", 1),
            f"{value[:4]}!{value[4:]}",
        ):
            if bad != value:
                yield Attack("bundle: base64 not in its one form", name, dump(put(document, at, bad)))
        if at == STAMP:
            continue
        for what, bundle, _ in base64_changes(document, at, step=5, seed=2):
            yield Attack("bundle: bit flipped inside base64", f"{name} {what}", bundle)
    for what, bundle, stamp in base64_changes(document, STAMP, step=3, seed=1):
        inside = _signed_part(get(document, STAMP), stamp)
        harmless = "" if inside else "unsigned part of the timestamp"
        if inside or what.split()[1].endswith("7"):
            yield Attack("bundle: bit flipped inside the timestamp", what, bundle, harmless=harmless)


def swapped(signed: Signed, others: Mapping[str, bytes]) -> Iterator[Attack]:
    """The bundle with a part from another valid one."""
    document = json.loads(signed.bundles[SIGNATURE])
    for name, other in others.items():
        for what, bundle in swaps(document, json.loads(other)):
            yield Attack(f"bundle: part of {name}", what, bundle)


def _is_base64(value: str) -> bool:
    try:
        return (
            len(value) >= 40 and base64.b64encode(base64.b64decode(value, validate=True)).decode() == value
        )
    except ValueError:
        return False


def _stamp_of(bundle: bytes) -> bytes | None:
    try:
        return base64.b64decode(get(json.loads(bundle), STAMP), validate=True)
    except (ValueError, KeyError, IndexError, TypeError):
        return None


def _same_stamp(document: Json, stamp: bytes) -> bool:
    original = get(document, STAMP)
    return len(stamp) == len(base64.b64decode(original)) and not _signed_part(original, stamp)


def _signed_part(original: str, changed: bytes) -> bool:
    """Whether a changed byte is one that the authority signed, or of its signature. The rest of a CMS
    SignedData (certificates, version, names of algorithms) nobody signs.
    """
    stamp = base64.b64decode(original)
    signed_data = asn1.decode_der(timestamper._Response, stamp).token.content
    signer = signed_data.signer_infos.as_list()[0]
    parts = (
        signed_data.encapsulated.content,
        asn1.encode_der(signer.signed_attributes)[2:],
        signer.signature,
    )
    places = [(stamp.index(part), stamp.index(part) + len(part)) for part in parts]
    differing = [at for at, (one, two) in enumerate(zip(stamp, changed, strict=True)) if one != two]
    return any(start <= at < end for at in differing for start, end in places)


def _same_note(document: Json, bundle: bytes) -> str:
    """Harmless: all but the checkpoint's unsigned parts is equal, and so is what they decode to."""
    try:
        changed = json.loads(bundle)
        note, original = get(changed, CHECKPOINT), get(document, CHECKPOINT)
        same = without(changed, CHECKPOINT) == without(document, CHECKPOINT)
    except (ValueError, KeyError, IndexError, TypeError):
        return ""
    if not same or note == original or not isinstance(note, str):
        return ""
    text, _, line = note.partition("\n\n")
    wanted, _, wanted_line = original.partition("\n\n")
    if text != wanted or len(line.split()) != 3:
        return ""
    try:
        signature = base64.b64decode(line.split()[2], validate=True)
    except ValueError:
        return ""
    equal = signature == base64.b64decode(wanted_line.split()[2]) and line.split()[0] == "\u2014"
    return "the same signed checkpoint" if equal else ""

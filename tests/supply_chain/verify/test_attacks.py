"""No changed input is accepted: thousands of systematic changes and forgeries, counted by class.

An attack counts as accepted when verifying succeeds, whatever the result says. The few that may be accepted
say why (Attack.harmless), by a judgement that does not come from the verifier.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import anyio
import pytest

from supply_chain.errors import SupplyChainError, VerificationError
from supply_chain.layout import open_layout
from supply_chain.statement import PROVENANCE, SBOM, SIGNATURE, parse_statement, statement_bytes
from supply_chain.verify import compare
from supply_chain.verify.bundle import BundleVerifier
from supply_chain.verify.content import Content, read_content, read_manifest
from supply_chain.verify.image import verify_image
from supply_chain.verify.policy import Signer
from supply_chain.verify.source import LayoutSource
from tests.supply_chain.verify import (
    attacks_on_bundles,
    attacks_on_layouts,
    attacks_on_statements,
    forgeries,
)
from tests.supply_chain.verify.attacks import Attack, dump
from tests.supply_chain.verify.bench import SIGNER
from tests.supply_chain.verify.forge import IDENTITY, ISSUER, Forge
from tests.supply_chain.verify.signed_image import LOCK, Signed, provenance_of, sbom_of, sign, write

LEAST = 5_000


class Target:
    """A signed image on disk. Attacks change it one after the other, and each is taken back."""

    def __init__(self, folder: Path, forge: Forge, signed: Signed) -> None:
        self._files = signed.files
        self._folder = write(folder, self._files)
        self._trust = forge.trust
        self._image = signed.image
        self._verifiers = {id(forge.trust): BundleVerifier(forge.trust.root)}
        self._content = anyio.run(self._read)

    def refuses(self, attack: Attack) -> str:
        """Why it is refused; empty when it is accepted. Anything but our own error ends the test."""
        try:
            if attack.bundle is not None:
                self._verify_bundle(attack)
            elif attack.sbom is not None or attack.provenance is not None:
                self._compare(attack)
            else:
                self._verify_layout(attack)
        except SupplyChainError as error:
            return error.what
        return ""

    def _verify_bundle(self, attack: Attack) -> None:
        trust = attack.trust or self._trust
        verifier = self._verifiers.setdefault(id(trust), BundleVerifier(trust.root))
        verified = verifier.verify(attack.bundle or b"", attack.policy or SIGNER, "bundle")
        if verified.statement.digest != self._image.digest:
            raise VerificationError("another image", "")
        if verified.statement.predicate_type != SIGNATURE:
            raise VerificationError("another type", "")

    def _compare(self, attack: Attack) -> None:
        image = self._image
        predicates = {
            SBOM: json.loads(attack.sbom) if attack.sbom is not None else sbom_of(image),
            PROVENANCE: json.loads(attack.provenance)
            if attack.provenance is not None
            else provenance_of(image),
        }
        statements = {
            kind: parse_statement(statement_bytes(image.digest, kind, predicate), kind)
            for kind, predicate in predicates.items()
        }
        sbom = compare.sbom(statements[SBOM], self._content)
        compare.provenance(statements[PROVENANCE], self._content, Signer(IDENTITY, ISSUER), sbom)
        if attack.lock is not None:
            compare.lock(statements[PROVENANCE], attack.lock)

    def _verify_layout(self, attack: Attack) -> None:
        for name, content in attack.files.items():
            path = self._folder / name
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
        try:
            anyio.run(self._verify, attack)
        finally:
            for name in attack.files:
                (self._folder / name).unlink(missing_ok=True)
                if name in self._files:
                    (self._folder / name).write_bytes(self._files[name])

    async def _verify(self, attack: Attack) -> None:
        source = LayoutSource(open_layout(self._folder))
        await verify_image(source, attack.trust or self._trust, attack.policy or SIGNER, lock=attack.lock)

    async def _read(self) -> Content:
        source = LayoutSource(open_layout(self._folder))
        document = await source.image()
        manifest = read_manifest(document)
        return await read_content(source, document.descriptor.digest, manifest, read_layers=True)


def test_the_honest_image_is_accepted(tmp_path: Path, forge: Forge, signed: Signed) -> None:
    target = Target(tmp_path / "layout", forge, signed)
    assert target.refuses(Attack("none", "layout", files={})) == ""
    assert target.refuses(Attack("none", "bundle", bundle=signed.bundles[SIGNATURE])) == ""
    assert target.refuses(Attack("none", "lock", sbom=dump(sbom_of(signed.image)), lock=LOCK)) == ""
    target.refuses(Attack("spoiled", "and restored", files={"index.json": None}))
    assert target.refuses(Attack("none", "layout", files={})) == ""


@pytest.mark.timeout(900)
def test_no_attack_is_accepted(
    tmp_path: Path,
    forge: Forge,
    stranger: Forge,
    signed: Signed,
    other: Signed,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = Target(tmp_path / "layout", forge, signed)
    counts: Counter[str] = Counter()
    harmless: Counter[str] = Counter()
    accepted: list[str] = []
    parts = {
        "the SBOM's": signed.bundles[SBOM],
        "the provenance's": signed.bundles[PROVENANCE],
        "another image's": other.bundles[SIGNATURE],
        "a stranger's": sign(stranger, signed.image).bundles[SIGNATURE],
    }
    for attack in [
        *attacks_on_bundles.changed(signed),
        *attacks_on_bundles.swapped(signed, parts),
        *forgeries.forged(forge, stranger, signed),
        *forgeries.trusts(forge, stranger, signed),
        *attacks_on_statements.signed_statements(forge, signed),
        *attacks_on_statements.sboms(signed),
        *attacks_on_statements.provenances(signed),
        *attacks_on_statements.whole_way(forge, stranger, signed, other),
        *attacks_on_layouts.on_index(signed, other),
        *attacks_on_layouts.on_manifest(signed, other),
        *attacks_on_layouts.on_content(signed, other),
        *attacks_on_layouts.on_referrers(signed, other),
        *attacks_on_layouts.on_folder(signed),
    ]:
        counts[attack.kind] += 1
        if not target.refuses(attack):
            if attack.harmless:
                harmless[f"{attack.kind}: {attack.harmless}"] += 1
            else:
                accepted.append(f"{attack.kind}: {attack.what}")
    lines = [f"{count:5}  {kind}" for kind, count in sorted(counts.items())]
    lines.append(f"{counts.total():5}  in all; {len(accepted)} accepted wrongly, harmless and accepted:")
    lines += [f"{count:5}  {kind}" for kind, count in sorted(harmless.items())]
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
    assert accepted == []
    assert counts.total() >= LEAST
    assert harmless.total() < counts.total() / 20

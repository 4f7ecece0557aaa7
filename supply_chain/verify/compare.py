"""What is attested against what is there. All raise VerificationError with expected and found, and
InvalidDocument for a predicate that is not of its type.
"""

from __future__ import annotations

import hashlib

from supply_chain.provenance import RECIPE_LOCK, Provenance, parse_provenance
from supply_chain.sbom import Sbom, parse_sbom
from supply_chain.statement import Statement
from supply_chain.verify.content import Content, differs
from supply_chain.verify.policy import Signer

_HINT = "don't trust it; build and sign the image again"


def sbom(statement: Statement, content: Content) -> Sbom:
    """The SBOM: it describes this image."""
    read = parse_sbom(statement.predicate, "SBOM")
    _equal("SBOM: described image", content.digest, read.image)
    return read


def provenance(statement: Statement, content: Content, signer: Signer, sbom: Sbom) -> Provenance:
    """The provenance: of a build type that is known, its builder is who signed it, its recipe is of what the
    image says, and every package of the SBOM is one that it used.
    """
    read = parse_provenance(statement.predicate, "provenance")
    _equal("provenance: builder.id", signer.identity, read.run_details.builder.id)
    recipe = read.build_definition.external_parameters.recipe
    for field, there in (
        ("arch", content.config.arch),
        ("source_date_epoch", content.config.source_date_epoch),
    ):
        _equal(f"provenance: recipe: {field}", there, recipe.get(field))
    used = read.build_definition.packages()
    for purl, package in sbom.packages.items():
        _equal(f"provenance: sha256 of {purl}", package.sha256, used.get(purl))
    return read


def lock(statement: Statement, content: bytes) -> Provenance:
    """The provenance: it was built from the lock whose file is `content`."""
    read = parse_provenance(statement.predicate, "provenance")
    named = read.build_definition.dependency(RECIPE_LOCK)
    stated = named.digest.sha256 if named is not None and named.digest is not None else None
    _equal("provenance: sha256 of the lock", hashlib.sha256(content).hexdigest(), stated)
    return read


def _equal(what: str, expected: object, found: object) -> None:
    if expected != found or type(expected) is not type(found):
        raise differs(what, _shown(expected), _shown(found), _HINT)


def _shown(value: object) -> str:
    return "none" if value is None else f"{value}"[:200]

"""What is attested against what is there. All raise VerificationError with expected and found, and
InvalidDocument for a predicate that is not of its type.
"""

from __future__ import annotations

import hashlib

from pipelines.errors import RecipeError
from pipelines.lock import parse_lock
from stages.shared import purl
from supply_chain.errors import VerificationError
from supply_chain.image import INITRAMFS, KERNEL, METADATA
from supply_chain.provenance import RECIPE_LOCK, BuildDefinition, Provenance, parse_provenance
from supply_chain.sbom import Sbom, parse_sbom
from supply_chain.statement import Statement
from supply_chain.verify.content import Content, differs
from supply_chain.verify.policy import Signer

_HINT = "don't trust it; build and sign the image again"
# The lock's sets that an image is made of; the others are tools.
_SETS = ("root", "kernel", "initramfs")


def sbom(statement: Statement, content: Content) -> Sbom:
    """The SBOM: it describes this image, its kernel, initramfs and root, and no layer that is another."""
    read = parse_sbom(statement.predicate, "SBOM")
    _equal("SBOM: described image", content.digest, read.image)
    for title in sorted({KERNEL, INITRAMFS, METADATA, *read.layers}):
        layer = content.layers.get(title)
        _equal(f"SBOM: sha256 of {title}", layer.hex if layer is not None else None, read.layers.get(title))
    return read


def provenance(statement: Statement, content: Content, signer: Signer, sbom: Sbom) -> Provenance:
    """The provenance: of a build type that is known, its builder is who signed it, its recipe is of what the
    image says, every package of the SBOM is one that it used, and the SBOM has all that root and kernel are
    made of.
    """
    read = parse_provenance(statement.predicate, "provenance")
    _equal("provenance: builder.id", signer.identity, read.run_details.builder.id)
    definition, config = read.build_definition, content.config
    recipe = definition.external_parameters.recipe
    words = [word for word in config.cmdline.split(" ") if not word.startswith("composefs=")]
    for field, there in (
        ("arch", config.arch),
        ("source_date_epoch", config.source_date_epoch),
        ("cmdline", words),
        ("variants", list(content.build_manifest.variants)),
    ):
        _equal(f"provenance: recipe: {field}", there, recipe.get(field))
    installed = _used(definition, *_SETS)
    for url, stated in sbom.packages.items():
        _equal(f"provenance: sha256 of {url} in the image", stated.sha256, installed.get(url))
    for url, sha256 in _used(definition, "root", "kernel").items():
        package = sbom.packages.get(url)
        _equal(f"SBOM: sha256 of {url}", sha256, package.sha256 if package is not None else None)
    return read


def lock(statement: Statement, content: bytes) -> Provenance:
    """The provenance: it was built from the lock whose file is `content`, and from the files that this names
    for root, kernel and initramfs, no other and none less.
    """
    read = parse_provenance(statement.predicate, "provenance")
    named = read.build_definition.dependency(RECIPE_LOCK)
    stated = named.digest.sha256 if named is not None and named.digest is not None else None
    _equal("provenance: sha256 of the lock", hashlib.sha256(content).hexdigest(), stated)
    try:
        locked = parse_lock(content, "lock", _HINT)
    except RecipeError as error:
        raise VerificationError(error.what, error.hint) from None
    distro = purl.DISTRO.get(locked.suite)
    for name in _SETS:
        wanted = {
            purl.deb(file.name, file.version, file.arch, distro): file.sha256 for file in locked.of_set(name)
        }
        used = _used(read.build_definition, name)
        for url in sorted(wanted.keys() | used.keys()):
            _equal(f"provenance: sha256 of {url}, for the {name}", wanted.get(url), used.get(url))
    return read


def _used(definition: BuildDefinition, *names: str) -> dict[str, str]:
    """Package URL → sha256 of what the build used for one of these sets of the lock."""
    wanted = {
        each.uri
        for each in definition.resolved_dependencies
        if isinstance(sets := (each.annotations or {}).get("sets"), list)
        and any(name in sets for name in names)
    }
    return {url: sha256 for url, sha256 in definition.packages().items() if url in wanted}


def _equal(what: str, expected: object, found: object) -> None:
    if expected != found or type(expected) is not type(found):
        raise differs(what, _shown(expected), _shown(found), _HINT)


def _shown(value: object) -> str:
    return "none" if value is None else f"{value}"[:200]

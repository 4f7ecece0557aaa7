"""Locking: the files that a recipe or the tools stand on, as apt resolves them from signed indexes."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from pipelines.apt import Apt, Source, Stanza
from pipelines.archive import keyring, serving
from pipelines.errors import ArchiveError, RecipeError
from pipelines.evidence import Evidence, evidence_of
from pipelines.lock import SCHEMA, Lock, LockedFile
from pipelines.recipe import Recipe, SourceKernel
from pipelines.relations import clauses
from pipelines.relock import only
from pipelines.tools import Tools

Identity = tuple[str, str, str]

# What runs the initramfs's init: the interpreter, its library, and the C libraries of the modules that init
# imports.
_INTERPRETER = ("python3-minimal", "libpython3-stdlib")
# Dependencies that serve installation, a person at a prompt, or modules that init does not import. Nothing
# is followed through them.
_NOT_IN_INITRAMFS = frozenset(
    (
        *("debconf", "dpkg", "perl-base", "media-types", "mime-support", "netbase", "tzdata"),
        *(
            "libbz2-1.0",
            "libdb5.3t64",
            "liblzma5",
            "libncursesw6",
            "libreadline8t64",
            "libsqlite3-0",
            "libssl3t64",
        ),
        *("libtinfo6", "libuuid1"),
    )
)


def resolve(
    recipe: Recipe,
    archives: Sequence[str],
    *,
    locked: Lock | None = None,
    update: Collection[str] = (),
    keys: Path | None = None,
) -> tuple[Lock, Evidence]:
    """Lock `recipe` against `archives` (roots, in the order to try).

    Sets: `root` is what an installation of the recipe's packages holds; `kernel` the source or the image
    package; `initramfs` the packages from which the initramfs takes its interpreter. With `update` only
    those packages, and what they need, differ from `locked`. `keys` replaces Debian's keyring (for an
    archive of one's own). Raises ArchiveError when an index is not verified or the packages don't resolve,
    RecipeError for a package that does not exist.
    """
    with indexes(sources_of(archives, recipe.suite), recipe.arch, keys) as apt:
        wanted = recipe.kernel.source if isinstance(recipe.kernel, SourceKernel) else recipe.kernel.package
        _known(apt, {**dict.fromkeys(recipe.packages, "packages"), wanted: "kernel"})
        asked = {*recipe.packages, *_essential(apt)}
        sets = {"root": apt.install(asked), "initramfs": _interpreter(apt)}
        sourced: dict[str, list[Identity]] = {}
        (sourced if isinstance(recipe.kernel, SourceKernel) else sets)["kernel"] = [_kernel(apt, wanted)]
        requested = {"root": recipe.packages, "kernel": (wanted,)}
        lock = _lock(recipe.suite, recipe.arch, requested, _files(apt, sets), _files(apt, sourced))
        if locked is not None and update:
            lock = only(
                update, locked, lock, asked=asked, kernel=wanted, stanza_of=lambda file: _indexed(apt, file)
            )
        return lock, evidence_of(apt)


def resolve_tools(
    tools: Tools,
    arch: str,
    archives: Sequence[str],
    *,
    expired: Collection[str] = (),
    locked: Lock | None = None,
    update: Collection[str] = (),
    keys: Path | None = None,
) -> tuple[Lock, Evidence]:
    """Lock the tools' sets for one architecture. Otherwise as `resolve`.

    `expired` names extra suites whose index may be past its Valid-Until: for an archive that keeps an old
    state of a suite that moves on. Its signature must hold all the same, and the evidence says so.
    """
    if unknown := sorted(set(expired) - {extra.suite for extra in tools.extra}):
        raise RecipeError(
            f"--accept-expired: expected an extra suite of the tools, found {', '.join(unknown)}",
            f"extra suites are: {', '.join(extra.suite for extra in tools.extra) or 'none'}",
        )
    with indexes(tools_sources(tools, archives, expired), arch, keys) as apt:
        sets: dict[str, list[Identity]] = {}
        requested: dict[str, tuple[str, ...]] = {}
        for name, members in sorted(tools.sets.items()):
            wanted = (*tools.base.packages, *members.of(arch))
            _known(apt, dict.fromkeys(wanted, f"sets.{name}"))
            sets[name] = apt.install(wanted)
            requested[name] = wanted
        lock = _lock(tools.suite, arch, requested, _files(apt, sets), ())
        asked = {name for wanted in requested.values() for name in wanted}
        if locked is not None and update:
            lock = only(
                update, locked, lock, asked=asked, kernel=None, stanza_of=lambda file: _indexed(apt, file)
            )
        return lock, evidence_of(apt)


def locked_file(stanza: Stanza, sets: Iterable[str]) -> LockedFile:
    """A lock's entry for an index's stanza. Raises ArchiveError for one that breaks the lock's rules."""
    name, version, arch = stanza.identity
    try:
        return LockedFile(
            name=name,
            version=version,
            arch=arch,
            sha256=stanza.fields["SHA256"],
            size=int(stanza.fields["Size"]),
            pool_path=stanza.fields["Filename"],
            sets=tuple(sets),
        )
    except (KeyError, ValueError, ValidationError) as error:
        raise ArchiveError(
            f"{name} {version}: the index's entry is unusable: {error}", "use another archive"
        ) from None


def sources_of(archives: Sequence[str], suite: str) -> list[Source]:
    """A stable suite with its updates and its security archive, wherever they are served."""
    suites = (suite, f"{suite}-updates", f"{suite}-security")
    return [Source(root, name) for name, root in serving(archives, suites).items()]


def tools_sources(tools: Tools, archives: Sequence[str], expired: Collection[str]) -> list[Source]:
    """The tools' suite as every suite, and of each extra suite its packages alone."""
    sources = sources_of(archives, tools.suite)
    for extra in tools.extra:
        root = serving(archives, [extra.suite])[extra.suite]
        sources.append(Source(root, extra.suite, extra.packages, extra.suite in expired))
    return sources


@contextmanager
def indexes(sources: Sequence[Source], arch: str, keys: Path | None) -> Iterator[Apt]:
    """An apt over the verified indexes of `sources`, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="disk-image-lock-") as folder:
        apt = Apt(Path(folder), sources, arch, keys or keyring())
        apt.update()
        yield apt


def _known(apt: Apt, wanted: Mapping[str, str]) -> None:
    for name, field in wanted.items():
        if name not in apt.stanzas():
            near = get_close_matches(name, apt.stanzas(), n=1)
            raise RecipeError(
                f"{field}: package {name!r} is not in {', '.join(source.suite for source in apt.sources)}",
                f"did you mean {near[0]!r}?" if near else "no package has a name like it: drop it",
            )


def _essential(apt: Apt) -> Iterator[str]:
    """Packages that an installation can't be without (deb-control(5), Essential). apt is not among them."""
    for name, stanzas in apt.stanzas().items():
        if any(stanza.fields.get("Essential") == "yes" for stanza in stanzas):
            yield name


def _interpreter(apt: Apt) -> list[Identity]:
    resolved = {identity[0]: identity for identity in apt.install(_INTERPRETER)}
    kept: list[Identity] = []
    queue = list(_INTERPRETER)
    seen = {*queue, *_NOT_IN_INITRAMFS}
    while queue:
        identity = resolved[queue.pop()]
        if identity[0] not in _INTERPRETER:
            kept.append(identity)
        needed = {name for name in _dependencies(_stanza(apt, identity)) if name in resolved} - seen
        seen |= needed
        queue += sorted(needed)
    return kept


def _kernel(apt: Apt, wanted: str) -> Identity:
    """`wanted`, or the image package behind it when it is a metapackage of linux-image packages."""
    resolved = {identity[0]: identity for identity in apt.install([wanted])}
    name = wanted
    while True:
        behind = [
            other
            for other in _dependencies(_stanza(apt, resolved[name]))
            if other.startswith("linux-image-")
        ]
        if not (behind := [other for other in behind if other in resolved]):
            return resolved[name]
        name = behind[0]


def _dependencies(stanza: Stanza) -> Iterator[str]:
    for field in ("Pre-Depends", "Depends"):
        for clause in clauses(stanza.fields.get(field, "")):
            yield from (relation.name for relation in clause)


def _stanza(apt: Apt, identity: Identity) -> Stanza:
    for stanza in apt.stanzas().get(identity[0], ()):
        if stanza.identity == identity:
            return stanza
    raise ArchiveError(
        f"{' '.join(identity)}: resolved, but in no index",
        "run it again; if it stays, the archive contradicts itself",
    )


def _indexed(apt: Apt, file: LockedFile) -> Stanza | None:
    stanzas = apt.stanzas().get(file.name, ())
    return next(
        (stanza for stanza in stanzas if stanza.identity == (file.name, file.version, file.arch)), None
    )


def _files(apt: Apt, sets: Mapping[str, Iterable[Identity]]) -> tuple[LockedFile, ...]:
    members: dict[Identity, list[str]] = {}
    for name, identities in sorted(sets.items()):
        for identity in identities:
            members.setdefault(identity, []).append(name)
    return tuple(locked_file(_stanza(apt, identity), names) for identity, names in members.items())


def _lock(
    suite: str,
    arch: str,
    requested: Mapping[str, tuple[str, ...]],
    packages: tuple[LockedFile, ...],
    sources: tuple[LockedFile, ...],
) -> Lock:
    fields = {
        "schema": SCHEMA,
        "suite": suite,
        "arch": arch,
        "requested": requested,
        "packages": packages,
        "sources": sources,
    }
    return Lock.model_validate(fields).ordered()

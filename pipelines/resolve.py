"""Locking: which files of the archive a recipe, or the tools, stand on, as apt resolves them against signed indexes."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from pipelines.apt import Apt, Source, Stanza
from pipelines.archive import keyring, serving
from pipelines.errors import ArchiveError, RecipeError
from pipelines.evidence import Evidence, SuiteEvidence
from pipelines.lock import SCHEMA, Lock, LockedFile
from pipelines.openpgp import fingerprints, issuers
from pipelines.recipe import Recipe, SourceKernel
from pipelines.relations import clauses
from pipelines.tools import Tools

Identity = tuple[str, str, str]

# What runs the initramfs's init: the interpreter, its library, the C libraries of the modules that init imports.
_INTERPRETER = ("python3-minimal", "libpython3-stdlib")
# Dependencies that serve installation, interactive use, or modules that init does not import; nothing is followed through them.
_NOT_IN_INITRAMFS = frozenset(
    {
        "debconf",
        "dpkg",
        "libbz2-1.0",
        "libdb5.3t64",
        "liblzma5",
        "libncursesw6",
        "libreadline8t64",
        "libsqlite3-0",
        "libssl3t64",
        "libtinfo6",
        "libuuid1",
        "media-types",
        "mime-support",
        "netbase",
        "perl-base",
        "tzdata",
    }
)


def suites_of(suite: str) -> tuple[str, ...]:
    """A stable suite is always used with its updates and its security archive."""
    return (suite, f"{suite}-updates", f"{suite}-security")


def resolve(recipe: Recipe, archives: Sequence[str], *, keys: Path | None = None) -> tuple[Lock, Evidence]:
    """Lock `recipe` against `archives` (roots, in the order to try).

    Sets: `root` is what an installation of the recipe's packages holds; `kernel` the source or the image package;
    `initramfs` the packages from which the initramfs takes its interpreter. Raises ArchiveError when an index is not
    verified or the packages don't resolve, RecipeError for a package that does not exist. `keys` replaces Debian's
    keyring (for archives of one's own).
    """
    sources = _sources(archives, suites_of(recipe.suite))
    with _indexes(sources, recipe.arch, keys) as apt:
        wanted = recipe.kernel.source if isinstance(recipe.kernel, SourceKernel) else recipe.kernel.package
        _known(apt, {**dict.fromkeys(recipe.packages, "packages"), wanted: "kernel"})
        sets = {
            "root": apt.install({*recipe.packages, *_essential(apt)}),
            "initramfs": _interpreter(apt),
        }
        kernel = _images(apt, wanted)
        sourced = {"kernel": kernel} if isinstance(recipe.kernel, SourceKernel) else {}
        if not sourced:
            sets["kernel"] = kernel
        lock = _lock(recipe.suite, recipe.arch, _files(apt, sets), _files(apt, sourced))
        return lock, _evidence(apt, keys)


def resolve_tools(
    tools: Tools,
    arch: str,
    archives: Sequence[str],
    *,
    expired: Collection[str] = (),
    keys: Path | None = None,
) -> tuple[Lock, Evidence]:
    """Lock the tools' sets for one architecture.

    `expired` names extra suites whose index may be past its Valid-Until: for an archive that keeps an old state of a
    suite that moves on. Its signature must hold all the same, and the evidence says so. Otherwise as `resolve`.
    """
    unknown = set(expired) - {extra.suite for extra in tools.extra}
    if unknown:
        raise RecipeError(
            f"suite {', '.join(sorted(unknown))}: only extra suites may be expired ({', '.join(e.suite for e in tools.extra)})",
            "lock against an archive that is kept current",
        )
    sources = _sources(archives, suites_of(tools.suite))
    for extra in tools.extra:
        (found,) = _sources(archives, (extra.suite,))
        sources.append(Source(found.root, extra.suite, extra.packages, extra.suite in expired))
    with _indexes(sources, arch, keys) as apt:
        sets: dict[str, list[Identity]] = {}
        for name, members in sorted(tools.sets.items()):
            asked = (*tools.base.packages, *members.of(arch))
            _known(apt, dict.fromkeys(asked, f"sets.{name}"))
            sets[name] = apt.install(asked)
        return _lock(tools.suite, arch, _files(apt, sets), ()), _evidence(apt, keys)


def _sources(archives: Sequence[str], suites: Sequence[str]) -> list[Source]:
    return [Source(root, suite) for suite, root in serving(archives, suites).items()]


@contextmanager
def _indexes(sources: Sequence[Source], arch: str, keys: Path | None) -> Iterator[Apt]:
    with tempfile.TemporaryDirectory(prefix="disk-image-lock-") as folder:
        apt = Apt(Path(folder), sources, arch, keys or keyring())
        apt.update()
        yield apt


def _known(apt: Apt, wanted: Mapping[str, str]) -> None:
    for name, field in wanted.items():
        if name not in apt.stanzas():
            near = get_close_matches(name, apt.stanzas(), n=1)
            nearest = f"the nearest name is {near[0]!r}" if near else "no name is near"
            raise RecipeError(
                f"{field}: package {name!r} is not in {', '.join(source.suite for source in apt.sources)}; {nearest}",
                f"write {near[0]!r} if that is meant, or drop it"
                if near
                else "drop it, or correct its name",
            )


def _essential(apt: Apt) -> Iterator[str]:
    """deb-control(5): packages that an installation can't be without. apt counts itself in; a recipe names it if it is wanted."""
    for name, stanzas in apt.stanzas().items():
        if any(stanza.fields.get("Essential") == "yes" for stanza in stanzas):
            yield name


def _interpreter(apt: Apt) -> list[Identity]:
    resolved = {name: (name, version, arch) for name, version, arch in apt.install(_INTERPRETER)}
    kept: list[Identity] = []
    queue = list(_INTERPRETER)
    seen = set(queue)
    while queue:
        identity = resolved[queue.pop()]
        if identity[0] not in _INTERPRETER:
            kept.append(identity)
        for name in _dependencies(_stanza(apt, identity)):
            if name in resolved and name not in seen and name not in _NOT_IN_INITRAMFS:
                seen.add(name)
                queue.append(name)
    return kept


def _images(apt: Apt, wanted: str) -> list[Identity]:
    """The kernel's own package: `wanted`, or what stands behind it when it is a metapackage of linux-image packages."""
    resolved = {name: (name, version, arch) for name, version, arch in apt.install([wanted])}
    name = wanted
    while behind := [
        other
        for other in _dependencies(_stanza(apt, resolved[name]))
        if other.startswith("linux-image-") and other in resolved
    ]:
        name = behind[0]
    return [resolved[name]]


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
        "run it again; if it stays, the archive is inconsistent",
    )


def _files(apt: Apt, sets: Mapping[str, Iterable[Identity]]) -> tuple[LockedFile, ...]:
    members: dict[Identity, list[str]] = {}
    for name, identities in sorted(sets.items()):
        for identity in identities:
            members.setdefault(identity, []).append(name)
    return tuple(locked(_stanza(apt, identity), names) for identity, names in members.items())


def locked(stanza: Stanza, sets: Sequence[str]) -> LockedFile:
    """A lock's entry for an index's stanza. Raises ArchiveError for a stanza that breaks the lock's rules."""
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


def _lock(suite: str, arch: str, packages: tuple[LockedFile, ...], sources: tuple[LockedFile, ...]) -> Lock:
    return Lock(schema=SCHEMA, suite=suite, arch=arch, packages=packages, sources=sources).ordered()


def _evidence(apt: Apt, keys: Path | None) -> Evidence:
    trusted = set(fingerprints((keys or keyring()).read_bytes()))
    seen: list[SuiteEvidence] = []
    for source in apt.sources:
        data = apt.release(source.suite).read_bytes()
        head = data.decode("utf-8", "replace")
        field: Callable[[str], str | None] = lambda name, head=head: (
            found[1] if (found := re.search(rf"^{name}: (.+)$", head, re.M)) else None
        )
        seen.append(
            SuiteEvidence(
                suite=source.suite,
                inrelease_sha256=hashlib.sha256(data).hexdigest(),
                date=field("Date"),
                valid_until=field("Valid-Until"),
                expiry_accepted=source.expired,
                signed_by=tuple(name for name in issuers(data) if name in trusted),
            )
        )
    return Evidence(locked_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), suites=tuple(seen))

"""What a new lock changes, and locks in which only named packages may change."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from pipelines.apt import Stanza
from pipelines.errors import RecipeError
from pipelines.lock import Lock, LockedFile
from pipelines.relations import Relation, clauses

# The entry's stanza, as far as the indexes still have it.
StanzaOf = Callable[[LockedFile], Stanza | None]


@dataclass(frozen=True, slots=True)
class Change:
    """One file that a new lock adds (`old` is None), drops (`new` is None) or replaces."""

    name: str
    old: LockedFile | None
    new: LockedFile | None

    def __str__(self) -> str:
        if self.old is None or self.new is None:
            return f"{self.name}: {_version(self.old)} → {_version(self.new)}"
        if self.old.version != self.new.version:
            return f"{self.name}: {self.old.version} → {self.new.version}"
        if self.old.sha256 != self.new.sha256:
            return f"{self.name}: {self.old.version} with sha256 {self.old.sha256} → {self.new.sha256}"
        if self.old.sets != self.new.sets:
            return f"{self.name}: sets {', '.join(self.old.sets)} → {', '.join(self.new.sets)}"
        return f"{self.name}: {self.old.pool_path} → {self.new.pool_path}"


def _version(file: LockedFile | None) -> str:
    return "not there" if file is None else file.version


def changes(old: Lock | None, new: Lock) -> tuple[Change, ...]:
    """What differs from `old` to `new`, by name; all of `new` when there is no old lock."""
    before = {file.name: file for file in (*old.packages, *old.sources)} if old else {}
    after = {file.name: file for file in (*new.packages, *new.sources)}
    return tuple(
        Change(name, before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    )


def only(
    names: Collection[str],
    locked: Lock,
    fresh: Lock,
    *,
    asked: Collection[str],
    kernel: str | None,
    stanza_of: StanzaOf,
) -> Lock:
    """`locked`, but for `names` as `fresh` has them and what must change with them.

    What they depend on changes where the locked version won't do, and so do locked packages that won't do
    beside the new versions. `asked` are the packages that are wanted for themselves. `kernel` is the
    recipe's name for its kernel: that name, or the locked file's, moves the whole set `kernel`. Raises
    RecipeError for a name that neither lock has.
    """
    known = {file.name for lock in (locked, fresh) for file in (*lock.packages, *lock.sources)}
    for name in names:
        if name not in known and name != kernel:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "name a package of the lock"
            raise RecipeError(f"--update: expected a package of the lock, found {name!r}", hint)
    is_kernel = _is_kernel if kernel else _never
    moves_kernel = any(
        name == kernel or name in _names(locked, is_kernel) | _names(fresh, is_kernel) for name in names
    )
    packages = _Merge(
        [file for file in locked.packages if not is_kernel(file)],
        [file for file in fresh.packages if not is_kernel(file)],
        asked,
        stanza_of,
    ).move(name for name in names if name != kernel)
    taken = fresh if moves_kernel else locked
    return fresh.model_copy(
        update={
            "packages": (*packages, *(file for file in taken.packages if is_kernel(file))),
            "sources": taken.sources,
        }
    ).ordered()


def _is_kernel(file: LockedFile) -> bool:
    return "kernel" in file.sets


def _never(file: LockedFile) -> bool:
    return False


def _names(lock: Lock, chosen: Callable[[LockedFile], bool]) -> set[str]:
    return {file.name for file in (*lock.packages, *lock.sources) if chosen(file)}


class _Merge:
    """The locked packages, moved to their fresh entries one after the other until everything holds."""

    def __init__(
        self,
        locked: Iterable[LockedFile],
        fresh: Iterable[LockedFile],
        asked: Collection[str],
        stanza_of: StanzaOf,
    ) -> None:
        self.fresh = {file.name: file for file in fresh}
        self.now = {file.name: self._with_sets(file) for file in locked}
        self.asked = asked
        self.stanza_of = stanza_of

    def _with_sets(self, file: LockedFile) -> LockedFile:
        fresh = self.fresh.get(file.name)
        return file.model_copy(update={"sets": fresh.sets}) if fresh else file

    def move(self, names: Iterable[str]) -> list[LockedFile]:
        """The packages after `names`, and what is asked for but was never locked, have moved."""
        queue = [*names, *(name for name in self.asked if name not in self.now)]
        moved: set[str] = set()
        while queue:
            name = queue.pop()
            if name in moved or name not in self.fresh:
                continue
            moved.add(name)
            self.now[name] = self.fresh[name]
            queue += self._unmet(self.fresh[name])
            queue += (
                other
                for other in self.now
                if other not in moved and self._broken_by(other, self.fresh[name])
            )
        return [file for file in self.now.values() if file.name in self.fresh or self._needed(file.name)]

    def _unmet(self, file: LockedFile) -> Iterator[str]:
        """Packages that must move, or join, for `file`'s dependencies to hold."""
        for alternatives in self._depends(file):
            if not any(self._met(relation) for relation in alternatives):
                yield from (relation.name for relation in alternatives if relation.name in self.fresh)

    def _met(self, relation: Relation) -> bool:
        file = self.now.get(relation.name)
        return file is not None and relation.allows(file.version)

    def _broken_by(self, other: str, moved: LockedFile) -> bool:
        """Whether the locked version of `other` won't do beside the new `moved`."""
        file, fresh = self.now[other], self.fresh.get(other)
        if fresh is None:
            return False
        known = self.stanza_of(file) is not None
        for alternatives in self._depends(file if known else fresh):
            named = [relation for relation in alternatives if relation.name == moved.name]
            # The locked version may be in no index any more. Where the fresh one asks for one exact version
            # (packages of one source do), so did the locked one, and it was the old one.
            if named and (not any(map(self._met, alternatives)) or (not known and named[0].operator == "=")):
                return True
        breaks = (one for field in ("Breaks", "Conflicts") for one in self._field(moved, field))
        return any(
            relation.name == other and relation.operator and relation.allows(file.version)
            for alternatives in breaks
            for relation in alternatives
        )

    def _needed(self, name: str) -> bool:
        return name in self.asked or any(
            relation.name == name
            for file in self.now.values()
            for one in self._depends(file)
            for relation in one
        )

    def _depends(self, file: LockedFile) -> list[tuple[Relation, ...]]:
        return [*self._field(file, "Pre-Depends"), *self._field(file, "Depends")]

    def _field(self, file: LockedFile, name: str) -> tuple[tuple[Relation, ...], ...]:
        stanza = self.stanza_of(file)
        return clauses(stanza.fields.get(name, "")) if stanza else ()

"""The state of systemd units, as `systemctl --root` sets it: systemd.unit(5), [Install] section and unit
file load path.

An image without packages' runtime state needs only the links below /etc/systemd/system, so this makes and
removes them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from stages.rootfs.text import nearest, read_text
from stages.shared.canonical_tar import Kind
from stages.shared.job import Failure
from stages.shared.tree import Node, Tree

_CONFIG = "etc/systemd/system"
# The load path of a system manager, less what is made at run time.
_PATHS = (_CONFIG, "usr/local/lib/systemd/system", "usr/lib/systemd/system")
_WANTS = {"WantedBy": "wants", "RequiredBy": "requires", "UpheldBy": "upholds"}
_LISTS = (*_WANTS, "Alias", "Also")


@dataclass(slots=True)
class _Unit:
    """A unit as asked for (`name`), the file that holds it, and its [Install] section."""

    name: str
    path: str
    lists: dict[str, list[str]] = field(default_factory=dict)
    default_instance: str = ""


class Units:
    """Enables, disables and masks units of a tree."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._folders = [tree.resolve(path) for path in _PATHS]
        self._known = {
            path.rpartition("/")[2]
            for path in tree.nodes
            if path.rpartition("/")[0] in self._folders and tree.nodes[path].kind is not Kind.DIRECTORY
        }

    def apply(self, enable: Sequence[str], disable: Sequence[str], mask: Sequence[str]) -> None:
        """Set the state of each unit; one unit in two lists is refused."""
        for name in sorted({*enable} & {*disable} | {*enable} & {*mask} | {*disable} & {*mask}):
            raise Failure(f"units: {name} is in two of enable, disable, mask", "keep it in one of them")
        for name in disable:
            self._disable(name)
        for name in enable:
            self._enable(name)
        for name in mask:
            self._mask(name)

    def _enable(self, name: str) -> None:
        unit = self._load(name, "enable")
        if not any(unit.lists.values()):
            raise Failure(
                f"units: enable: {name} has no [Install] section: nothing says what should start it",
                "leave it out of enable, or give it an [Install] section with a file of the recipe",
            )
        for each in self._with_also(unit, "enable"):
            for alias in each.lists.get("Alias", ()):
                self._link(f"{_CONFIG}/{_alias(each, alias)}", each)
            for key, suffix in _WANTS.items():
                for target in each.lists.get(key, ()):
                    folder = f"{_CONFIG}/{_expand(each.name, target)}.{suffix}"
                    self._link(f"{folder}/{_instance(each)}", each)

    def _disable(self, name: str) -> None:
        for unit in self._with_also(self._load(name, "disable"), "disable"):
            for path in [*self._links_to(unit)]:
                del self._tree.nodes[path]

    def _mask(self, name: str) -> None:
        self._find(name, "mask")
        path = self._tree.place(f"{_CONFIG}/{name}")
        found = self._tree.nodes.get(path)
        if found is not None and found.kind is not Kind.SYMLINK:
            raise Failure(
                f"units: mask: /{path} is a {found.kind}", "leave out the file of that name, or the mask"
            )
        self._tree.put(path, _symlink("/dev/null", self._tree.clamp))

    def _links_to(self, unit: _Unit) -> Iterator[str]:
        """Links of the configuration folder that enable the unit, by name or by where they lead."""
        folder = self._tree.resolve(_CONFIG) + "/"
        for path, node in self._tree.nodes.items():
            if not path.startswith(folder) or node.kind is not Kind.SYMLINK or node.target == "/dev/null":
                continue
            name = path.rpartition("/")[2]
            below = path[len(folder) :].count("/")
            if (
                below == 1
                and (name == unit.name or (_is_template(unit.name) and _template(name) == unit.name))
            ) or (below == 0 and name != unit.name and self._tree.resolve(path) == unit.path):
                yield path

    def _with_also(self, unit: _Unit, verb: str) -> list[_Unit]:
        """The unit and, in turn, what Also= names; each once."""
        found = {unit.name: unit}
        pending = [unit]
        while pending:
            current = pending.pop(0)
            for also in current.lists.get("Also", ()):
                name = _expand(current.name, also)
                if name not in found:
                    found[name] = self._load(name, verb)
                    pending.append(found[name])
        return [*found.values()]

    def _link(self, path: str, unit: _Unit) -> None:
        place = self._tree.place(path)
        found = self._tree.nodes.get(place)
        if found is not None and found.kind is not Kind.SYMLINK:
            raise Failure(
                f"units: enable: /{place} is a {found.kind}",
                f"leave out the file of that name, or {unit.name}",
            )
        if found is not None and self._tree.resolve(place) == unit.path:
            return
        if found is not None:
            raise Failure(
                f"units: enable: {unit.name} wants to be /{place}, which leads to {found.target}",
                f"disable the unit behind {found.target} in the recipe",
            )
        self._tree.put(place, _symlink(f"/{unit.path}", self._tree.clamp))

    def _find(self, name: str, verb: str) -> str:
        """The unit's real path: its own file, or its template's."""
        for wanted in dict.fromkeys((name, _template(name))):
            for folder in self._folders:
                path = f"{folder}/{wanted}"
                node = self._tree.nodes.get(path)
                if node is None:
                    continue
                if node.kind is Kind.SYMLINK and node.target == "/dev/null":
                    if verb == "enable":
                        raise Failure(f"units: {verb}: {name} is masked by /{path}", "choose one of the two")
                    return path
                return self._tree.resolve(path)
        raise Failure(
            f"units: {verb}: the image has no unit {name}{nearest(name, self._known)}",
            "correct the name, or add the unit's package or file",
        )

    def _load(self, name: str, verb: str) -> _Unit:
        path = self._find(name, verb)
        unit = _Unit(name, path)
        for part in (path, *self._drop_ins(name)):
            _read_install(read_text(self._tree, part) or "", unit)
        return unit

    def _drop_ins(self, name: str) -> list[str]:
        """NAME.d/*.conf of every folder, sorted by file name; a file in an earlier folder hides its
        namesakes.
        """
        chosen: dict[str, str] = {}
        for folder in reversed(self._folders):
            for wanted in dict.fromkeys((_template(name), name)):
                prefix = f"{folder}/{wanted}.d/"
                for path in self._tree.nodes:
                    if path.startswith(prefix) and path.endswith(".conf") and "/" not in path[len(prefix) :]:
                        chosen[path[len(prefix) :]] = path
        return [chosen[name] for name in sorted(chosen)]


def _read_install(text: str, unit: _Unit) -> None:
    """Add the [Install] sections of one file: systemd.syntax(7); an empty value clears a list."""
    section = ""
    for line in text.replace("\\\n", " ").splitlines():
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("["):
            section = line
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if section != "[Install]" or not equals:
            continue
        if key == "DefaultInstance":
            unit.default_instance = value
        elif key in _LISTS:
            unit.lists[key] = [*unit.lists.get(key, ()), *value.split()] if value else []


def _split(name: str) -> tuple[str, str, str]:
    """Prefix, instance and suffix of a unit's name: `getty`, `tty1`, `.service`."""
    stem, suffix = posixpath.splitext(name)
    prefix, _, instance = stem.partition("@")
    return prefix, instance, suffix


def _template(name: str) -> str:
    """The template of an instance; other names as they are."""
    prefix, instance, suffix = _split(name)
    return f"{prefix}@{suffix}" if instance else name


def _is_template(name: str) -> bool:
    return "@" in name and not _split(name)[1]


def _instance(unit: _Unit) -> str:
    """The name that is linked: a template stands for its default instance."""
    if not _is_template(unit.name):
        return unit.name
    if not unit.default_instance:
        prefix, _, suffix = _split(unit.name)
        raise Failure(
            f"units: enable: {unit.name} is a template without a DefaultInstance",
            f"enable an instance of it: {prefix}@NAME{suffix}",
        )
    prefix, _, suffix = _split(unit.name)
    return f"{prefix}@{_expand(unit.name, unit.default_instance)}{suffix}"


def _alias(unit: _Unit, alias: str) -> str:
    expanded = _expand(unit.name, alias)
    if _split(expanded)[2] != _split(unit.name)[2]:
        raise Failure(
            f"units: enable: {unit.name}: Alias={alias} is of another type", "correct the unit's file"
        )
    return expanded


def _expand(name: str, text: str) -> str:
    """Specifiers of systemd.unit(5) that depend on the unit's name alone; others would depend on the
    machine.
    """
    prefix, instance, suffix = _split(name)
    meaning = {
        "%": "%",
        "i": instance,
        "j": prefix.rpartition("-")[2],
        "n": name,
        "N": name.removesuffix(suffix),
        "p": prefix,
    }
    parts: list[str] = []
    letters = iter(text)
    for letter in letters:
        if letter != "%":
            parts.append(letter)
            continue
        specifier = next(letters, "")
        if specifier not in meaning:
            raise Failure(
                f"units: {name}: specifier %{specifier} in {text!r} is known only on a running machine",
                "enable the unit at run time, or with a symlink among the recipe's files",
            )
        parts.append(meaning[specifier])
    return "".join(parts)


def _symlink(target: str, clamp: int) -> Node:
    return Node(Kind.SYMLINK, 0o777, mtime=clamp, target=target)

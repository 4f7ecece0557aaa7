"""Users and groups of the root: passwd(5), group(5), shadow(5), gshadow(5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.rootfs.text import nearest, read_text, write_text
from stages.shared.canonical_tar import Kind
from stages.shared.job import Failure
from stages.shared.tree import Node, Tree

_NOWHERE = "/nonexistent"
# No password hash can be `*`: no password opens the account, a key file does. `!` would shut keys out as
# well where sshd runs without PAM (sshd(8), AUTHENTICATION PROCESS).
_NO_PASSWORD = "*"


class Accounts:
    """The four files as rows of fields; `write` puts them back, passwd and group sorted by number."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._passwd = _rows(tree, "etc/passwd", 7)
        self._group = _rows(tree, "etc/group", 4)
        self._shadow = _rows(tree, "etc/shadow", 9)
        self._gshadow = _rows(tree, "etc/gshadow", 4)

    def uid(self, name: str, what: str) -> int:
        """The number of a user; Failure naming `what` wants it and the nearest name."""
        return _number(self._passwd, name, f"{what}: the image has no user {name!r}", "users")

    def gid(self, name: str, what: str) -> int:
        """The number of a group; Failure naming `what` wants it and the nearest name."""
        return _number(self._group, name, f"{what}: the image has no group {name!r}", "users")

    def add(self, user: Mapping[str, Any]) -> None:
        """Add a user (`name`, `uid`, `groups`, `home`, `shell`, `gecos`), its group, its places in groups,
        its home.
        """
        name, number = user["name"], user["uid"]
        for rows, what in ((self._passwd, "user"), (self._group, "group")):
            for row in rows.values():
                if row[0] == name or int(row[2]) == number:
                    raise Failure(
                        f"users: {name} ({number}): the image already has the {what} {row[0]} ({row[2]})",
                        "choose another name and uid in the recipe",
                    )
        if self._tree.nodes.get(self._tree.resolve(user["shell"])) is None:
            raise Failure(
                f"users: {name}: the image has no shell {user['shell']}",
                "add its package, or name another shell",
            )
        home = user["home"] or _NOWHERE
        self._passwd[name] = [name, "x", str(number), str(number), user["gecos"], home, user["shell"]]
        self._shadow[name] = [name, _NO_PASSWORD, "", "", "", "", "", "", ""]
        self._group[name] = [name, "x", str(number), ""]
        self._gshadow[name] = [name, "!", "", ""]
        for group in user["groups"]:
            self.gid(group, f"users: {name}")
            _join(self._group[group], name)
            _join(self._gshadow.setdefault(group, [group, "*", "", self._group[group][3]]), name)
        if user["home"] is not None:
            self._make_home(user["home"], number)

    def write(self) -> None:
        """Write the files back. Rows of the shadow files come in the order of the files they shadow."""
        shadow_gid = int(self._group["shadow"][2]) if "shadow" in self._group else 0
        users = sorted(self._passwd, key=lambda name: (int(self._passwd[name][2]), name))
        groups = sorted(self._group, key=lambda name: (int(self._group[name][2]), name))
        for path, rows, order, mode, gid in (
            ("etc/passwd", self._passwd, users, 0o644, 0),
            ("etc/group", self._group, groups, 0o644, 0),
            ("etc/shadow", self._shadow, users, 0o640, shadow_gid),
            ("etc/gshadow", self._gshadow, groups, 0o640, shadow_gid),
        ):
            names = [name for name in order if name in rows]
            names += sorted(rows.keys() - set(names))
            if rows:
                write_text(
                    self._tree, path, "".join(":".join(rows[name]) + "\n" for name in names), mode, gid
                )

    def _make_home(self, home: str, number: int) -> None:
        place = self._tree.resolve(home)
        found = self._tree.nodes.get(place)
        if found is not None and found.kind is not Kind.DIRECTORY:
            raise Failure(
                f"users: {home} is a {found.kind} in the packages", "choose another home in the recipe"
            )
        if found is None:
            # As HOME_MODE in login.defs(5): nobody else's.
            self._tree.put(place, Node(Kind.DIRECTORY, 0o700, number, number, self._tree.clamp))


def _join(row: list[str], name: str) -> None:
    members = [member for member in row[3].split(",") if member]
    row[3] = ",".join([*members, name] if name not in members else members)


def _rows(tree: Tree, path: str, fields: int) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for line in (read_text(tree, path) or "").splitlines():
        row = line.split(":")
        if len(row) != fields or row[0] in rows:
            raise Failure(
                f"/{path}: expected {fields} fields and each name once, found {line!r}",
                "a package broke this file",
            )
        rows[row[0]] = row
    return rows


def _number(rows: Mapping[str, list[str]], name: str, what: str, where: str) -> int:
    if name not in rows:
        raise Failure(f"{what}{nearest(name, rows)}", f"correct the name, or add it to the recipe's {where}")
    return int(rows[name][2])

"""The rootfs stage: what the recipe adds, and that nothing it names can lead outside or be ignored."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from stages.rootfs.__main__ import program
from stages.shared import canonical_tar
from stages.shared.canonical_tar import Entry, Kind
from stages.shared.job import Failure, Job
from stages.shared.tree import Node, Tree

EPOCH = 1_700_000_000
UNITS = "usr/lib/systemd/system"
CONFIG = "etc/systemd/system"


def file(content: str = "", mode: int = 0o644, **rest: Any) -> Node:
    return Node(Kind.FILE, mode, content=content.encode(), **rest)


def link(target: str) -> Node:
    return Node(Kind.SYMLINK, 0o777, target=target)


def directory(mode: int = 0o755) -> Node:
    return Node(Kind.DIRECTORY, mode)


def packages() -> dict[str, Node]:
    """A small root, as Debian lays one out."""
    return {
        "bin": link("usr/bin"),
        "etc": directory(),
        "etc/passwd": file(
            "root:*:0:0:root:/root:/bin/bash\nnobody:*:65534:65534::/:/bin/false\nwww-data:*:33:33::/:x\n"
        ),
        "etc/group": file("root:*:0:\nsudo:*:27:\nwww-data:*:33:\nshadow:*:42:\nnogroup:*:65534:\n"),
        "etc/shadow": file("nobody:*:::::::\nroot:*:::::::\n", 0o640, gid=42),
        "etc/gshadow": file("sudo:*::\n", 0o640, gid=42),
        "etc/resolv.conf": link("../run/resolv.conf"),
        "etc/systemd/system": directory(),
        "etc/systemd/system/timers.target.wants": directory(),
        "etc/systemd/system/timers.target.wants/trim.timer": link(f"/{UNITS}/trim.timer"),
        "etc/systemd/system/getty.target.wants": directory(),
        "etc/systemd/system/getty.target.wants/getty@tty1.service": link(f"/{UNITS}/getty@.service"),
        "lib": link("usr/lib"),
        "usr/bin/bash": file("bash", 0o755),
        "usr/sbin/nologin": file("", 0o755),
        "var/run": link("/run"),
        "run": directory(),
        f"{UNITS}/net.service": file(
            "[Unit]\nDescription=n\nWantedBy=ignored.target\n"
            "[Install]\n# comment\nWantedBy=multi.target a.target\n"
            "Alias=dbus-net.service\nAlso=net.socket\n"
        ),
        f"{UNITS}/net.socket": file("[Install]\nRequiredBy=sockets.target\n"),
        f"{UNITS}/getty@.service": file("[Install]\nWantedBy=getty.target\nDefaultInstance=tty1\n"),
        f"{UNITS}/plain@.service": file("[Install]\nWantedBy=%p-%i.target\n"),
        f"{UNITS}/trim.timer": file("[Install]\nWantedBy=timers.target\n"),
        f"{UNITS}/static.service": file("[Service]\nExecStart=/bin/true\n"),
        f"{UNITS}/default.target": link("multi.target"),
        f"{UNITS}/multi.target": file("[Install]\nAlias=default.target\n"),
        f"{UNITS}/machine.service": file("[Install]\nWantedBy=%H.target\n"),
        f"{UNITS}/other.service": file("[Install]\nAlias=dbus-net.service\n"),
    }


def written(tmp_path: Path, name: str, nodes: Mapping[str, Node]) -> Path:
    tree = Tree(EPOCH)
    for path, node in nodes.items():
        tree.put(path, node)
    tree.write(tmp_path / name)
    return tmp_path / name


class Rootfs:
    """Runs the program and shows its tree."""

    def __init__(self, tmp_path: Path, make_job: Callable[..., Job]) -> None:
        self._tmp_path = tmp_path
        self._make_job = make_job
        self.packages = packages()
        self.modules: dict[str, Node] = {"usr/lib/modules/6.12/modules.dep": file("dep")}

    def run(
        self,
        files: list[dict[str, Any]] | None = None,
        users: list[dict[str, Any]] | None = None,
        **units: list[str],
    ) -> Tree:
        inputs = {
            "packages": written(self._tmp_path, "packages.tar", self.packages),
            "modules": written(self._tmp_path, "modules.tar", self.modules),
        }
        listed: list[dict[str, Any]] = []
        for index, each in enumerate(files or ()):
            entry = {"symlink": None, "mode": "0644", "user": "root", "group": "root", **each}
            if entry["symlink"] is None:
                entry["input"] = f"file-{index:04d}"
                inputs[entry["input"]] = self._tmp_path / entry["input"]
                inputs[entry["input"]].write_text(entry.pop("content", "content"))
            listed.append(entry)
        params = {
            "hostname": "demo",
            "files": listed,
            "users": [
                {"groups": [], "home": None, "shell": "/bin/bash", "gecos": "", **user}
                for user in users or ()
            ],
            "units": {"enable": [], "disable": [], "mask": [], **units},
        }
        job = self._make_job("rootfs", params, inputs=inputs)
        program(job)
        self.tar = job.output("tree")
        return Tree.load(self.tar, EPOCH)


@pytest.fixture
def rootfs(tmp_path: Path, make_job: Callable[..., Job]) -> Rootfs:
    return Rootfs(tmp_path, make_job)


def text(tree: Tree, path: str) -> str:
    return bytes(tree.nodes[path].content).decode()


def links(tree: Tree) -> dict[str, str]:
    """The links below the units' configuration folder."""
    prefix = f"{CONFIG}/"
    return {
        path.removeprefix(prefix): node.target
        for path, node in tree.nodes.items()
        if path.startswith(prefix) and node.kind is Kind.SYMLINK
    }


def test_packages_modules_and_hostname_become_one_tree(rootfs: Rootfs) -> None:
    tree = rootfs.run()
    assert text(tree, "usr/lib/modules/6.12/modules.dep") == "dep"
    assert text(tree, "etc/hostname") == "demo\n"
    assert "127.0.1.1\tdemo\n" in text(tree, "etc/hosts")
    unchanged = {path for path in packages() if path not in ("etc/passwd", "etc/group", "etc/shadow")}
    assert all(bytes(tree.nodes[path].content) == packages()[path].content for path in unchanged)
    assert [*canonical_tar.read(rootfs.tar)]


def test_the_same_inputs_give_the_same_bytes(rootfs: Rootfs) -> None:
    wanted = {
        "files": [{"path": "/etc/motd"}],
        "users": [{"name": "op", "uid": 1000}],
        "enable": ["net.service"],
    }
    rootfs.run(**wanted)  # type: ignore[arg-type]
    first = rootfs.tar.read_bytes()
    rootfs.run(**wanted)  # type: ignore[arg-type]
    assert rootfs.tar.read_bytes() == first


def test_files_have_their_mode_owner_and_parents(rootfs: Rootfs) -> None:
    tree = rootfs.run(
        files=[
            {
                "path": "/srv/www/index.html",
                "mode": "0640",
                "user": "www-data",
                "group": "sudo",
                "content": "hi",
            },
            {"path": "/etc/localtime", "symlink": "/usr/share/zoneinfo/UTC"},
        ]
    )
    node = tree.nodes["srv/www/index.html"]
    assert (node.mode, node.uid, node.gid, node.mtime, bytes(node.content)) == (0o640, 33, 27, EPOCH, b"hi")
    parent = tree.nodes["srv/www"]
    assert (parent.mode, parent.uid, parent.gid) == (0o755, 0, 0)
    assert tree.nodes["etc/localtime"].target == "/usr/share/zoneinfo/UTC"


def test_a_file_of_the_recipe_replaces_generated_and_packaged_ones(rootfs: Rootfs) -> None:
    tree = rootfs.run(
        files=[{"path": "/etc/hosts", "content": "mine"}, {"path": "/etc/resolv.conf", "content": "dns"}]
    )
    assert text(tree, "etc/hosts") == "mine"
    assert tree.nodes["etc/resolv.conf"].kind is Kind.FILE
    assert "run/resolv.conf" not in tree.nodes


def test_paths_through_links_land_where_the_image_has_them(rootfs: Rootfs) -> None:
    tree = rootfs.run(files=[{"path": "/bin/tool"}, {"path": "/var/run/x"}, {"path": "/lib/firmware/a/b"}])
    assert {"usr/bin/tool", "run/x", "usr/lib/firmware/a/b"} <= tree.nodes.keys()
    assert tree.nodes["bin"].kind is Kind.SYMLINK


def test_a_link_that_points_outside_stays_inside(rootfs: Rootfs, tmp_path: Path) -> None:
    rootfs.packages["opt/up"] = link("../../../../../../../../etc")
    rootfs.packages["opt/out"] = link(str(tmp_path))
    tree = rootfs.run(files=[{"path": "/opt/up/owned"}, {"path": "/opt/out/owned"}])
    assert {"etc/owned", f"{str(tmp_path)[1:]}/owned"} <= tree.nodes.keys()
    assert not (tmp_path / "owned").exists()


def test_a_replaced_hard_link_leaves_its_siblings(rootfs: Rootfs) -> None:
    shared = file("both", 0o755)
    rootfs.packages |= {"usr/bin/a": shared, "usr/bin/b": shared, "usr/bin/c": shared}
    tree = rootfs.run(files=[{"path": "/usr/bin/a", "content": "new"}])
    assert [text(tree, f"usr/bin/{name}") for name in "abc"] == ["new", "both", "both"]
    kinds = {entry.path: entry.kind for entry, _ in canonical_tar.read(rootfs.tar)}
    assert (kinds["usr/bin/b"], kinds["usr/bin/c"]) == (Kind.FILE, Kind.HARDLINK)


def test_a_capability_and_special_bits_pass_through(rootfs: Rootfs) -> None:
    rootfs.packages["usr/bin/ping"] = file("ping", 0o4755, uid=5, gid=6, capability=b"\x01\0\0\x02\xff")
    node = rootfs.run().nodes["usr/bin/ping"]
    assert (node.mode, node.uid, node.gid, node.capability) == (0o4755, 5, 6, b"\x01\0\0\x02\xff")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([{"path": "/usr/bin"}], "/usr/bin is a directory in the packages"),
        ([{"path": "/bin"}], "/bin is a directory in the packages"),
        ([{"path": "/usr/bin/bash/below"}], "/usr/bin/bash is a file, not a directory"),
        ([{"path": "/bin/x"}, {"path": "/usr/bin/x"}], "/usr/bin/x and /bin/x are the same file"),
        ([{"path": "/etc/x", "user": "www-dato"}], "no user 'www-dato'; the nearest name is www-data"),
        ([{"path": "/etc/x", "group": "sudoo"}], "no group 'sudoo'; the nearest name is sudo"),
        ([{"path": "/loop/x"}], "more than 40 symbolic links"),
    ],
    ids=[
        "directory",
        "link_to_a_directory",
        "below_a_file",
        "same_file_twice",
        "unknown_user",
        "unknown_group",
        "link_loop",
    ],
)
def test_a_file_that_can_t_be_is_refused(rootfs: Rootfs, files: list[dict[str, Any]], says: str) -> None:
    rootfs.packages |= {"loop": link("pool"), "pool": link("loop")}
    with pytest.raises(Failure, match=says):
        rootfs.run(files=files)


def test_modules_in_conflict_with_a_package_are_refused(rootfs: Rootfs) -> None:
    rootfs.packages["usr/lib/modules/6.12/modules.dep"] = file("another")
    with pytest.raises(Failure, match=r"modules\.dep: in the packages and in the kernel's modules"):
        rootfs.run()


def test_modules_of_an_old_path_land_in_usr(rootfs: Rootfs) -> None:
    rootfs.modules = {"lib/modules/6.12/modules.dep": file("dep")}
    assert "usr/lib/modules/6.12/modules.dep" in rootfs.run().nodes


def test_a_user_stands_in_all_four_files_by_number(rootfs: Rootfs) -> None:
    tree = rootfs.run(
        users=[
            {"name": "second", "uid": 2000, "home": "/home/second", "gecos": "Number Two"},
            {"name": "first", "uid": 1000, "groups": ["sudo", "www-data"], "shell": "/usr/sbin/nologin"},
        ]
    )
    assert text(tree, "etc/passwd").splitlines() == [
        "root:*:0:0:root:/root:/bin/bash",
        "www-data:*:33:33::/:x",
        "first:x:1000:1000::/nonexistent:/usr/sbin/nologin",
        "second:x:2000:2000:Number Two:/home/second:/bin/bash",
        "nobody:*:65534:65534::/:/bin/false",
    ]
    assert "sudo:*:27:first\n" in text(tree, "etc/group")
    assert "second:x:2000:\n" in text(tree, "etc/group")
    assert text(tree, "etc/shadow") == "root:*:::::::\nfirst:*:::::::\nsecond:*:::::::\nnobody:*:::::::\n"
    assert text(tree, "etc/gshadow") == "sudo:*::first\nwww-data:*::first\nfirst:!::\nsecond:!::\n"
    home = tree.nodes["home/second"]
    assert (home.kind, home.mode, home.uid, home.gid) == (Kind.DIRECTORY, 0o700, 2000, 2000)
    assert (tree.nodes["etc/shadow"].mode, tree.nodes["etc/shadow"].gid) == (0o640, 42)


def test_a_file_may_belong_to_a_user_of_the_recipe(rootfs: Rootfs) -> None:
    user = {"name": "op", "uid": 1000, "home": "/home/op"}
    keys = {"path": "/home/op/.ssh/authorized_keys", "mode": "0600", "user": "op", "group": "op"}
    tree = rootfs.run(files=[keys], users=[user])
    assert tree.nodes["home/op/.ssh/authorized_keys"].uid == 1000


@pytest.mark.parametrize(
    ("users", "says"),
    [
        ([{"name": "root", "uid": 1000}], "already has the user root"),
        ([{"name": "sudo", "uid": 1000}], "already has the group sudo"),
        ([{"name": "a", "uid": 1000}, {"name": "b", "uid": 1000}], r"already has the user a \(1000\)"),
        (
            [{"name": "a", "uid": 1000, "groups": ["shadwo"]}],
            "no group 'shadwo'; the nearest name is shadow",
        ),
        ([{"name": "a", "uid": 1000, "shell": "/bin/zsh"}], "no shell /bin/zsh"),
        ([{"name": "a", "uid": 1000, "home": "/usr/bin/bash"}], "/usr/bin/bash is a file"),
    ],
    ids=["name_taken", "group_taken", "uid_twice", "unknown_group", "no_shell", "home_is_a_file"],
)
def test_a_user_that_can_t_be_is_refused(rootfs: Rootfs, users: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(Failure, match=says):
        rootfs.run(users=users)


def test_enable_makes_the_links_systemctl_makes(rootfs: Rootfs) -> None:
    before = links(rootfs.run())
    after = links(rootfs.run(enable=["net.service"]))
    assert {path: target for path, target in after.items() if path not in before} == {
        "multi.target.wants/net.service": f"/{UNITS}/net.service",
        "a.target.wants/net.service": f"/{UNITS}/net.service",
        "dbus-net.service": f"/{UNITS}/net.service",
        "sockets.target.requires/net.socket": f"/{UNITS}/net.socket",
    }


def test_templates_are_enabled_by_instance_and_by_default(rootfs: Rootfs) -> None:
    found = links(rootfs.run(enable=["getty@tty2.service", "plain@x.service"]))
    assert found["getty.target.wants/getty@tty2.service"] == f"/{UNITS}/getty@.service"
    assert found["plain-x.target.wants/plain@x.service"] == f"/{UNITS}/plain@.service"
    del rootfs.packages[f"{CONFIG}/getty.target.wants/getty@tty1.service"]
    assert "getty.target.wants/getty@tty1.service" in links(rootfs.run(enable=["getty@.service"]))


def test_drop_ins_and_units_of_the_recipe_count(rootfs: Rootfs) -> None:
    found = links(
        rootfs.run(
            files=[
                {
                    "path": "/etc/systemd/system/mine.service",
                    "content": "[Install]\nWantedBy=\\\n  multi.target\n",
                },
                {
                    "path": "/etc/systemd/system/static.service.d/a.conf",
                    "content": "[Install]\nWantedBy=b.target\n",
                },
                {
                    "path": "/usr/lib/systemd/system/net.service.d/z.conf",
                    "content": "[Install]\nWantedBy=\nAlso=\n",
                },
            ],
            enable=["mine.service", "static.service", "net.service"],
        )
    )
    assert found["multi.target.wants/mine.service"] == f"/{CONFIG}/mine.service"
    assert found["b.target.wants/static.service"] == f"/{UNITS}/static.service"
    assert "multi.target.wants/net.service" not in found
    assert "sockets.target.requires/net.socket" not in found
    assert "dbus-net.service" in found


def test_disable_removes_links_by_name_and_by_target(rootfs: Rootfs) -> None:
    rootfs.packages[f"{CONFIG}/dbus-net.service"] = link(f"/{UNITS}/net.service")
    rootfs.packages[f"{CONFIG}/sockets.target.requires/net.socket"] = link(f"/{UNITS}/net.socket")
    assert links(rootfs.run(disable=["trim.timer", "getty@.service", "net.service"])) == {}


def test_mask_leads_to_nothing(rootfs: Rootfs) -> None:
    found = links(rootfs.run(mask=["trim.timer", "plain@x.service"]))
    assert (found["trim.timer"], found["plain@x.service"]) == ("/dev/null", "/dev/null")


@pytest.mark.parametrize(
    ("units", "says"),
    [
        ({"enable": ["trim.timmer"]}, "no unit trim.timmer; the nearest name is trim.timer"),
        ({"disable": ["nothing-like-it.service"]}, "no unit nothing-like-it.service$"),
        ({"mask": ["gety@tty1.service"]}, "the nearest name is getty@"),
        ({"enable": ["static.service"]}, "static.service has no .Install. section"),
        ({"enable": ["plain@.service"]}, "template without a DefaultInstance"),
        ({"enable": ["machine.service"]}, "specifier %H"),
        ({"enable": ["net.service", "other.service"]}, "other.service wants to be .*/dbus-net.service"),
        ({"enable": ["trim.timer"], "mask": ["trim.timer"]}, "trim.timer is in two of"),
        ({"enable": ["off.service"]}, "off.service is masked by /etc/systemd/system/off.service"),
        ({"mask": ["own.service"]}, "/etc/systemd/system/own.service is a file"),
    ],
    ids=[
        "misspelt", "unknown", "unknown_template", "static", "template", "machine_specifier", "alias_taken",
        "in_two_lists", "masked", "own_file",
    ],
)  # fmt: skip
def test_a_unit_that_can_t_be_is_refused(rootfs: Rootfs, units: dict[str, list[str]], says: str) -> None:
    rootfs.packages |= {
        f"{CONFIG}/off.service": link("/dev/null"),
        f"{CONFIG}/own.service": file("[Install]\n"),
    }
    with pytest.raises(Failure, match=says):
        rootfs.run(**units)  # type: ignore[arg-type]


def test_a_broken_passwd_is_named(rootfs: Rootfs) -> None:
    rootfs.packages["etc/passwd"] = file("root:*:0:0\n")
    with pytest.raises(Failure, match="/etc/passwd: expected 7 fields"):
        rootfs.run()


def test_a_tree_that_is_not_canonical_is_refused(make_job: Callable[..., Job], tmp_path: Path) -> None:
    stream = io.BytesIO()
    with canonical_tar.Writer(stream, EPOCH) as writer:
        writer.add(Entry(".", Kind.DIRECTORY, 0o755, 0, 0, 0))
    (tmp_path / "tree").write_bytes(stream.getvalue() + b"more")
    job = make_job("rootfs", {}, inputs={"packages": tmp_path / "tree"})
    with pytest.raises(Failure, match="expected the two zero blocks"):
        program(job)

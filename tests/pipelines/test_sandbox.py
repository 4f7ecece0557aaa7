"""The stage environment: what a program finds in its container, as root and as an ordinary user alike."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.definition import External, Plan, RecipeFile, StageOutput
from pipelines.errors import StageError
from tests.pipelines.executor import World

ROOT = Path(__file__).parents[2]
USER = "disk-image-sandbox"
TREE = StageOutput("tools", "tree")

# What the container is, told by a program inside it.
PROBE = r"""
import json, resource, socket, stat

def attempt(action):
    try:
        action()
    except OSError as error:
        return error.strerror
    return "done"

umask = os.umask(0o022)
tmp = sorted(os.listdir("/tmp"))
open("/tmp/file", "w").close()
lines = [line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line]
status = dict(lines)
libc = __import__("ctypes").CDLL(None, use_errno=True)
told = {
    "ids": [os.getuid(), os.geteuid(), os.getgid()],
    "argv": open("/proc/self/cmdline").read().rstrip("\0").split("\0"),
    "environment": dict(os.environ),
    "folder": os.getcwd(),
    "umask": umask,
    "hostname": socket.gethostname(),
    "capabilities": {name: status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
    "first process": os.getpid(),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "nofile": list(resource.getrlimit(resource.RLIMIT_NOFILE)),
    "stage": sorted(os.listdir("/stage")),
    "tmp": tmp,
    "input": (job.folder / "in" / "text").read_text(),
    "write root": attempt(lambda: open("/new", "w")),
    "write usr": attempt(lambda: open("/usr/new", "w")),
    "write input": attempt(lambda: open("/stage/in/text", "w")),
    "write program": attempt(lambda: open("/stage/program/new", "w")),
    "write accelerator": attempt(lambda: open("/stage/cache/ccache/new", "w")),
    "write sysctl": attempt(lambda: open("/proc/sys/kernel/hostname", "w")),
    "chown": attempt(lambda: os.chown("/tmp/file", 65535, 65535)),
    "setuid": attempt(lambda: os.chmod("/tmp/file", 0o4755)),
    "capability": attempt(lambda: os.setxattr(
        "/tmp/file", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))),
    "mknod": attempt(lambda: os.mknod("/tmp/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))),
    "chroot": attempt(lambda: os.chroot("/")),
    "unshare user": os.strerror(__import__("ctypes").get_errno()) if libc.unshare(0x10000000) else "done",
    "devices": sorted(name for name in os.listdir("/dev") if stat.S_ISCHR(os.stat(f"/dev/{name}").st_mode)),
}
job.output("out").write_text(json.dumps(told, sort_keys=True))
"""


def host_tree(tar: Path) -> None:
    """A tools tree of the host's python3, the libraries it needs, and nothing else."""
    python = Path("/usr/bin/python3").resolve()
    library = Path(f"/usr/lib/{python.name}")
    wanted = [python, *library.glob("lib-dynload/*.so")]
    said = "".join(
        subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout for path in wanted
    )
    shared = {Path(name) for name in re.findall(r"(?<=\s)(/\S+)", said)}
    with tarfile.open(tar, "w") as archive:
        archive.add(python, f"usr/bin/{python.name}", filter=_owned_by_root)
        link = tarfile.TarInfo("usr/bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, python.name
        archive.addfile(link)
        archive.add(library, str(library)[1:], filter=_owned_by_root)
        for path in sorted(shared):
            # by the name the loader looks for: a merged /usr has the same libraries below /lib
            archive.add(path.resolve(), str(path)[1:], filter=_owned_by_root)


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if "__pycache__" in entry.name or "/test/" in entry.name:
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


@dataclass(frozen=True)
class Runner:
    """Runs a plan of this module in a process of its own, as root or as an ordinary user."""

    prefix: tuple[str, ...]
    base: Path
    code: Path
    tools: Path

    def start(self, name: str, plan: str) -> subprocess.Popen[str]:
        argv = [*self.prefix, sys.executable, "-c", RUN, str(self.base / name), str(self.tools), plan]
        return subprocess.Popen(
            argv,
            cwd=self.code,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": ":".join(map(str, (self.code, *_site_packages()))),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, name: str, plan: str) -> Any:
        with self.start(name, plan) as process:
            out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        return json.loads(out)


RUN = """
import json, sys
from pathlib import Path
from pipelines.store import Store
from tests.pipelines import test_sandbox
from tests.pipelines.executor import World
root = Path(sys.argv[1])
world = World(root, Store(root / "store")) if root.exists() else World.new(root)
world.externals = {"tools": Path(sys.argv[2])}
results = world.run(getattr(test_sandbox, sys.argv[3])(world))
print(world.read(results, results.stages[-1].name))
"""


def _site_packages() -> list[str]:
    return [path for path in sys.path if path.endswith("site-packages")]


def _with_tools(world: World, *stages: Any) -> Plan:
    copy = 'import shutil\nshutil.copyfile(job.input("tools") / "tree.tar", job.output("tree"))'
    from pipelines.definition import Output

    tools = world.stage("tools", copy, Output("tree"), inputs={"tools": External("tools")})
    return Plan("sandbox", (tools, *stages))


def probe(world: World) -> Plan:
    """The container, told by a program in it."""
    (world.recipe / "text").write_text("text")
    stage = world.stage(
        "probe", PROBE, inputs={"text": RecipeFile("text")}, tools=TREE, accelerators=("ccache",)
    )
    return _with_tools(world, stage)


def sleeper(world: World) -> Plan:
    """A container that writes files of other users and then sleeps."""
    body = """
    os.mkdir("/tmp/folder")
    open("/tmp/folder/file", "w").close()
    os.chown("/tmp/folder/file", 1000, 1000)
    os.chown("/tmp/folder", 1000, 1000)
    os.chmod("/tmp/folder", 0o700)
    (job.cache("marks") / "started").touch()
    while not (job.cache("marks") / "go").exists():
        time.sleep(0.02)
    job.output("out").write_text('"slept"')
    """
    return _with_tools(world, world.stage("sleeper", body, tools=TREE, accelerators=("marks",)))


def failing(world: World) -> Plan:
    """A container whose program fails by its own word."""
    body = 'print("in the container")\nraise Failure("broke inside", "mend it")'
    return _with_tools(world, world.stage("failing", body, tools=TREE))


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    host_tree(folder / "tree.tar")
    return folder


@pytest.fixture(scope="module")
def as_root(tmp_path_factory: pytest.TempPathFactory, tools: Path) -> Runner:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    return Runner((), tmp_path_factory.mktemp("root"), ROOT, tools)


@pytest.fixture(scope="module")
def as_user(tools: Path) -> Iterator[Runner]:
    """A user made for this, with a copy of code and libraries; without root, whoever runs the tests."""
    if os.geteuid() != 0:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            yield Runner((), Path(folder), ROOT, tools)
        return
    # a run that was killed leaves its own
    subprocess.run(["userdel", "--remove", USER], stderr=subprocess.DEVNULL)
    subprocess.run(["useradd", "--create-home", USER], check=True)
    try:
        home = Path(pwd.getpwnam(USER).pw_dir)
        for name in ("pipelines", "stages", "tests"):
            shutil.copytree(ROOT / name, home / "code" / name, ignore=shutil.ignore_patterns("__pycache__"))
        for number, path in enumerate(_site_packages()):
            shutil.copytree(path, home / f"site-{number}" / "site-packages")
        shutil.copytree(tools, home / "tools")
        (home / "work").mkdir()
        subprocess.run(["chown", "-R", f"{USER}:{USER}", home], check=True)
        prefix = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups")
        libraries = ":".join(
            str(home / f"site-{number}" / "site-packages") for number in range(len(_site_packages()))
        )
        python = ("env", f"HOME={home}", f"PYTHONPATH={home / 'code'}:{libraries}")
        yield Runner((*prefix, *python), home / "work", home / "code", home / "tools")
    finally:
        subprocess.run(["userdel", "--remove", USER], check=True, capture_output=True)


@pytest.fixture(params=["root", "ordinary user"])
def runner(request: pytest.FixtureRequest) -> Runner:
    found: Runner = request.getfixturevalue("as_root" if request.param == "root" else "as_user")
    return found


@pytest.mark.sandbox
def test_the_environment_is_as_designed(runner: Runner) -> None:
    told = runner.run("probe", "probe")
    assert told == {
        "ids": [0, 0, 0],
        "argv": ["python3", "-B", "-s", "-m", "stages.probe", "/stage"],
        "environment": {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "SOURCE_DATE_EPOCH": "1",
        },
        "folder": "/stage/program",
        "umask": 0o022,
        "hostname": "disk-image",
        "capabilities": {
            "CapInh": "0" * 16,
            "CapPrm": "00000000a00425fb",
            "CapEff": "00000000a00425fb",
            "CapBnd": "00000000a00425fb",
            "CapAmb": "0" * 16,
        },
        "first process": 1,
        "interfaces": ["lo"],
        "nofile": [4096, 4096],
        "stage": ["cache", "in", "job.json", "out", "program"],
        "tmp": [],
        "input": "text",
        "write root": "Read-only file system",
        "write usr": "Read-only file system",
        "write input": "Read-only file system",
        "write program": "Read-only file system",
        "write accelerator": "done",
        "write sysctl": "Read-only file system",
        "chown": "done",
        "setuid": "done",
        "capability": "done",
        "mknod": "Operation not permitted",
        "chroot": "done",
        "unshare user": "Operation not permitted",
        "devices": ["full", "null", "ptmx", "random", "tty", "urandom", "zero"],
    }
    assert list((runner.base / "probe" / "store" / "work").iterdir()) == []


@pytest.mark.sandbox
def test_a_kill_9_leaves_no_container_and_the_next_run_removes_the_rest(runner: Runner) -> None:
    root = runner.base / "killed"
    marks = root / "store" / "accelerators" / "marks"
    with runner.start("killed", "sleeper") as first:
        _wait(lambda: (marks / "started").exists())
        assert _containers(root), "the container should run now"
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
    _wait(lambda: not _containers(root))
    assert len(list((root / "store" / "work").iterdir())) == 1
    (marks / "go").touch()
    assert runner.run("killed", "sleeper") == "slept"
    assert list((root / "store" / "work").iterdir()) == []
    assert [path for path in Path("/dev/shm").iterdir() if "disk-image-sleeper" in path.name] == []


@pytest.mark.sandbox
def test_ctrl_c_kills_and_deletes_the_container(runner: Runner) -> None:
    root = runner.base / "interrupted"
    with runner.start("interrupted", "sleeper") as process:
        _wait(lambda: (root / "store" / "accelerators" / "marks" / "started").exists())
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    assert _containers(root) == []
    assert list((root / "store" / "work").iterdir()) == []


@pytest.mark.sandbox
def test_a_failure_inside_is_told_outside(as_root: Runner, tmp_path: Path) -> None:
    world = World.new(tmp_path / "world")
    world.externals = {"tools": as_root.tools}
    with pytest.raises(StageError, match="broke inside"):
        world.run(failing(world))
    assert world.heard.tail == ["in the container"]


@pytest.mark.sandbox
@pytest.mark.parametrize("options", ["nosuid,nodev", "nosuid,nodev,noatime"])
def test_a_store_on_a_restricted_file_system_works_for_an_ordinary_user(
    as_root: Runner, as_user: Runner, options: str
) -> None:
    folder = as_user.base / "mounted"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{options},mode=1777", "tmpfs", folder], check=True)
    try:
        assert as_user.run("mounted/world", "probe")["ids"] == [0, 0, 0]
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


@pytest.mark.sandbox
def test_without_a_line_in_subuid_the_command_that_adds_it_is_told(as_user: Runner, as_root: Runner) -> None:
    kept = {path: path.read_text() for path in (Path("/etc/subuid"), Path("/etc/subgid"))}
    try:
        for path, text in kept.items():
            path.write_text(
                "".join(line for line in text.splitlines(keepends=True) if not line.startswith(f"{USER}:"))
            )
        with as_user.start("no-range", "probe") as process:
            _, err = process.communicate(timeout=60)
    finally:
        for path, text in kept.items():
            path.write_text(text)
    assert process.returncode != 0
    assert f"/etc/subuid: no range of 65536 ids for user {USER}" in err


def _containers(root: Path) -> list[str]:
    """runc processes of a store, and the programs in its containers."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            mounts = (path / "mountinfo").read_text()
        except OSError:
            continue
        if ("runc" in command and str(root) in command) or (
            "stages.sleeper" in command and "/stage/out" in mounts
        ):
            found.append(command)
    return found


def _wait(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)

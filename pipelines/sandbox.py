"""The stage environment by runc: the same container for root and for ordinary users.

Root runs in the host's user namespace; an ordinary user in one of its own, whose uid 0 is the user and whose
other ids are the user's range in /etc/subuid and /etc/subgid (newuidmap(1)). Sources: the OCI runtime
specification's config.md and config-linux.md; runc(8); capabilities(7).
"""

from __future__ import annotations

import errno
import json
import os
import pwd
import resource
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import DiskImageError

CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
        "NET_BIND_SERVICE", "NET_RAW", "SYS_CHROOT", "AUDIT_WRITE", "SETFCAP",
    )
)  # fmt: skip
MOUNT_POINTS = ("dev", "proc", "stage", "tmp")
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOFILE = 4096
UMASK = 0o022
HOSTNAME = "disk-image"
IDS = 65536

# Ties the program to its parent: when disk-image or runc dies, even by SIGKILL, the kernel kills it
# (prctl(2), PR_SET_PDEATHSIG = 1), and with a container's first process all the others. runc adds HOME,
# which no stage may see.
PRELUDE = """
import os, sys
try:
    import ctypes
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
except (ImportError, OSError):
    pass
os.environ.pop("HOME", None)
os.execv(sys.executable, ["python3", "-B", "-s", "-m", *sys.argv[1:]])
"""

# What a container may not read or write of the host's /proc: runc's and other engines' common list.
_MASKED = (
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
)
_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")


_CLONE_NEWUSER = 0x10000000
# No user namespaces, whatever the kernel would allow (seccomp(2)): where a stage could have one, it could do
# more than the environment says. clone3(2) passes its flags by pointer, so it is absent, and libc falls back
# to clone(2).
_SECCOMP = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        {
            "names": ["clone", "unshare"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": errno.EPERM,
            "args": [
                {"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": _CLONE_NEWUSER, "valueTwo": _CLONE_NEWUSER}
            ],
        },
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
    ],
}


@dataclass(frozen=True, slots=True)
class Range:
    """A user's subordinate ids: the first, and how many (subuid(5))."""

    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Container:
    """A prepared run: `argv` runs it, `delete` kills and removes it whatever its state."""

    argv: tuple[str, ...]
    delete: tuple[str, ...]
    environment: Mapping[str, str]


def stage_environment(source_date_epoch: int) -> dict[str, str]:
    """The environment variables of every stage; nothing else is set."""
    return {
        "PATH": SEARCH_PATH,
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": str(source_date_epoch),
    }


def program_argv(python: str, module: str, job: str) -> tuple[str, ...]:
    """`python3 -B -s -m MODULE JOB`, tied to its parent's life."""
    return (python, "-I", "-S", "-c", PRELUDE, module, job)


def find_runc() -> str:
    """The path of runc; DiskImageError with the command that installs it."""
    return find_program("runc")


def find_program(name: str) -> str:
    """A program of the sandbox by its path: runc, newuidmap or newgidmap."""
    found = shutil.which(name, path=host_path())
    if found is None:
        raise DiskImageError(f"{name}: not found on this machine", "install it: apt-get install runc uidmap")
    return found


def subordinate(kind: str, user: str, uid: int, folder: Path = Path("/etc")) -> Range:
    """The user's first range of at least 65,535 ids in /etc/subuid (`kind` u) or /etc/subgid (g).

    Raises DiskImageError with the usermod(8) command that adds one.
    """
    path = folder / f"sub{kind}id"
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
        owner, _, numbers = line.partition(":")
        start, _, count = numbers.partition(":")
        if owner in (user, str(uid)) and start.isdigit() and count.isdigit() and int(count) >= IDS - 1:
            return Range(int(start), int(count))
    raise DiskImageError(
        f"{path}: no range of {IDS} ids for user {user}, which the sandbox of an ordinary user needs",
        add_ranges_command(user, folder),
    )


def add_ranges_command(user: str, folder: Path = Path("/etc")) -> str:
    """The usermod(8) command that gives the user free ranges, beyond everyone's."""
    first = 100000
    for kind in "ug":
        path = folder / f"sub{kind}id"
        for line in path.read_text().splitlines() if path.exists() else []:
            fields = line.split(":")
            if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit():
                first = max(first, int(fields[1]) + int(fields[2]))
    ids = f"{first}-{first + IDS - 1}"
    return f"sudo usermod --add-subuids {ids} --add-subgids {ids} {user}"


def user_mapping() -> list[str]:
    """unshare(1)'s options for the namespace that an ordinary user's container has."""
    options = ["--user", "--map-root-user"]
    try:
        uids, gids = _own_ranges()
    except DiskImageError:
        return options
    # The comma form is the one that util-linux 2.38 and 2.41 both take.
    return [*options, f"--map-users={uids.start},1,{IDS - 1}", f"--map-groups={gids.start},1,{IDS - 1}"]


def container(
    *,
    name: str,
    bundle: Path,
    tree: Path,
    stage: Path,
    scratch: Path,
    caches: Mapping[str, Path],
    module: str,
    source_date_epoch: int,
) -> Container:
    """Write `bundle`/config.json and give the commands to run and to remove the container.

    `tree` becomes the read-only root, `stage` a read-only /stage whose out/ is writable and whose
    cache/<name> are `caches`, `scratch` the writable /tmp.
    """
    runc = find_runc()
    rootless = os.geteuid() != 0
    config = {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0, "umask": UMASK},
            "args": list(program_argv("/usr/bin/python3", module, "/stage")),
            "env": [f"{name}={value}" for name, value in stage_environment(source_date_epoch).items()],
            "cwd": "/stage/program",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": _nofile(), "hard": _nofile()}],
            "noNewPrivileges": True,
        },
        "root": {"path": str(tree), "readonly": True},
        "hostname": HOSTNAME,
        "mounts": _mounts(stage, scratch, caches),
        "linux": {
            **(_id_mappings() if rootless else {}),
            "namespaces": [
                {"type": kind}
                for kind in ("pid", "ipc", "uts", "mount", "network", *(("user",) if rootless else ()))
            ],
            "maskedPaths": [f"/proc/{path}" for path in _MASKED],
            "seccomp": _SECCOMP,
            "readonlyPaths": [f"/proc/{path}" for path in _READ_ONLY],
        },
    }
    bundle.mkdir(parents=True)
    (bundle / "config.json").write_text(json.dumps(config))
    state = bundle.parent / "runc"
    command = (runc, "--rootless", str(rootless).lower(), "--root", str(state))
    return Container(
        # setpriv(1) ties runc to this process, as the prelude ties the program to runc.
        argv=("setpriv", "--pdeathsig", "KILL", "--", *command, "run", "--bundle", str(bundle), name),
        delete=(*command, "delete", "--force", name),
        environment=_runc_environment(bundle.parent),
    )


def delete_containers(work: Path) -> None:
    """Kill and remove the containers whose state is in a work folder."""
    state = work / "runc"
    for name in sorted(os.listdir(state)) if state.is_dir() else []:
        subprocess.run(
            [
                find_runc(),
                "--rootless",
                str(os.geteuid() != 0).lower(),
                "--root",
                str(state),
                "delete",
                "--force",
                name,
            ],
            check=False,
            capture_output=True,
            env=_runc_environment(work),
        )


def _mounts(stage: Path, scratch: Path, caches: Mapping[str, Path]) -> Sequence[Mapping[str, object]]:
    def bind(source: Path, target: str, *options: str) -> dict[str, object]:
        kept = _kept_flags(source)
        return {
            "destination": target,
            "type": "bind",
            "source": str(source),
            "options": ["bind", *options, *kept],
        }

    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
        },
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777"],
        },
        bind(scratch, "/tmp", "rw"),
        bind(stage, "/stage", "ro"),
        bind(stage / "out", "/stage/out", "rw"),
        *(bind(path, f"/stage/cache/{name}", "rw") for name, path in sorted(caches.items())),
    ]


def _kept_flags(path: Path) -> list[str]:
    # A user namespace may not drop these from a mount it was given: naming them keeps the remount allowed.
    flags = os.statvfs(path).f_flag
    known = {"nosuid": os.ST_NOSUID, "nodev": os.ST_NODEV, "noexec": os.ST_NOEXEC}
    return [name for name, flag in known.items() if flags & flag]


def _id_mappings() -> dict[str, object]:
    for program in ("newuidmap", "newgidmap"):
        find_program(program)
    uids, gids = _own_ranges()
    return {
        f"{kind}Mappings": [
            {"containerID": 0, "hostID": own, "size": 1},
            {"containerID": 1, "hostID": ids.start, "size": IDS - 1},
        ]
        for kind, own, ids in (("uid", os.geteuid(), uids), ("gid", os.getegid(), gids))
    }


def _own_ranges() -> tuple[Range, Range]:
    uid = os.geteuid()
    user = user_name(uid)
    return subordinate("u", user, uid), subordinate("g", user, uid)


def user_name(uid: int) -> str:
    """The user's login name, or its number where the machine has no name for it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _nofile() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return NOFILE if hard == resource.RLIM_INFINITY else min(NOFILE, hard)


def _runc_environment(work: Path) -> dict[str, str]:
    return {"PATH": host_path(), "XDG_RUNTIME_DIR": str(work), "TMPDIR": str(work)}


def host_path() -> str:
    """Where programs of the host are looked for; ordinary users often lack the administrator's folders."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

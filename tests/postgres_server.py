"""A PostgreSQL server of Debian's package, for as long as the tests run: on a socket and on loopback.

It waits for no disk, unless it is to be durable, runs as an ordinary user, and ends with the process that
started it.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from tests.ports import free_port

PASSWORD = "a password of the tests"
USER = "platform"
_FOLDERS = (
    Path(__file__).parents[1] / ".tools/debian/postgresql/usr/lib/postgresql",
    Path("/usr/lib/postgresql"),
)
_PR_SET_PDEATHSIG = 1
_SETTINGS = {
    "max_connections": "200",
    "jit": "off",
    "autovacuum_naptime": "10s",
    "log_statement": "none",
    "log_lock_waits": "on",
}
_FAST = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "64MB"}
# as the server is installed, said once more
_DURABLE = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "shared_buffers": "128MB"}


def programs() -> Path | None:
    """The folder of the newest server's programs; None where there is none."""
    found = [
        (int(each.parent.parent.name), each.parent)
        for folder in _FOLDERS
        for each in folder.glob("*/bin/postgres")
        if each.parent.parent.name.isdecimal()
    ]
    return max(found)[1] if found else None


@dataclass
class PostgresServer:
    """A server that runs. `folder` has its socket and its data."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    start: list[str]
    user: dict[str, Any]
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def url(self, database: str, user: str = USER) -> str:
        """By the socket: no password is asked for."""
        return f"postgresql://{user}@/{database}?host={self.folder}&port={self.port}"

    def loopback(self, database: str, password: str = PASSWORD) -> str:
        """By TCP, with a password."""
        return f"postgresql://{USER}:{password.replace(' ', '%20')}@127.0.0.1:{self.port}/{database}"

    def create(self, template: str = "template0") -> str:
        """A new database, as `template` is; its name."""
        name = f"platform_{next(self.numbers)}"
        self.run("CREATE DATABASE {} OWNER {} TEMPLATE {}", name, USER, template)
        return name

    def copy(self, name: str, to: str) -> None:
        """A database once more, in place of the one of that name. Nobody may be connected to the first."""
        self.run("DROP DATABASE IF EXISTS {} WITH (FORCE)", to)
        until = time.monotonic() + 60
        while True:
            try:
                self.run("CREATE DATABASE {} OWNER {} TEMPLATE {}", to, USER, name)
                return
            except psycopg.errors.ObjectInUse:
                # the server has yet to see that whoever was connected is gone; it waits for 5 seconds itself
                assert time.monotonic() < until, f"{name} is still in use"

    def content(self, name: str) -> bytes:
        """Every byte of a database's files, which a checkpoint has written."""
        self.run("CHECKPOINT")
        with psycopg.connect(self.url(name, "postgres")) as connection:
            found = connection.execute("SELECT oid FROM pg_database WHERE datname = %s", [name]).fetchone()
        assert found is not None
        files = (self.folder / "data/base" / str(found[0])).iterdir()
        return b"".join(path.read_bytes() for path in files if path.is_file())

    def drop(self, name: str) -> None:
        """Delete a database, whoever uses it."""
        self.run("DROP DATABASE {} WITH (FORCE)", name)

    def run(self, statement: str, *names: str) -> None:
        """One statement as the server's administrator; `names` take the place of its {}."""
        with psycopg.connect(self.url("postgres", "postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def stop(self, ending: signal.Signals) -> None:
        """SIGINT: as an administrator would; SIGQUIT: as in a crash."""
        self.process.send_signal(ending)
        self.process.wait(30)

    def begin(self) -> None:
        """Start it again."""
        self.process = _start(self.start, self.folder, self.user)
        self.wait()

    def wait(self) -> None:
        """Until it answers."""
        until = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url("postgres", "postgres")).close()
                return
            except psycopg.OperationalError:
                log = (self.folder / "log").read_text()
                assert self.process.poll() is None, log
                assert time.monotonic() < until, log
                time.sleep(0.05)


@contextmanager
def postgres_server(*, durable: bool = False) -> Iterator[PostgresServer]:
    """A new server, which is ended by its pid, and its folder removed. `durable`: what it has committed is
    on the disk of the folder for temporary files (TMPDIR).
    """
    bin = programs()
    assert bin is not None
    memory = "/dev/shm"
    in_memory = not durable and os.access(memory, os.W_OK)
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir=memory if in_memory else None))
    server = None
    try:
        user = _user(folder)
        bin = _reachable(bin, folder, user)
        _initialise(bin, folder, user)
        port = free_port()
        settings = {
            **_SETTINGS,
            **(_DURABLE if durable else _FAST),
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": str(folder),
        }
        start = [str(bin / "postgres"), "-D", str(folder / "data")]
        start += [f"--{name}={value}" for name, value in settings.items()]
        server = PostgresServer(folder, port, _start(start, folder, user), start, user)
        server.wait()
        server.run("CREATE ROLE {} LOGIN PASSWORD " + f"'{PASSWORD}'", USER)
        yield server
    finally:
        if server is not None and server.process.poll() is None:
            server.process.send_signal(signal.SIGINT)
            try:
                server.process.wait(20)
            except subprocess.TimeoutExpired:
                server.process.send_signal(signal.SIGQUIT)
                server.process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _user(folder: Path) -> dict[str, Any]:
    """For whom it runs: PostgreSQL refuses to be root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(folder, entry.pw_uid, entry.pw_gid)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise AssertionError("no user postgres or nobody")


def _reachable(bin: Path, folder: Path, user: dict[str, Any]) -> Path:
    """The programs where that user can run them: root's folders are often root's alone."""
    try:
        subprocess.run([bin / "postgres", "--version"], check=True, capture_output=True, cwd="/", **user)
        return bin
    except PermissionError:
        pass
    # bin stands in usr/lib/postgresql/VERSION, and share in usr/share/postgresql/VERSION
    version, usr = bin.parent.name, bin.parents[3]
    for kind in ("lib/postgresql/{}/bin", "lib/postgresql/{}/lib", "share/postgresql/{}"):
        part = kind.format(version)
        shutil.copytree(usr / part, folder / "usr" / part, ignore=shutil.ignore_patterns("bitcode"))
    return folder / "usr/lib/postgresql" / version / "bin"


def _initialise(bin: Path, folder: Path, user: dict[str, Any]) -> None:
    command = [str(bin / "initdb"), "-D", str(folder / "data"), "--username=postgres", "--auth=trust"]
    command += ["--encoding=UTF8", "--locale=C", "--no-sync"]
    made = subprocess.run(command, capture_output=True, text=True, cwd="/", **user)
    assert made.returncode == 0, made.stderr
    # the socket's folder is its user's alone; on loopback a password is asked for
    rules = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
    (folder / "data/pg_hba.conf").write_text(rules)


def _start(command: list[str], folder: Path, user: dict[str, Any]) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            preexec_fn=_end_with_parent,
            start_new_session=True,
            **user,
        )


def _end_with_parent() -> None:
    """Also when the tests are killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)

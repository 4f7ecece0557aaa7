"""Gitea with its container registry, on loopback. It refuses to be root, so root runs it as nobody."""

from __future__ import annotations

import base64
import json
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.peers.programs import CACHE, go_program
from tests.peers.registries import Registry
from tests.peers.server import serving
from tests.ports import free_port

USER = "builder"
_NOBODY = 65534
_CONFIG = """\
WORK_PATH = {folder}
RUN_USER = {user}
[server]
HTTP_ADDR = 127.0.0.1
HTTP_PORT = {port}
ROOT_URL = http://127.0.0.1:{port}/
STATIC_ROOT_PATH = {folder}/static
DISABLE_SSH = true
OFFLINE_MODE = true
[database]
DB_TYPE = sqlite3
[security]
INSTALL_LOCK = true
SECRET_KEY = {secret}
[service]
DISABLE_REGISTRATION = true
[cron]
ENABLED = false
[log]
LEVEL = Warn
"""


@contextmanager
def gitea(folder: Path) -> Iterator[Registry]:
    """Run it with one user, whose packages are the repositories; `folder` gets the login."""
    program = go_program("gitea")
    # A temporary folder of its own: nobody can't enter the ones of the tests.
    with tempfile.TemporaryDirectory(prefix="gitea-") as name:
        home = Path(name)
        port, password = free_port(), secrets.token_urlsafe(24)
        shutil.copy2(program, home / "gitea")
        shutil.copytree(CACHE / "gitea", home / "static")
        config = home / "app.ini"
        root = os.geteuid() == 0
        user = pwd.getpwuid(_NOBODY if root else os.geteuid()).pw_name
        config.write_text(_CONFIG.format(folder=home, user=user, port=port, secret=secrets.token_hex(32)))
        as_nobody: list[str] = []
        if root:
            as_nobody = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
            for path in (home, *home.rglob("*")):
                os.chown(path, _NOBODY, _NOBODY)
        env = {"HOME": name, "USER": user, "GITEA_WORK_DIR": name}
        argv = [*as_nobody, os.fspath(home / "gitea"), f"--config={config}"]
        account = [f"--username={USER}", f"--password={password}", f"--email={USER}@example.com"]
        for command in (["migrate"], ["admin", "user", "create", "--must-change-password=false", *account]):
            done = subprocess.run(
                [*argv, *command], env={**os.environ, **env}, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stdout + done.stderr
        with serving([*argv, "web"], f"http://127.0.0.1:{port}/v2/", folder / "log", env=env):
            host = f"127.0.0.1:{port}"
            login = base64.b64encode(f"{USER}:{password}".encode()).decode()
            (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": login}}}))
            yield Registry("gitea", host, owner=USER, docker_config=folder)

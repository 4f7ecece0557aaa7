"""Which commit is being built.

A checkout's commit is claimed only when everything that the build reads from it is as committed. The forge
and the caller are believed: they know what they checked out.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from pipelines.errors import UsageError

_SHA = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# git-status(1), porcelain format version 2
_OID = "# branch.oid "
# Gitea's and Forgejo's runners set GitHub's name as well.
_FORGE = ("GITHUB_SHA", "GITEA_SHA", "FORGEJO_SHA")


def git_sha(
    given: str | None,
    folder: Path,
    files: Iterable[Path],
    programs: Iterable[Path] = (),
    environment: Mapping[str, str] = os.environ,
) -> str | None:
    """The commit as `--git-sha` says it, else the forge's environment, else the checkout that the recipe's
    `folder` is in. None when nobody knows.

    Each of `files`, which the build reads, must be in that checkout and as committed; of `programs` those
    that are in it: the project may be another. Raises UsageError for a text that is no commit's full name.
    """
    for name, value in (("--git-sha", given), *((name, environment.get(name)) for name in _FORGE)):
        if not value:
            continue
        if not _SHA.fullmatch(value):
            raise UsageError(
                f"{name}: expected 40 or 64 hex digits, found {value[:80]!r}", "give the commit's full name"
            )
        return value
    inside = folder.resolve()
    top = next((path for path in (inside, *inside.parents) if (path / ".git").exists()), None)
    if top is None:
        return None
    read = [path.resolve() for path in files]
    if not all(path.is_relative_to(top) for path in read):
        return None
    read += [path for path in programs if path.is_relative_to(top)]
    return _head(top, {path.relative_to(top) for path in read})


def _head(top: Path, read: Collection[Path]) -> str | None:
    """The checkout's commit, unless a tracked file was changed since or one of `read` is not tracked."""
    names = {os.fspath(path) for path in read}
    if not names <= set(_git(top, "ls-files", "-z", "--", *names).split("\0")):
        return None
    status = _git(top, "status", "--porcelain=v2", "--branch", "-z", "--untracked-files=no")
    lines = [line for line in status.split("\0") if line]
    if any(not line.startswith("# ") for line in lines):
        return None
    commits = (line.removeprefix(_OID) for line in lines if line.startswith(_OID))
    return next((commit for commit in commits if _SHA.fullmatch(commit)), None)


def _git(top: Path, *words: str) -> str:
    """What git says of a checkout; nothing where it is absent or does not trust the checkout."""
    command = ["git", "-C", os.fspath(top), "--literal-pathspecs", "-c", "core.fsmonitor=false", *words]
    # A hook's variables would point git to another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        done = subprocess.run(command, env=environment, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.decode("utf-8", "surrogateescape")

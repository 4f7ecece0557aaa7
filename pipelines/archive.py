"""Where packages come from: the roots of Debian archives, and the keys that may sign for them.

A root is what stands before `dists/` and `pool/`: a URL without a trailing slash, or an absolute folder.
Roots are transport: they stand in no recipe, lock or key, and what they serve is believed for its signature
alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipelines.errors import ArchiveError, UsageError

VARIABLE = "DISK_IMAGE_ARCHIVE"
KEYRING = Path(__file__).parent / "keyring" / "debian-archive-trixie.gpg"
# Debian's keys for trixie: the automatic, the security and the stable key, with their signing subkeys. The
# first signs testing as well.
PINNED = (
    "04B54C3CDCA79751B16BC6B5225629DF75B188BD",
    "B8E5F13176D2A7A75220028078DBA3BC47EF2265",
    "5E04A1E3223A19A20706E20F9904613D4CCE68C6",
    "89C87ACEA5DD6B8E6A7068808E9F831205B4BA95",
    "41587F7DB8C774BCCF131416762F67A0B2C39DE4",
)
_RELEASES = "oldoldstable|oldstable|stable|testing|unstable|sid|buster|bullseye|bookworm|trixie|forky|duke"
_SUITE = re.compile(rf"({_RELEASES})(-security|/updates|-updates|-proposed-updates|-backports(-sloppy)?)?/?")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")
_TIMEOUT_SECONDS = 30


def archives(
    given: Sequence[str], environment: Mapping[str, str] = os.environ, apt_folder: Path = Path("/etc/apt")
) -> tuple[str, ...]:
    """Roots in the order to try: `given`, else DISK_IMAGE_ARCHIVE, else Debian's among the apt sources.

    Raises UsageError for a root that is neither a folder nor an http(s) URL, ArchiveError when there is none
    at all.
    """
    if given:
        return _unique(_root(value, "--archive") for value in given)
    if words := environment.get(VARIABLE, "").split():
        return _unique(_root(value, VARIABLE) for value in words)
    found = _unique(host_roots(apt_folder))
    if not found:
        raise ArchiveError(
            f"no Debian archive among the apt sources in {apt_folder}",
            f"name one: --archive URL|DIR, or {VARIABLE}='URL URL'",
        )
    return found


def redacted(text: str) -> str:
    """`text` with the credentials of every URL in it replaced by `***@`."""
    return _CREDENTIALS.sub("***@", text)


def keyring(path: Path = KEYRING, pinned: Sequence[str] = PINNED) -> Path:
    """`path`, after its keys were compared with `pinned`. Raises ArchiveError for any other set of keys."""
    from pipelines.openpgp import Malformed, fingerprints

    try:
        found = fingerprints(path.read_bytes())
    except (OSError, Malformed) as error:
        raise ArchiveError(
            f"{path}: not a usable keyring: {error}", f"restore it: git checkout -- {path}"
        ) from None
    if sorted(found) != sorted(pinned):
        strange = sorted(set(found) - set(pinned)) or ["none"]
        missing = sorted(set(pinned) - set(found)) or ["none"]
        raise ArchiveError(
            f"{path}: expected the {len(pinned)} pinned keys, found {len(found)}:"
            f" unknown {', '.join(strange)}; missing {', '.join(missing)}",
            f"restore it: git checkout -- {path}",
        )
    return path


def serving(roots: Sequence[str], suites: Sequence[str]) -> dict[str, str]:
    """For each suite the first root that has it. Raises ArchiveError when none has, or can't be asked."""
    chosen: dict[str, str] = {}
    for suite in suites:
        answers: list[str] = []
        for root in roots:
            answer = _lacks(root, suite)
            if answer is None:
                chosen[suite] = root
                break
            answers.append(f"{redacted(root)}: {answer}")
        else:
            raise ArchiveError(
                f"no archive serves the suite {suite} ({'; '.join(answers)})",
                f"add an archive that has dists/{suite}/InRelease: --archive URL|DIR, or {VARIABLE}",
            )
    return chosen


def _lacks(root: str, suite: str) -> str | None:
    """Why `root` does not serve `suite`, or None when it does. Raises when it can't be reached at all."""
    name = f"dists/{suite}/InRelease"
    if root.startswith("/"):
        return None if (Path(root) / name).is_file() else "no such file"
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    url, headers = _without_credentials(root)
    try:
        with urlopen(Request(f"{url}/{name}", headers=headers), timeout=_TIMEOUT_SECONDS):
            return None
    except HTTPError as error:
        with error:
            if error.code < 500:
                return f"HTTP {error.code}"
            reason = f"HTTP {error.code}"
    except (OSError, HTTPException) as error:
        reason = str(getattr(error, "reason", error))
    raise ArchiveError(
        f"{redacted(root)}/{name}: {redacted(reason)}",
        "check the network and the archive's name, then run it again",
    )


def _without_credentials(root: str) -> tuple[str, dict[str, str]]:
    from base64 import b64encode
    from urllib.parse import unquote

    match = _CREDENTIALS.search(root)
    if match is None:
        return root, {}
    token = b64encode(unquote(match[0][:-1]).encode()).decode()
    return _CREDENTIALS.sub("", root), {"Authorization": f"Basic {token}"}


def _unique(values: Iterator[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _root(value: str, origin: str) -> str:
    if re.fullmatch(r"https?://[^\s/]+\S*", value):
        return value.rstrip("/")
    path = Path(value.removeprefix("file://"))
    if value and ("://" not in value or value.startswith("file:///")) and path.is_dir():
        return str(path.resolve())
    raise UsageError(
        f"{origin}: expected an http or https URL or an existing folder, found {redacted(value)!r}",
        "give the part before dists/ and pool/, for example --archive /srv/mirror/debian",
    )


def host_roots(apt_folder: Path) -> Iterator[str]:
    """Roots of the enabled Debian sources below `apt_folder`, in apt's order (sources.list(5)).

    Debian's are those of type deb with the component main, a suite named as Debian names its own, and no key
    of somebody else.
    """
    parts = apt_folder / "sources.list.d"
    listed = sorted(parts.iterdir()) if parts.is_dir() else []
    for path in (apt_folder / "sources.list", *listed):
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".sources":
            yield from _deb822(text)
        elif path.suffix == ".list":
            yield from _one_line(text)


def _deb822(text: str) -> Iterator[str]:
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n[ \t]*\n", "\n".join(lines)):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1] in (" ", "\t"):
                fields[name] = f"{fields.get(name, '')} {line.strip()}"
            else:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false", "without", "off", "disable"):
            continue
        if "deb" in fields.get("types", "").split():
            yield from _debian(
                fields.get("uris", ""),
                fields.get("suites", ""),
                fields.get("components", ""),
                fields.get("signed-by", ""),
            )


def _one_line(text: str) -> Iterator[str]:
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]*)", line)
        if match:
            signed = re.search(r"(?i)\bsigned-by=(\S+)", match[1] or "")
            yield from _debian(match[2], match[3], match[4], signed[1] if signed else "")


def _debian(uris: str, suites: str, components: str, signed_by: str) -> Iterator[str]:
    if "main" not in components.split() or not any(_SUITE.fullmatch(suite) for suite in suites.split()):
        return
    if signed_by and "debian-archive" not in signed_by:
        return
    for uri in uris.split():
        if re.match(r"https?://", uri):
            yield uri.rstrip("/")
        elif re.match(r"(file|copy):/", uri):
            yield str(Path("/" + re.sub(r"^(file|copy):/*", "", uri)))

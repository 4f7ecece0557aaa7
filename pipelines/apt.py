"""The host's apt as a resolver: the host's own settings, sources and packages take no part.

Works without root. Indexes are fetched anew into a private folder, so there is no older index to fall back
to, and any warning of apt's is an error: an index counts when its signature, its date and its digests hold,
or not at all.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pipelines.archive import redacted
from pipelines.errors import ArchiveError

_INSTALLS = re.compile(
    r"^Inst (?P<name>[^\s:]+)\S* (?:\[[^\]]*\] )?\((?P<version>\S+) .*\[(?P<arch>[a-z0-9-]+)\]\)", re.M
)
_SETTINGS = """\
Dir::State "{folder}/state";
Dir::State::lists "{folder}/state/lists";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
Dir::Etc "{folder}/etc";
Dir::Etc::main "{folder}/etc/apt.conf";
Dir::Etc::parts "{folder}/etc/apt.conf.d";
Dir::Etc::sourcelist "{folder}/etc/disk-image.sources";
Dir::Etc::sourceparts "{folder}/etc/sources.list.d";
Dir::Etc::preferences "{folder}/etc/preferences";
Dir::Etc::preferencesparts "{folder}/etc/preferences.d";
Dir::Etc::netrc "{folder}/etc/auth.conf";
Dir::Etc::netrcparts "{folder}/etc/auth.conf.d";
Dir::Etc::trusted "{folder}/etc/trusted.gpg";
Dir::Etc::trustedparts "{folder}/etc/trusted.gpg.d";
APT::Architecture "{arch}";
APT::Architectures {{ "{arch}"; }};
APT::Sandbox::User "";
APT::Solver "internal";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Update::Error-Mode "any";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::Check-Valid-Until "true";
Acquire::Check-Date "true";
Acquire::GzipIndexes "false";
Acquire::Languages "none";
Acquire::Retries "3";
"""


@dataclass(frozen=True, slots=True)
class Source:
    """One suite of one archive: only its `packages`, if given; past its Valid-Until, if `expired`."""

    root: str
    suite: str
    packages: tuple[str, ...] = ()
    expired: bool = False


@dataclass(frozen=True, slots=True)
class Stanza:
    """One package of an index: its fields (deb-control(5), with Filename, Size and SHA256)."""

    fields: Mapping[str, str]

    @property
    def identity(self) -> tuple[str, str, str]:
        return (self.fields["Package"], self.fields["Version"], self.fields["Architecture"])


class Apt:
    """A private apt below `folder` (which must be empty) over `sources`, in their order of preference."""

    def __init__(self, folder: Path, sources: Sequence[Source], arch: str, keyring: Path) -> None:
        self.folder = folder
        self.sources = tuple(sources)
        self.arch = arch
        self.keyring = keyring
        self._stanzas: dict[str, list[Stanza]] | None = None
        for name in (
            "state/lists/partial",
            "cache/archives/partial",
            "etc/apt.conf.d",
            "etc/sources.list.d",
            "etc/preferences.d",
            "etc/auth.conf.d",
            "etc/trusted.gpg.d",
        ):
            (folder / name).mkdir(parents=True)
        (folder / "state/status").touch()
        key = folder / "etc/archive.gpg"
        key.write_bytes(keyring.read_bytes())
        (folder / "etc/disk-image.sources").write_text("\n".join(_source(source, key) for source in sources))
        (folder / "etc/preferences").write_text("\n".join(_pins(sources)))
        (folder / "apt.conf").write_text(_SETTINGS.format(folder=folder, arch=arch))

    def update(self) -> None:
        """Fetch and verify the indexes. Raises ArchiveError for anything that apt even warns of."""
        done = self._run("apt-get", "update")
        complaints = [line for line in done.stderr.splitlines() if line[:2] in ("W:", "E:")]
        if done.returncode or complaints:
            what = redacted("; ".join(complaints) or done.stderr[-400:])
            raise ArchiveError(f"apt-get update: {what}", _update_hint(what))

    def install(self, names: Collection[str]) -> list[tuple[str, str, str]]:
        """(name, version, architecture) of all that installing `names` into an empty system brings in."""
        done = self._run("apt-get", "install", "--simulate", "--", *sorted(names))
        if done.returncode:
            lines = [
                line
                for line in (done.stdout + done.stderr).splitlines()
                if re.match(r"E:| \S+ : | {4,}\S", line)
            ]
            what = "; ".join(line.strip() for line in lines) or done.stderr[-400:]
            raise ArchiveError(
                f"apt-get install {' '.join(sorted(names))}: {redacted(what)}",
                "change the list of packages so that it resolves",
            )
        return [
            (found["name"], found["version"], found["arch"]) for found in _INSTALLS.finditer(done.stdout)
        ]

    def stanzas(self) -> Mapping[str, Sequence[Stanza]]:
        """Every package of the verified indexes by name, in the sources' order."""
        if self._stanzas is None:
            self._stanzas = {}
            for source in self.sources:
                for stanza in self._index(source.suite):
                    name = stanza.fields["Package"]
                    if not source.packages or name in source.packages:
                        self._stanzas.setdefault(name, []).append(stanza)
        return self._stanzas

    def release(self, suite: str) -> Path:
        """The verified InRelease of `suite`."""
        (found,) = self.folder.glob(f"state/lists/*dists_{suite}_InRelease")
        return found

    def _index(self, suite: str) -> Iterator[Stanza]:
        name = f"main/binary-{self.arch}/Packages"
        paths = list(self.folder.glob(f"state/lists/*dists_{suite}_{name.replace('/', '_')}"))
        if not paths and not re.search(
            rf"^ [0-9a-f]{{64}} +0 {name}$", self.release(suite).read_text(), re.MULTILINE
        ):
            # apt keeps no file for an empty index (an unused suite's); a missing one it only notes.
            raise ArchiveError(
                f"{suite}: the archive has no index {name}",
                f"use an archive that serves the architecture {self.arch}",
            )
        for path in paths:
            for text in path.read_text().split("\n\n"):
                if text.strip():
                    yield Stanza(dict(_fields(text)))

    def _run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
        environment |= {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "APT_CONFIG": str(self.folder / "apt.conf"),
        }
        try:
            return subprocess.run(
                argv, env=environment, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
        except FileNotFoundError:
            raise ArchiveError(
                f"{argv[0]}: not found on this machine", "lock on a machine with apt: Debian 12 or later"
            ) from None


def _source(source: Source, keyring: Path) -> str:
    uri = source.root if "://" in source.root else "file://" + quote(source.root)
    lines = [
        "Types: deb",
        f"URIs: {uri}",
        f"Suites: {source.suite}",
        "Components: main",
        f"Signed-By: {keyring}",
    ]
    if source.expired:
        lines.append("Check-Valid-Until: no")
    return "\n".join(lines) + "\n"


def _pins(sources: Sequence[Source]) -> Iterator[str]:
    """A negative priority never installs; a named package wins over `*` (apt_preferences(5))."""
    for source in sources:
        if source.packages:
            yield f"Package: {' '.join(source.packages)}\nPin: release n={source.suite}\nPin-Priority: 990\n"
            yield f"Package: *\nPin: release n={source.suite}\nPin-Priority: -1\n"


def _fields(stanza: str) -> Iterator[tuple[str, str]]:
    for line in stanza.split("\n"):
        name, colon, value = line.partition(": ")
        if colon and not line.startswith(" "):
            yield name, value


def _update_hint(what: str) -> str:
    if "expired" in what:
        return (
            "use an archive that is kept current, or set this machine's clock right; "
            "for an extra suite of the tools that is known to stand still: --accept-expired SUITE"
        )
    if re.search(r"sign|NO_PUBKEY|verif", what):
        return "use an archive signed with Debian's keys; if this one is, its index was changed on the way"
    return "check the network and the archive, then run it again"

"""lock.evidence.json: what a lock was resolved from. For people and audits; it is in no key."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipelines.apt import Apt
from pipelines.lock import Lock
from pipelines.openpgp import fingerprints, issuers

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class SuiteEvidence:
    """One suite's signed index: its own dates, and the fingerprints of the trusted keys that signed it."""

    suite: str
    inrelease_sha256: str
    date: str | None
    valid_until: str | None
    expiry_accepted: bool
    signed_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """When a lock was made (UTC, RFC 3339) and from which indexes."""

    locked_at: str
    suites: tuple[SuiteEvidence, ...]

    def to_bytes(self) -> bytes:
        """JSON with two spaces and a final newline."""
        return (json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n").encode()


def evidence_of(apt: Apt) -> Evidence:
    """What `apt` has verified, as it stands after its update."""
    trusted = set(fingerprints(apt.keyring.read_bytes()))
    seen: list[SuiteEvidence] = []
    for source in apt.sources:
        data = apt.release(source.suite).read_bytes()
        # apt refuses a file with a bad signature of a known key, so a trusted issuer named here did sign.
        signed_by = tuple(name for name in issuers(data) if name in trusted)
        seen.append(
            SuiteEvidence(
                suite=source.suite,
                inrelease_sha256=hashlib.sha256(data).hexdigest(),
                date=_field(data, b"Date"),
                valid_until=_field(data, b"Valid-Until"),
                expiry_accepted=source.expired,
                signed_by=signed_by,
            )
        )
    return Evidence(locked_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), suites=tuple(seen))


def _field(release: bytes, name: bytes) -> str | None:
    found = re.search(rb"^" + name + rb": *(.+?)\r?$", release, re.MULTILINE)
    return found[1].decode("utf-8", "replace") if found else None


def evidence_path(lock: Path) -> Path:
    """`lock.evidence.json` beside `lock.json`, `tools.evidence.json` beside `tools.lock`."""
    return lock.with_suffix(".evidence.json")


def write_lock(path: Path, lock: Lock, evidence: Evidence) -> bool:
    """Write `lock`, and its evidence beside it; False, and nothing written, when the lock is what it was."""
    data = lock.to_bytes()
    if path.is_file() and path.read_bytes() == data:
        return False
    # The evidence first: after an interruption the lock still differs, and the next run writes both.
    _replace(evidence_path(path), evidence.to_bytes())
    _replace(path, data)
    return True


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise

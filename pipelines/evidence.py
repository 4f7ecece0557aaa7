"""lock.evidence.json: what a lock was resolved from. Kept beside the lock for people and audits; in no key."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.lock import Lock


@dataclass(frozen=True, slots=True)
class SuiteEvidence:
    """One suite's signed index. Dates are the Release file's own words; `signed_by` are fingerprints of trusted keys."""

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
        """Two spaces, a final newline."""
        return (json.dumps({"schema": 1, **asdict(self)}, indent=2) + "\n").encode()


def write_lock(path: Path, lock: Lock, evidence: Evidence) -> bool:
    """Write `lock` and its evidence beside it; False, and nothing written, when the lock is what it was."""
    data = lock.to_bytes()
    if path.is_file() and path.read_bytes() == data:
        return False
    # The evidence first: after an interruption the lock still differs, and the next run writes both.
    _replace(path.with_suffix(".evidence.json"), evidence.to_bytes())
    _replace(path, data)
    return True


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)

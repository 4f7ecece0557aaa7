"""cosign, the command, with the trust of one folder."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Refused(Exception):
    """cosign ended with an error; its message is the text."""


@dataclass(frozen=True)
class Cosign:
    """`trust` holds trusted_root.json and, to sign, signing_config.json; `network` is how a command in the
    network of its services begins. Each method raises Refused.
    """

    program: str
    trust: Path
    home: Path
    network: Sequence[str] = ()

    def verify(self, ref: str, identity: str, issuer: str) -> None:
        """`cosign verify`: some bundle on the image is by that signer."""
        self._run("verify", *self._trusted, *_signer(identity, issuer), ref)

    def verify_attestation(self, ref: str, kind: str, identity: str, issuer: str) -> list[dict[str, Any]]:
        """`cosign verify-attestation --type`: the statements of that kind by that signer."""
        told = self._run(
            "verify-attestation", f"--type={kind}", *self._trusted, *_signer(identity, issuer), ref
        )
        envelopes = [json.loads(line) for line in told.splitlines()]
        return [json.loads(base64.b64decode(envelope["payload"])) for envelope in envelopes]

    def sign(self, ref: str, token: Path) -> None:
        """`cosign sign`; `token` is a file with an identity token."""
        self._run("sign", *self._signing(token), ref)

    def attest(self, ref: str, kind: str, predicate: Path, token: Path) -> None:
        """`cosign attest --type`."""
        self._run("attest", f"--type={kind}", f"--predicate={predicate}", *self._signing(token), ref)

    @property
    def _trusted(self) -> tuple[str, ...]:
        return ("--allow-http-registry", f"--trusted-root={self.trust / 'trusted_root.json'}")

    def _signing(self, token: Path) -> tuple[str, ...]:
        config = self.trust / "signing_config.json"
        return (*self._trusted, "--yes", f"--signing-config={config}", f"--identity-token={token}")

    def _run(self, *argv: str) -> str:
        done = subprocess.run(
            [*self.network, self.program, *argv],
            env={**os.environ, "HOME": os.fspath(self.home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode != 0:
            raise Refused(done.stderr)
        return done.stdout


def _signer(identity: str, issuer: str) -> tuple[str, str]:
    return (f"--certificate-identity={identity}", f"--certificate-oidc-issuer={issuer}")

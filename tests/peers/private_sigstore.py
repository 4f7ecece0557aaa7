"""A private Sigstore of the real services: Fulcio, Rekor with tiles and a timestamp authority, in a network
namespace of their own. An embedded trust serves the two parts that no registry of programs has: the identity
issuer and the certificate log.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import jwt

from supply_chain.trust import init_embedded
from supply_chain.trust.embedded import private
from tests.peers.fulcio import fulcio, make_root
from tests.peers.namespace import loopback_only
from tests.peers.rekor import rekor
from tests.peers.server import serving
from tests.peers.timestamp_server import timestamp_server
from tests.supply_chain.signing.jwt_texts import WORKFLOW, claims

_PORT = 5810
ISSUER = f"http://127.0.0.1:{_PORT}"
FORGE = "https://git.example"
# Whom Fulcio names in the certificate.
IDENTITY = f"{FORGE}/{WORKFLOW}"
# A forge's jobs, as Fulcio's operators describe them: github.com/sigstore/fulcio docs/oidc.md.
_ISSUERS = {
    "OIDCIssuers": {
        ISSUER: {"IssuerURL": ISSUER, "ClientID": "sigstore", "Type": "ci-provider", "CIProvider": "forge"}
    },
    "CIIssuerMetadata": {
        "forge": {
            "DefaultTemplateValues": {"url": FORGE},
            "ExtensionTemplates": {
                "BuildSignerURI": "{{ .url }}/{{ .workflow_ref }}",
                "SourceRepositoryURI": "{{ .url }}/{{ .repository }}",
                "SourceRepositoryDigest": "sha",
            },
            "SubjectAlternativeNameTemplate": "{{ .url }}/{{ .workflow_ref }}",
        }
    },
}


@dataclass(frozen=True)
class PrivateSigstore:
    """`network` is how a command beside the services begins; `init` is told to `disk-image trust init`."""

    network: Sequence[str]
    init: Sequence[str]
    _embedded: Path

    def token(self, into: Path) -> Path:
        """A file with the token of a forge's job: who it is stands in claims of the forge's own."""
        key = private.load_key(self._embedded, "issuer")
        into.write_text(jwt.encode(claims(iss=ISSUER, sha="1f" * 20), key, algorithm="ES256"))
        return into


@contextmanager
def private_sigstore(folder: Path) -> Iterator[PrivateSigstore]:
    """Run it, with everything it writes in `folder`."""
    embedded = folder / "embedded"
    init_embedded(embedded, port=_PORT)
    certificate_log_key = _certificate_log_key(embedded, folder / "ct.pem")
    root = make_root(folder)
    with ExitStack() as stack:
        network = stack.enter_context(loopback_only())
        serve: list[str | Path] = [sys.executable, "-m", "pipelines", "trust", "serve", embedded]
        serve.append(f"--certificate-root={root.certificate}")
        stack.enter_context(serving(serve, f"{ISSUER}/jwks", folder / "issuer.log", network=network))
        authority = stack.enter_context(fulcio(folder, root, _ISSUERS, ISSUER, network))
        log, log_key = stack.enter_context(rekor(folder, network))
        timestamps = stack.enter_context(timestamp_server(folder, network))
        init = [
            f"--fulcio={authority}", f"--rekor={log}", f"--rekor-key={log_key}", f"--tsa={timestamps}",
            f"--issuer={ISSUER}", f"--ct-key={certificate_log_key}",
        ]  # fmt: skip
        yield PrivateSigstore(network, init, embedded)


def _certificate_log_key(embedded: Path, into: Path) -> Path:
    root: Mapping[str, list[dict[str, dict[str, str]]]]
    root = json.loads((embedded / "trusted_root.json").read_text())
    der = base64.b64decode(root["ctlogs"][0]["publicKey"]["rawBytes"])
    text = base64.encodebytes(der).decode()
    into.write_text(f"-----BEGIN PUBLIC KEY-----\n{text}-----END PUBLIC KEY-----\n")
    return into

"""Read a trust: a folder that `trust init` wrote, a trust.json, or a bare trusted_root.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key

from supply_chain.errors import InvalidDocument, TrustError
from supply_chain.oci import parse_object
from supply_chain.trust import documents
from supply_chain.trust.embedded import private
from supply_chain.trust.embedded.identity import EmbeddedTrust

if TYPE_CHECKING:
    from pydantic import ValidationError
    from sigstore.models import SigningConfig, TrustedRoot
    from sigstore_models.trustroot.v1 import SigningConfig as ConfigDocument
    from sigstore_models.trustroot.v1 import TrustedRoot as RootDocument

# A trusted root has some kilobytes; the public instance's has 12.
_LIMIT = 1 << 20
_REPAIR = "restore the file, or make a new trust"


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom to believe, and where to sign.

    `root` and `config` are the documents, `trusted_root` and `signing_config` what sigstore-python works
    with; config and signing_config are None where one can only verify. `embedded` is there when the
    services are our own, in the folder `path`: `running` starts them.
    """

    path: Path
    root: RootDocument
    config: ConfigDocument | None
    embedded: EmbeddedTrust | None

    @property
    def trusted_root(self) -> TrustedRoot:
        """Keys and certificates to verify with."""
        from sigstore.models import TrustedRoot

        return TrustedRoot(self.root)

    @property
    def signing_config(self) -> SigningConfig | None:
        """Services to sign with. Raises TrustError when none of a kind is valid now, or known here."""
        from sigstore.errors import Error
        from sigstore.models import SigningConfig

        if self.config is None:
            return None
        try:
            return SigningConfig(self.config)
        except (Error, ValueError) as error:
            raise TrustError(
                f"{self.path}: signingConfig: {error}, at {datetime.now(UTC):%Y-%m-%d %H:%M} UTC "
                "by this machine's clock",
                "set the clock, or name another trust",
            ) from None


def load_trust(path: Path) -> Trust:
    """The trust at `path`. Raises TrustError, which names file and part.

    (1) The documents parse as Sigstore's formats, no field unknown, (2) every key and certificate in them
    parses, and there is one of each kind, (3) a folder's documents agree, (4) where there is a secret half
    there is also a place to sign.
    """
    folder = path if path.is_dir() else None
    file = _document(folder) if folder else path
    root, config = _halves(_read(file), file)
    parsed_root = _parse_root(root, file)
    parsed_config = None if config is None else _parse_config(config, file)
    if folder and file.name == documents.TRUST:
        for name, half in ((documents.TRUSTED_ROOT, root), (documents.SIGNING_CONFIG, config)):
            if (folder / name).exists() and _read(folder / name) != half:  # (3)
                raise TrustError(
                    f"{folder / name}: is not what {documents.TRUST} says",
                    "restore both from a backup: other Sigstore clients read one, we the other",
                )
    embedded = None
    if folder and (folder / private.PRIVATE).exists():  # (4)
        if parsed_config is None or not parsed_config.oidc_urls or not parsed_root.timestamp_authorities:
            raise TrustError(
                f"{file}: has no issuer or timestamper, though {private.PRIVATE} is there", _REPAIR
            )
        embedded = EmbeddedTrust(folder, issuer=parsed_config.oidc_urls[0].url)
    return Trust(path, parsed_root, parsed_config, embedded)


def _document(folder: Path) -> Path:
    for name in (documents.TRUST, documents.TRUSTED_ROOT):
        if (folder / name).exists():
            return folder / name
    raise TrustError(
        f"{folder}: holds neither {documents.TRUST} nor {documents.TRUSTED_ROOT}",
        f"make a trust: disk-image trust init {folder}",
    )


def _read(path: Path) -> documents.Json:
    hint = "name a folder that `disk-image trust init` wrote, a trust.json or a trusted_root.json"
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT + 1)
    except OSError as error:
        raise TrustError(f"{path}: {error.strerror}", hint) from None
    if len(content) > _LIMIT:
        raise TrustError(f"{path}: is larger than {_LIMIT} bytes, so it is no trust", hint)
    try:
        return parse_object(content, str(path))
    except InvalidDocument as error:
        raise TrustError(error.what, hint) from None


def _halves(loaded: documents.Json, file: Path) -> tuple[object, object]:
    """The trusted root and the signing configuration in a document."""
    media_type = str(loaded.get("mediaType", ""))
    if media_type.startswith("application/vnd.dev.sigstore.trustedroot"):
        return loaded, None
    if media_type == documents.TRUST_TYPE:
        for part in ("trustedRoot", "signingConfig"):
            if part not in loaded:
                raise TrustError(f"{file}: {part} is missing", _REPAIR)
        return loaded["trustedRoot"], loaded["signingConfig"]
    raise TrustError(
        f"{file}: mediaType is {media_type[:100]!r}, neither a ClientTrustConfig nor a TrustedRoot",
        f"expected {documents.TRUST_TYPE} or {documents.TRUSTED_ROOT_TYPE}",
    )


def _parse_root(root: object, file: Path) -> RootDocument:
    from pydantic import ValidationError
    from sigstore.errors import Error
    from sigstore.models import TrustedRoot
    from sigstore_models.trustroot.v1 import TrustedRoot as RootDocument

    try:
        parsed = RootDocument.from_json(json.dumps(root))  # (1)
        TrustedRoot(parsed)
    except ValidationError as error:
        raise _invalid(file, error) from None
    except Error as error:
        raise TrustError(f"{file}: {error}", f"expected {documents.TRUSTED_ROOT_TYPE}") from None
    logs = {"tlogs": parsed.tlogs, "ctlogs": parsed.ctlogs}
    authorities = {
        "certificateAuthorities": parsed.certificate_authorities,
        "timestampAuthorities": parsed.timestamp_authorities,
    }
    for part in ("tlogs", "ctlogs", "certificateAuthorities"):  # (2)
        if not {**logs, **authorities}[part]:
            raise TrustError(f"{file}: {part} is empty: no signature could be verified", _REPAIR)
    for part, chains in authorities.items():
        for number, authority in enumerate(chains):
            for at, certificate in enumerate(authority.cert_chain.certificates):
                where = f"{part}[{number}].certChain.certificates[{at}]"
                _parses(x509.load_der_x509_certificate, certificate.raw_bytes, file, where)
    for part, keys in logs.items():
        for number, log in enumerate(keys):
            where = f"{part}[{number}].publicKey"
            _parses(load_der_public_key, log.public_key.raw_bytes or b"", file, where)
    return parsed


def _parses(load: Callable[[bytes], object], content: bytes, file: Path, part: str) -> None:
    try:
        load(content)
    except UnsupportedAlgorithm:
        return  # clients pass over kinds of keys that they do not know
    except ValueError:
        raise TrustError(f"{file}: {part} can't be parsed", _REPAIR) from None


def _parse_config(config: object, file: Path) -> ConfigDocument:
    """Which of its services are valid now is asked when they are used: whoever verifies needs none."""
    from pydantic import ValidationError
    from sigstore_models.trustroot.v1 import SigningConfig as ConfigDocument

    try:
        parsed = ConfigDocument.from_json(json.dumps(config))
    except ValidationError as error:
        raise _invalid(file, error) from None
    if parsed.media_type != documents.SIGNING_CONFIG_TYPE:
        raise TrustError(
            f"{file}: signingConfig: mediaType is {parsed.media_type[:100]!r}",
            f"expected {documents.SIGNING_CONFIG_TYPE}",
        )
    for part, services in (("caUrls", parsed.ca_urls), ("rekorTlogUrls", parsed.rekor_tlog_urls)):
        if not services:
            raise TrustError(f"{file}: signingConfig: {part} is empty: nothing could be signed", _REPAIR)
    return parsed


def _invalid(file: Path, error: ValidationError) -> TrustError:
    first = error.errors(include_url=False, include_input=False)[0]
    part = ".".join(str(one) for one in first["loc"])
    return TrustError(f"{file}: {part}: {first['msg']}", _REPAIR)

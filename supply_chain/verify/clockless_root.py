"""sigstore-python's trusted root without its look at this machine's clock.

It passes over what is not valid yet by this clock, whenever a signature was made: a node that starts in 1970
could verify nothing. What has to have been valid when it was signed is chosen by whoever verifies
(bundle.py); a timestamp authority's period sigstore-python itself compares with its timestamps.
"""

from __future__ import annotations

from collections.abc import Iterable

from cryptography.x509 import Certificate
from sigstore._internal.trust import CertificateAuthority, KeyringPurpose
from sigstore.errors import MetadataError
from sigstore.models import TrustedRoot
from sigstore_models.common.v1 import PublicKey
from sigstore_models.trustroot.v1 import TransparencyLogInstance


class ClocklessRoot(TrustedRoot):
    """All that the document has, at any time."""

    def _get_tlog_keys(
        self, tlogs: list[TransparencyLogInstance], purpose: KeyringPurpose
    ) -> Iterable[PublicKey]:
        return [log.public_key for log in tlogs]

    def get_fulcio_certs(self) -> list[Certificate]:
        """The certificates of all authorities. Raises MetadataError when there is none."""
        authorities = [_Authority(one) for one in self._inner.certificate_authorities]
        if not authorities:
            raise MetadataError("no certificate authority")
        return [certificate for one in authorities for certificate in one.certificates(allow_expired=True)]

    def get_timestamp_authorities(self) -> list[CertificateAuthority]:
        """All of them."""
        return [_Authority(one) for one in self._inner.timestamp_authorities]


class _Authority(CertificateAuthority):
    def certificates(self, *, allow_expired: bool) -> list[Certificate]:
        return self._certificates

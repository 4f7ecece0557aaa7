"""Package URLs: how an SBOM and a provenance name the same package.

Specification: https://github.com/package-url/purl-spec, its types `deb` and `oci`. A Debian version is kept
whole: epoch, revision, `~` and `+`.
"""

from __future__ import annotations

from urllib.parse import quote

# What VERSION_ID in os-release(5) says for each suite.
DISTRO = {"trixie": "debian-13"}
SOURCE = "source"


def deb(name: str, version: str, arch: str, distro: str | None = None) -> str:
    """A Debian package's URL; `arch` is SOURCE for a source package, `distro` None when it is not known."""
    place = "" if distro is None else f"&distro={_encoded(distro)}"
    return f"pkg:deb/debian/{_encoded(name)}@{_encoded(version)}?arch={_encoded(arch)}{place}"


def oci(name: str, digest: str, arch: str) -> str:
    """An OCI artifact's URL, from its manifest's digest (`sha256:<hex>`)."""
    return f"pkg:oci/{_encoded(name)}@{_encoded(digest)}?arch={_encoded(arch)}"


def _encoded(text: str) -> str:
    """Everything but letters, digits and `.-_~:` is percent-encoded."""
    return quote(text, safe=":")

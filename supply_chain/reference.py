"""REF: `host[:port]/path:tag` or `host[:port]/path@sha256:<hex>`.

The grammar is that of the OCI distribution specification (`<name>` and `<reference>`) with
the host that its clients put in front. The host is never implied: an image goes where the text says.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace

from supply_chain.errors import InvalidReference

# Host and path together, as in distribution/reference: longer names break other clients' limits.
NAME_LIMIT = 255

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_ALLOWED = re.compile(r"[A-Za-z0-9._:/@\[\]-]+")

_FORM = "host[:port]/path:tag or host[:port]/path@sha256:<64 hex digits>"


@dataclass(frozen=True, slots=True)
class Reference:
    """One place in a registry: exactly one of `tag` and `digest` is set."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        if (self.tag is None) == (self.digest is None):
            raise ValueError("a reference has a tag or a digest")

    @property
    def name(self) -> str:
        """`host[:port]/path`."""
        return f"{self.registry}/{self.repository}"

    @property
    def target(self) -> str:
        """What stands in a manifest's URL: the tag or the digest."""
        target = self.tag or self.digest
        assert target is not None
        return target

    def at(self, digest: str) -> Reference:
        """The same repository, pinned to `digest`."""
        return replace(self, tag=None, digest=check_digest(digest))

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}" if self.tag is not None else f"{self.name}@{self.digest}"


def parse_reference(text: str) -> Reference:
    """Read a REF. Raises InvalidReference that says which part breaks which rule."""
    _check_text(text)
    name, at, digest = text.partition("@")
    if at and not DIGEST.fullmatch(digest):
        # it may be user:password@host, so nothing of it is repeated
        raise InvalidReference(
            "a reference holds no credentials, and after @ only sha256: and 64 hex digits",
            f"docker login HOST, then write {_FORM}",
        )
    registry, slash, rest = name.partition("/")
    path, colon, tag = rest.rpartition(":") if ":" in rest else (rest, "", "")
    if not slash or not path:
        raise _invalid(text, "there is no path after the host")
    check_registry(registry)
    check_repository(path)
    if len(registry) + 1 + len(path) > NAME_LIMIT:
        raise _invalid(
            text, f"host and path have {len(registry) + 1 + len(path)} characters, at most {NAME_LIMIT}"
        )
    if at and colon:
        raise _invalid(text, "it has a tag and a digest, and only one can be meant", f"leave out :{tag}")
    if at:
        return Reference(registry, path, digest=check_digest(digest))
    if not colon:
        raise _invalid(text, "neither tag nor digest", f"add a tag, for example {name}:latest")
    return Reference(registry, path, tag=check_tag(tag))


def check_registry(registry: str) -> str:
    """`host` or `host:port`, as it stands in a URL; a single word must be `localhost` or have a port."""
    host, port = split_host(registry)
    if port is not None and (not _PORT.fullmatch(port) or int(port) > 65535):
        raise _invalid(registry, f"port {port!r} is no number from 1 to 65535")
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise _invalid(registry, "the brackets hold no IPv6 address") from None
        return registry
    if not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise _invalid(registry, "not a host name or address")
    if "." not in host and port is None and host != "localhost":
        raise _invalid(registry, "the first part must be the registry's host", f"write it out: {_FORM}")
    if re.fullmatch(r"[0-9.]+", host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise _invalid(registry, "not an IPv4 address of four decimal parts") from None
    return registry


def check_repository(path: str) -> str:
    """A repository's path: lower-case components, none of them `.` or `..`."""
    for component in path.split("/"):
        if not _COMPONENT.fullmatch(component):
            raise _invalid(
                path,
                f"path component {component!r} is no lower-case letters and digits joined by . _ __ -",
            )
    return path


def check_tag(tag: str) -> str:
    """At most 128 letters, digits, `_`, `.` and `-`, not starting with one of the last two."""
    if not _TAG.fullmatch(tag):
        raise _invalid(tag, "a tag is 1 to 128 letters, digits, _ . - and starts with a letter, digit or _")
    return tag


def check_digest(digest: str) -> str:
    """`sha256:` and 64 lower-case hex digits; no other algorithm is accepted."""
    if not DIGEST.fullmatch(digest):
        raise _invalid(digest, "a digest is sha256: and 64 lower-case hex digits")
    return digest


def split_host(registry: str) -> tuple[str, str | None]:
    """Host (an IPv6 address with its brackets) and port."""
    if registry.startswith("["):
        address, bracket, rest = registry.partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise _invalid(registry, "an IPv6 address stands in brackets: [::1]:5000")
        return address + bracket, rest[1:] if rest else None
    host, colon, port = registry.partition(":")
    return host, port if colon else None


def is_loopback(registry: str) -> bool:
    """Whether the registry can only be this machine: `localhost`, 127.0.0.0/8 or ::1."""
    host = split_host(registry)[0].strip("[]")
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_text(text: str) -> None:
    if text.startswith("-"):
        raise InvalidReference("a reference can't start with a dash, like a flag", f"write {_FORM}")
    if "://" in text:
        raise InvalidReference("a reference has no scheme (https:// or another)", f"write {_FORM}")
    if not _ALLOWED.fullmatch(text):
        strange = sorted({character for character in text if not _ALLOWED.fullmatch(character)})
        found = ", ".join(repr(character) for character in strange[:5]) if text else "nothing"
        raise InvalidReference(f"a reference can't hold {found}", f"write {_FORM}")


def _invalid(text: str, rule: str, hint: str = f"write {_FORM}") -> InvalidReference:
    shown = text if len(text) <= 80 else f"{text[:80]}…"
    return InvalidReference(f"reference {shown!r}: {rule}", hint)

"""Where a pipeline's platform is, and its secrets: from options, the environment and files.

A secret is never an argument, which every user of the machine could read. What is refused here is refused
without quoting it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from pipelines.errors import UsageError
from supply_chain.reference import is_loopback

# In their order; the second pair is what the platform's own tools set.
WEBHOOK_URLS = ("POWERNODE_DISK_IMAGE_WEBHOOK_URL", "POWERNODE_WEBHOOK_URL")
WEBHOOK_SECRETS = ("POWERNODE_DISK_IMAGE_WEBHOOK_SECRET", "POWERNODE_WEBHOOK_SECRET")

_LONGEST_URL = 2048
_LONGEST_SECRET = 4096


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook of the platform and the key that its bodies are signed with."""

    url: httpx.URL = field(repr=False)
    key: bytes = field(repr=False)

    @property
    def origin(self) -> str:
        """Scheme and host, for people: the path names the webhook."""
        return origin(self.url)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no text for people may hold: the key, and every part of the URL that names the webhook."""
        url = self.url
        named = (url.raw_path.decode(), url.path, url.path.rstrip("/").rpartition("/")[2])
        return (self.key.decode(), *named, *url.params.values())

    @property
    def fingerprint(self) -> str:
        """The sha256 of the URL in hex: tells webhooks apart without naming them."""
        return hashlib.sha256(str(self.url).encode()).hexdigest()


def webhook_settings(
    environment: Mapping[str, str], *, url: str | None = None, secret_file: Path | None = None
) -> Webhook:
    """The webhook that the options name, else the environment. Raises UsageError."""
    given, source = (url, "--webhook-url") if url is not None else _first(environment, WEBHOOK_URLS)
    if not given:
        raise UsageError(
            "no webhook to tell the platform by", f"set {WEBHOOK_URLS[0]} (or --webhook-url URL)"
        )
    address = check_url(given, source)
    if source == "--webhook-url" and address.query:
        # What stands on a command line can be read by every user, and queries hold tokens.
        raise UsageError(
            "--webhook-url: expected a URL without a query", f"give such a URL in {WEBHOOK_URLS[0]}"
        )
    if secret_file is not None:
        return Webhook(address, read_secret(secret_file).encode())
    secret, source = _first(environment, WEBHOOK_SECRETS)
    if not secret:
        raise UsageError(
            "the webhook's secret is missing", f"set {WEBHOOK_SECRETS[0]}, or --webhook-secret-file FILE"
        )
    return Webhook(address, check_secret(secret, source).encode())


def check_url(text: str, source: str) -> httpx.URL:
    """A platform's URL: https, or http where it is this machine. Raises UsageError, naming `source`."""
    rule = None
    try:
        url = httpx.URL(text.strip())
    except (httpx.InvalidURL, ValueError):
        raise _no_url(source, "no URL") from None
    if len(text) > _LONGEST_URL or not text.strip().isprintable() or " " in text.strip():
        rule = f"expected at most {_LONGEST_URL} printable characters, found others or more"
    elif url.userinfo:
        rule = "expected no user or password in it, found one"
    elif not url.host or (url.port or 0) > 65535:
        rule = "expected a host, and by choice a port, after https://"
    elif url.scheme != "https" and not (url.scheme == "http" and _is_loopback(url)):
        rule = "expected https (http for this machine only), found another scheme"
    elif url.fragment:
        rule = "expected no fragment (#…), found one"
    if rule is not None:
        raise _no_url(source, rule)
    return url


def read_secret(path: Path) -> str:
    """The secret in a file, without the line's end. Raises UsageError."""
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_SECRET + 1)
        text = content.decode()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", "name a file that holds the secret") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8", "name a file that holds the secret alone") from None
    return check_secret(text, str(path))


def check_secret(text: str, source: str) -> str:
    """A secret on one line, without what surrounds it. Raises UsageError, naming `source`."""
    secret = text.strip()
    if not secret or len(secret) > _LONGEST_SECRET or not secret.isprintable() or " " in secret:
        raise UsageError(
            f"{source}: expected one secret of at most {_LONGEST_SECRET} printable characters, "
            f"found {len(secret)} characters",
            "set it as it was shown when it was made",
        )
    return secret


def origin(url: httpx.URL) -> str:
    """Scheme, host and port."""
    return str(url.copy_with(raw_path=b"/", fragment=None, username=None, password=None)).rstrip("/")


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str]:
    """The first variable that is set to something, and its name."""
    return next(((value, name) for name in names if (value := environment.get(name, "").strip())), ("", ""))


def _is_loopback(url: httpx.URL) -> bool:
    return is_loopback(f"[{url.host}]" if ":" in url.host else url.host)


def _no_url(source: str, rule: str) -> UsageError:
    return UsageError(f"{source}: {rule}", "set it as the platform gave it")

"""Where credentials come from: the files that docker, podman and their login commands write.

`config.json` as the Docker CLI documents it (auths, credsStore, credHelpers) and containers-auth.json(5),
whose keys may name a path below a host. A credential is asked for by host and never goes to another one.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import anyio

from supply_chain.errors import CredentialError, InvalidDocument
from supply_chain.oci import parse_object

# Seconds. A helper may unlock a keyring, but nobody is there to be asked.
HELPER_TIMEOUT = 30.0

_CONFIG_LIMIT = 1024 * 1024
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NOT_FOUND = b"credentials not found in native keychain"
# The user name by which helpers and registries mark an identity token (docker-credential-helpers,
# docker/cli).
_TOKEN_USER = "<token>"


@dataclass(frozen=True, slots=True)
class Credential:
    """What a registry is shown: user and password, or an OAuth2 refresh token, or a bearer token as it
    is.
    """

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()

    def __bool__(self) -> bool:
        return bool(self.password or self.identity_token or self.registry_token)


class Credentials(Protocol):
    """Something that knows credentials."""

    async def find(self, registry: str, repository: str) -> Credential | None:
        """The credential for `host[:port]` and a path in it; None: there is none, ask anonymously."""


@dataclass(frozen=True)
class GivenCredentials:
    """Credentials handed in by the caller (from a secret), each for exactly one `host[:port]`."""

    by_registry: Mapping[str, Credential] = field(repr=False)

    async def find(self, registry: str, repository: str) -> Credential | None:
        """The one given for this registry."""
        return self.by_registry.get(registry)


class DockerCredentials:
    """The first file of `config_files()` that knows the registry."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = os.environ if environment is None else environment

    async def find(self, registry: str, repository: str) -> Credential | None:
        """Look in each file in turn. Raises CredentialError for a file or helper that is there but
        unusable.
        """
        for path in config_files(self._environment):
            config = _load(path)
            if config is not None and (found := await self._from(config, path, registry, repository)):
                return found
        return None

    async def _from(
        self, config: Mapping[str, Any], path: Path, registry: str, repository: str
    ) -> Credential | None:
        helpers = config.get("credHelpers") or {}
        helper = helpers.get(registry) or config.get("credsStore")
        if helper and (found := await self._ask(str(helper), path, registry)):
            return found
        auths = config.get("auths") or {}
        for key in _keys(registry, repository):
            if key in auths and (found := _entry(auths[key], path, key)):
                return found
        return None

    async def _ask(self, helper: str, path: Path, registry: str) -> Credential | None:
        """The docker-credential-helpers protocol: `get`, the host on standard input, JSON on standard
        output.
        """
        program = f"docker-credential-{helper}"
        if not _HELPER_NAME.fullmatch(helper):
            raise CredentialError(
                f"{path}: credential helper {helper!r} is no program name", f"correct it in {path}"
            )
        by_hand = f"try it by hand: echo {registry} | {program} get"
        try:
            code, output = await anyio.to_thread.run_sync(_run, program, registry, self._environment)
        except FileNotFoundError:
            raise CredentialError(
                f"{path} names the credential helper {program}, which is not on PATH",
                f"install it, or remove it from {path}",
            ) from None
        except TimeoutError:
            raise CredentialError(
                f"{program} gave no answer within {HELPER_TIMEOUT:.0f} s", by_hand
            ) from None
        # What the helper printed may hold the secret, so no error repeats it.
        if code != 0:
            if output.strip().startswith(_NOT_FOUND):
                return None
            raise CredentialError(f"{program}: exit code {code} for {registry}", by_hand)
        try:
            answer = json.loads(output)
            username, secret = answer["Username"], answer["Secret"]
        except (ValueError, TypeError, KeyError):
            raise CredentialError(f"{program}: expected JSON with Username and Secret", by_hand) from None
        if username == _TOKEN_USER:
            return Credential(identity_token=str(secret))
        return Credential(str(username), str(secret))


def config_files(environment: Mapping[str, str]) -> Iterator[Path]:
    """Where login commands leave credentials, in the order of containers-auth.json(5)."""
    if explicit := environment.get("REGISTRY_AUTH_FILE"):
        yield Path(explicit)
    if docker := environment.get("DOCKER_CONFIG"):
        yield Path(docker) / "config.json"
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers" / "auth.json"
    if home := environment.get("HOME"):
        settings = environment.get("XDG_CONFIG_HOME") or f"{home}/.config"
        yield Path(settings) / "containers" / "auth.json"
        if not docker:
            yield Path(home) / ".docker" / "config.json"


def _run(program: str, registry: str, environment: Mapping[str, str]) -> tuple[int, bytes]:
    """Exit code and output. Files in memory, not pipes: a helper need not read, and what it leaves running
    can't keep a pipe open.
    """
    with (
        os.fdopen(os.memfd_create("question"), "w+b") as question,
        os.fdopen(os.memfd_create("answer"), "w+b") as answer,
    ):
        question.write(registry.encode())
        question.seek(0)
        process = subprocess.Popen(
            [program, "get"], stdin=question, stdout=answer, stderr=subprocess.DEVNULL, env=environment
        )
        try:
            process.wait(HELPER_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        answer.seek(0)
        return process.returncode, answer.read(_CONFIG_LIMIT)


def _load(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            content = file.read(_CONFIG_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CredentialError(
            f"{path}: {error.strerror}", "make it readable, or point DOCKER_CONFIG elsewhere"
        ) from error
    hint = f"correct {path}, or write it anew with docker login"
    if len(content) > _CONFIG_LIMIT:
        raise CredentialError(f"{path}: larger than {_CONFIG_LIMIT} bytes", hint)
    try:
        config = parse_object(content, str(path))
    except InvalidDocument as error:
        raise CredentialError(error.what, hint) from None
    for name in ("auths", "credHelpers"):
        if not isinstance(config.get(name) or {}, dict):
            raise CredentialError(f"{path}: {name}: expected an object", hint)
    # Docker writes URLs for some hosts: https://host/v1/ means the host.
    auths = config.get("auths") or {}
    config["auths"] = {re.sub(r"^https?://([^/]+).*$", r"\1", key): entry for key, entry in auths.items()}
    return config


def _keys(registry: str, repository: str) -> Iterator[str]:
    """The most specific key first: host/a/b, host/a, host."""
    parts = [registry, *repository.split("/")]
    for count in range(len(parts), 0, -1):
        yield "/".join(parts[:count])


def _entry(entry: Any, path: Path, key: str) -> Credential | None:
    hint = f"docker logout {key}, then docker login {key}"
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise CredentialError(f"{path}: auths: {key}: expected an object of texts", hint)
    if token := entry.get("registrytoken"):
        return Credential(registry_token=token)
    if token := entry.get("identitytoken"):
        return Credential(identity_token=token)
    if encoded := entry.get("auth"):
        try:
            username, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise CredentialError(
                f"{path}: auths: {key}: auth is not base64 of user:password", hint
            ) from None
        if not colon:
            raise CredentialError(f"{path}: auths: {key}: auth is not base64 of user:password", hint)
        # docker pads old entries with NUL bytes
        return Credential(username, password.strip("\x00"))
    if entry.get("username") and entry.get("password"):
        return Credential(entry["username"], entry["password"])
    return None

"""Where the identity token comes from, in this order; a browser is never opened.

1. A given one: --identity-token-file, or the environment's DISK_IMAGE_IDENTITY_TOKEN.
2. The forge whose job this runs in, by ACTIONS_ID_TOKEN_REQUEST_URL and ACTIONS_ID_TOKEN_REQUEST_TOKEN:
   GitHub's protocol, which Gitea and Forgejo speak as well.
3. SIGSTORE_ID_TOKEN, as every Sigstore client has it.
4. The embedded trust's own issuer. Its authority takes no other issuer's tokens, so with an embedded trust a
   job's surroundings (2, 3) are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import anyio

from pipelines.errors import UsageError
from supply_chain.errors import InvalidDocument, SigningError, TokenError
from supply_chain.oci import parse_object
from supply_chain.signing.services import Services, explanation
from supply_chain.signing.tokens import AUDIENCE, IdentityToken, read_token
from supply_chain.trust import Trust

GIVEN, SIGSTORE = "DISK_IMAGE_IDENTITY_TOKEN", "SIGSTORE_ID_TOKEN"
REQUEST_URL, REQUEST_TOKEN = "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"

_FILE_LIMIT = 64 * 1024
_ALLOW = (
    "let the job ask for identity tokens: permissions: id-token: write (Gitea, GitHub), "
    "enable-openid-connect: true (Forgejo)"
)


async def identity_token(
    trust: Trust,
    services: Services,
    environment: Mapping[str, str],
    *,
    file: Path | None = None,
    identity: str | None = None,
) -> IdentityToken:
    """The token of the first source that there is, not yet checked. `identity` is whom an embedded trust is
    to vouch for, and excludes the other sources.

    Raises TokenError when there is none or it can't be read, ServiceDown and SigningError for a forge that
    gives none, and UsageError for `identity` where nobody here can vouch for it.
    """
    if identity is not None:
        if trust.embedded is None:
            raise UsageError(
                f"--as {identity}: {trust.path} is no embedded trust, so its issuer says who signs",
                "leave --as out, or name the folder of an embedded trust: disk-image trust init DIR",
            )
        if file is not None:
            raise UsageError("--as and --identity-token-file: both say who signs", "give one of them")
        return read_token(trust.embedded.issue_token(identity), "the embedded trust")
    if file is not None:
        return read_token(await anyio.to_thread.run_sync(_read, file), str(file))  # (1)
    if given := environment.get(GIVEN):
        return read_token(given, GIVEN)  # (1)
    if trust.embedded is not None:
        return read_token(trust.embedded.issue_token(), "the embedded trust")  # (4)
    if environment.get(REQUEST_URL) or environment.get(REQUEST_TOKEN):
        return await _forge_token(services, environment)  # (2)
    if ambient := environment.get(SIGSTORE):
        return read_token(ambient, SIGSTORE)  # (3)
    raise TokenError(
        f"no identity token: none of {GIVEN}, {REQUEST_URL} and {SIGSTORE} is set",
        f"in a forge's job, {_ALLOW}; elsewhere give one by --identity-token-file or {GIVEN}",
    )


async def _forge_token(services: Services, environment: Mapping[str, str]) -> IdentityToken:
    url, bearer = environment.get(REQUEST_URL, ""), environment.get(REQUEST_TOKEN, "").strip()
    for name, value in ((REQUEST_URL, url), (REQUEST_TOKEN, bearer)):
        if not value:
            raise TokenError(f"{name} is not set, though the other half of it is", _ALLOW)
    if not (bearer.isascii() and bearer.isprintable()):
        raise TokenError(
            f"{REQUEST_TOKEN} has characters that no token has", "pass it on as the forge set it"
        )
    url = _for_audience(url)
    headers = {"authorization": f"Bearer {bearer}", "accept": "application/json"}
    answer = await services.call("forge", "GET", url, headers)
    if not 200 <= answer.status < 300:
        said = explanation(answer, (bearer, urlsplit(url).query))
        raise TokenError(f"the forge gives no identity token: HTTP {answer.status}: {said}", _ALLOW)
    try:
        given: object = parse_object(answer.content, "answer").get("value")
    except InvalidDocument as error:
        raise TokenError(
            f"the forge gives no identity token: {error.what}", f"check {REQUEST_URL}: is it the forge's?"
        ) from None
    if not isinstance(given, str):
        raise TokenError(
            "the forge gives no identity token: its answer has no text as `value`",
            f"check {REQUEST_URL}: is it the forge's?",
        )
    return read_token(given, "the forge")


def _for_audience(url: str) -> str:
    """The URL with the one audience, whatever query it has already, which stays as it is."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        raise SigningError(f"{REQUEST_URL} is no URL", "pass it on as the forge set it") from None
    pieces = [one for one in parts.query.split("&") if one and one.partition("=")[0] != "audience"]
    return urlunsplit(parts._replace(query="&".join([*pieces, f"audience={AUDIENCE}"]), fragment=""))


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(_FILE_LIMIT)
    except OSError as error:
        raise TokenError(
            f"{file}: {error.strerror or error}", "name a file with the identity token"
        ) from None
    return content.decode("ascii", errors="replace")

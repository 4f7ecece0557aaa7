"""The verbs from a built image to a published one, and those that compare and verify."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines.verbs.arguments import Parser, Verbs, registry, verb

_REF = "host/path:tag, or host/path@sha256:…"


def declare(verbs: Verbs) -> None:
    """trust, sign, push, notify, publish, verify, diff."""
    _trust(verbs)
    _sign(verbs)
    _push(verbs)
    _notify(verbs)
    _publish(verbs)
    _verify(verbs)
    _diff(verbs)


def _trust(verbs: Verbs) -> None:
    trust = verb(
        verbs,
        "trust",
        "make, show or check the trust that images are signed and verified with",
        "disk-image trust init trust",
    )
    trust.add_argument(
        "action",
        choices=("init", "show", "check", "serve", "token"),
        help="init: write a trust; show: what it trusts; check: ask each of its services; serve: run an "
        "embedded trust's services on this machine, for other Sigstore clients; token: print an identity "
        "token of an embedded trust for them",
    )
    trust.add_argument("trust", type=Path, metavar="DIR|FILE", help="a trust's folder, or its trust.json")
    init = trust.add_argument_group("init", "without URLs an embedded trust, all on this disk")
    init.add_argument("--port", type=int, default=9462, help="where an embedded trust will be served (9462)")
    init.add_argument("--public", action="store_true", help="the public Sigstore instance")
    init.add_argument("--fulcio", metavar="URL", help="a private certificate authority")
    init.add_argument("--rekor", metavar="URL", help="a private transparency log, version 2")
    init.add_argument("--tsa", metavar="URL", help="a private timestamp authority (…/api/v1/timestamp)")
    init.add_argument("--issuer", metavar="URL", help="the OpenID Connect issuer that Fulcio trusts")
    init.add_argument(
        "--fulcio-chain", type=Path, metavar="PEM", help="Fulcio's certificates (else asked of Fulcio)"
    )
    init.add_argument("--rekor-key", type=Path, metavar="PEM", help="the log's public key")
    init.add_argument("--ct-key", type=Path, metavar="PEM", help="the certificate log's public key")
    init.add_argument(
        "--tsa-chain", type=Path, metavar="PEM", help="the authority's certificates (else asked of it)"
    )
    serve = trust.add_argument_group("serve")
    serve.add_argument(
        "--certificate-root",
        type=Path,
        action="append",
        metavar="PEM",
        help="an authority elsewhere whose certificates this trust's certificate log takes too; repeatable",
    )
    check = trust.add_argument_group("check, token")
    check.add_argument(
        "--sign",
        action="store_true",
        help="check: also sign a few bytes, as sign would; it leaves an entry in each log",
    )
    _who(check)


def _sign(verbs: Verbs) -> None:
    sign = verb(
        verbs,
        "sign",
        "sign an image: signature, SBOM and provenance, beside it in its layout",
        "disk-image sign out/debian-minimal --trust trust",
    )
    _layout(sign)
    _signing(sign)


def _push(verbs: Verbs) -> None:
    push = verb(
        verbs,
        "push",
        "push an image to a registry; only what is missing travels",
        "disk-image push out/debian-minimal registry.example/os/debian:13",
    )
    _layout(push)
    push.add_argument("ref", metavar="REF", help=_REF)
    push.add_argument(
        "--dry-run", action="store_true", help="send nothing; say how many bytes a push would send"
    )
    push.add_argument(
        "--from",
        dest="older",
        metavar="LAYOUT|REF",
        help="with --dry-run: also say how many bytes a node on this older image would fetch",
    )
    registry(push)
    _mounting(push)


def _notify(verbs: Verbs) -> None:
    notify = verb(
        verbs,
        "notify",
        "tell the platform by its webhook that an image is in a registry",
        "disk-image notify registry.example/os/debian:13 --platform-slug debian-minimal",
    )
    notify.add_argument("ref", metavar="REF", help=_REF)
    _platform(notify, required=True)
    notify.add_argument(
        "--delivery-id", metavar="ID", help="send an earlier delivery again, under the id that it had"
    )
    registry(notify)


def _publish(verbs: Verbs) -> None:
    publish = verb(
        verbs,
        "publish",
        "sign, push and notify; the same command goes on where it stopped",
        "disk-image publish out/debian-minimal registry.example/os/debian:13 --trust trust "
        "--platform-slug debian-minimal",
    )
    _layout(publish)
    publish.add_argument("ref", metavar="REF", help=_REF)
    _signing(publish)
    _platform(publish, required=False)
    registry(publish)
    _mounting(publish)


def _verify(verbs: Verbs) -> None:
    verify = verb(
        verbs,
        "verify",
        "verify an image's signature, SBOM and provenance, and that they say what is there",
        "disk-image verify registry.example/os/debian:13 --trust trust "
        "--identity-regexp 'https://git[.]example/org/.*' --issuer https://git.example/api/actions/oidc",
    )
    verify.add_argument("image", metavar="LAYOUT|REF", help=f"an OCI layout's folder, or {_REF}")
    verify.add_argument("--trust", type=Path, required=True, metavar="DIR|FILE", help="what to trust")
    who = verify.add_mutually_exclusive_group(required=True)
    who.add_argument("--identity", metavar="ID", help="the signer, exactly")
    who.add_argument("--identity-regexp", metavar="RE", help="the signer, matched as a whole")
    vouched = verify.add_mutually_exclusive_group(required=True)
    vouched.add_argument("--issuer", metavar="URL", help="who vouches for the signer, exactly")
    vouched.add_argument("--issuer-regexp", metavar="RE", help="who vouches, matched as a whole")
    verify.add_argument(
        "--layers",
        action="store_true",
        help="in a registry too, read every layer and check its digest (a layout's always are)",
    )
    verify.add_argument(
        "--lock", type=Path, metavar="FILE", help="also require that it was built from this lock"
    )
    registry(verify)


def _diff(verbs: Verbs) -> None:
    diff = verb(
        verbs,
        "diff",
        "list the packages, files and sizes that differ between two images",
        "disk-image diff out/before out/after",
    )
    for name in ("before", "after"):
        diff.add_argument(name, metavar="LAYOUT|REF", help=f"an OCI layout's folder, or {_REF}")
    registry(diff)


def _layout(parser: Parser) -> None:
    parser.add_argument("layout", type=Path, metavar="LAYOUT", help="an OCI layout that build wrote")


def _signing(parser: Parser) -> None:
    parser.add_argument(
        "--trust",
        type=Path,
        required=True,
        metavar="DIR|FILE",
        help="where to sign: a folder that trust init wrote, or a trust.json",
    )
    _who(parser)


def _who(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--as", dest="identity", metavar="ID", help="an embedded trust: sign as this identity"
    )
    parser.add_argument(
        "--identity-token-file",
        type=Path,
        metavar="FILE",
        help="an identity token (else DISK_IMAGE_IDENTITY_TOKEN, the forge's, SIGSTORE_ID_TOKEN)",
    )


def _platform(parser: Parser, *, required: bool) -> None:
    parser.add_argument(
        "--platform-slug", required=required, metavar="SLUG", help="the platform that the image is for"
    )
    parser.add_argument(
        "--webhook-url",
        metavar="URL",
        help="else POWERNODE_DISK_IMAGE_WEBHOOK_URL or POWERNODE_WEBHOOK_URL; the secret always comes from "
        "…_SECRET beside them, or from --webhook-secret-file",
    )
    parser.add_argument("--webhook-secret-file", type=Path, metavar="FILE", help="the webhook's secret")
    parser.add_argument("--git-sha", metavar="SHA", help="the commit (else what the provenance says)")
    parser.add_argument(
        "--patience",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="how long to go on telling a platform that does not answer, or asks to wait (else 600)",
    )


def _mounting(parser: Parser) -> None:
    parser.add_argument(
        "--mount-from",
        action="append",
        metavar="PATH",
        help="a repository that may have blobs already; repeatable",
    )

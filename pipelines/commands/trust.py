"""disk-image trust: make, show, check or serve what images are signed and verified with."""

from __future__ import annotations

import json
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import anyio
from cryptography import x509

from pipelines.commands.doctor import report
from pipelines.errors import UsageError
from supply_chain.trust import Trust, init_embedded, load_trust, running
from supply_chain.trust.check import check_signing, check_trust
from supply_chain.trust.instances import Instance, init_instance, init_public, read_certificates
from supply_chain.trust.show import show

# The options of a private instance, by how they are called; True: it can't be asked of a service.
_INSTANCE = {
    "fulcio": True,
    "rekor": True,
    "tsa": True,
    "issuer": True,
    "rekor_key": True,
    "ct_key": True,
    "fulcio_chain": False,
    "tsa_chain": False,
}


def run(args: Namespace) -> int:
    """Do the one action that is asked for."""
    return _ACTIONS[args.action](args)


def _init(args: Namespace) -> int:
    """Make one of the three kinds of trust, then show it."""
    given = [name for name in _INSTANCE if getattr(args, name) is not None]
    if args.public and given:
        raise UsageError(
            f"--public and {_flag(given[0])} exclude each other", "give --public, or the URLs of an instance"
        )
    if args.public:
        init_public(args.trust)
    elif given:
        anyio.run(init_instance, args.trust, _instance(args))
    elif not 0 < args.port < 65536:
        raise UsageError(f"--port {args.port} is no port", "give one from 1024 to 65535")
    else:
        init_embedded(args.trust, port=args.port)
    return _show(args)


def _instance(args: Namespace) -> Instance:
    missing = [_flag(name) for name, needed in _INSTANCE.items() if needed and getattr(args, name) is None]
    if missing:
        raise UsageError(
            f"a private instance needs {', '.join(missing)} as well",
            "the logs' public keys come from whoever runs them; chains that are not given are asked for",
        )
    return Instance(
        authority=args.fulcio,
        log=args.rekor,
        timestamper=args.tsa,
        issuer=args.issuer,
        log_key=args.rekor_key,
        certificate_log_key=args.ct_key,
        authority_chain=args.fulcio_chain,
        timestamper_chain=args.tsa_chain,
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _show(args: Namespace) -> int:
    shown = show(load_trust(args.trust))
    print(json.dumps(shown.to_json()) if args.json else "\n".join(shown.lines()))
    return 0


def _check(args: Namespace) -> int:
    trust = load_trust(args.trust)
    checks = anyio.run(check_trust, trust)
    if args.sign:
        signing = partial(
            check_signing, trust, os.environ, token_file=args.identity_token_file, identity=args.identity
        )
        checks.append(anyio.run(signing))
    return report(checks, as_json=args.json)


def _serve(args: Namespace) -> int:
    roots = [root for path in args.certificate_root or () for root in read_certificates(path)]
    anyio.run(_serving, _embedded(args.trust), roots, args.json)
    return 0


async def _serving(trust: Trust, roots: Sequence[x509.Certificate], as_json: bool) -> None:
    """Serve where the trust's signing configuration says, until a signal."""
    assert trust.config is not None
    port = urlsplit(trust.config.ca_urls[0].url).port
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with running(trust, port=port or 0, certificate_roots=roots) as served:
            assert served.config is not None
            url = served.config.ca_urls[0].url
            if as_json:
                print(json.dumps({"url": url}), flush=True)
            else:
                print(f"{trust.path}: served at {url} until interrupted", file=sys.stderr, flush=True)
            async for _ in signals:
                return


def _token(args: Namespace) -> int:
    trust = _embedded(args.trust)
    assert trust.embedded is not None
    token = trust.embedded.issue_token(args.identity)
    print(json.dumps({"token": token}) if args.json else token)
    return 0


def _embedded(path: Path) -> Trust:
    trust = load_trust(path)
    if trust.embedded is None:
        raise UsageError(
            f"{path}: is no embedded trust", "name the folder that `disk-image trust init DIR` wrote"
        )
    return trust


_ACTIONS = {"init": _init, "show": _show, "check": _check, "serve": _serve, "token": _token}

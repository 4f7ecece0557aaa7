"""Signing with an embedded trust whose services are behind a proxy that goes wrong as planned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio

from supply_chain.layout import Layout, open_layout
from supply_chain.registry.retry import Policy
from supply_chain.signing.sign import DEADLINE, KINDS, SignResult, sign_layout
from supply_chain.trust import Trust
from supply_chain.trust.embedded.create import served_at
from supply_chain.verify.bundle import BundleVerifier
from supply_chain.verify.policy import signer_policy
from supply_chain.verify.signatures import read_bundles
from supply_chain.verify.source import LayoutSource
from tests.supply_chain.registry_server import Fault, Planned
from tests.supply_chain.signing.faulty import FaultyServer, Reply, Request, proxy, serving
from tests.supply_chain.signing.layouts import built

AUTHORITY, TIMESTAMPER, LOG = "/api/v2/signingCert", "/api/v1/timestamp", "/api/v2/log/entries"
SERVICES = (AUTHORITY, TIMESTAMPER, LOG)
# What signing asks, in order.
REQUESTS = (AUTHORITY, *((TIMESTAMPER, LOG) * len(KINDS)))
IDENTITY = "builder@localhost"


@dataclass
class Behind:
    """An image to sign, and the trust whose services are behind `proxy`."""

    layout: Layout
    embedded: Trust
    proxy: FaultyServer
    policy: Policy
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.embedded.embedded is not None
        self.issuer = self.embedded.embedded.issuer
        self.environment["DISK_IMAGE_IDENTITY_TOKEN"] = self.embedded.embedded.issue_token(IDENTITY)
        self.forward = self.proxy.answer

    @property
    def trust(self) -> Trust:
        """The trust as one that is not embedded, with its services at the proxy."""
        return replace(self.embedded, embedded=None, config=served_at(self.proxy.url))

    def goes_wrong(self, fault: Fault, path: str, times: int = 1) -> None:
        """Plan a fault for the requests to this path."""
        self.proxy.faults = [Planned(fault, where=lambda _, asked: path in asked, times=times)]

    def answers(self, path: str, answer: Callable[[Request], Reply]) -> None:
        """Have `answer` reply in the place of the service at this path."""
        forward = self.forward
        self.proxy.answer = lambda request: (answer if path in request.path else forward)(request)

    def sign(self, deadline: float = DEADLINE) -> SignResult:
        async def signing() -> SignResult:
            return await sign_layout(
                self.layout.folder, self.trust, self.environment, policy=self.policy, deadline=deadline
            )

        return anyio.run(signing)

    def verify(self) -> None:
        """What hangs on the image is a whole set by the signer, and holds."""

        async def reading() -> list[str]:
            layout = open_layout(self.layout.folder)
            source, image = LayoutSource(layout), layout.image.digest
            policy = signer_policy(identity=IDENTITY, issuer=self.issuer)
            verifier = BundleVerifier(self.embedded.root)
            signed, ignored = await read_bundles(
                source, await source.referrers(image), image, verifier, policy
            )
            assert not ignored
            return [one.bundle.statement.predicate_type for one in signed]

        assert anyio.run(reading) == list(KINDS)

    def state(self) -> dict[Path, bytes]:
        """Every file of the layout and beside it."""
        parent = self.layout.folder.parent
        return {path: path.read_bytes() for path in parent.rglob("*") if path.is_file()}


@contextmanager
def behind_proxy(folder: Path, trust: Trust, policy: Policy) -> Iterator[Behind]:
    """An image in `folder`, and a proxy before the services of `trust`, which are up."""
    assert trust.config is not None
    with serving(proxy(trust.config.ca_urls[0].url)) as server:
        yield Behind(built(folder / "image"), trust, server, policy)

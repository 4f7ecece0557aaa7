"""The steps of publishing, each done only as far as it is still to be done.

1. The state beside the build is read (state.py).
2. The image is signed, unless the layout still holds all that is to be said of it by whom the state names:
   then no token is needed. As whom is recorded.
3. It is pushed: the registry is asked for every part, and sent what is missing.
4. What the registry has now is verified, by digest and as exactly that signer's: the platform is told of
   nothing that it would have to refuse.
5. An id for the delivery is recorded, unless the same was told before under one.
6. It is delivered under that id, and the platform's answer recorded. What it took is not delivered again.

A process may end anywhere. 2 and 3 find what was done; an id is known before its first use, so that the
platform sees one delivery however often it comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol

import anyio

from platform_client.signatures import new_delivery_id
from platform_client.webhook import Taken, WebhookBody
from supply_chain.publish.state import Delivery, PublishState, RecordedAnswer, RecordedSigner, StateFile
from supply_chain.push import PushResult
from supply_chain.verify.image import Verified
from supply_chain.verify.policy import Signer


class Release(Protocol):
    """Signing and pushing one image: each method does its step, or finds that it is done."""

    async def is_signed_by(self, signer: Signer) -> bool:
        """Whether the layout holds all that is to be signed, by this signer; asks no service."""

    async def sign(self) -> tuple[Signer, bool]:
        """Sign, and say as whom, and whether anything had to be signed."""

    async def push(self) -> PushResult:
        """Bring image and referrers to the registry."""

    async def verify(self, image: str, signer: Signer) -> Verified:
        """Verify what the registry has under the digest `image`, as this signer's."""


class Platform(Protocol):
    """Whoever is told."""

    @property
    def webhook(self) -> str:
        """The webhook's fingerprint (settings.Webhook)."""

    @property
    def slug(self) -> str:
        """The platform's name there."""

    def body(self, verified: Verified) -> WebhookBody:
        """What it is told of the image."""

    async def deliver(self, delivery_id: str, body: bytes) -> Taken:
        """Tell it, until it says what became of it."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the platform took under `delivery_id`; `now` is False when that was in an earlier run."""

    delivery_id: str
    status: str
    publication_id: str | None
    now: bool


@dataclass(frozen=True, slots=True)
class Published:
    """What was done. `signed_now` is False when it had been signed; `told` is None without a platform."""

    signer: Signer
    signed_now: bool
    pushed: PushResult
    told: Told | None

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "reference": self.pushed.reference,
            "manifest_digest": self.pushed.digest,
            "identity": self.signer.identity,
            "issuer": self.signer.issuer,
            "signed_now": self.signed_now,
            "pushed": self.pushed.to_json(),
            "told": self.told and asdict(self.told),
        }


async def run_steps(
    image: str,
    file: StateFile,
    release: Release,
    platform: Platform | None,
    report: Callable[[str], None],
) -> Published:
    """Publish the image with the manifest digest `image`; `report` gets a line for people after each step.

    Raises SupplyChainErrors and PlatformErrors. After any of them the same call goes on where this one
    stopped.
    """
    state, anew = await anyio.to_thread.run_sync(file.load, image)  # 1
    if anew:
        report(anew)
    signer, signed_now, state = await _sign(state, file, release, report)  # 2
    pushed = await release.push()  # 3
    report(f"pushed: {pushed.blob_bytes_sent} bytes sent, {pushed.blobs_present} blobs were there")
    if platform is None:
        return Published(signer, signed_now, pushed, None)
    verified = await release.verify(image, signer)  # 4
    report("verified: what the registry has is what was signed")
    told = await _tell(state, file, platform, platform.body(verified), report)
    return Published(signer, signed_now, pushed, told)


async def _sign(
    state: PublishState, file: StateFile, release: Release, report: Callable[[str], None]
) -> tuple[Signer, bool, PublishState]:
    """Step 2."""
    if state.signer is not None:
        signer = Signer(state.signer.identity, state.signer.issuer)
        if await release.is_signed_by(signer):
            report(f"signed before as {signer}")
            return signer, False, state
    signer, now = await release.sign()
    state = state.model_copy(
        update={"signer": RecordedSigner(identity=signer.identity, issuer=signer.issuer)}
    )
    await anyio.to_thread.run_sync(file.save, state)
    report(f"signed {'' if now else 'before '}as {signer}")
    return signer, now, state


async def _tell(
    state: PublishState,
    file: StateFile,
    platform: Platform,
    body: WebhookBody,
    report: Callable[[str], None],
) -> Told:
    """Steps 5 and 6."""
    content = body.to_bytes()
    delivery = state.delivery(platform.webhook, content)
    if delivery is not None and (answer := delivery.answer) is not None:
        report(f"told before: {answer.status}; to tell it once more: disk-image notify")
        return Told(delivery.delivery_id, answer.status, answer.publication_id, False)
    if delivery is None:
        delivery = Delivery(
            delivery_id=new_delivery_id(),
            webhook=platform.webhook,
            body=hashlib.sha256(content).hexdigest(),
            oci_ref=body.oci_ref,
            platform_slug=platform.slug,
        )
        state = state.with_delivery(delivery)
        await anyio.to_thread.run_sync(file.save, state)  # 5
    taken = await platform.deliver(delivery.delivery_id, content)  # 6
    answer = RecordedAnswer.model_validate({"status": taken.status, "publication_id": taken.publication_id})
    await anyio.to_thread.run_sync(
        file.save, state.with_delivery(delivery.model_copy(update={"answer": answer}))
    )
    report(f"told the platform: {taken.status}{f' ({taken.note})' if taken.note else ''}")
    return Told(delivery.delivery_id, taken.status, taken.publication_id, True)

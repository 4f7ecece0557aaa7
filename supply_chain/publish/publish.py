"""`disk-image publish`: the steps (steps.py) by Sigstore's services, a registry and a webhook."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import anyio

from platform_client.settings import Webhook
from platform_client.webhook import Taken, WebhookBody, deliver
from supply_chain.layout import open_layout
from supply_chain.provenance import read_build_record
from supply_chain.publish.announcement import Facts, announcement
from supply_chain.publish.state import publishing
from supply_chain.publish.steps import Published, run_steps
from supply_chain.push import Progress, PushResult, push
from supply_chain.reference import Reference
from supply_chain.registry import Credentials, Policy
from supply_chain.signing.services import POLICY as SIGNING
from supply_chain.signing.sign import is_signed_by, sign_layout
from supply_chain.trust import Trust
from supply_chain.verify.image import Verified, verify_image
from supply_chain.verify.policy import Signer, signer_policy
from supply_chain.verify.source import open_source


@dataclass(frozen=True, slots=True)
class Signing:
    """As whom to sign, as for `sign_layout`."""

    trust: Trust
    environment: Mapping[str, str]
    token_file: Path | None = None
    identity: str | None = None
    policy: Policy = SIGNING


@dataclass(frozen=True, slots=True)
class Registry:
    """How to speak to the registry, as for `push`."""

    plain_http: bool = False
    ca_file: Path | None = None
    mount_from: Sequence[str] = ()
    credentials: Credentials | None = None
    policy: Policy | None = None
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Telling:
    """Whom to tell of the image, and from which commit it is (None: the one that it was built from here,
    else the last that a provenance of it names).
    """

    webhook: Webhook
    platform_slug: str
    git_sha: str | None = None
    ca_file: Path | None = None
    policy: Policy | None = None


def _nobody_listens(line: str) -> None:
    """Without `report`."""


async def publish(
    folder: Path,
    reference: Reference,
    signing: Signing,
    registry: Registry,
    telling: Telling | None,
    *,
    report: Callable[[str], None] = _nobody_listens,
) -> Published:
    """Publish the layout in `folder` to `reference`; without `telling`, sign and push it.

    Raises LayoutError when another process publishes it, UsageError, SupplyChainErrors and PlatformErrors.
    After any of them the same call goes on where this one stopped.
    """
    with publishing(folder) as file:
        layout = await anyio.to_thread.run_sync(open_layout, folder)
        release = _Release(folder, reference, signing, registry)
        platform = None
        if telling is not None:
            # The same image may come from several commits, and the registry knows them all.
            record = await anyio.to_thread.run_sync(read_build_record, folder)
            commit = telling.git_sha or record.build_definition.git_sha
            platform = _Platform(reference, replace(telling, git_sha=commit))
        return await run_steps(layout.image.digest, file, release, platform, report)


@dataclass(frozen=True, slots=True)
class _Release:
    folder: Path
    reference: Reference
    signing: Signing
    registry: Registry

    async def is_signed_by(self, signer: Signer) -> bool:
        if self.signing.identity not in (None, signer.identity):
            return False
        return await is_signed_by(self.folder, self.signing.trust, signer)

    async def sign(self) -> tuple[Signer, bool]:
        how = self.signing
        done = await sign_layout(
            self.folder,
            how.trust,
            how.environment,
            token_file=how.token_file,
            identity=how.identity,
            policy=how.policy,
        )
        return Signer(done.identity, done.issuer), done.signed

    async def push(self) -> PushResult:
        how = self.registry
        done = await push(
            self.folder,
            str(self.reference),
            plain_http=how.plain_http,
            ca_file=how.ca_file,
            mount_from=how.mount_from,
            credentials=how.credentials,
            policy=how.policy,
            progress=how.progress,
        )
        assert isinstance(done, PushResult)
        return done

    async def verify(self, image: str, signer: Signer) -> Verified:
        how = self.registry
        policy = signer_policy(identity=signer.identity, issuer=signer.issuer)
        async with open_source(
            str(self.reference.at(image)),
            plain_http=how.plain_http,
            ca_file=how.ca_file,
            credentials=how.credentials,
            policy=how.policy,
        ) as source:
            return await verify_image(source, self.signing.trust, policy)


@dataclass(frozen=True, slots=True)
class _Platform:
    reference: Reference
    telling: Telling

    @property
    def webhook(self) -> str:
        return self.telling.webhook.fingerprint

    @property
    def slug(self) -> str:
        return self.telling.platform_slug

    def body(self, verified: Verified) -> WebhookBody:
        how = self.telling
        return announcement(how.platform_slug, self.reference, Facts.of(verified), git_sha=how.git_sha)

    async def deliver(self, delivery_id: str, body: bytes) -> Taken:
        how = self.telling
        return await deliver(how.webhook, delivery_id, body, policy=how.policy, ca_file=how.ca_file)

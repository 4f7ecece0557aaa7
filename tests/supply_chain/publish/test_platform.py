"""From a build to a published row of this project's own platform, which verifies what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import anyio
import httpx
import pytest

from platform_client.actions import Actions, Publication, open_actions
from platform_client.errors import Conflict
from platform_client.settings import Webhook
from platform_server.settings import Registries, Settings
from platform_server.state_folder import initialise, open_platform
from supply_chain.layout import Layout
from supply_chain.publish.publish import Registry, Signing, Telling, publish
from supply_chain.publish.steps import Published
from supply_chain.reference import parse_reference
from supply_chain.trust import Trust
from tests.platform_server.serving import serving
from tests.supply_chain.publish.builds import built
from tests.supply_chain.registry_server import RegistryServer
from tests.supply_chain.verify.signed_image import COMMIT

SIGNER = "https://git.example/os/job"
DONE = ("published", "failed")


@pytest.fixture
def platform(tmp_path: Path, trust: Trust) -> Iterator[tuple[str, str]]:
    """The root URL of a platform with one worker, and its administrator's token."""
    state = tmp_path / "state"
    token = initialise(state, datetime.now(UTC))
    opened = open_platform(state, Settings(trust=trust.path, registries=Registries(plain_http=True)))
    with serving(opened) as (host, port):
        yield f"http://{host}:{port}", token
    opened.database.close()


async def ends(actions: Actions, platform_id: str, publication_id: str) -> Publication:
    """The row once the worker is through with it."""
    with anyio.fail_after(60):
        while True:
            row = await actions.publication(platform_id, publication_id)
            if row.status in DONE:
                return row
            await anyio.sleep(0.1)


@pytest.mark.parametrize("trusted", [SIGNER, "https://git.example/other/job"])
def test_what_is_published_here_is_published_there(
    trusted: str, platform: tuple[str, str], layout: Layout, trust: Trust, server: RegistryServer
) -> None:
    """With the platform's own policy: it takes what its signer made, and nobody else's."""
    reference = parse_reference(f"{server.host}/os/debian:13")
    url, token = platform

    async def told(webhook: Webhook) -> Published:
        return await publish(
            layout.folder,
            reference,
            Signing(trust, {}, identity=SIGNER),
            Registry(plain_http=True),
            Telling(webhook, "debian-minimal"),
        )

    async def run() -> None:
        async with open_actions(url, token) as actions:
            made = await actions.create_node_platform(
                "debian-minimal",
                cosign_identity_regexp=trusted,
                cosign_issuer_regexp="http://127[.]0[.]0[.]1:[0-9]+",
                trusted_registries=[server.host],
            )
            provisioned = await actions.create_webhook("pipeline")
            path = httpx.URL(provisioned.webhook_url).path
            webhook = Webhook(httpx.URL(url).copy_with(path=path), provisioned.webhook_secret.encode())
            first = await told(webhook)
            assert first.told is not None
            assert first.told.status == "queued"
            assert first.told.publication_id is not None
            row = await ends(actions, made.id, first.told.publication_id)
            assert (row.oci_digest, row.git_sha) == (layout.image.digest, COMMIT)
            if trusted != SIGNER:
                assert row.status == "failed"
                assert row.error_message is not None
                assert SIGNER in row.error_message
                return
            assert row.status == "published", row.error_message
            assert row.cosign_verified
            assert row.is_default
            assert [event.kind for event in await actions.recent_events("system.disk_image")] == [
                "system.disk_image_published"
            ]
            again = await told(webhook)
            assert again.told is not None
            assert again.told.publication_id == first.told.publication_id
            assert again.told.now is False
            # other bytes of the same commit: what is published stays
            built(layout.folder, "another")
            with pytest.raises(Conflict, match="published_artifact_mismatch, with HTTP 409"):
                await told(webhook)
            assert await actions.publications(made.id) == [row]

    anyio.run(run)

"""Publishing over loopback: an embedded trust's services, a registry and a webhook over real HTTP."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from syrupy.assertion import SnapshotAssertion

from pipelines.errors import UsageError
from platform_client.errors import Conflict, Unreachable
from platform_client.webhook import WebhookBody
from supply_chain.beside import sbom_path
from supply_chain.errors import LayoutError, ServiceDown, Unavailable, VerificationError
from supply_chain.layout import Layout, open_layout
from supply_chain.publish.state import StateFile, publishing
from supply_chain.registry import Policy
from supply_chain.trust import init_embedded, load_trust, running
from supply_chain.verify.image import verify_image
from supply_chain.verify.policy import signer_policy
from supply_chain.verify.source import open_source
from supply_chain.verify.steps import Step
from tests.platform_client.webhook_server import Fault as Refusal
from tests.platform_client.webhook_server import Planned as Refused
from tests.platform_client.webhook_server import WebhookServer
from tests.ports import free_port
from tests.supply_chain.publish.builds import built
from tests.supply_chain.publish.conftest import SLUG, Publisher, entries
from tests.supply_chain.registry_server import Fault, Planned, registry
from tests.supply_chain.verify.signed_image import COMMIT

ALWAYS = 1_000_000


def test_an_image_is_signed_pushed_verified_and_told(publisher: Publisher) -> None:
    done = publisher()
    image = publisher.layout.image
    assert done.signed_now
    assert publisher.log_entries == 3
    repo = publisher.registry.repo("os/debian")
    assert repo.tags["13"] == image.digest
    assert done.told is not None
    assert (done.told.status, done.told.now) == ("queued", True)
    (seen,) = publisher.platform.seen
    assert seen.verified
    assert WebhookBody.model_validate_json(seen.body) == WebhookBody(
        platform_slug=SLUG,
        platform_name=SLUG,
        oci_ref=f"{publisher.registry.host}/os/debian@{image.digest}",
        sha256=image.hex,
        size_bytes=sum(blob.size for blob in publisher.layout.manifest.blobs),
        git_sha=COMMIT,
        arch="amd64",
        oci_digest=image.digest,
    )

    async def as_a_stranger() -> None:
        policy = signer_policy(identity=done.signer.identity, issuer=done.signer.issuer)
        async with open_source(publisher.ref, plain_http=True) as source:
            await verify_image(source, publisher.trust, policy, read_layers=True)

    anyio.run(as_a_stranger)


def test_once_more_has_nothing_to_do(publisher: Publisher) -> None:
    first = publisher()
    again = publisher()
    assert publisher.log_entries == 3
    assert len(publisher.platform.seen) == 1
    assert again.signed_now is False
    assert again.pushed.blob_bytes_sent == 0
    assert first.told is not None
    assert again.told == replace(first.told, now=False)
    assert publisher.reported[-1].startswith("told before: queued;")


def test_the_state_file(publisher: Publisher, snapshot: SnapshotAssertion) -> None:
    done = publisher()
    assert done.told is not None
    content = StateFile(publisher.layout.folder).path.read_text()
    for changing, name in (
        (done.told.delivery_id, "DELIVERY"),
        (publisher.registry.host, "REGISTRY"),
        (done.told.publication_id or "", "PUBLICATION"),
    ):
        content = content.replace(changing, name)
    loaded = json.loads(content)
    loaded["deliveries"][0].update(webhook="WEBHOOK", body="BODY")
    assert loaded == snapshot


def test_log_registry_and_platform_down_in_turn(
    tmp_path: Path, layout: Layout, platform: WebhookServer, policy: Policy
) -> None:
    """The same command each time; at the end everything was done once."""
    port = free_port()
    init_embedded(tmp_path / "instance", port=port)
    embedded = load_trust(tmp_path / "instance")
    assert embedded.embedded is not None
    # To its users the instance is one elsewhere, which they have the public half of.
    trust = load_trust(tmp_path / "instance" / "trust.json")
    given = {"DISK_IMAGE_IDENTITY_TOKEN": embedded.embedded.issue_token("https://git.example/os/job")}
    built_image = layout.index

    async def steps() -> None:
        with registry() as server:
            publisher = Publisher(layout, trust, server, platform, policy, [])
            server.faults = [Planned(Fault.ERROR, times=ALWAYS)]
            platform.up = False
            with pytest.raises(ServiceDown):
                await publisher.run(environment=given)
            assert open_layout(layout.folder).index == built_image
            async with running(embedded, port=port):
                with pytest.raises(Unavailable):
                    await publisher.run(environment=given)
            assert entries(tmp_path / "instance") == 3
            signed = open_layout(layout.folder).index
            # From here on nobody signs: the services are down, and the token may be gone.
            with pytest.raises(Unavailable):
                await publisher.run()
            server.faults = []
            with pytest.raises(Unreachable):
                await publisher.run()
            assert server.repo("os/debian").tags["13"] == layout.image.digest
            with pytest.raises(Unreachable):
                await publisher.run()
            platform.up = True
            done = await publisher.run()
            assert done.told is not None
            assert done.told.status == "queued"
            assert done.signed_now is False
            assert open_layout(layout.folder).index == signed
            assert set(publisher.deliveries) == {done.told.delivery_id}

    anyio.run(steps)
    assert entries(tmp_path / "instance") == 3
    assert len(platform.taken) == 1


@pytest.mark.parametrize("fault", [Refusal.CUT_AFTER, Refusal.CUT_IN_ANSWER])
def test_an_answer_that_never_arrives_makes_no_second_delivery(fault: Refusal, publisher: Publisher) -> None:
    publisher.platform.faults = [Refused(fault, ALWAYS)]
    with pytest.raises(Unreachable):
        publisher()
    publisher.platform.faults = []
    done = publisher()
    assert done.told is not None
    assert done.told.status == "idempotent_hit"
    assert set(publisher.deliveries) == {done.told.delivery_id}
    assert len(publisher.platform.taken) == 1


def test_without_a_platform_it_ends_after_the_push(publisher: Publisher) -> None:
    done = publisher(slug=None)
    assert done.told is None
    assert done.to_json()["told"] is None
    assert publisher.platform.seen == []
    assert publisher().told is not None
    assert publisher.log_entries == 3


def test_what_does_not_verify_is_not_told(publisher: Publisher) -> None:
    """An SBOM of another package than was built in can be signed and pushed, but no platform may believe
    it.
    """
    path = sbom_path(publisher.layout.folder)
    sbom = json.loads(path.read_bytes())
    (package,) = (one for one in sbom["packages"] if one["name"] == "systemd")
    package["checksums"][0]["checksumValue"] = "00" * 32
    path.write_text(json.dumps(sbom))
    with pytest.raises(VerificationError) as caught:
        publisher()
    assert caught.value.step == Step.PROVENANCE
    assert publisher.platform.seen == []


def test_a_registry_that_forgot_gets_all_of_it_again(publisher: Publisher) -> None:
    publisher.platform.up = False
    with pytest.raises(Unreachable):
        publisher()
    publisher.registry.repos.clear()
    publisher.platform.up = True
    done = publisher()
    assert done.told is not None
    assert done.pushed.blobs_sent > 0
    assert publisher.log_entries == 3


def test_another_signer_signs_too(publisher: Publisher) -> None:
    publisher(identity="https://git.example/first")
    done = publisher(identity="https://git.example/second")
    assert done.signed_now
    assert done.signer.identity == "https://git.example/second"
    assert publisher.log_entries == 6
    # about the image there is nothing new to tell
    assert len(publisher.platform.seen) == 1
    assert publisher().signer.identity == "https://git.example/second"


def test_another_build_is_another_publication(publisher: Publisher) -> None:
    first = publisher()
    publisher.layout = _rebuilt(publisher.layout)
    second = publisher()
    assert any("about another image" in line for line in publisher.reported)
    assert second.signed_now
    assert first.told is not None
    assert second.told is not None
    assert first.told.delivery_id != second.told.delivery_id
    assert second.pushed.digest == publisher.layout.image.digest != first.pushed.digest


def test_another_commit_that_gives_the_same_image_is_attested_and_told(publisher: Publisher) -> None:
    first = publisher()
    index = publisher.layout.folder / "index.json"
    signed = index.read_bytes()
    built(publisher.layout.folder, commit="2e" * 20)
    # building the image that is there leaves its layout alone
    index.write_bytes(signed)
    second = publisher()
    assert second.signed_now
    assert second.pushed.digest == first.pushed.digest
    commits = [json.loads(one.body)["git_sha"] for one in publisher.platform.seen]
    assert commits == [COMMIT, "2e" * 20]
    assert len(set(publisher.deliveries)) == 2


def test_the_commit_told_is_the_one_built_here_whoever_published_the_image_since(
    publisher: Publisher, tmp_path: Path
) -> None:
    publisher(slug=None)
    mine, publisher.layout = publisher.layout, built(tmp_path / "elsewhere", commit="2e" * 20)
    publisher()
    publisher.layout = mine
    publisher()
    assert [json.loads(one.body)["git_sha"] for one in publisher.platform.seen] == ["2e" * 20, COMMIT]


def test_another_platform_is_told_on_its_own(publisher: Publisher) -> None:
    first = publisher()
    second = publisher(slug="debian-big")
    assert first.told is not None
    assert second.told is not None
    assert second.told.now
    assert first.told.delivery_id != second.told.delivery_id
    assert publisher(slug=SLUG).told == replace(first.told, now=False)


def test_another_tag_of_the_same_image_is_nothing_new_to_the_platform(publisher: Publisher) -> None:
    publisher()
    publisher.tag = "latest"
    publisher()
    assert publisher.registry.repo("os/debian").tags.keys() == {"13", "latest"}
    assert len(publisher.platform.seen) == 1


def test_a_refusal_stays_one_delivery(publisher: Publisher) -> None:
    publisher.platform.faults = [Refused(Refusal.CONFLICT_200)]
    with pytest.raises(Conflict):
        publisher()
    assert publisher().told is not None
    assert len(set(publisher.deliveries)) == 1


def test_a_commit_that_is_not_the_image_s(publisher: Publisher) -> None:
    with pytest.raises(UsageError, match=COMMIT) as caught:
        publisher(git_sha="2e" * 20)
    assert "--git-sha" in caught.value.hint
    with pytest.raises(UsageError, match="64 lower-case hex digits"):
        publisher(git_sha=COMMIT[:10])
    assert publisher.platform.seen == []
    assert publisher(git_sha=COMMIT).told is not None


def test_two_at_once(publisher: Publisher) -> None:
    with publishing(publisher.layout.folder), pytest.raises(LayoutError, match="another process"):
        publisher()
    publisher()


def _rebuilt(layout: Layout) -> Layout:
    for path in sorted(layout.folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return built(layout.folder, "another")

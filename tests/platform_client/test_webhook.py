"""Deliveries over real HTTP: what is sent, what counts as taken, and every fault that is in the way."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from pydantic import ValidationError
from syrupy.assertion import SnapshotAssertion

from platform_client.errors import Conflict, NotThePlatform, PlatformError, Refused, Unreachable
from platform_client.settings import Webhook, webhook_settings
from platform_client.webhook import Taken, WebhookBody, deliver
from supply_chain.registry import Policy
from tests.platform_client.webhook_server import SECRET, Fault, Planned, WebhookServer, webhook_server
from tests.waits import Waits

TLS = Path(__file__).parents[1] / "supply_chain" / "tls"
DIGEST = "ab" * 32
BODY = WebhookBody(
    platform_slug="debian-minimal",
    platform_name="debian-minimal",
    oci_ref=f"registry.example/os/debian@sha256:{DIGEST}",
    sha256=DIGEST,
    size_bytes=123_456_789,
    git_sha="c0ffee" + "0" * 34,
    arch="amd64",
    oci_digest=f"sha256:{DIGEST}",
)
# One of these, once, must not even be noticed.
HEALED = frozenset(
    {
        Fault.CUT_BEFORE,
        Fault.CUT_IN_BODY,
        Fault.CUT_AFTER,
        Fault.CUT_IN_ANSWER,
        Fault.TOO_MANY,
        Fault.ERROR,
        Fault.BUSY,
        Fault.TRICKLE,
        Fault.WRONG_TYPE,
    }
)
ALWAYS = 1_000_000


def send(webhook: Webhook, policy: Policy, body: bytes | None = None, delivery: str = "msg_1") -> Taken:
    return anyio.run(
        lambda: deliver(webhook, delivery, BODY.to_bytes() if body is None else body, policy=policy)
    )


def test_a_delivery_is_taken_once(server: WebhookServer, webhook: Webhook, policy: Policy) -> None:
    first = send(webhook, policy)
    assert first.status == "queued"
    again = send(webhook, policy)
    assert again == Taken("idempotent_hit", first.publication_id)
    assert [one.verified for one in server.seen] == [True, True]
    assert server.taken["msg_1"].body == BODY.to_bytes()


def test_what_is_sent(
    server: WebhookServer, webhook: Webhook, policy: Policy, snapshot: SnapshotAssertion
) -> None:
    """With a fixed time and id; the receiver's clock has moved on, so it refuses."""
    with pytest.raises(Refused):
        send(webhook, replace(policy, now=lambda: 1_700_000_000.9))
    sent = server.seen[0]
    headers = {name: value for name, value in sent.headers.items() if name != "host"}
    assert {"headers": headers, "body": sent.body.decode()} == snapshot


def test_the_body_of_the_tutorial() -> None:
    """Three fields, one of them the platform's slug."""
    body = WebhookBody(
        platform_slug="debian", oci_ref="registry.example/os/debian:13", sbom_path="sbom.json"
    )
    assert json.loads(body.to_bytes()) == {
        "platform_slug": "debian",
        "oci_ref": "registry.example/os/debian:13",
        "sbom_path": "sbom.json",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"platform_slug": None, "platform_name": None},
        {"oci_ref": ""},
        {"sha256": DIGEST.upper()},
        {"sha256": f"sha256:{DIGEST}"},
        {"size_bytes": 0},
        {"size_bytes": "7"},
        {"arch": "x86"},
        {"oci_digest": DIGEST},
        {"webhook_secret": "pndis_"},
    ],
)
def test_bodies_that_are_none(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        WebhookBody.model_validate({**BODY.model_dump(), **wrong})


@pytest.mark.parametrize("fault", Fault)
def test_one_fault(fault: Fault, server: WebhookServer, webhook: Webhook, policy: Policy) -> None:
    server.faults = [Planned(fault)]
    if fault not in HEALED:
        with pytest.raises(PlatformError) as caught:
            send(webhook, policy)
        assert caught.value.hint
        assert "0195d3b6" not in caught.value.what + caught.value.hint
    taken = send(webhook, policy)
    assert taken.status in ("queued", "idempotent_hit")
    assert len(server.publications) == 1
    assert all(one.verified for one in server.seen)
    assert {one.headers["webhook-id"] for one in server.seen} == {"msg_1"}


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_that_stays_ends_within_the_bound(
    fault: Fault, server: WebhookServer, webhook: Webhook, policy: Policy, waits: Waits
) -> None:
    server.faults = [Planned(fault, ALWAYS)]
    if fault is Fault.WRONG_TYPE:
        assert send(webhook, policy).status == "queued"
        return
    with pytest.raises(PlatformError) as caught:
        send(webhook, policy)
    assert isinstance(caught.value, Unreachable) == (fault in HEALED or fault is Fault.BUSY_FOR_A_DAY)
    assert sum(waits.slept) <= policy.patience
    attempts = ALWAYS - server.faults[0].times
    assert attempts == (policy.attempts if fault in HEALED else 1)


def test_what_else_the_platform_says(server: WebhookServer, webhook: Webhook, policy: Policy) -> None:
    send(webhook, policy)
    server.note = f"it failed: deliver with a new webhook-id\x1b[0m {SECRET}"
    assert send(webhook, policy).note == "it failed: deliver with a new webhook-id[0m ***"


def test_each_attempt_is_signed_anew(
    server: WebhookServer, webhook: Webhook, policy: Policy, waits: Waits
) -> None:
    server.faults = [Planned(Fault.BUSY, 2)]
    with pytest.raises(Refused):
        send(webhook, replace(policy, now=lambda: 1_700_000_000.0 + sum(waits.slept)))
    stamps = [one.headers["webhook-timestamp"] for one in server.seen]
    assert stamps == ["1700000000", "1700000001", "1700000002"]
    assert len({one.headers["webhook-signature"] for one in server.seen}) == 3
    assert len({one.headers["webhook-id"] for one in server.seen}) == 1


def test_it_waits_as_long_as_it_is_asked_to(
    server: WebhookServer, webhook: Webhook, policy: Policy, waits: Waits
) -> None:
    server.retry_after = "7"
    server.faults = [Planned(Fault.TOO_MANY), Planned(Fault.BUSY)]
    send(webhook, policy)
    assert waits.slept == [7.0, 7.0]


def test_it_does_not_ask_earlier_than_it_may(
    server: WebhookServer, webhook: Webhook, policy: Policy, waits: Waits
) -> None:
    server.faults = [Planned(Fault.BUSY_FOR_A_DAY)]
    with pytest.raises(Unreachable, match=r"503 \(1 attempt\)") as caught:
        send(webhook, policy)
    assert "86400" in caught.value.hint
    assert waits.slept == []


def test_waits_grow_with_full_jitter_up_to_their_longest(webhook: Webhook, waits: Waits) -> None:
    drawn = iter((0.5, 1.0, 0.25, 1.0, 1.0))
    bounds = Policy(
        attempts=6, first=1.0, longest=6.0, patience=60.0, sleep=waits, jitter=lambda: next(drawn)
    )
    gone = replace(webhook, url=webhook.url.copy_with(port=_closed_port()))
    with pytest.raises(Unreachable, match="6 attempts"):
        send(gone, bounds)
    assert waits.slept == [0.5, 2.0, 1.0, 6.0, 6.0]


def test_the_whole_is_bounded_even_when_every_answer_is_slow(
    server: WebhookServer, webhook: Webhook, policy: Policy
) -> None:
    server.faults = [Planned(Fault.TRICKLE, ALWAYS)]
    with pytest.raises(Unreachable, match=r"no more within 1 s \(\d+ attempts?\)"):
        send(webhook, replace(policy, attempts=1000, patience=1.0))


@pytest.mark.parametrize(
    ("fault", "kind", "says", "do"),
    [
        (Fault.ALWAYS_200_ERROR, Refused, "error unknown_platform, with HTTP 200", "--platform-slug"),
        (Fault.CONFLICT_200, Conflict, "conflict published_artifact_mismatch", "from a new commit"),
        (Fault.GONE, Refused, "410", "of another one"),
        (Fault.REDIRECT, NotThePlatform, "a redirect", "itself"),
        (Fault.HTML, NotThePlatform, "an HTML or XML page", "login page"),
        (Fault.EMPTY, NotThePlatform, "found nothing", "login page"),
        (Fault.HUGE, NotThePlatform, "at most 65536 bytes", "in the platform's place"),
        (Fault.UNKNOWN_STATUS, NotThePlatform, "found sleeping", "a webhook's"),
        (Fault.FAILURE, NotThePlatform, "found queued", "a webhook's"),
        (Fault.CONTRADICTION, Refused, "refused with 400", "log"),
    ],
)
def test_what_each_refusal_says(
    fault: Fault,
    kind: type[PlatformError],
    says: str,
    do: str,
    server: WebhookServer,
    webhook: Webhook,
    policy: Policy,
) -> None:
    server.faults = [Planned(fault)]
    with pytest.raises(PlatformError) as caught:
        send(webhook, policy)
    assert type(caught.value) is kind
    assert says in caught.value.what
    assert do in caught.value.hint


def test_the_reference_answers_200_to_everything(
    server: WebhookServer, webhook: Webhook, policy: Policy
) -> None:
    server.always_200 = True
    assert send(webhook, policy).status == "queued"
    assert send(webhook, policy).status == "idempotent_hit"
    with pytest.raises(Conflict, match="delivery_mismatch, with HTTP 200"):
        send(webhook, policy, BODY.model_copy(update={"arch": "arm64"}).to_bytes())
    with pytest.raises(Refused, match="error bad_signature, with HTTP 200") as caught:
        send(replace(webhook, key=b"pndis_other"), policy)
    assert caught.value.reason == "bad_signature"
    with pytest.raises(Refused, match="invalid_payload"):
        send(webhook, policy, b"{}", "msg_2")
    assert len(server.seen) == 5


def test_a_wrong_secret_is_not_tried_again(server: WebhookServer, webhook: Webhook, policy: Policy) -> None:
    with pytest.raises(Refused, match="bad_signature, with HTTP 401"):
        send(replace(webhook, key=b"pndis_other"), policy)
    assert len(server.seen) == 1


def test_an_unknown_path(server: WebhookServer, webhook: Webhook, policy: Policy) -> None:
    with pytest.raises(Refused, match="unknown_webhook, with HTTP 404") as caught:
        send(replace(webhook, url=webhook.url.join("other")), policy)
    assert "another one" in caught.value.hint


def test_what_a_platform_echoes_is_masked(server: WebhookServer, policy: Policy) -> None:
    environment = server.environment()
    environment["POWERNODE_DISK_IMAGE_WEBHOOK_URL"] += "?token=s3cret-canary"
    webhook = webhook_settings(environment)
    server.echo = f"{server.url}?token=s3cret-canary and s3cret-canary and {SECRET}\x1b[31m\n" + "x" * 500
    server.faults = [Planned(Fault.ALWAYS_200_ERROR)]
    with pytest.raises(Refused) as caught:
        send(webhook, policy)
    for hidden in ("canary", SECRET, "0195d3b6", "\x1b", "\n"):
        assert hidden not in caught.value.what
    assert len(caught.value.what) < 400


def test_nothing_listens(webhook: Webhook, policy: Policy) -> None:
    gone = replace(webhook, url=webhook.url.copy_with(port=_closed_port()))
    with pytest.raises(
        Unreachable, match=r"the webhook at http://127\.0\.0\.1:\d+: can't connect"
    ) as caught:
        send(gone, policy)
    assert caught.value.hint == "see that it is up"


def test_https_that_is_not_spoken(server: WebhookServer, webhook: Webhook, policy: Policy) -> None:
    plain = replace(webhook, url=webhook.url.copy_with(scheme="https"))
    with pytest.raises(Unreachable, match="does not speak TLS") as caught:
        send(plain, policy)
    assert "speaks https" in caught.value.hint
    assert server.seen == []


def test_a_private_authority(policy: Policy) -> None:
    with webhook_server((TLS / "server.pem", TLS / "server.key")) as server:
        webhook = webhook_settings(server.environment())
        with pytest.raises(Unreachable, match="its certificate is not trusted") as caught:
            send(webhook, policy)
        assert "--ca-file" in caught.value.hint
        assert server.seen == []
        ca_file = TLS / "ca.pem"
        taken = anyio.run(lambda: deliver(webhook, "msg_1", BODY.to_bytes(), policy=policy, ca_file=ca_file))
        assert taken.status == "queued"


def _closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port

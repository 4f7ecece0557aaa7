"""`disk-image publish` and `notify` as they are typed: what they print, their exit codes, how to go on."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from pipelines.cli import main
from platform_client.settings import WEBHOOK_SECRETS, WEBHOOK_URLS
from supply_chain.layout import Layout
from supply_chain.trust import Trust
from tests.platform_client.webhook_server import PATH, SECRET, Fault, Planned, WebhookServer
from tests.supply_chain.publish.conftest import SLUG
from tests.supply_chain.registry_server import RegistryServer
from tests.supply_chain.verify.signed_image import COMMIT

ALWAYS = 1_000_000
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], platform: WebhookServer
) -> Command:
    """The command, run in this process with the webhook in its environment."""
    for name, value in platform.environment().items():
        monkeypatch.setenv(name, value)

    def run(*argv: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(argv))
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        assert SECRET not in out + err
        assert PATH not in out + err
        return ended.value.code, out, err

    return run


@pytest.fixture
def ref(server: RegistryServer) -> str:
    return f"{server.host}/os/debian:13"


@pytest.fixture
def publish(layout: Layout, ref: str, trust: Trust) -> list[str]:
    """The words of the command."""
    words = ["publish", str(layout.folder), ref, "--trust", str(trust.path)]
    return [*words, "--plain-http", "--platform-slug", SLUG]


def test_publish_says_what_it_did(
    command: Command, publish: list[str], layout: Layout, ref: str, snapshot: SnapshotAssertion
) -> None:
    code, out, err = command(*publish)
    assert code == 0
    shown = f"{err}---\n{out}".replace(layout.image.digest, "DIGEST").replace(ref, "REF")
    shown = shown.replace(out.split()[-1], "PUBLICATION")
    # signatures differ in length
    assert re.sub(r"\d+ bytes", "N bytes", shown) == snapshot
    code, again, err = command(*publish)
    assert (code, again) == (0, out)
    assert "told before: queued" in err


def test_publish_json(command: Command, publish: list[str], layout: Layout) -> None:
    code, out, _ = command(*publish, "--json")
    assert code == 0
    said = json.loads(out)
    assert said["manifest_digest"] == layout.image.digest
    assert said["signed_now"] is True
    assert said["told"]["status"] == "queued"
    assert said["pushed"]["referrers"]


def test_publish_without_a_platform_says_so(
    command: Command, layout: Layout, ref: str, trust: Trust, platform: WebhookServer
) -> None:
    code, out, _ = command("publish", str(layout.folder), ref, "--trust", str(trust.path), "--plain-http")
    assert code == 0
    assert "no platform was told: name one with --platform-slug" in out
    assert platform.seen == []


def test_wrong_use_is_found_before_anything_is_signed(
    command: Command, publish: list[str], monkeypatch: pytest.MonkeyPatch, platform: WebhookServer
) -> None:
    for names, more in ((WEBHOOK_URLS, ()), (WEBHOOK_SECRETS, ()), ((), ("--patience", "0"))):
        with monkeypatch.context() as without:
            for name in names:
                without.delenv(name, raising=False)
            code, out, err = command(*publish, *more)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert "to do: " in err
        assert "signed" not in err
    assert platform.seen == []


def test_a_failed_publish_ends_with_the_command_that_goes_on(
    command: Command, publish: list[str], platform: WebhookServer
) -> None:
    platform.faults = [Planned(Fault.ALWAYS_200_ERROR)]
    code, _, err = command(*publish)
    assert code == 1
    assert "error unknown_platform, with HTTP 200" in err
    again = shlex.split(err.rpartition("then: ")[2])
    assert again[0] == "disk-image"
    assert sorted(again[1:]) == sorted(publish)
    code, out, _ = command(*again[1:])
    assert code == 0
    assert "told the platform: queued" in out
    assert len(platform.taken) == 1


def test_patience_is_the_bound(command: Command, publish: list[str], platform: WebhookServer) -> None:
    platform.up = False
    code, _, err = command(*publish, "--patience", "0.2")
    assert code == 1
    assert "cut" in err
    assert "see that it is up, then: disk-image publish" in err


def test_notify(
    command: Command, publish: list[str], ref: str, platform: WebhookServer, layout: Layout
) -> None:
    command(*publish[:-2])
    code, out, _ = command("notify", ref, "--platform-slug", SLUG, "--plain-http")
    assert code == 0
    assert f"{ref} is {layout.image.digest}" in out
    assert "queued" in out
    (seen,) = platform.seen
    assert json.loads(seen.body)["git_sha"] == COMMIT
    assert json.loads(seen.body)["oci_ref"].endswith(f"/os/debian@{layout.image.digest}")


def test_notify_json(command: Command, publish: list[str], ref: str) -> None:
    command(*publish[:-2])
    code, out, _ = command("notify", ref, "--platform-slug", SLUG, "--plain-http", "--json")
    assert code == 0
    said = json.loads(out)
    assert said["status"] == "queued"
    assert said["body"]["platform_name"] == SLUG


def test_a_failed_notify_ends_with_the_command_that_sends_the_same_delivery_again(
    command: Command, publish: list[str], ref: str, platform: WebhookServer, tmp_path: Path
) -> None:
    command(*publish[:-2])
    (tmp_path / "the secret").write_text(SECRET)
    platform.faults = [Planned(Fault.CUT_AFTER, ALWAYS)]
    words = ("notify", ref, "--platform-slug", SLUG, "--plain-http", "--patience", "0.2")
    code, out, err = command(*words, "--webhook-secret-file", str(tmp_path / "the secret"))
    assert (code, out) == (1, "")
    again = shlex.split(err.rpartition("then: ")[2])
    assert "--delivery-id" in again
    assert str(tmp_path / "the secret") in again
    platform.faults = []
    code, out, _ = command(*again[1:])
    assert code == 0
    assert "idempotent_hit" in out
    assert len(platform.taken) == 1
    assert len({one.headers["webhook-id"] for one in platform.seen}) == 1


def test_notify_of_what_is_not_there(command: Command, ref: str, platform: WebhookServer) -> None:
    code, _, err = command("notify", ref, "--platform-slug", SLUG, "--plain-http")
    assert code == 1
    assert "404" in err
    assert platform.seen == []


@pytest.mark.parametrize("delivery_id", ["with.stop", "x" * 65, "new\nline"])
def test_delivery_ids_that_are_none(delivery_id: str, command: Command, ref: str) -> None:
    code, _, err = command("notify", ref, "--platform-slug", SLUG, f"--delivery-id={delivery_id}")
    assert code == 2
    assert "--delivery-id: expected 1 to 64" in err

"""Where URL and secret come from, and that what is wrong with them is said without quoting them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import UsageError
from platform_client.settings import Webhook, webhook_settings

URL = "https://platform.example/api/v1/system/webhooks/disk_image/built/0195d3b6"
SECRET = "pndis_canary"
DISK_IMAGE = {
    "POWERNODE_DISK_IMAGE_WEBHOOK_URL": URL,
    "POWERNODE_DISK_IMAGE_WEBHOOK_SECRET": SECRET,
}


def test_the_variables_in_their_order() -> None:
    general = {"POWERNODE_WEBHOOK_URL": URL + "1", "POWERNODE_WEBHOOK_SECRET": "other"}
    webhook = webhook_settings({**general, **DISK_IMAGE})
    assert (str(webhook.url), webhook.key) == (URL, SECRET.encode())
    webhook = webhook_settings(general)
    assert (str(webhook.url), webhook.key) == (URL + "1", b"other")


def test_options_come_first(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("pndis_from-a-file\n")
    webhook = webhook_settings(DISK_IMAGE, url=URL + "2", secret_file=tmp_path / "secret")
    assert (str(webhook.url), webhook.key) == (URL + "2", b"pndis_from-a-file")


def test_an_empty_variable_is_none() -> None:
    with pytest.raises(UsageError, match="no webhook") as caught:
        webhook_settings({"POWERNODE_WEBHOOK_URL": " ", "POWERNODE_WEBHOOK_SECRET": SECRET})
    assert "POWERNODE_DISK_IMAGE_WEBHOOK_URL" in caught.value.hint
    with pytest.raises(UsageError, match="secret is missing") as caught:
        webhook_settings({**DISK_IMAGE, "POWERNODE_DISK_IMAGE_WEBHOOK_SECRET": ""})
    assert "--webhook-secret-file" in caught.value.hint


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://platform.example/hook-canary", "expected https"),
        ("http://127.0.0.1.evil.example/hook-canary", "expected https"),
        ("http://[::2]/hook-canary", "expected https"),
        ("ftp://platform.example/hook-canary", "expected https"),
        ("file:///hook-canary", "expected a host"),
        ("hook-canary", "expected a host"),
        ("https:///hook-canary", "expected a host"),
        ("https://user:canary@platform.example/", "no user or password"),
        ("https://platform.example/hook-canary#fragment", "no fragment"),
        ("https://platform.example/hook canary", "printable"),
        ("https://platform.example/hook-canary\nX-Header: 1", "no URL|printable"),
        ("https://platform.example:99999999/hook-canary", "expected a host"),
        ("https://platform.example/" + "canary" * 400, "at most 2048"),
    ],
)
def test_urls_that_are_refused(url: str, rule: str) -> None:
    with pytest.raises(UsageError, match=rule) as caught:
        webhook_settings({**DISK_IMAGE, "POWERNODE_DISK_IMAGE_WEBHOOK_URL": url})
    assert "POWERNODE_DISK_IMAGE_WEBHOOK_URL" in caught.value.what
    assert "canary" not in caught.value.what + caught.value.hint


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "[::1]:8080", "127.9.9.9"])
def test_http_is_for_this_machine(host: str) -> None:
    webhook = webhook_settings({**DISK_IMAGE, "POWERNODE_DISK_IMAGE_WEBHOOK_URL": f"http://{host}/hook"})
    assert webhook.origin == f"http://{host}"


def test_a_query_stands_on_no_command_line() -> None:
    with pytest.raises(UsageError, match="without a query"):
        webhook_settings(DISK_IMAGE, url=URL + "?token=canary")
    from_environment = {**DISK_IMAGE, "POWERNODE_DISK_IMAGE_WEBHOOK_URL": URL + "?token=canary"}
    assert "canary" in webhook_settings(from_environment).url.query.decode()


@pytest.mark.parametrize("secret", ["canary with a space", "canary\nsecond", "canary\x00", "canary" * 1000])
def test_secrets_that_are_refused(secret: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(secret)
    for how in (
        {"environment": {**DISK_IMAGE, "POWERNODE_DISK_IMAGE_WEBHOOK_SECRET": secret}},
        {"environment": DISK_IMAGE, "secret_file": tmp_path / "secret"},
    ):
        with pytest.raises(UsageError, match="expected one secret") as caught:
            webhook_settings(**how)
        assert "canary" not in caught.value.what + caught.value.hint


def test_secret_files_that_hold_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        webhook_settings(DISK_IMAGE, secret_file=tmp_path / "none")
    with pytest.raises(UsageError, match="directory"):
        webhook_settings(DISK_IMAGE, secret_file=tmp_path)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UsageError, match="expected one secret"):
        webhook_settings(DISK_IMAGE, secret_file=tmp_path / "empty")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        webhook_settings(DISK_IMAGE, secret_file=tmp_path / "binary")


def test_nothing_shows_url_or_secret() -> None:
    webhook: Webhook = webhook_settings(DISK_IMAGE)
    assert webhook.origin == "https://platform.example"
    for shown in (repr(webhook), str(webhook), webhook.origin, webhook.fingerprint):
        assert "0195d3b6" not in shown
        assert "canary" not in shown
    other = webhook_settings({**DISK_IMAGE, "POWERNODE_DISK_IMAGE_WEBHOOK_URL": URL + "0"})
    assert webhook.fingerprint != other.fingerprint

"""What `trust init` writes, and what `load_trust` refuses: the file and its part are named."""

from __future__ import annotations

import base64
import json
import re
import stat
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from supply_chain.errors import TrustError
from supply_chain.trust import init_embedded, load_trust
from supply_chain.trust.embedded.private import load_keys
from supply_chain.trust.show import show


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An embedded trust that no service uses."""
    init_embedded(tmp_path / "trust")
    return tmp_path / "trust"


def masked(text: str) -> str:
    """Without what is new each time: keys, certificates, times."""
    text = re.sub(r'"(rawBytes|keyId)": "[A-Za-z0-9+/=]+"', r'"\1": "…"', text)
    return re.sub(r'"20[0-9-]+T[0-9:]+Z"', '"<time>"', text)


@pytest.mark.parametrize("name", ["trusted_root.json", "signing_config.json", "trust.json"])
def test_documents(folder: Path, snapshot: SnapshotAssertion, name: str) -> None:
    assert masked((folder / name).read_text()) == snapshot


def test_only_the_owner_reads_the_secret_half(folder: Path) -> None:
    private = folder / "private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    for path in private.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_no_key_stands_in_the_documents(folder: Path) -> None:
    keys = asdict(load_keys(folder)).values()
    secrets = [key.private_numbers().private_value.to_bytes(32, "big") for key in keys]
    assert len(secrets) == 5
    for name in ("trusted_root.json", "signing_config.json", "trust.json"):
        content = (folder / name).read_text()
        decoded = [base64.b64decode(one) for one in re.findall(r'"([A-Za-z0-9+/]{40,}=*)"', content)]
        assert decoded or name == "signing_config.json"
        assert not any(secret in one for secret in secrets for one in decoded)


@pytest.mark.parametrize("there", ["folder", "empty folder", "file", "dangling link"])
def test_nothing_is_overwritten(tmp_path: Path, there: str) -> None:
    folder = tmp_path / "trust"
    match there:
        case "folder":
            init_embedded(folder)
        case "empty folder":
            folder.mkdir()
        case "file":
            folder.write_text("mine")
        case _:
            folder.symlink_to(tmp_path / "nowhere")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(TrustError, match="a trust is never overwritten"):
        init_embedded(folder)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_folder_without_a_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="No such file or directory"):
        init_embedded(tmp_path / "missing" / "trust")


def test_what_is_shown(folder: Path, snapshot: SnapshotAssertion) -> None:
    text = "\n".join(show(load_trust(folder)).lines()).replace(str(folder), "trust")
    text = re.sub(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}", "<day>", re.sub(r"sha256:[0-9a-f]{64}", "sha256:…", text))
    assert text == snapshot


def test_a_folder_a_trust_and_a_trusted_root_are_trusts(folder: Path) -> None:
    whole, config, root = (load_trust(folder / name) for name in ("", "trust.json", "trusted_root.json"))
    assert whole.embedded is not None
    assert whole.signing_config is not None
    assert config.embedded is None
    assert config.signing_config is not None
    assert root.embedded is None
    assert root.signing_config is None
    assert whole.root == config.root == root.root


def test_without_its_secret_half_a_folder_is_no_embedded_trust(folder: Path) -> None:
    (folder / "private").rename(folder.parent / "private")
    assert load_trust(folder).embedded is None


Change = Callable[[dict[str, Any]], object]
BROKEN: dict[str, tuple[Change, str]] = {
    "another kind of document": (
        lambda root: root.update(mediaType="text/plain"),
        "mediaType is 'text/plain'",
    ),
    "a version that nobody knows": (
        lambda root: root.update(mediaType="application/vnd.dev.sigstore.trustedroot+json;version=0.9"),
        "mediaType",
    ),
    "an unknown field": (lambda root: root.update(more=1), "more: Extra inputs are not permitted"),
    "no log": (lambda root: root.update(tlogs=[]), "tlogs is empty"),
    "no certificate log": (lambda root: root.update(ctlogs=[]), "ctlogs is empty"),
    "no authority": (lambda root: root.update(certificateAuthorities=[]), "certificateAuthorities is empty"),
    "a certificate that is none": (
        lambda root: root["timestampAuthorities"][0]["certChain"]["certificates"][1].update(rawBytes="AAAA"),
        r"timestampAuthorities\[0\].certChain.certificates\[1\] can't be parsed",
    ),
    "a key that is none": (
        lambda root: root["ctlogs"][0]["publicKey"].update(rawBytes="AAAA"),
        r"ctlogs\[0\].publicKey can't be parsed",
    ),
    "a key that is missing": (
        lambda root: root["tlogs"][0]["publicKey"].pop("rawBytes"),
        r"tlogs\[0\].publicKey can't be parsed",
    ),
    "a time that is none": (
        lambda root: root["certificateAuthorities"][0]["validFor"].update(start="yesterday"),
        "certificateAuthorities.0.validFor.start",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_trusted_root_is_refused(folder: Path, how: str) -> None:
    change, message = BROKEN[how]
    root = json.loads((folder / "trusted_root.json").read_text())
    change(root)
    path = folder.parent / "root.json"
    path.write_text(json.dumps(root))
    with pytest.raises(TrustError, match=message) as caught:
        load_trust(path)
    assert str(path) in caught.value.what


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a JSON object"),
        (b"[1]", "expected a JSON object"),
        (b"[" * 100_000, "expected a JSON object"),
        (b"\xff\xfe", "expected a JSON object"),
        (b'{"mediaType": "x", "mediaType": "y"}', "a key stands twice"),
        (b" " * (1 << 20) + b"{}", "is larger than 1048576 bytes"),
        (
            b'{"mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"}',
            "trustedRoot is missing",
        ),
    ],
)
def test_what_is_no_trust_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "trust.json").write_bytes(content)
    with pytest.raises(TrustError, match=message):
        load_trust(tmp_path / "trust.json")


def test_a_folder_whose_documents_differ_is_refused(folder: Path, tmp_path: Path) -> None:
    init_embedded(tmp_path / "other")
    (folder / "trusted_root.json").write_bytes((tmp_path / "other" / "trusted_root.json").read_bytes())
    with pytest.raises(TrustError, match=r"trusted_root\.json: is not what trust\.json says"):
        load_trust(folder)


def test_a_signing_config_without_a_log_is_refused(folder: Path) -> None:
    trust = json.loads((folder / "trust.json").read_text())
    trust["signingConfig"]["rekorTlogUrls"] = []
    (folder / "trust.json").write_text(json.dumps(trust))
    with pytest.raises(TrustError, match="signingConfig: rekorTlogUrls is empty"):
        load_trust(folder / "trust.json")


def test_where_to_sign_is_asked_of_the_clock_only_by_who_signs(folder: Path) -> None:
    trust = json.loads((folder / "trust.json").read_text())
    for name in ("caUrls", "rekorTlogUrls", "tsaUrls"):
        trust["signingConfig"][name][0]["validFor"]["start"] = "2199-01-01T00:00:00Z"
    (folder / "trust.json").write_text(json.dumps(trust))
    loaded = load_trust(folder / "trust.json")
    assert loaded.trusted_root.get_fulcio_certs()
    with pytest.raises(TrustError, match="by this machine's clock") as refused:
        _ = loaded.signing_config
    assert refused.value.hint.startswith("set the clock")


def test_a_missing_trust_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="No such file"):
        load_trust(tmp_path / "trust.json")
    with pytest.raises(TrustError, match=r"holds neither trust\.json nor trusted_root\.json"):
        load_trust(tmp_path)

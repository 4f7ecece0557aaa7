"""The state's file: whole or not at all, of one image, and what happens to it when it can't be read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supply_chain.errors import LayoutError
from supply_chain.layout import Layout
from supply_chain.publish.state import (
    Delivery,
    PublishState,
    RecordedAnswer,
    RecordedSigner,
    StateFile,
    publishing,
)

IMAGE, OTHER = f"sha256:{'1a' * 32}", f"sha256:{'2b' * 32}"
TOLD = Delivery(
    delivery_id="msg_1",
    webhook="0f" * 32,
    body="0e" * 32,
    oci_ref=f"registry.example/os@{IMAGE}",
    platform_slug="debian",
)
STATE = PublishState(
    image=IMAGE,
    signer=RecordedSigner(identity="https://git.example/job", issuer="https://git.example"),
    deliveries=(TOLD,),
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "image")
    assert file.load(IMAGE) == (PublishState(image=IMAGE), "")
    file.save(STATE)
    assert file.load(IMAGE) == (STATE, "")
    answered = TOLD.model_copy(update={"answer": RecordedAnswer(status="queued", publication_id="7")})
    file.save(STATE.with_delivery(answered))
    assert file.load(IMAGE)[0].deliveries == (answered,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.publish.json"]


def test_another_image_s_state_counts_for_nothing(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "image")
    file.save(STATE)
    state, why = file.load(OTHER)
    assert state == PublishState(image=OTHER)
    assert IMAGE in why


def _changed(**fields: object) -> bytes:
    return json.dumps({**json.loads(STATE.model_dump_json()), **fields}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"{}",
        b"[" * 100_000,
        b'{"schema_version": 1}',
        _changed(schema_version=2),
        _changed(image=IMAGE[7:]),
        _changed(more="fields"),
        _changed(deliveries=[{"delivery_id": "with.stop"}]),
        _changed(signer="somebody"),
        _changed() + b'{"again": 1}',
        b" " * (5 << 20),
    ],
)
def test_a_state_that_can_t_be_read_counts_for_nothing(content: bytes, tmp_path: Path) -> None:
    file = StateFile(tmp_path / "image")
    file.path.write_bytes(content)
    state, why = file.load(IMAGE)
    assert state == PublishState(image=IMAGE)
    assert "can't be read" in why
    file.save(STATE)
    assert file.load(IMAGE) == (STATE, "")


@given(content=st.binary(max_size=200))
def test_no_bytes_stop_it(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = StateFile(tmp_path_factory.mktemp("state") / "image")
    file.path.write_bytes(content)
    assert file.load(IMAGE)[0] == PublishState(image=IMAGE)


def test_a_state_that_may_not_be_read_is_not_thrown_away(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "image")
    file.path.mkdir()
    with pytest.raises(IsADirectoryError):
        file.load(IMAGE)


def test_half_a_file_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends before the new file is whole on the disk."""
    file = StateFile(tmp_path / "image")
    file.save(STATE)

    def ends(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", ends)
    with pytest.raises(OSError, match="No space left"):
        file.save(PublishState(image=OTHER))
    monkeypatch.undo()
    assert file.load(IMAGE) == (STATE, "")
    file.save(PublishState(image=OTHER))
    assert file.load(OTHER) == (PublishState(image=OTHER), "")


def test_a_delivery_is_found_by_webhook_and_body() -> None:
    body = b'{"a": 1}'
    other = {"delivery_id": "msg_2", "body": hashlib.sha256(body).hexdigest()}
    state = STATE.with_delivery(TOLD.model_copy(update=other))
    found = state.delivery(TOLD.webhook, body)
    assert found is not None
    assert found.delivery_id == "msg_2"
    assert state.delivery("0a" * 32, body) is None
    assert state.delivery(TOLD.webhook, b'{"a": 2}') is None


def test_one_process_at_a_time(layout: Layout) -> None:
    with (
        publishing(layout.folder),
        pytest.raises(LayoutError, match="another process is publishing"),
        publishing(layout.folder),
    ):
        raise AssertionError
    with publishing(layout.folder):
        pass


def test_layouts_that_share_their_files_are_published_side_by_side(layout: Layout, tmp_path: Path) -> None:
    """As those of one store do: their files are links to it."""
    other = shutil.copytree(layout.folder, tmp_path / "other", copy_function=os.link)
    with publishing(layout.folder), publishing(other):
        pass


def test_no_layout(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="not an OCI layout"), publishing(tmp_path / "none"):
        raise AssertionError

"""What new nodes boot, and where they get it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest

from platform_server.state_folder import Platform
from platform_server.states import Transition, move
from platform_server.tables import NodePlatform, Publication
from platform_server.upload_files import file_of
from tests.platform_server import rows
from tests.platform_server.api import Api
from tests.platform_server.clock import Clock

SHA256 = "5e" * 32


@pytest.fixture
def publish(platform: Platform, platform_id: str, clock: Clock) -> Any:
    """Publish a row with these columns as the default; its id."""

    def run(**fields: Any) -> str:
        def work(on: Any) -> str:
            node_platform = on.get_one(NodePlatform, UUID(platform_id))
            row = rows.publication(on, clock(), node_platform, **(rows.verified() | fields))
            move(row, Transition.START_VERIFYING, clock())
            on.flush()
            move(row, Transition.MARK_PUBLISHED, clock())
            node_platform.default_publication_id = row.id
            return str(row.id)

        made: str = platform.database.write_now(work)
        return made

    return run


@pytest.fixture
def uploaded(publish: Any, platform: Platform) -> str:
    """An uploaded image that is the default."""
    made: str = publish(oci_ref=None, upload_sha256=SHA256, upload_size_bytes=7)
    file_of(platform, UUID(made)).write_bytes(b"archive")
    return made


def target(shown: dict[str, Any]) -> str:
    url = urlsplit(shown["url"])
    return f"{url.path}?{url.query}"


def test_a_platform_without_an_image_says_so(api: Api, platform_id: str) -> None:
    error = api.error(404, "GET", f"/node_platforms/{platform_id}/disk_image")
    assert error == "No disk image built for node platform debian"
    assert api.get("/events")["events"] == []


def test_an_image_in_a_registry_is_named_by_digest(api: Api, platform_id: str, publish: Any) -> None:
    made = publish()
    shown = api.get(f"/node_platforms/{platform_id}/disk_image")
    facts = rows.verified()
    assert shown == {
        "publication_id": made,
        "oci_ref": f"registry.example/os/debian@{facts['oci_digest']}",
        "oci_digest": facts["oci_digest"],
        "url": None,
        "expires_at": None,
        "sha256": facts["sha256"],
        "size_bytes": facts["size_bytes"],
        "built_at": "2026-03-01T12:00:00Z",
        "filename": "powernode-debian.img",
    }
    (event,) = api.get("/events", kind_prefix="system.disk_image_downloaded")["events"]
    assert event["payload"]["platform_name"] == "debian"
    assert event["payload"]["by_user_id"]
    assert event["payload"]["publication_id"] == made


def test_an_uploaded_image_has_a_url(api: Api, platform_id: str, uploaded: str, clock: Clock) -> None:
    shown = api.get(f"/node_platforms/{platform_id}/disk_image")
    assert (shown["sha256"], shown["size_bytes"]) == (SHA256, 7)
    assert (shown["oci_ref"], shown["filename"]) == (None, "powernode-debian.tar")
    assert shown["expires_at"] == "2026-03-01T13:00:00Z"
    answer = api.client.get(target(shown))
    assert (answer.status_code, answer.content) == (200, b"archive")
    assert "attachment" in answer.headers["content-disposition"]
    part = api.client.get(target(shown), headers={"range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"chi")
    clock.pass_by(minutes=60)
    assert api.client.get(target(shown)).status_code == 403


def test_a_place_to_read_is_none_to_write(
    api: Api, platform_id: str, uploaded: str, platform: Platform
) -> None:
    place = target(api.get(f"/node_platforms/{platform_id}/disk_image"))
    assert api.client.put(place, content=b"other").status_code == 403
    assert api.client.get(place[:-1] + ("0" if place[-1] != "0" else "1")).status_code == 403
    assert file_of(platform, UUID(uploaded)).read_bytes() == b"archive"


def test_what_is_purged_or_gone_is_not_given_out(
    api: Api, platform_id: str, uploaded: str, platform: Platform, clock: Clock
) -> None:
    place = target(api.get(f"/node_platforms/{platform_id}/disk_image"))

    def purge(on: Any) -> None:
        row = on.get_one(Publication, UUID(uploaded))
        move(row, Transition.RETIRE, clock())
        on.flush()
        move(row, Transition.PURGE, clock())

    file_of(platform, UUID(uploaded)).unlink()
    assert api.client.get(place).status_code == 404
    file_of(platform, UUID(uploaded)).write_bytes(b"archive")
    platform.database.write_now(purge)
    assert api.client.get(place).status_code == 404


def test_another_account_gets_nothing(other: Api, platform_id: str, uploaded: str) -> None:
    other.error(404, "GET", f"/node_platforms/{platform_id}/disk_image")

"""Node platforms over REST: names, policy and its permission, and what they show of their images."""

from __future__ import annotations

from typing import Any

import pytest

from platform_server.accounts import user_token
from platform_server.permissions import Permission
from platform_server.state_folder import Platform
from tests.platform_server.api import Api, Pipeline
from tests.platform_server.clock import Clock

POLICY = {
    "cosign_identity_regexp": r"https://git\.example/org/.+",
    "cosign_issuer_regexp": r"https://git\.example",
    "trusted_registries": ["registry.example", "127.0.0.1:5000/os"],
    "disk_image_retention_count": 5,
}


def _create(api: Api, **fields: Any) -> Any:
    return api.post("/node_platforms", {"node_platform": {"name": "debian", **fields}})["node_platform"]


def test_a_new_platform_trusts_nobody_and_has_no_image(api: Api) -> None:
    shown = _create(api)
    assert (shown["name"], shown["arch"], shown["disk_image_retention_count"]) == ("debian", "amd64", 3)
    assert (shown["cosign_identity_regexp"], shown["cosign_issuer_regexp"]) == (None, None)
    assert shown["trusted_registries"] == []
    assert shown["default_publication_id"] is shown["disk_image_oci_ref"] is None
    assert shown["disk_image_publication_status"] == "none"
    assert api.get(f"/node_platforms/{shown['id']}")["node_platform"] == shown
    assert api.get("/node_platforms")["node_platforms"] == [shown]


def test_the_policy_can_be_set_and_taken_away(api: Api) -> None:
    shown = _create(api, **POLICY)
    assert {field: shown[field] for field in POLICY} == POLICY
    path = f"/node_platforms/{shown['id']}"
    changed = api.patch(path, {"node_platform": {"cosign_identity_regexp": None, "description": "x"}})
    assert changed["node_platform"]["cosign_identity_regexp"] is None
    assert changed["node_platform"]["cosign_issuer_regexp"] == POLICY["cosign_issuer_regexp"]


def test_the_policy_needs_its_permission(api: Api, platform: Platform, clock: Clock) -> None:
    """The reference leaves such fields out in silence; here the request is refused and nothing is set."""
    granted = [Permission.PLATFORMS_CREATE, Permission.PLATFORMS_UPDATE, Permission.PLATFORMS_READ]
    token = platform.database.write_now(lambda on: user_token(on, "default", "maker", granted, clock()))
    maker = api.with_token(token)
    shown = _create(maker)
    for field, value in POLICY.items():
        body = {"node_platform": {"name": "other", field: value}}
        error = maker.error(403, "POST", "/node_platforms", json=body)
        assert "system.platforms.manage_disk_image_policy" in error
        patch = {"node_platform": {field: value}}
        maker.error(403, "PATCH", f"/node_platforms/{shown['id']}", json=patch)
    assert maker.get("/node_platforms")["node_platforms"] == [shown]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "-flag"),
        ("name", "a b"),
        ("name", "a" * 101),
        ("name", "a\n"),
        ("name", None),
        ("name", ["a"]),
        ("arch", "x86"),
        ("arch", "AMD64"),
        ("disk_image_retention_count", 0),
        ("disk_image_retention_count", 51),
        ("disk_image_retention_count", True),
        ("disk_image_retention_count", "3"),
        ("cosign_identity_regexp", "("),
        ("cosign_identity_regexp", ""),
        ("cosign_identity_regexp", ".*"),
        ("cosign_issuer_regexp", "a" * 5000),
        ("trusted_registries", ["https://registry.example"]),
        ("trusted_registries", ["registry.example/../x"]),
        ("trusted_registries", ["-flag"]),
        ("trusted_registries", ["user@registry.example"]),
        ("trusted_registries", ["registry.example\n"]),
        ("trusted_registries", "registry.example"),
        ("trusted_registries", ["registry.example"] * 51),
        ("description", "a\x00"),
        ("unknown", 1),
    ],
)
def test_a_field_that_breaks_its_rule_is_named(api: Api, field: str, value: object) -> None:
    body = {"node_platform": {"name": "debian", field: value}}
    assert field in api.error(422, "POST", "/node_platforms", json=body)
    assert api.get("/node_platforms")["node_platforms"] == []


def test_a_body_that_is_not_text_is_refused(api: Api) -> None:
    headers = {"content-type": "application/json"}
    assert "UTF-8" in api.error(422, "POST", "/node_platforms", content=b"\xff{}", headers=headers)


def test_a_name_is_taken_once_in_an_account_and_stays(api: Api, other: Api) -> None:
    shown = _create(api)
    assert "name" in api.error(422, "POST", "/node_platforms", json={"node_platform": {"name": "debian"}})
    _create(other)
    path = f"/node_platforms/{shown['id']}"
    assert "name" in api.error(422, "PATCH", path, json={"node_platform": {"name": "router"}})


def test_a_platform_is_deleted_only_while_it_has_no_publications(api: Api, pipeline: Pipeline) -> None:
    unused = _create(api, name="unused")
    assert api.delete(f"/node_platforms/{unused['id']}") == {"deleted": True}
    api.error(404, "GET", f"/node_platforms/{unused['id']}")
    (used,) = api.get("/node_platforms")["node_platforms"]
    pipeline.plain()
    assert "publications" in api.error(409, "DELETE", f"/node_platforms/{used['id']}")
    assert "arch" in api.error(
        422, "PATCH", f"/node_platforms/{used['id']}", json={"node_platform": {"arch": "arm64"}}
    )


def test_another_account_sees_and_changes_nothing(api: Api, other: Api) -> None:
    path = f"/node_platforms/{_create(api)['id']}"
    assert other.get("/node_platforms")["node_platforms"] == []
    other.error(404, "GET", path)
    other.error(404, "GET", f"{path}/disk_image_publications")
    other.error(404, "PATCH", path, json={"node_platform": {"description": "x"}})
    other.error(404, "DELETE", path)


def test_publications_are_listed_newest_first_by_page_and_status(
    api: Api, pipeline: Pipeline, platform_id: str
) -> None:
    path = f"/node_platforms/{platform_id}/disk_image_publications"
    assert api.get(path) == {"disk_image_publications": [], "meta": {"count": 0, "next": None}}
    sent = [pipeline.plain(git_sha=f"{n:040x}").json()["publication_id"] for n in range(5)]
    first = api.get(path, limit=2)
    found = [row["id"] for row in first["disk_image_publications"]]
    while first["meta"]["next"] is not None:
        first = api.get(path, limit=2, before=first["meta"]["next"])
        found += [row["id"] for row in first["disk_image_publications"]]
    assert found == sent[::-1]
    assert api.get(path, status="published")["disk_image_publications"] == []
    assert len(api.get(path, status="queued")["disk_image_publications"]) == 5
    one = api.get(f"{path}/{sent[0]}")["disk_image_publication"]
    assert (one["git_sha_short"], one["status"], one["is_default"]) == ("00000000", "queued", False)
    assert (one["published_at"], one["created_at"]) == (None, "2026-03-01T12:00:00Z")


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=x", "before=x", "status=unknown", "unknown=1"]
)
def test_a_page_has_rules(api: Api, platform_id: str, query: str) -> None:
    path = f"/node_platforms/{platform_id}/disk_image_publications?{query}"
    assert query.partition("=")[0] in api.error(422, "GET", path)


def test_a_publication_of_another_platform_is_not_there(api: Api, pipeline: Pipeline) -> None:
    publication_id = pipeline.plain().json()["publication_id"]
    router = _create(api, name="router")
    api.error(404, "GET", f"/node_platforms/{router['id']}/disk_image_publications/{publication_id}")

"""Attacks on the platform by what is reported."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import select

from platform_server.state_folder import Platform
from platform_server.tables import Publication
from tests.platform_server.api import Api, Pipeline


@pytest.mark.one_database  # nothing of it is kept
@pytest.mark.parametrize(
    "oci_ref",
    [
        "--config=/etc/passwd",
        "-v",
        "registry.example/os/debian:13\n",
        "registry.example/os/debian:13\n--insecure",
        "registry.example/os/debian:13 --insecure",
        "user:password@registry.example/os/debian:13",
        "registry.example@evil.example/os/debian:13",
        "https://registry.example/os/debian:13",
        "file:///etc/passwd",
        "/etc/passwd",
        "registry.example/../../etc/passwd:13",
        "registry.example/os/./debian:13",
        "registry.example/os/debian",
        "registry.example/OS/debian:13",
        "registry.example/os/debian:13?x=1",
        "registry.example/os/debian:13#x",
        "registry.example/os/debian:13\x00",
        "registry.example:99999/os/debian:13",
        "registry.example/os/debian@sha256:123",
        "registry.example/os/debian@sha512:" + "a" * 128,
        "",
        "a" * 2000 + "/b:1",
        "régistry.example/os/debian:13",
    ],
)
def test_an_oci_ref_with_flags_newline_credentials_or_path_is_refused(
    platform: Platform, pipeline: Pipeline, oci_ref: str
) -> None:
    answer = pipeline.plain(oci_ref=oci_ref)
    assert (answer.status_code, answer.json()["reason"]) == (422, "invalid_payload")
    assert "password" not in answer.text
    assert platform.database.read_now(lambda on: on.scalars(select(Publication)).all()) == []


INJECTIONS = (
    "'; DROP TABLE publications; --",
    "' OR '1'='1",
    '" OR 1=1 --',
    "{{1337*1337}}",
    "${1337*1337}",
    "%(name)s",
    "{0.__class__}",
    "<script>alert(1)</script>",
)


@pytest.mark.parametrize("text", INJECTIONS)
def test_sql_and_template_injection_in_every_text_field(
    platform: Platform, api: Api, pipeline: Pipeline, text: str
) -> None:
    """Texts are refused by their rule, or kept and answered as they are."""
    for field in ("platform_slug", "oci_ref", "git_sha", "firmware_ref", "sbom_path", "arch", "sha256"):
        answer = pipeline.standard(**{field: text})
        assert answer.status_code in (202, 422), answer.text
    kept = platform.database.read_now(lambda on: on.scalars(select(Publication)).all())
    assert {(row.firmware_ref, row.payload.get("sbom_path")) for row in kept} == {(text, None), (None, text)}
    assert api.post("/disk_image_webhooks", {"label": text})["label"] == text
    described = api.post("/node_platforms", {"node_platform": {"name": "x", "description": text}})
    assert described["node_platform"]["description"] == text
    assert "name" in api.error(422, "POST", "/node_platforms", json={"node_platform": {"name": text}})
    for path in (f"/node_platforms/{text}", f"/disk_image_webhooks/{text}"):
        api.error(404 if "/" in text else 422, "GET", path)
    for name in ("kind_prefix", "correlation_id"):
        assert api.get("/events", **{name: text})["events"] == []
    for name in ("before", "limit"):
        api.error(422, "GET", "/events", params={name: text})
    api.with_token(text).error(401, "GET", "/events")


def _with_texts(schema: dict[str, Any], components: dict[str, Any], text: str) -> Any:
    """A value of the schema, with the text wherever one may stand."""
    if "$ref" in schema:
        return _with_texts(components[schema["$ref"].rpartition("/")[2]], components, text)
    if "anyOf" in schema:
        return _with_texts(schema["anyOf"][0], components, text)
    match schema.get("type"):
        case "object":
            fields = schema.get("properties", {})
            return {name: _with_texts(field, components, text) for name, field in fields.items()}
        case "array":
            return [_with_texts(schema["items"], components, text)]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
    return text


@pytest.mark.parametrize("text", INJECTIONS)
def test_injection_in_every_text_field_of_every_route(
    platform: Platform, api: Api, pipeline: Pipeline, text: str
) -> None:
    """No route fails by a text, and none makes it mean anything: all that was there is still there."""
    schema = api.client.get("/api/v1/system/openapi.json").json()
    components = schema["components"]["schemas"]
    tried = 0
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            target, query = path, {}
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    target = target.replace(f"{{{parameter['name']}}}", quote(text, safe=""))
                elif parameter["in"] == "query":
                    query[parameter["name"]] = _with_texts(parameter["schema"], components, text)
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            body = None if content is None else _with_texts(content["schema"], components, text)
            answer = api.client.request(
                method,
                target,
                params=query,
                json=body,
                headers={"authorization": f"Bearer {api.token}"},
            )
            assert answer.status_code < 500, (method, path, answer.text)
            assert str(1337 * 1337) not in answer.text
            tried += 1
    assert tried > 15
    (debian,) = api.get("/node_platforms")["node_platforms"]
    assert debian["name"] == "debian"
    assert pipeline.standard().status_code == 202


@pytest.mark.parametrize("text", ["\\ud800", "a\\u0000b"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/disk_image_webhooks", '{"label": "%s"}'),
        ("/ci_workers", '{"name": "%s"}'),
        ("/ci_workers", '{"name": "runner", "description": "%s"}'),
        ("/node_platforms", '{"node_platform": {"name": "debian", "description": "%s"}}'),
        ("/node_platforms", '{"node_platform": {"name": "debian", "cosign_identity_regexp": "%s"}}'),
        ("/actions/provision_disk_image_webhook", '{"label": "%s"}'),
        ("/actions/system_provision_ci_worker", '{"name": "%s"}'),
        ("/actions/recent_events", '{"kind_prefix": "%s"}'),
    ],
)
def test_a_text_that_is_none_in_utf8_is_refused(api: Api, path: str, body: str, text: str) -> None:
    error = api.error(422, "POST", path, content=body % text, headers={"content-type": "application/json"})
    assert "unicode" in error.lower()
    for name in ("kind_prefix", "correlation_id"):
        assert "should be Unicode" in api.error(422, "GET", "/events", params={name: "a\0b"})

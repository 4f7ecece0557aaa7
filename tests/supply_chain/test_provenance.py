"""Build records and provenance: what is written, what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from supply_chain import provenance
from supply_chain.beside import build_record_path
from supply_chain.errors import InvalidDocument, LayoutError
from supply_chain.provenance import BuildRecord, complete, parse_provenance, read_build_record
from tests.supply_chain.images import write_image

COMMIT = "1f" * 20


def record(image: str = f"sha256:{'ab' * 32}", **definition: Any) -> BuildRecord:
    """A record of a build of one package."""
    fields: dict[str, Any] = {
        "image": image,
        "buildDefinition": {
            "buildType": provenance.BUILD_TYPE,
            "externalParameters": {"recipe": {"arch": "amd64", "packages": ["bash"]}, "gitSha": COMMIT},
            "internalParameters": {"stageEnvironment": 1},
            "resolvedDependencies": [
                {
                    "uri": "pkg:deb/debian/bash@1:5.2%2Bb1?arch=amd64&distro=debian-13",
                    "digest": {"sha256": "01" * 32},
                    "annotations": {"sets": ["root"]},
                },
                {"name": "source", "digest": {"gitCommit": COMMIT}},
            ],
            **definition,
        },
        "runDetails": {
            "builder": {"version": {"disk-image-ci": "0.1.0", "executor": "local"}},
            "metadata": {
                "invocationId": "urn:uuid:5b2ec5ef-6d3a-4b0c-8d3e-0d6f0c7c0b5e",
                "startedOn": "2026-01-02T03:04:05Z",
                "finishedOn": "2026-01-02T03:05:06Z",
            },
        },
    }
    return BuildRecord.model_validate({"schemaVersion": 1, **fields})


def test_a_signed_provenance(snapshot: SnapshotAssertion) -> None:
    signed = complete(record(), "https://git.example/os/images/.gitea/workflows/build.yml@refs/heads/main")
    assert json.dumps(signed.to_json(), indent=1) == snapshot
    assert parse_provenance(json.loads(signed.to_bytes()), "it") == signed


def test_the_predicate_is_what_sigstore_takes_for_slsa_v1() -> None:
    from sigstore.dsse._predicate import SLSAPredicateV1_0

    read = SLSAPredicateV1_0.model_validate(complete(record(), "someone").to_json())
    assert read.build_definition.build_type == provenance.BUILD_TYPE
    assert read.run_details.builder.id == "someone"


def test_reading_what_was_written() -> None:
    definition = record().build_definition
    assert definition.git_sha == COMMIT
    assert definition.packages() == {"pkg:deb/debian/bash@1:5.2%2Bb1?arch=amd64&distro=debian-13": "01" * 32}
    source = definition.dependency("source")
    assert source is not None
    assert source.digest is not None
    assert source.digest.git_commit == COMMIT
    assert definition.dependency("absent") is None


def _without_builder(value: dict[str, Any]) -> None:
    del value["runDetails"]["builder"]["id"]


def _of_another_type(value: dict[str, Any]) -> None:
    value["buildDefinition"]["buildType"] = "https://example.com/build/v1"


def _commit_only_in_the_dependencies(value: dict[str, Any]) -> None:
    del value["buildDefinition"]["externalParameters"]["gitSha"]


def _two_commits(value: dict[str, Any]) -> None:
    value["buildDefinition"]["resolvedDependencies"] += [{"digest": {"gitCommit": "2e" * 20}}]


def _dependency_without_a_digest(value: dict[str, Any]) -> None:
    value["buildDefinition"]["resolvedDependencies"] += [{"name": "something"}]


def _field_that_slsa_does_not_have(value: dict[str, Any]) -> None:
    value["runDetails"]["builder"]["trusted"] = True


def _snake_case(value: dict[str, Any]) -> None:
    value["build_definition"] = value.pop("buildDefinition")


def _number_as_text(value: dict[str, Any]) -> None:
    value["buildDefinition"]["internalParameters"]["stageEnvironment"] = "1"


@pytest.mark.parametrize(
    "spoil",
    [
        _without_builder,
        _of_another_type,
        _commit_only_in_the_dependencies,
        _two_commits,
        _dependency_without_a_digest,
        _field_that_slsa_does_not_have,
        _snake_case,
        _number_as_text,
    ],
)
def test_refused(spoil: Callable[[dict[str, Any]], None]) -> None:
    value: dict[str, Any] = json.loads(complete(record(), "someone").to_bytes())
    spoil(value)
    with pytest.raises(InvalidDocument, match="the provenance: "):
        parse_provenance(value, "the provenance")


def test_the_record_beside_a_layout(tmp_path: Path) -> None:
    layout = write_image(tmp_path / "out.d" / "quick", {"bash": [b"x"]})
    path = build_record_path(layout.folder)
    assert path == tmp_path / "out.d" / "quick.build.json"
    path.write_bytes(record(layout.image.digest).to_bytes())
    assert read_build_record(layout.folder).image == layout.image.digest


def test_a_record_of_another_image_is_refused(tmp_path: Path) -> None:
    layout = write_image(tmp_path / "quick", {"bash": [b"x"]})
    build_record_path(layout.folder).write_bytes(record().to_bytes())
    with pytest.raises(LayoutError, match=f"about {layout.image.digest}, .* found sha256:abab"):
        read_build_record(layout.folder)


@pytest.mark.parametrize("content", [None, b"", b"<html>", b"{}", b"[" * 100_000])
def test_no_record_is_a_clear_error(tmp_path: Path, content: bytes | None) -> None:
    layout = write_image(tmp_path / "quick", {"bash": [b"x"]})
    if content is not None:
        build_record_path(layout.folder).write_bytes(content)
    with pytest.raises(LayoutError, match=r"quick\.build\.json") as raised:
        read_build_record(layout.folder)
    assert "disk-image build" in raised.value.hint


def test_the_example_of_the_reference_is_a_record() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "attestations.md").read_text()
    (example,) = re.findall(r"```json\n(.*?)```", page, re.S)
    read = BuildRecord.model_validate(json.loads(example), by_name=False)
    assert set(read.to_json()) == set(record().to_json())

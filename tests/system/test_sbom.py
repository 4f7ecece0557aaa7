"""The SBOMs of the two recipes' real images: valid, and of exactly what their locks name."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from pipelines.lock import Lock, load_lock
from supply_chain.provenance import BuildDefinition
from supply_chain.sbom import parse_sbom
from tests.spdx import problems, unknown_licenses
from tests.system.command import COMMIT, Built, disk_image

pytestmark = [pytest.mark.sandbox, pytest.mark.network, pytest.mark.timeout(3000)]


def _of_set(lock: Lock, name: str) -> dict[tuple[str, str], str]:
    return {(file.name, file.version): file.sha256 for file in lock.of_set(name)}


def _check(image: Built, tool_sets: tuple[str, ...]) -> None:
    document = json.loads(image.sbom)
    assert problems(image.sbom) == []
    for element in document["packages"]:
        assert unknown_licenses(element["licenseDeclared"]) in ([], ["NOASSERTION"])
    sbom = parse_sbom(document, "SBOM")
    assert sbom.image == image.manifest_digest
    lock = load_lock(image.lock, "relock")
    root, kernel = _of_set(lock, "root"), _of_set(lock, "kernel")
    found = {(package.name, package.version): package.sha256 for package in sbom.packages.values()}
    assert {key: found.get(key) for key in root | kernel} == root | kernel
    assert found.items() <= (root | kernel | _of_set(lock, "initramfs")).items()
    tools = load_lock(image.tools_lock, "relock")
    ran = {file.sha256 for file in tools.packages if set(file.sets) & set(tool_sets)}
    assert _related(document, "BUILD_TOOL_OF") == len(ran)
    definition = BuildDefinition.model_validate(image.definition["buildDefinition"])
    assert (
        found.items()
        <= {(file.name, file.version): file.sha256 for file in (*lock.packages, *lock.sources)}.items()
    )
    assert {purl: package.sha256 for purl, package in sbom.packages.items()}.items() <= (
        definition.packages().items()
    )
    assert len(definition.packages()) == len({file.sha256 for file in (*lock.packages, *lock.sources)} | ran)
    assert definition.git_sha == COMMIT


def _related(document: dict[str, Any], kind: str) -> int:
    return Counter(each["relationshipType"] for each in document["relationships"])[kind]


def test_quick(quick: Built) -> None:
    _check(quick, ("packages", "image"))
    kernel = next(each for each in json.loads(quick.sbom)["packages"] if each["SPDXID"] == "SPDXRef-Kernel")
    assert kernel["licenseDeclared"] == "GPL-2.0-only WITH Linux-syscall-note"


@pytest.mark.kernel
def test_debian_minimal(minimal: Built) -> None:
    _check(minimal, ("packages", "image", "kernel"))
    names = {element["name"] for element in json.loads(minimal.sbom)["packages"]}
    assert {"linux-source-6.12", "gcc", "disk-image-init"} <= names
    assert "linux-modules" not in names


def test_most_packages_say_their_license(quick: Built) -> None:
    packages = [
        element for element in json.loads(quick.sbom)["packages"] if element["supplier"] != "NOASSERTION"
    ]
    stated = [each for each in packages if "sourceInfo" in each and each["licenseDeclared"] != "NOASSERTION"]
    binary = [each for each in packages if "sourceInfo" in each]
    assert len(stated) > 0.8 * len(binary)


def test_an_image_is_compared_with_itself(quick: Built) -> None:
    done = disk_image("diff", quick.layout, quick.layout, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["packages"], told["files"], told["layers"]) == ([], [], [])

"""Push and pull against real registries, and what oras makes of what was pushed."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from supply_chain.delta import plan_fetch, publication
from supply_chain.image import TITLE
from supply_chain.layout import open_layout
from supply_chain.oci import digest_of
from supply_chain.pull import pull
from supply_chain.push import PushPlan, PushResult, push
from supply_chain.registry import open_repository
from supply_chain.registry.referrers import fallback_tag
from tests.peers.oras import Oras
from tests.peers.registries import Registry
from tests.supply_chain.images import BUNDLE, hang, noise, write_image

pytestmark = pytest.mark.peers


def _push(folder: Path, ref: str) -> PushResult:
    done = anyio.run(lambda: push(folder, ref, plain_http=True))
    assert isinstance(done, PushResult)
    return done


def test_a_second_push_sends_nothing(registry: Registry, tmp_path: Path) -> None:
    packages = {name: [noise(name, 900_000), noise(f"{name}2", 700_000)] for name in ("bash", "libc")}
    image = write_image(tmp_path / "image", packages, kernel=noise("kernel", 10_000))
    layout = hang(image, b'{"the second push": "bundle"}')
    ref = f"{registry.repository('again')}:v1"
    first = _push(layout.folder, ref)
    # the bundle besides; its manifest's empty configuration may be there, in a registry that shares blobs
    assert len(layout.manifest.blobs) + 1 <= first.blobs_sent <= len(layout.manifest.blobs) + 2
    plan = anyio.run(lambda: push(layout.folder, ref, plain_http=True, dry_run=True))
    assert isinstance(plan, PushPlan)
    assert (plan.send_bytes, plan.send_manifest) == (0, False)
    again = _push(layout.folder, ref)
    assert (again.blobs_sent, again.blob_bytes_sent) == (0, 0)
    pulled = anyio.run(lambda: pull(ref, tmp_path / "pulled", plain_http=True))
    assert pulled.digest == layout.image.digest
    assert pulled.referrers == first.referrers
    copy = open_layout(tmp_path / "pulled")
    copy.check()
    assert copy.manifest_bytes == layout.manifest_bytes


def test_only_the_changed_pack_travels_and_only_new_objects_are_fetched(
    registry: Registry, tmp_path: Path
) -> None:
    packages = {name: [noise(f"{name}{n}", 20_000) for n in range(50)] for name in ("bash", "libc")}
    old = write_image(tmp_path / "old", packages)
    packages["libc"][7] = noise("new", 21_000)
    new = write_image(tmp_path / "new", packages)
    repository = registry.repository("delta")
    _push(old.folder, f"{repository}:old")
    done = _push(new.folder, f"{repository}:new")
    parts = (new.layer("objects-libc.pack"), new.layer("root.cfs"), new.manifest.config)
    floor = sum(blob.size for blob in parts) + new.image.size
    assert done.blob_bytes_sent + done.document_bytes_sent <= 1.05 * floor

    async def fetch() -> tuple[int, int]:
        host, _, path = repository.partition("/")
        async with open_repository(host, path, plain_http=True) as opened:
            plan = await plan_fetch(await publication(opened, "new"), await publication(opened, "old"))
            return plan.by_pack_bytes, plan.by_object_bytes - plan.other_bytes - plan.index_bytes

    by_pack, objects = anyio.run(fetch)
    assert by_pack == new.layer("objects-libc.pack").size + new.layer("root.cfs").size
    assert 21_000 <= objects <= 21_100


def test_referrers_of_several_pushes_add_up(registry: Registry, oras: Oras, tmp_path: Path) -> None:
    layout = write_image(tmp_path / "image", {"a": [b"x"]})
    ref = f"{registry.repository('referrers')}:v1"
    for number in range(4):
        layout = hang(layout, b"bundle %d" % number)
        _push(layout.folder, ref)
    hung = {entry.digest for entry in layout.index.manifests[1:]}

    async def listed() -> tuple[set[str], str | None]:
        host, _, path = registry.repository("referrers").partition("/")
        async with open_repository(host, path, plain_http=True) as repository:
            found = await repository.referrers.list(layout.image.digest)
            tag = await repository.manifests.resolve(fallback_tag(layout.image.digest))
            return {one.descriptor.digest for one in found}, tag

    found, tag = anyio.run(listed)
    assert found == hung
    assert (tag is None) is registry.referrers_api

    discovered = oras.discover(ref)
    assert {one["digest"] for one in discovered} == hung
    if not registry.referrers_api:  # go-containerregistry reports the configuration's type instead
        assert {one["artifactType"] for one in discovered} == {BUNDLE}


def test_oras_pulls_what_was_pushed(registry: Registry, oras: Oras, tmp_path: Path) -> None:
    packages = {name: [noise(name, 400_000)] for name in ("bash", "libc")}
    layout = hang(write_image(tmp_path / "image", packages), b'{"a": "bundle"}')
    repository = registry.repository("pulled")
    _push(layout.folder, f"{repository}:v1")
    assert oras.manifest(f"{repository}:v1") == layout.manifest_bytes
    oras.pull(f"{repository}:v1", tmp_path / "pulled")
    digests = {path.name: digest_of(path.read_bytes()) for path in (tmp_path / "pulled").iterdir()}
    assert digests == {
        layer.annotations[TITLE]: layer.digest for layer in layout.manifest.layers if layer.annotations
    }
    (bundle,) = oras.discover(f"{repository}:v1")
    (layer,) = open_layout(layout.folder).index.manifests[1:]
    assert bundle["digest"] == layer.digest
    assert digest_of(oras.manifest(f"{repository}@{layer.digest}")) == layer.digest
    config = layout.manifest.config
    assert digest_of(oras.blob(f"{repository}@{config.digest}", tmp_path / "config")) == config.digest

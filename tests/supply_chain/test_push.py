"""Push, pull and their plans: how many bytes travel, and what is refused."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from supply_chain.delta import OBJECTS, FetchPlan, Publication, layout_publication, plan_fetch, publication
from supply_chain.errors import BrokenAnswer, InvalidDocument, InvalidReference, LayoutError, WrongContent
from supply_chain.layout import Layout, open_layout
from supply_chain.oci import DOCUMENT_LIMIT, MANIFEST, Descriptor, digest_of
from supply_chain.pull import PullResult, pull
from supply_chain.push import PushPlan, PushResult, push
from supply_chain.registry import Policy, open_repository
from tests.supply_chain.images import BUNDLE, hang, noise, write_image
from tests.supply_chain.registry_server import Fault, Planned, RegistryServer

PACKAGES = {
    name: [noise(f"{name}-{number}", 9_000) for number in range(10)] for name in ("bash", "libc", "systemd")
}
CHANGED = {**PACKAGES, "libc": [*PACKAGES["libc"][:-1], noise("libc-new", 9_500)]}


@pytest.fixture
def image(tmp_path: Path) -> Layout:
    return write_image(tmp_path / "image", PACKAGES)


@pytest.fixture
def changed(tmp_path: Path) -> Layout:
    return write_image(tmp_path / "changed", CHANGED)


def _ref(server: RegistryServer, tag: str = "v1") -> str:
    return f"{server.host}/team/image:{tag}"


def _push(layout: Layout, ref: str, policy: Policy, mount_from: tuple[str, ...] = ()) -> PushResult:
    done = anyio.run(lambda: push(layout.folder, ref, plain_http=True, policy=policy, mount_from=mount_from))
    assert isinstance(done, PushResult)
    return done


def _plan(layout: Layout, ref: str, policy: Policy, mount_from: tuple[str, ...] = ()) -> PushPlan:
    done = anyio.run(
        lambda: push(layout.folder, ref, plain_http=True, policy=policy, mount_from=mount_from, dry_run=True)
    )
    assert isinstance(done, PushPlan)
    return done


def _pull(ref: str, folder: Path, policy: Policy, limit: int | None = None) -> PullResult:
    return anyio.run(lambda: pull(ref, folder, plain_http=True, policy=policy, limit=limit))


def _size(layout: Layout) -> int:
    return sum(blob.size for blob in layout.manifest.blobs)


def test_a_second_push_sends_no_blob_bytes(image: Layout, server: RegistryServer, policy: Policy) -> None:
    first = _push(image, _ref(server), policy)
    assert first.blob_bytes_sent == _size(image)
    assert first.document_bytes_sent == image.image.size
    received = server.sent("PATCH") + server.sent("PUT")
    assert received == first.blob_bytes_sent + first.document_bytes_sent
    second = _push(image, _ref(server), policy)
    assert (second.blobs_sent, second.blob_bytes_sent, second.document_bytes_sent) == (0, 0, 0)
    assert server.sent("PATCH") + server.sent("PUT") == received
    other_tag = _push(image, _ref(server, "v2"), policy)
    assert (other_tag.blob_bytes_sent, other_tag.document_bytes_sent) == (0, image.image.size)
    assert server.repo("team/image").tags == {"v1": image.image.digest, "v2": image.image.digest}


def test_one_package_changed_sends_its_pack_metadata_config_and_manifest(
    image: Layout, changed: Layout, server: RegistryServer, policy: Policy
) -> None:
    _push(image, _ref(server), policy)
    before = server.sent("PATCH") + server.sent("PUT") + server.sent("POST")
    done = _push(changed, _ref(server), policy)
    pack, metadata = changed.layer("objects-libc.pack"), changed.layer("root.cfs")
    floor = pack.size + metadata.size + changed.manifest.config.size + changed.image.size
    sent = server.sent("PATCH") + server.sent("PUT") + server.sent("POST") - before
    assert sent == done.blob_bytes_sent + done.document_bytes_sent
    assert sent <= 1.05 * floor
    assert done.blobs_present == len(image.manifest.blobs) - 3


def test_the_dry_run_says_what_the_push_then_sends(
    image: Layout, changed: Layout, server: RegistryServer, policy: Policy
) -> None:
    plan = _plan(image, _ref(server), policy)
    assert server.sent("PATCH") + server.sent("PUT") + server.sent("POST") == 0
    assert {one.method for one in server.seen} == {"HEAD"}
    assert plan.send_manifest
    assert plan.send_bytes == plan.total_bytes == _push(image, _ref(server), policy).blob_bytes_sent
    plan = _plan(changed, _ref(server), policy)
    assert (
        plan.send_bytes == sum(plan.missing.values()) == _push(changed, _ref(server), policy).blob_bytes_sent
    )
    plan = _plan(changed, _ref(server), policy)
    assert (plan.send_bytes, plan.send_manifest) == (0, False)
    assert json.loads(json.dumps(plan.to_json()))["digest"] == changed.image.digest


def test_blobs_of_another_repository_are_mounted(
    image: Layout, changed: Layout, server: RegistryServer, policy: Policy
) -> None:
    _push(image, f"{server.host}/team/base:v1", policy)
    plan = _plan(changed, _ref(server), policy, ("team/base",))
    assert plan.mount_bytes > 0
    done = _push(changed, _ref(server), policy, ("team/base",))
    assert done.blob_bytes_sent == plan.send_bytes
    assert done.blobs_mounted == len(changed.manifest.blobs) - 3


def test_progress_ends_at_the_whole(image: Layout, server: RegistryServer, policy: Policy) -> None:
    told: list[tuple[int, int]] = []

    async def run() -> None:
        await push(
            image.folder,
            _ref(server),
            plain_http=True,
            policy=policy,
            progress=lambda *now: told.append(now),
        )

    anyio.run(run)
    assert told[-1] == (_size(image), _size(image))
    assert told == sorted(told)


def test_referrers_travel_with_the_image(
    image: Layout, server: RegistryServer, policy: Policy, tmp_path: Path
) -> None:
    signed = hang(hang(image, b'{"signature": 1}'), b'{"sbom": 1}', "application/spdx+json")
    for api in (True, False):
        server.referrers_api = api
        server.repos.clear()
        done = _push(signed, _ref(server), policy)
        assert done.referrers == tuple(entry.digest for entry in signed.index.manifests[1:])
        pulled = _pull(_ref(server), tmp_path / f"pulled-{api}", policy)
        assert set(pulled.referrers) == set(done.referrers)
        layout = open_layout(tmp_path / f"pulled-{api}")
        layout.check()
        assert {entry.artifact_type for entry in layout.index.manifests[1:]} == {
            BUNDLE,
            "application/spdx+json",
        }
        for entry in layout.index.manifests[1:]:
            assert digest_of(layout.read(entry, limit=DOCUMENT_LIMIT)) == entry.digest


def test_a_digest_as_reference(
    image: Layout, changed: Layout, server: RegistryServer, policy: Policy
) -> None:
    ref = f"{server.host}/team/image@{image.image.digest}"
    assert _push(image, ref, policy).reference == ref
    assert server.repo("team/image").tags == {}
    with pytest.raises(LayoutError, match="the reference names"):
        _push(changed, ref, policy)


def test_a_tag_that_another_push_took_is_told(image: Layout, server: RegistryServer, policy: Policy) -> None:
    repo, theirs = server.repo("team/image"), "sha256:" + "0" * 64

    def moved(method: str, path: str) -> bool:
        if method == "HEAD" and path.endswith("/manifests/v1") and "v1" in repo.tags:
            repo.manifests[theirs] = (MANIFEST, b"{}")
            repo.tags["v1"] = theirs
        return False

    server.faults = [Planned(Fault.ERROR, where=moved)]
    with pytest.raises(WrongContent, match=f"but the reference has {theirs}") as caught:
        _push(image, _ref(server), policy)
    assert "tag" in caught.value.hint


@pytest.mark.parametrize("attack", ["changed", "cut", "gone", "longer"])
def test_a_layout_that_is_not_what_it_says_is_not_pushed(
    attack: str, image: Layout, server: RegistryServer, policy: Policy, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(image.folder, copy)
    path = copy / "blobs" / "sha256" / image.layer("objects-libc.pack").hex
    content = path.read_bytes()
    if attack == "gone":
        path.unlink()
    else:
        path.write_bytes(
            {"changed": b"x" + content[1:], "cut": content[:-1], "longer": content + b"x"}[attack]
        )
    if attack == "longer":
        # the blob is its first bytes; what stands behind them never leaves
        assert _push(open_layout(copy), _ref(server), policy).blob_bytes_sent == _size(image)
        assert all(digest_of(blob) == digest for digest, blob in server.repo("team/image").blobs.items())
        return
    with pytest.raises(LayoutError):
        _push(open_layout(copy), _ref(server), policy)
    assert server.repo("team/image").tags == {}
    assert all(digest_of(blob) == digest for digest, blob in server.repo("team/image").blobs.items())


def test_a_second_image_in_the_layout_is_refused(
    image: Layout, changed: Layout, server: RegistryServer, policy: Policy
) -> None:
    blob = changed.folder / "blobs" / "sha256" / changed.image.hex
    shutil.copy(blob, image.folder / "blobs" / "sha256")
    index = image.index.model_copy(update={"manifests": (image.image, changed.image)})
    (image.folder / "index.json").write_bytes(index.to_bytes())
    with pytest.raises(LayoutError, match="does not refer"):
        _push(open_layout(image.folder), _ref(server), policy)
    assert server.count == 0


def test_wrong_use_asks_nobody(image: Layout, server: RegistryServer, policy: Policy) -> None:
    for ref in ("team/image:v1", f"{server.host}/team/image", f"--upload-pack=x {server.host}/a:b"):
        with pytest.raises(InvalidReference):
            _push(image, ref, policy)
    assert server.count == 0


# pull


def test_a_pull_goes_on_where_it_stopped(
    image: Layout, server: RegistryServer, policy: Policy, tmp_path: Path
) -> None:
    _push(image, _ref(server), policy)
    folder = tmp_path / "pulled"
    pack = image.layer("objects-libc.pack")
    server.faults = [
        Planned(
            Fault.CUT_IN_ANSWER,
            where=lambda method, path: path.endswith(pack.digest) and method == "GET",
            times=1,
        ),
        Planned(
            Fault.CUT_BEFORE,
            where=lambda method, path: path.endswith(pack.digest) and method == "GET",
            times=99,
        ),
    ]
    with pytest.raises(Exception, match="cut"):
        _pull(_ref(server), folder, replace(policy, parallel=1))
    assert not (folder / "index.json").exists()
    kept = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert kept >= pack.size // 2
    server.faults = []
    done = _pull(_ref(server), folder, policy)
    assert done.bytes_received == _size(image) - kept
    open_layout(folder).check()
    again = _pull(_ref(server), folder, policy)
    assert (again.bytes_received, again.blobs_fetched) == (0, 0)
    assert not (folder / ".partial").exists()


def test_a_changed_blob_on_disk_is_fetched_anew(
    image: Layout, server: RegistryServer, policy: Policy, tmp_path: Path
) -> None:
    _push(image, _ref(server), policy)
    folder = tmp_path / "pulled"
    _pull(_ref(server), folder, policy)
    pack = image.layer("objects-libc.pack")
    path = folder / "blobs" / "sha256" / pack.hex
    path.write_bytes(bytes(pack.size))
    assert _pull(_ref(server), folder, policy).bytes_received == pack.size
    open_layout(folder).check()


def test_folders_with_something_else_are_left_alone(
    image: Layout, changed: Layout, server: RegistryServer, policy: Policy, tmp_path: Path
) -> None:
    _push(image, _ref(server), policy)
    before = (changed.folder / "index.json").read_bytes()
    with pytest.raises(LayoutError, match="expected the image"):
        _pull(_ref(server), changed.folder, policy)
    assert (changed.folder / "index.json").read_bytes() == before
    with pytest.raises(LayoutError, match="no OCI layout"):
        _pull(_ref(server), tmp_path, policy)
    (tmp_path / "file").write_text("x")
    with pytest.raises(LayoutError):
        _pull(_ref(server), tmp_path / "file", policy)


def test_a_pull_has_its_limit(image: Layout, server: RegistryServer, policy: Policy, tmp_path: Path) -> None:
    _push(image, _ref(server), policy)
    with pytest.raises(BrokenAnswer, match="at most 1000"):
        _pull(_ref(server), tmp_path / "pulled", policy, limit=1000)
    assert not (tmp_path / "pulled").exists()


# what a node would fetch


def _fetch(server: RegistryServer, policy: Policy, new: str | Layout, old: str) -> FetchPlan:
    async def run() -> FetchPlan:
        async with open_repository(server.host, "team/image", plain_http=True, policy=policy) as repository:
            news = layout_publication(new) if isinstance(new, Layout) else await publication(repository, new)
            return await plan_fetch(news, await publication(repository, old))

    return anyio.run(run)


def test_a_node_fetches_changed_packs_or_only_their_new_objects(
    image: Layout, changed: Layout, server: RegistryServer, policy: Policy
) -> None:
    _push(image, _ref(server, "old"), policy)
    before_push = _fetch(server, policy, changed, "old")
    _push(changed, _ref(server, "new"), policy)
    plan = _fetch(server, policy, "new", "old")
    assert plan == before_push
    pack, metadata = changed.layer("objects-libc.pack"), changed.layer("root.cfs")
    assert plan.by_pack_bytes == pack.size + metadata.size
    assert (plan.changed_packs, plan.missing_objects) == (1, 1)
    object_bytes = plan.by_object_bytes - plan.other_bytes - plan.index_bytes
    assert 9_500 <= object_bytes <= 9_600
    assert plan.by_object_bytes < plan.by_pack_bytes / 4
    nothing = _fetch(server, policy, "old", "old")
    assert (nothing.by_pack_bytes, nothing.by_object_bytes, nothing.index_bytes) == (0, 0, 0)


def test_an_object_that_moved_to_another_pack_is_not_fetched(
    image: Layout, server: RegistryServer, policy: Policy, tmp_path: Path
) -> None:
    moved = {"bash": PACKAGES["bash"], "systemd": [*PACKAGES["systemd"], *PACKAGES["libc"]]}
    _push(image, _ref(server, "old"), policy)
    plan = _fetch(server, policy, write_image(tmp_path / "moved", moved), "old")
    assert plan.missing_objects == 0
    assert plan.by_object_bytes == plan.other_bytes + plan.index_bytes
    assert plan.by_pack_bytes > 100_000


def test_only_tails_are_read_for_it(
    image: Layout, changed: Layout, server: RegistryServer, policy: Policy
) -> None:
    _push(image, _ref(server, "old"), policy)
    _push(changed, _ref(server, "new"), policy)
    server.seen.clear()
    plan = _fetch(server, policy, "new", "old")
    ranged = [one for one in server.seen if "/blobs/" in one.path]
    assert {one.status for one in ranged} == {206}
    assert plan.index_bytes < changed.layer("objects-libc.pack").size / 50


def test_a_pack_without_an_index_is_named(image: Layout) -> None:
    kernel = image.layer("vmlinuz")
    fake = Descriptor(media_type=OBJECTS, digest=kernel.digest, size=kernel.size)
    manifest = image.manifest.model_copy(update={"layers": (fake,)})
    old = layout_publication(image)
    with pytest.raises(InvalidDocument, match=fake.digest):
        anyio.run(plan_fetch, old, Publication(manifest, old.ranges))


def test_two_pulls_into_one_folder_do_not_meet(
    image: Layout, server: RegistryServer, policy: Policy, tmp_path: Path
) -> None:
    _push(image, _ref(server), policy)
    (tmp_path / "pulled" / ".partial").mkdir(parents=True)
    other = os.open(tmp_path / "pulled" / ".partial", os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(LayoutError, match="another pull"):
            _pull(_ref(server), tmp_path / "pulled", policy)
    finally:
        os.close(other)
    _pull(_ref(server), tmp_path / "pulled", policy)


@pytest.mark.parametrize(
    "room", [lambda pack: pack // 2, lambda _: 100], ids=["half a pack", "less than a buffer"]
)
def test_a_full_disk_is_told_and_healed(
    room: Callable[[int], int], image: Layout, server: RegistryServer, policy: Policy, tmp_path: Path
) -> None:
    _push(image, _ref(server), policy)
    pack = image.layer("objects-libc.pack")
    most, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room(pack.size), hard))
        with pytest.raises(LayoutError, match="can't be written"):
            _pull(_ref(server), tmp_path / "pulled", policy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not (tmp_path / "pulled" / "index.json").exists()
    _pull(_ref(server), tmp_path / "pulled", policy)
    open_layout(tmp_path / "pulled").check()

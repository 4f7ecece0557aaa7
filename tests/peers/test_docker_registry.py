"""Push and pull against Debian's docker-registry: a real distribution server, without the referrers API."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from supply_chain.delta import plan_fetch, publication
from supply_chain.layout import open_layout
from supply_chain.oci import Descriptor, digest_of
from supply_chain.pull import pull
from supply_chain.push import PushResult, push
from supply_chain.registry import How, Policy, open_repository, read_bytes
from supply_chain.registry.referrers import fallback_tag
from tests.peers.docker_registry import breaking_line, docker_registry, missing
from tests.supply_chain.images import hang, noise, write_image

pytestmark = [pytest.mark.peers, pytest.mark.skipif(missing() is not None, reason=str(missing()))]

POLICY = Policy(first=0.05, longest=0.2, chunk=1024 * 1024)
CONTENT = noise("blob", 6 * 1024 * 1024 + 17)
BLOB = Descriptor(media_type="application/octet-stream", digest=digest_of(CONTENT), size=len(CONTENT))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The registry's address."""
    with docker_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


def _push(folder: Path, ref: str, mount_from: tuple[str, ...] = ()) -> PushResult:
    done = anyio.run(lambda: push(folder, ref, plain_http=True, policy=POLICY, mount_from=mount_from))
    assert isinstance(done, PushResult)
    return done


def test_push_again_pull(host: str, tmp_path: Path) -> None:
    packages = {name: [noise(name, 900_000), noise(f"{name}2", 700_000)] for name in ("bash", "libc")}
    layout = hang(write_image(tmp_path / "image", packages), b'{"a": "bundle"}')
    ref = f"{host}/team/image:v1"
    first = _push(layout.folder, ref)
    assert first.blobs_sent == len(layout.manifest.blobs) + 2
    again = _push(layout.folder, ref)
    assert again.blob_bytes_sent == 0
    pulled = anyio.run(lambda: pull(ref, tmp_path / "pulled", plain_http=True, policy=POLICY))
    assert pulled.digest == layout.image.digest
    assert pulled.referrers == first.referrers
    copy = open_layout(tmp_path / "pulled")
    copy.check()
    assert copy.manifest_bytes == layout.manifest_bytes


def test_only_the_changed_pack_travels_and_only_new_objects_are_fetched(host: str, tmp_path: Path) -> None:
    packages = {name: [noise(f"{name}{n}", 20_000) for n in range(50)] for name in ("bash", "libc")}
    old = write_image(tmp_path / "old", packages)
    packages["libc"][7] = noise("new", 21_000)
    new = write_image(tmp_path / "new", packages)
    _push(old.folder, f"{host}/team/delta:old")
    done = _push(new.folder, f"{host}/team/delta:new")
    parts = (new.layer("objects-libc.pack"), new.layer("root.cfs"), new.manifest.config)
    floor = sum(blob.size for blob in parts) + new.image.size
    assert done.blob_bytes_sent + done.document_bytes_sent <= 1.05 * floor

    async def fetch() -> tuple[int, int]:
        async with open_repository(host, "team/delta", plain_http=True, policy=POLICY) as repository:
            plan = await plan_fetch(
                await publication(repository, "new"), await publication(repository, "old")
            )
            return plan.by_pack_bytes, plan.by_object_bytes - plan.other_bytes - plan.index_bytes

    by_pack, objects = anyio.run(fetch)
    assert by_pack == new.layer("objects-libc.pack").size + new.layer("root.cfs").size
    assert 21_000 <= objects <= 21_100


def test_referrers_of_several_pushes_add_up(host: str, tmp_path: Path) -> None:
    layout = write_image(tmp_path / "image", {"a": [b"x"]})
    ref = f"{host}/team/referrers:v1"
    for number in range(4):
        layout = hang(layout, b"bundle %d" % number)
        _push(layout.folder, ref)

    async def listed() -> tuple[set[str], str | None]:
        async with open_repository(host, "team/referrers", plain_http=True, policy=POLICY) as repository:
            found = await repository.referrers.list(layout.image.digest)
            tag = await repository.manifests.resolve(fallback_tag(layout.image.digest))
            return {one.descriptor.digest for one in found}, tag

    found, tag = anyio.run(listed)
    assert found == {entry.digest for entry in layout.index.manifests[1:]}
    assert tag is not None


def test_mount(host: str) -> None:
    async def run() -> list[How]:
        found = []
        for name in ("team/first", "team/second"):
            async with open_repository(host, name, plain_http=True, policy=POLICY) as repository:
                found.append(await repository.upload(BLOB, read_bytes(CONTENT), mount_from=("team/first",)))
        return found

    assert anyio.run(run) == [How.SENT, How.MOUNTED]


@pytest.mark.parametrize("at", [10, 400, 300_000, 1_500_000, 3_000_000])
def test_an_upload_over_a_breaking_line_arrives(host: str, at: int) -> None:
    """distribution 2.8 gives an upload up when its size is not the one in the URL's state, as after half a
    chunk, so here the blob starts over; a registry that keeps it is tested in tests/supply_chain.
    """
    sent = 0

    def count(count: int) -> None:
        nonlocal sent
        sent += count

    async def run(line_host: str) -> How:
        name = f"team/broken-{at}"
        async with open_repository(line_host, name, plain_http=True, policy=POLICY) as repository:
            return await repository.upload(BLOB, read_bytes(CONTENT), on_sent=count)

    with breaking_line(host) as line:
        line.breaks = [at, at]
        assert anyio.run(run, line.host) is How.SENT
        assert line.broken == 2

    async def read() -> bytes:
        async with open_repository(host, f"team/broken-{at}", plain_http=True, policy=POLICY) as repository:
            return await repository.read(BLOB, BLOB.size)

    assert anyio.run(read) == CONTENT
    assert BLOB.size <= sent <= BLOB.size + 2 * (at + 2 * POLICY.chunk)


def test_ranges_and_resume(host: str) -> None:
    async def run() -> None:
        async with open_repository(
            host, "team/ranges", plain_http=True, policy=replace(POLICY)
        ) as repository:
            await repository.upload(BLOB, read_bytes(CONTENT))
            assert await repository.read_range(BLOB, 1000, 5000) == CONTENT[1000:6000]
            assert await repository.read_range(BLOB, BLOB.size - 24, 24) == CONTENT[-24:]
            file = io.BytesIO(CONTENT[:1_000_000])
            received = 0

            def count(count: int) -> None:
                nonlocal received
                received += count

            await repository.download(BLOB, file, on_received=count)
            assert file.getvalue() == CONTENT
            assert received == BLOB.size - 1_000_000

    anyio.run(run)

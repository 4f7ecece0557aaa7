"""Mounting, broken uploads and ranges against Debian's docker-registry."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import anyio
import pytest

from supply_chain.oci import Descriptor, digest_of
from supply_chain.registry import How, Policy, open_repository, read_bytes
from tests.peers.breaking_line import breaking_line
from tests.peers.docker_registry import docker_registry, missing
from tests.supply_chain.images import noise

pytestmark = [pytest.mark.peers, pytest.mark.skipif(missing() is not None, reason=str(missing()))]

POLICY = Policy(first=0.05, longest=0.2, chunk=1024 * 1024)
CONTENT = noise("blob", 6 * 1024 * 1024 + 17)
BLOB = Descriptor(media_type="application/octet-stream", digest=digest_of(CONTENT), size=len(CONTENT))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The registry's address."""
    with docker_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


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

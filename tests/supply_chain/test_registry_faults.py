"""The fault matrix: every fault at every request of a push and of a pull.

Each run ends in success or in a clear error, never in a wrong artifact and never without a bound; after an
error the same call without the fault completes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from supply_chain.errors import RegistryError, SupplyChainError, Unavailable
from supply_chain.layout import Layout, open_layout
from supply_chain.oci import digest_of, parse_manifest
from supply_chain.pull import PullResult, pull
from supply_chain.push import PushResult, push
from supply_chain.registry import Policy
from tests.supply_chain.images import hang, noise, write_image
from tests.supply_chain.registry_server import Fault, Planned, RegistryServer, registry
from tests.waits import Waits

# One of these, once, must not even be noticed.
HEALED = frozenset(
    {
        Fault.CUT_BEFORE,
        Fault.CUT_IN_BODY,
        Fault.CUT_AFTER,
        Fault.CUT_IN_ANSWER,
        Fault.TOO_MANY,
        Fault.ERROR,
        Fault.BUSY,
        Fault.TRICKLE,
        Fault.UNAUTHORIZED,
        Fault.LOST_UPLOAD,
        Fault.LOST_BLOB,
    }
)
ALWAYS = 1_000_000


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Few blobs, one of two chunks, and a referrer."""
    folder = tmp_path_factory.mktemp("image") / "layout"
    layout = write_image(folder, {"base": [noise("base", 70_000)]})
    return hang(layout, b'{"a": "bundle"}')


@pytest.fixture
def one_by_one(policy: Policy) -> Policy:
    """Requests in one order, and a trickle that ends soon."""
    return replace(policy, parallel=1, silence=0.2, connect_timeout=0.5, slowest=50_000_000)


def _push(image: Layout, server: RegistryServer, policy: Policy) -> PushResult:
    ref = f"{server.host}/team/image:v1"
    done = anyio.run(lambda: push(image.folder, ref, plain_http=True, policy=policy))
    assert isinstance(done, PushResult)
    return done


def _pull(server: RegistryServer, folder: Path, policy: Policy) -> PullResult:
    return anyio.run(lambda: pull(f"{server.host}/team/image:v1", folder, plain_http=True, policy=policy))


def _whole(server: RegistryServer, image: Layout) -> None:
    """The tag has the image, everything below is there and is what its name says."""
    repo = server.repo("team/image")
    assert repo.tags["v1"] == image.image.digest
    for digest, (_, content) in repo.manifests.items():
        assert digest_of(content) == digest
    for digest, content in repo.blobs.items():
        assert digest_of(content) == digest
    for blob in image.manifest.blobs:
        assert repo.blobs[blob.digest] == image.path(blob).read_bytes()
    assert {entry.digest for entry in image.index.manifests} <= set(repo.manifests)


def _nothing_wrong(server: RegistryServer) -> None:
    """Whatever a failed push left: no tag without all of its parts, no blob under another's name."""
    repo = server.repo("team/image")
    for digest, content in repo.blobs.items():
        assert digest_of(content) == digest
    if "v1" in repo.tags:
        manifest = parse_manifest(repo.manifests[repo.tags["v1"]][1], "left")
        assert {blob.digest for blob in manifest.blobs} <= set(repo.blobs)


def _requests(image: Layout, policy: Policy) -> int:
    with registry() as server:
        _push(image, server, policy)
        return server.count


@pytest.mark.parametrize("fault", Fault)
def test_push_with_one_fault_at_every_request(fault: Fault, image: Layout, one_by_one: Policy) -> None:
    for at in range(_requests(image, one_by_one)):
        with registry() as server:
            server.faults = [Planned(fault, at=at)]
            error: SupplyChainError | None = None
            try:
                _push(image, server, one_by_one)
            except SupplyChainError as caught:
                error = caught
            assert server.count > at
            if error is None:
                _whole(server, image)
                continue
            assert fault not in HEALED, f"{fault} at request {at}, {server.seen[at]}: {error}"
            assert error.hint
            _nothing_wrong(server)
            _push(image, server, one_by_one)
            _whole(server, image)


@pytest.mark.parametrize("fault", Fault)
def test_pull_with_one_fault_at_every_request(
    fault: Fault, image: Layout, one_by_one: Policy, tmp_path: Path
) -> None:
    with registry() as server:
        _push(image, server, one_by_one)
        before = server.count
        _pull(server, tmp_path / "clean", one_by_one)
        requests = server.count - before
        for at in range(requests):
            folder = tmp_path / str(at)
            server.faults = [Planned(fault, at=server.count + at)]
            error: SupplyChainError | None = None
            try:
                _pull(server, folder, one_by_one)
            except SupplyChainError as caught:
                error = caught
            if error is not None:
                assert fault not in HEALED, f"{fault} at request {at}: {error}"
                assert error.hint
                assert not (folder / "index.json").exists()
                server.faults = []
                _pull(server, folder, one_by_one)
            layout = open_layout(folder)
            layout.check()
            assert layout.image.digest == image.image.digest
            assert layout.manifest_bytes == image.manifest_bytes
            assert [one.digest for one in layout.index.manifests] == [
                one.digest for one in image.index.manifests
            ]


@pytest.mark.parametrize("fault", sorted(set(Fault) - {Fault.UNAUTHORIZED}))
def test_push_to_a_registry_that_always_fails(fault: Fault, image: Layout, one_by_one: Policy) -> None:
    with registry() as server:
        server.faults = [Planned(fault, times=ALWAYS)]
        if fault in (Fault.TRICKLE, Fault.WRONG_BYTES, Fault.TRUNCATED, Fault.CUT_IN_ANSWER):
            # answers to a push have no body that matters but the listing of referrers
            server.faults = [Planned(fault, where=lambda method, path: "referrers" in path, times=ALWAYS)]
        with pytest.raises(RegistryError) as caught:
            _push(image, server, one_by_one)
        assert caught.value.hint
        assert server.count < 400
        _nothing_wrong(server)


@pytest.mark.parametrize(
    "fault", sorted(set(Fault) - {Fault.LOST_UPLOAD, Fault.LOST_BLOB, Fault.CUT_IN_BODY})
)
@pytest.mark.parametrize("kind", ["/manifests/", "/blobs/", "/referrers/"])
def test_pull_from_a_registry_that_always_fails(
    fault: Fault, kind: str, image: Layout, one_by_one: Policy, tmp_path: Path
) -> None:
    with registry() as server:
        _push(image, server, one_by_one)
        before = server.count
        server.faults = [Planned(fault, where=lambda method, path: kind in path, times=ALWAYS)]
        with pytest.raises(SupplyChainError) as caught:
            _pull(server, tmp_path / "pulled", one_by_one)
        assert caught.value.hint
        assert server.count - before < 100
        assert not (tmp_path / "pulled" / "index.json").exists()


def test_retry_after_is_kept_to(
    image: Layout, one_by_one: Policy, waits: Waits, server: RegistryServer
) -> None:
    server.retry_after = "7"
    server.faults = [Planned(Fault.TOO_MANY, at=0), Planned(Fault.BUSY, at=3)]
    _push(image, server, one_by_one)
    assert waits.slept == [7.0, 7.0]


def test_a_retry_after_beyond_the_patience_ends_at_once_and_is_told(
    image: Layout, one_by_one: Policy, waits: Waits, server: RegistryServer
) -> None:
    server.retry_after = "86400"
    server.faults = [Planned(Fault.TOO_MANY, times=ALWAYS)]
    with pytest.raises(Unavailable) as caught:
        _push(image, server, one_by_one)
    assert waits.slept == []
    assert server.count == 1
    assert "86400" in caught.value.hint
    assert caught.value.status == 429


def test_no_registry_there(image: Layout, one_by_one: Policy, waits: Waits) -> None:
    with registry() as server:
        gone = server.host
    with pytest.raises(Unavailable, match="can't connect") as caught:
        anyio.run(lambda: push(image.folder, f"{gone}/a:b", plain_http=True, policy=one_by_one))
    assert len(waits.slept) == one_by_one.attempts - 1
    assert "again" in caught.value.hint

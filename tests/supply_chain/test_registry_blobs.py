"""Blobs: what is sent again after a cut, what is mounted, and what is believed."""

from __future__ import annotations

import io
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import anyio
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import UsageError
from supply_chain.errors import (
    BrokenAnswer,
    LayoutError,
    NotFound,
    RegistryError,
    SupplyChainError,
    WrongContent,
)
from supply_chain.oci import Descriptor, digest_of
from supply_chain.registry import How, Policy, Repository, open_repository, read_bytes, read_file
from tests.supply_chain.registry_server import Fault, Planned, RegistryServer, registry
from tests.waits import Waits

_Result = TypeVar("_Result")
CHUNK = 64 * 1024
CONTENT = random.Random("blob").randbytes(CHUNK * 4 + 1000)


def _blob(content: bytes) -> Descriptor:
    return Descriptor(media_type="application/octet-stream", digest=digest_of(content), size=len(content))


BLOB = _blob(CONTENT)


def _run(
    server: RegistryServer,
    policy: Policy,
    work: Callable[[Repository], Awaitable[_Result]],
    name: str = "team/image",
) -> _Result:
    async def run() -> _Result:
        async with open_repository(server.host, name, plain_http=True, policy=policy) as repository:
            return await work(repository)

    return anyio.run(run)


@dataclass
class Counter:
    bytes: int = 0

    def __call__(self, count: int) -> None:
        self.bytes += count


def _upload(
    server: RegistryServer, policy: Policy, content: bytes = CONTENT, **options: object
) -> tuple[How, int]:
    counter = Counter()
    mount_from = options.get("mount_from", ())
    assert isinstance(mount_from, tuple)

    async def work(repository: Repository) -> How:
        return await repository.upload(
            _blob(content), read_bytes(content), mount_from=mount_from, on_sent=counter
        )

    return _run(server, policy, work), counter.bytes


def _download(server: RegistryServer, policy: Policy, start: bytes = b"") -> tuple[bytes, int]:
    file, counter = io.BytesIO(start), Counter()

    async def work(repository: Repository) -> None:
        await repository.download(BLOB, file, on_received=counter)

    _run(server, policy, work)
    return file.getvalue(), counter.bytes


# uploads


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK * 2, CHUNK * 2 + 1])
@pytest.mark.parametrize("absolute", [False, True])
def test_sizes_around_a_chunk(size: int, absolute: bool, server: RegistryServer, policy: Policy) -> None:
    server.absolute_locations = absolute
    content = CONTENT[:size]
    assert _upload(server, policy, content) == (How.SENT, size)
    assert server.repo("team/image").blobs == {digest_of(content): content}
    assert server.sent("PATCH") == (size if size > CHUNK else 0)


def test_what_is_there_is_not_sent(server: RegistryServer, policy: Policy) -> None:
    server.repo("team/image").blobs[BLOB.digest] = CONTENT
    assert _upload(server, policy) == (How.PRESENT, 0)
    assert [one.method for one in server.seen] == ["HEAD"]


def test_a_cut_costs_no_more_than_half_a_chunk(server: RegistryServer, policy: Policy) -> None:
    server.faults = [Planned(Fault.CUT_IN_BODY, where=lambda method, path: method == "PATCH", times=1)]
    how, sent = _upload(server, policy)
    assert how is How.SENT
    assert server.repo("team/image").blobs[BLOB.digest] == CONTENT
    assert server.sent("PATCH") + server.sent("PUT") == BLOB.size
    assert sent <= BLOB.size + CHUNK // 2
    # one session, asked for what it has
    assert sum(one.method == "POST" for one in server.seen) == 1
    assert sum(one.method == "GET" for one in server.seen) == 1


def test_an_upload_that_is_cut_at_every_chunk_arrives(
    server: RegistryServer, policy: Policy, waits: Waits
) -> None:
    # more cuts than attempts: each of them leaves more than there was
    server.faults = [
        Planned(Fault.CUT_IN_BODY, where=lambda method, path: method == "PATCH", times=1) for _ in range(3)
    ] + [Planned(Fault.CUT_AFTER, where=lambda method, path: method == "PATCH", times=3)]
    assert _upload(server, policy)[0] is How.SENT
    assert server.repo("team/image").blobs[BLOB.digest] == CONTENT


def test_a_lost_answer_to_the_last_request_is_no_second_upload(
    server: RegistryServer, policy: Policy
) -> None:
    server.faults = [Planned(Fault.CUT_AFTER, where=lambda method, path: method == "PUT")]
    assert _upload(server, policy) == (How.SENT, BLOB.size)
    assert server.repo("team/image").blobs[BLOB.digest] == CONTENT


def test_a_registry_that_loses_every_session_ends_the_upload(server: RegistryServer, policy: Policy) -> None:
    server.faults = [Planned(Fault.LOST_UPLOAD, where=lambda method, path: method == "PUT", times=1000)]
    with pytest.raises(RegistryError) as caught:
        _upload(server, policy)
    assert "BLOB_UPLOAD_UNKNOWN" in caught.value.codes
    assert sum(one.method == "POST" for one in server.seen) == policy.attempts
    assert server.repo("team/image").blobs == {}


def test_the_least_chunk_that_the_registry_takes_is_kept_to(server: RegistryServer, policy: Policy) -> None:
    server.chunk_least = CHUNK * 3
    content = CONTENT[: CHUNK * 4 - CHUNK]
    assert _upload(server, policy, content)[0] is How.SENT
    # smaller than one such chunk: sent whole
    assert server.sent("PATCH") == 0


def test_a_blob_that_changed_on_disk_never_arrives(
    server: RegistryServer, policy: Policy, tmp_path: Path
) -> None:
    path = tmp_path / "blob"
    for changed in (CONTENT[:-1] + b"x", b"x" + CONTENT[1:], CONTENT[:-1]):
        path.write_bytes(changed)
        with pytest.raises(LayoutError) as caught:
            _run(server, policy, lambda repository: repository.upload(BLOB, read_file(path)))
        assert BLOB.digest in caught.value.what
    path.unlink()
    with pytest.raises(LayoutError, match="No such file"):
        _run(server, policy, lambda repository: repository.upload(BLOB, read_file(path)))
    assert server.repo("team/image").blobs == {}


def test_a_refusal_is_told_at_once(server: RegistryServer, policy: Policy, waits: Waits) -> None:
    server.auth, server.users = "basic", {"user": "x"}
    with pytest.raises(RegistryError):
        _upload(server, policy)
    assert waits.slept == []


# mounts


def test_mount(server: RegistryServer, policy: Policy) -> None:
    server.repo("team/base").blobs[BLOB.digest] = CONTENT
    assert _upload(server, policy, mount_from=("team/other", "team/base")) == (How.MOUNTED, 0)
    assert BLOB.digest in server.repo("team/image").blobs


def test_no_mount_here(server: RegistryServer, policy: Policy) -> None:
    server.mounts = False
    server.repo("team/base").blobs[BLOB.digest] = CONTENT
    assert _upload(server, policy, mount_from=("team/base",)) == (How.SENT, BLOB.size)
    # the session that the mount's refusal opened is used
    assert sum(one.method == "POST" for one in server.seen) == 1


def test_no_right_to_mount(server: RegistryServer, policy: Policy) -> None:
    server.auth = "bearer"
    server.repo("team/base").blobs[BLOB.digest] = CONTENT
    refused = Planned(Fault.UNAUTHORIZED, where=lambda method, path: method == "POST", times=2)
    server.faults = [refused]
    assert _upload(server, policy, mount_from=("team/base",)) == (How.SENT, BLOB.size)


# the upload state machine

FAULTS = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.sampled_from(
            [
                Fault.CUT_BEFORE,
                Fault.CUT_IN_BODY,
                Fault.CUT_AFTER,
                Fault.ERROR,
                Fault.BUSY,
                Fault.HTML,
                Fault.LOST_UPLOAD,
                Fault.LOST_BLOB,
                Fault.UNAUTHORIZED,
            ]
        ),
        st.integers(1, 3),
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(0, CHUNK * 3),
    faults=FAULTS,
    least=st.none() | st.integers(1, CHUNK * 2),
    mounts=st.booleans(),
    absolute=st.booleans(),
)
def test_any_faults_end_in_the_blob_or_an_error(
    size: int, faults: list[tuple[int, Fault, int]], least: int | None, mounts: bool, absolute: bool
) -> None:
    async def at_once(seconds: float) -> None:
        pass

    policy = Policy(attempts=4, silence=0.5, slowest=50_000_000, chunk=CHUNK // 2, sleep=at_once)
    content = CONTENT[:size]
    with registry() as server:
        server.chunk_least, server.mounts, server.absolute_locations = least, mounts, absolute
        server.repo("team/base").blobs[digest_of(content)] = content
        server.faults = [Planned(fault, at=at + n) for at, fault, times in faults for n in range(times)]
        failure: SupplyChainError | None = None
        try:
            _upload(server, policy, content, mount_from=("team/base",))
        except SupplyChainError as error:
            failure = error
        if failure is not None:
            assert failure.hint
        else:
            # only the manifest's refusal can tell of a blob that was confirmed and not kept
            lost = any(fault is Fault.LOST_BLOB for _, fault, _ in faults)
            assert lost or server.repo("team/image").blobs.get(digest_of(content)) == content
        for digest, stored in server.repo("team/image").blobs.items():
            assert digest_of(stored) == digest
        assert server.count < 200


# downloads


def test_a_download_goes_on_after_every_cut(server: RegistryServer, policy: Policy) -> None:
    server.repo("team/image").blobs[BLOB.digest] = CONTENT
    server.faults = [Planned(Fault.CUT_IN_ANSWER, times=3)]
    content, received = _download(server, policy)
    assert content == CONTENT
    assert received == BLOB.size


def test_a_download_goes_on_from_an_earlier_run(server: RegistryServer, policy: Policy) -> None:
    server.repo("team/image").blobs[BLOB.digest] = CONTENT
    assert _download(server, policy, CONTENT[:100_000]) == (CONTENT, BLOB.size - 100_000)
    assert _download(server, policy, CONTENT) == (CONTENT, 0)


@pytest.mark.parametrize("start", [b"x" * 1000, CONTENT + b"more", b"x" * len(CONTENT)])
def test_a_wrong_start_is_replaced(start: bytes, server: RegistryServer, policy: Policy) -> None:
    server.repo("team/image").blobs[BLOB.digest] = CONTENT
    content, _ = _download(server, policy, start)
    assert content == CONTENT


def test_without_ranges_it_starts_over(server: RegistryServer, policy: Policy) -> None:
    server.ranges = False
    server.repo("team/image").blobs[BLOB.digest] = CONTENT
    server.faults = [Planned(Fault.CUT_IN_ANSWER, times=2)]
    content, received = _download(server, policy)
    assert content == CONTENT
    assert received > BLOB.size


@pytest.mark.parametrize(
    ("attack", "served"),
    [
        ("one bit", CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])),
        ("another blob of that size", bytes(len(CONTENT))),
    ],
)
def test_other_bytes_are_refused_and_not_left(
    attack: str, served: bytes, server: RegistryServer, policy: Policy
) -> None:
    server.repo("team/image").blobs[BLOB.digest] = served
    file = io.BytesIO()
    with pytest.raises(WrongContent) as caught:
        _run(server, policy, lambda repository: repository.download(BLOB, file))
    assert digest_of(served) in caught.value.what, attack
    assert file.getvalue() == b""


def test_what_comes_in_tiny_parts_is_not_gathered(policy: Policy) -> None:
    """Each part takes many times its size in memory."""
    content = CONTENT[:100_000]
    file = io.BytesIO()
    waiting: list[int] = []

    class Tiny(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for at in range(len(content)):
                waiting.append(at - file.tell())
                yield content[at : at + 1]

    class Registry(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, stream=Tiny())

    async def work() -> None:
        opened = open_repository("registry.example", "team/image", policy=policy, transport=Registry())
        async with opened as repository:
            await repository.download(_blob(content), file)

    anyio.run(work)
    assert file.getvalue() == content
    assert max(waiting) < 5000


@pytest.mark.parametrize("served", [b"", CONTENT[:-1], CONTENT + b"x"])
def test_another_size_is_refused(served: bytes, server: RegistryServer, policy: Policy) -> None:
    server.repo("team/image").blobs[BLOB.digest] = served
    with pytest.raises(RegistryError, match=f"expected {BLOB.size} bytes, found {len(served)}"):
        _download(server, policy)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_check_keeps_nothing_and_goes_on_after_every_cut(
    ranges: bool, server: RegistryServer, policy: Policy
) -> None:
    server.ranges = ranges
    server.repo("team/image").blobs[BLOB.digest] = CONTENT
    server.faults = [Planned(Fault.CUT_IN_ANSWER, times=2)]
    _run(server, policy, lambda repository: repository.check(BLOB))
    assert [one.method for one in server.seen] == ["GET"] * 3


@pytest.mark.parametrize("served", [CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), bytes(len(CONTENT))])
def test_a_check_refuses_other_bytes(served: bytes, server: RegistryServer, policy: Policy) -> None:
    server.repo("team/image").blobs[BLOB.digest] = served
    with pytest.raises(WrongContent, match=digest_of(served)):
        _run(server, policy, lambda repository: repository.check(BLOB))


def test_a_missing_blob(server: RegistryServer, policy: Policy) -> None:
    with pytest.raises(NotFound) as caught:
        _download(server, policy)
    assert caught.value.codes == ("BLOB_UNKNOWN",)


def test_a_small_read_has_its_limit(server: RegistryServer, policy: Policy) -> None:
    server.repo("team/image").blobs[BLOB.digest] = CONTENT
    with pytest.raises(BrokenAnswer, match="at most 1000"):
        _run(server, policy, lambda repository: repository.read(BLOB, 1000))
    assert server.count == 0


@given(offset=st.integers(0, BLOB.size), length=st.integers(0, BLOB.size), ranges=st.booleans())
@settings(max_examples=20, deadline=None)
def test_ranges(offset: int, length: int, ranges: bool) -> None:
    length = min(length, BLOB.size - offset)
    with registry() as server:
        server.ranges = ranges
        server.repo("team/image").blobs[BLOB.digest] = CONTENT
        found = _run(server, Policy(), lambda repository: repository.read_range(BLOB, offset, length))
        assert found == CONTENT[offset : offset + length]


def test_a_range_heals_and_fails_like_everything_else(server: RegistryServer, policy: Policy) -> None:
    server.repo("team/image").blobs[BLOB.digest] = CONTENT
    for fault in (Fault.CUT_IN_ANSWER, Fault.BUSY, Fault.TRUNCATED):
        server.faults = [Planned(fault)]
        assert (
            _run(server, policy, lambda repository: repository.read_range(BLOB, 5, 5000)) == CONTENT[5:5005]
        )
    server.faults = [Planned(Fault.TRUNCATED, times=100)]
    with pytest.raises(RegistryError):
        _run(server, policy, lambda repository: repository.read_range(BLOB, 5, 5000))


# bounds


def test_plain_http_is_for_this_machine_alone() -> None:
    async def run() -> None:
        async with open_repository("registry.example.org", "a", plain_http=True):
            pass

    with pytest.raises(UsageError, match="plain-http"):
        anyio.run(run)


def test_the_budget_grows_with_the_bytes() -> None:
    policy = replace(Policy(), connect_timeout=1.0, silence=2.0, slowest=1000.0)
    assert policy.budget(0) == 3.0
    assert policy.budget(5000) == 8.0

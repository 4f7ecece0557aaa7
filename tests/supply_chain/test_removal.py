"""Removing images from a registry: all of one, and nothing of any other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from copy import deepcopy
from dataclasses import replace
from typing import Protocol, TypeVar

import anyio
import httpx
import pytest

from pipelines.definition import canonical_json
from supply_chain.errors import AccessDenied, BrokenAnswer, Rejected, SupplyChainError, Unavailable
from supply_chain.oci import EMPTY, EMPTY_CONTENT, INDEX, MANIFEST, describe, digest_of
from supply_chain.registry import GivenCredentials, Policy, Repository, open_repository
from supply_chain.registry.credentials import Credential
from supply_chain.registry.referrers import fallback_tag
from supply_chain.removal import Parts, blobs_in_use, parts_of, remove_blobs, remove_manifests
from tests.supply_chain.registry_server import Fault, Planned, RegistryServer, Repo
from tests.supply_chain.stored import BUNDLE, COMMON, Stored, manifest, store

_Result = TypeVar("_Result")


class Run(Protocol):
    """Runs work on the repository team/image."""

    def __call__(
        self, work: Callable[[Repository], Awaitable[_Result]], *, credential: bool = False
    ) -> _Result: ...


GONE = f"sha256:{0:064x}"


@pytest.fixture(params=[True, False], ids=["referrers API", "referrers tags"])
def kept_by(request: pytest.FixtureRequest, server: RegistryServer) -> RegistryServer:
    """A registry with and without the referrers API."""
    server.referrers_api = request.param
    return server


@pytest.fixture
def run(server: RegistryServer, policy: Policy) -> Run:
    def running(work: Callable[[Repository], Awaitable[_Result]], *, credential: bool = False) -> _Result:
        async def inside() -> _Result:
            given = GivenCredentials({server.host: Credential("user", "pass")}) if credential else None
            async with open_repository(
                server.host, "team/image", plain_http=True, policy=policy, credentials=given
            ) as repository:
                return await work(repository)

        return anyio.run(inside)

    return running


async def _two(repository: Repository) -> tuple[Stored, Stored]:
    return await store(repository, "old", "v1"), await store(repository, "new", "v2")


async def _remove(repository: Repository, image: str, wanted: tuple[str, ...] = ()) -> Parts:
    parts = await parts_of(repository, image)
    await remove_manifests(repository, parts)
    await remove_blobs(repository, parts.blobs, await blobs_in_use(repository, wanted))
    return parts


def _whole(repo: Repo, image: Stored) -> bool:
    """Whether nothing of the image is missing."""
    return {image.image, *image.referrers} <= repo.manifests.keys() and image.own | {
        digest_of(COMMON),
        digest_of(EMPTY_CONTENT),
    } <= repo.blobs.keys()


def _gone(repo: Repo, image: Stored) -> bool:
    """Whether nothing is left that is the image's alone."""
    return (
        not {image.image, *image.referrers} & repo.manifests.keys()
        and not image.own & repo.blobs.keys()
        and fallback_tag(image.image) not in repo.tags
    )


def _manifests(repo: Repo) -> list[str]:
    """All but the referrers indexes that a later one took the tag from: those no client can find."""
    return [digest for digest, (media_type, _) in repo.manifests.items() if media_type != INDEX]


def test_an_image_goes_and_what_it_shares_stays(kept_by: RegistryServer, run: Run) -> None:
    async def work(repository: Repository) -> tuple[Stored, Stored, Parts]:
        old, new = await _two(repository)
        return old, new, await _remove(repository, old.image)

    old, new, parts = run(work)
    repo = kept_by.repo("team/image")
    assert set(parts.referrers) == set(old.referrers)
    assert _gone(repo, old)
    assert _whole(repo, new)
    assert repo.tags.get("v1") is None
    assert repo.tags["v2"] == new.image


def test_the_last_image_takes_everything_along(kept_by: RegistryServer, run: Run) -> None:
    async def work(repository: Repository) -> None:
        for image in await _two(repository):
            await _remove(repository, image.image)

    run(work)
    repo = kept_by.repo("team/image")
    assert (_manifests(repo), repo.blobs, repo.tags) == ([], {}, {})


def test_an_image_without_a_tag_stays_when_it_is_wanted(kept_by: RegistryServer, run: Run) -> None:
    async def work(repository: Repository) -> tuple[Stored, Stored]:
        old, new = await store(repository, "old"), await store(repository, "new")
        await _remove(repository, old.image, (new.image, GONE))
        return old, new

    old, new = run(work)
    assert _gone(kept_by.repo("team/image"), old)
    assert _whole(kept_by.repo("team/image"), new)


def test_blobs_of_a_tagged_index_stay(server: RegistryServer, run: Run) -> None:
    async def work(repository: Repository) -> tuple[Stored, Stored]:
        old, child = await store(repository, "old", "v1"), await store(repository, "child")
        document = await repository.manifests.get(child.image)
        listed = [document.descriptor.to_json()]
        index = canonical_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed})
        await repository.manifests.put(index, INDEX, "all")
        await _remove(repository, old.image)
        return old, child

    old, child = run(work)
    assert _gone(server.repo("team/image"), old)
    assert _whole(server.repo("team/image"), child)


def test_referrers_of_referrers_go_too(kept_by: RegistryServer, run: Run) -> None:
    empty = describe(EMPTY_CONTENT, EMPTY).to_json()

    async def work(repository: Repository) -> None:
        old = await store(repository, "old")
        document = await repository.manifests.get(old.referrers[0])
        await repository.referrers.attach(
            manifest(
                config=empty, layers=[empty], artifactType=BUNDLE, subject=document.descriptor.to_json()
            )
        )
        await _remove(repository, old.image)

    run(work)
    repo = kept_by.repo("team/image")
    assert (_manifests(repo), repo.blobs, repo.tags) == ([], {}, {})


def test_tags_on_many_pages_are_all_looked_at(server: RegistryServer, run: Run) -> None:
    server.tags_page = 2

    async def work(repository: Repository) -> tuple[Stored, list[Stored], list[str]]:
        old = await store(repository, "old", "a")
        others = [await store(repository, f"image {n}", f"v{n}") for n in range(5)]
        await _remove(repository, old.image)
        return old, others, await repository.tags()

    old, others, tags = run(work)
    assert tags == [f"v{n}" for n in range(5)]
    assert all(_whole(server.repo("team/image"), each) for each in others)
    assert _gone(server.repo("team/image"), old)


def test_a_registry_that_forbids_deleting_keeps_the_image_whole(server: RegistryServer, run: Run) -> None:
    server.deletes = set()
    kept: list[Stored] = []

    async def work(repository: Repository) -> None:
        kept.append(await store(repository, "old", "v1"))
        await _remove(repository, kept[0].image)

    with pytest.raises(Rejected, match="405") as caught:
        run(work)
    assert caught.value.codes == ("UNSUPPORTED",)
    assert _whole(server.repo("team/image"), kept[0])


def test_a_registry_that_collects_blobs_itself_is_told_about_manifests_alone(
    server: RegistryServer, run: Run
) -> None:
    server.deletes = {"manifests"}

    async def work(repository: Repository) -> bool:
        old = await store(repository, "old", "v1")
        parts = await parts_of(repository, old.image)
        await remove_manifests(repository, parts)
        return await remove_blobs(repository, parts.blobs, await blobs_in_use(repository, ()))

    assert run(work) is False
    assert server.repo("team/image").manifests == {}
    assert len(server.repo("team/image").blobs) == 6


def test_the_token_asked_for_may_delete(server: RegistryServer, run: Run) -> None:
    server.auth, server.users = "bearer", {"user": "pass"}
    run(lambda repository: repository.manifests.delete(GONE), credential=True)
    asked = [one.path for one in server.seen if one.path.startswith("/token")]
    assert len(asked) == 1
    assert "repository%3Ateam%2Fimage%3Adelete" in asked[0]


def test_a_token_that_may_not_delete_is_refused(server: RegistryServer, run: Run) -> None:
    server.auth, server.users = "basic", {"somebody": "else"}
    with pytest.raises(AccessDenied):
        run(lambda repository: repository.delete_blob(GONE))


def test_what_is_not_there_is_deleted(server: RegistryServer, run: Run) -> None:
    assert run(lambda repository: repository.manifests.delete(GONE)) is False
    assert run(lambda repository: repository.delete_blob(GONE)) is False
    assert run(lambda repository: repository.tags()) == []


def test_a_lost_answer_is_a_deletion_all_the_same(kept_by: RegistryServer, run: Run) -> None:
    async def work(repository: Repository) -> Stored:
        old = await store(repository, "old", "v1")
        kept_by.faults = [
            Planned(Fault.CUT_AFTER, where=lambda method, path: method == "DELETE", times=1)
            for _ in range(3)
        ]
        await _remove(repository, old.image)
        return old

    assert _gone(kept_by.repo("team/image"), run(work))


def test_stopped_at_every_request_and_done_again_it_ends_the_same(
    kept_by: RegistryServer, run: Run, policy: Policy
) -> None:
    """The parts are read once, as whoever removes an image has to."""
    old, new = run(_two)
    parts = run(lambda repository: parts_of(repository, old.image))
    filled = deepcopy(kept_by.repo("team/image"))

    async def stopped(at: int) -> bool:
        """Whether it came through without being stopped at that request."""
        kept_by.repos["team/image"] = deepcopy(filled)
        kept_by.faults = [Planned(Fault.CUT_AFTER, at=kept_by.count + at)]
        for attempt in range(2):
            async with open_repository(
                kept_by.host, "team/image", plain_http=True, policy=replace(policy, attempts=1)
            ) as repository:
                try:
                    await remove_manifests(repository, parts)
                    await remove_blobs(repository, parts.blobs, await blobs_in_use(repository, ()))
                except Unavailable:
                    continue
                return attempt == 0
        raise AssertionError("stopped twice")

    for at in range(200):
        through = anyio.run(stopped, at)
        repo = kept_by.repo("team/image")
        assert _gone(repo, old), f"request {at}"
        assert _whole(repo, new), f"request {at}"
        if through:
            break
    assert 10 < at < 199


@pytest.mark.parametrize(
    ("attack", "break_it"),
    [
        ("a tag that is no manifest", lambda repo: repo.manifests.update({GONE: ("text/plain", b"{}")})),
        ("a tag that is broken", lambda repo: repo.manifests.update({GONE: (MANIFEST, b"[]")})),
    ],
)
def test_who_can_not_tell_what_is_used_deletes_no_blob(
    server: RegistryServer, run: Run, attack: str, break_it: Callable[[Repo], None]
) -> None:
    async def work(repository: Repository) -> None:
        old = await store(repository, "old", "v1")
        repo = server.repo("team/image")
        break_it(repo)
        media_type, content = repo.manifests.pop(GONE)
        repo.manifests[digest_of(content)] = (media_type, content)
        repo.tags["odd"] = digest_of(content)
        await _remove(repository, old.image)

    with pytest.raises(SupplyChainError):
        run(work)
    assert len(server.repo("team/image").blobs) == 6


@pytest.mark.parametrize(
    ("attack", "answer"),
    [
        ("pages without end", {"tags": []}),
        ("a tag that is a path", {"tags": ["../../manifests/v1"]}),
        ("no list", {"tags": "v1"}),
    ],
)
def test_a_list_of_tags_that_can_not_be_one_is_refused(
    policy: Policy, attack: str, answer: dict[str, object]
) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=answer, headers={"link": '</v2/x/tags/list?last=a>; rel="next"'})

    async def list_them() -> list[str]:
        async with open_repository(
            "registry.example", "x", policy=policy, transport=httpx.MockTransport(handle)
        ) as repository:
            return await repository.tags()

    with pytest.raises(BrokenAnswer, match="listing of tags"):
        anyio.run(list_them)

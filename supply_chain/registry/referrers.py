"""Referrers: what hangs on an image by `subject` (OCI distribution specification, Listing Referrers).

A registry without the referrers API keeps them in an index under the tag `sha256-<hex>`, which clients
maintain. Whether there is an API is found out by calling it: some registries send OCI-Subject and have none.
What is listed is only a hint; each manifest is fetched and says itself what it is and what it refers to. A
listing that fails is an error, never an empty list.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import anyio
import httpx

from supply_chain.errors import BrokenAnswer, InvalidDocument, Unavailable
from supply_chain.oci import (
    DOCUMENT_LIMIT,
    INDEX,
    MANIFEST,
    Descriptor,
    Index,
    Manifest,
    describe,
    parse_index,
    parse_manifest,
)
from supply_chain.registry.manifests import Manifests
from supply_chain.registry.paging import next_page
from supply_chain.registry.retry import Attempts
from supply_chain.registry.transport import Transport
from supply_chain.registry.wire import Answer

# More referrers than any image has a use for: a listing that never ends is refused.
MOST_REFERRERS = 1000
_MOST_PAGES = 100
# How a registry says that it has no such API: the specification's 404, and what older ones answer to unknown
# paths.
_NO_API = (404, 400, 405, 406, 501)


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest that refers to an image; `descriptor` has its own type and annotations, whatever the list
    said.
    """

    descriptor: Descriptor
    manifest: Manifest
    content: bytes


class Referrers:
    """The referrers of the images in one repository."""

    def __init__(self, transport: Transport, manifests: Manifests) -> None:
        self._transport = transport
        self._manifests = manifests
        self._writing = anyio.Lock()

    async def list(self, subject: str, artifact_type: str | None = None) -> list[Referrer]:
        """The referrers of the manifest with the digest `subject`, by choice only those of one type.

        Entries whose manifest is gone, or refers to something else, are none.
        """
        found: list[Referrer] = []
        for entry in await self.entries(subject):
            if entry.media_type != MANIFEST:
                continue
            document = await self._manifests.find(entry.digest)
            if document is None:
                continue
            manifest = parse_manifest(document.content, f"referrer {entry.digest}")
            if manifest.subject is None or manifest.subject.digest != subject:
                continue
            if artifact_type in (None, manifest.kind):
                described = referrer_descriptor(document.content, manifest)
                found.append(Referrer(described, manifest, document.content))
        return found

    async def entries(self, subject: str) -> Sequence[Descriptor]:
        """What is listed as the referrers of `subject`, each digest once; nothing of it is fetched."""
        return list({entry.digest: entry async for entry in self._listed(subject)}.values())

    async def attach(self, content: bytes) -> Descriptor:
        """Write a manifest that has a subject, and see to it that listing the subject's referrers finds
        it.
        """
        manifest = parse_manifest(content, "the referrer")
        if manifest.subject is None:
            raise ValueError("a manifest without subject is no referrer")
        descriptor = referrer_descriptor(content, manifest)
        subject = manifest.subject.digest
        async with self._writing:
            await self._manifests.put(content, MANIFEST)
            attempts = Attempts(self._transport.policy)
            while True:
                pages = await self._first_page(subject)
                entries = (
                    await self._append(subject, descriptor)
                    if pages is None
                    else [entry async for entry in self._pages(pages)]
                )
                if any(entry.digest == descriptor.digest for entry in entries):
                    return descriptor
                # A registry that lists late, or another writer that overwrote the index meanwhile.
                if not await attempts.again():
                    raise Unavailable(
                        f"referrer {descriptor.digest} was pushed, but listing the referrers of {subject} "
                        f"does not show it after {attempts.failed} attempts",
                        "run the same command again; if it stays so, the registry's referrers are broken",
                    )

    async def _listed(self, subject: str) -> AsyncIterator[Descriptor]:
        first = await self._first_page(subject)
        if first is None:
            index = await self._fallback(subject)
            for entry in index.manifests if index is not None else ():
                yield entry
            return
        async for entry in self._pages(first):
            yield entry

    async def _first_page(self, subject: str) -> Answer | None:
        """The API's answer; None when the registry has no such API."""
        answer = await self._page(self._transport.url(f"referrers/{subject}"), ok=(200, *_NO_API))
        return answer if answer.status == 200 else None

    async def _pages(self, answer: Answer) -> AsyncIterator[Descriptor]:
        what = "listing of referrers"
        count = 0
        for _ in range(_MOST_PAGES):
            sent_as = answer.headers.get("content-type", "").partition(";")[0].strip()
            try:
                index = parse_index(answer.content, what)
            except InvalidDocument as error:
                raise BrokenAnswer(error.what, error.hint, answer.status) from None
            if INDEX not in (sent_as, index.media_type) or sent_as not in (INDEX, "application/json"):
                raise BrokenAnswer(
                    f"{what}: expected {INDEX}, found {sent_as[:80]}", "check the registry", 200
                )
            for entry in index.manifests:
                count += 1
                if count > MOST_REFERRERS:
                    raise BrokenAnswer(
                        f"{what}: more than {MOST_REFERRERS}", "remove referrers nobody needs", 200
                    )
                yield entry
            following = next_page(answer)
            if following is None:
                return
            answer = await self._page(following, ok=(200,))
        raise BrokenAnswer(f"{what}: more than {_MOST_PAGES} pages", "check the registry", 200)

    async def _page(self, url: httpx.URL, ok: tuple[int, ...]) -> Answer:
        return await self._transport.call(
            "GET",
            url,
            "listing of referrers",
            ok=ok,
            scopes=self._transport.scopes("pull"),
            headers={"accept": INDEX},
        )

    async def _fallback(self, subject: str) -> Index | None:
        tag = fallback_tag(subject)
        document = await self._manifests.find(tag)
        if document is None:
            return None
        index = parse_index(document.content, f"referrers at tag {tag}")
        if len(index.manifests) > MOST_REFERRERS:
            raise BrokenAnswer(
                f"tag {tag}: more than {MOST_REFERRERS} referrers", "remove those nobody needs", 200
            )
        return index

    async def _append(self, subject: str, descriptor: Descriptor) -> Sequence[Descriptor]:
        """Read, add, write and read again; what the last read found.

        Registries offer no compare-and-swap here, so two writers can still lose an entry between the read
        and the write. The second read tells the one that lost.
        """
        before = await self._fallback(subject) or Index(manifests=())
        if not any(entry.digest == descriptor.digest for entry in before.manifests):
            after = before.model_copy(update={"manifests": (*before.manifests, descriptor)})
            content = after.to_bytes()
            if len(content) > DOCUMENT_LIMIT:
                raise BrokenAnswer(
                    f"tag {fallback_tag(subject)}: {len(content)} bytes, at most {DOCUMENT_LIMIT}",
                    "remove referrers nobody needs",
                )
            await self._manifests.put(content, INDEX, fallback_tag(subject))
        found = await self._fallback(subject)
        return found.manifests if found is not None else ()


def fallback_tag(digest: str) -> str:
    """The referrers tag schema: `sha256-<hex>`."""
    return digest.replace(":", "-")


def referrer_descriptor(content: bytes, manifest: Manifest) -> Descriptor:
    """The entry for a list of referrers: with the manifest's own type and all of its annotations."""
    return describe(content, MANIFEST, artifact_type=manifest.kind, annotations=manifest.annotations)

"""Manifests: read with their digest checked, written with the registry's answer compared."""

from __future__ import annotations

from dataclasses import dataclass

from supply_chain.errors import BrokenAnswer, WrongContent
from supply_chain.oci import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    DOCUMENT_LIMIT,
    INDEX,
    MANIFEST,
    Descriptor,
    digest_of,
    parse_object,
)
from supply_chain.reference import DIGEST, check_digest
from supply_chain.registry.deletes import delete
from supply_chain.registry.transport import Transport
from supply_chain.registry.wire import Answer, Body

ACCEPT = ", ".join((MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_INDEX))


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or an index as the registry has it: the bytes that the descriptor's digest is of."""

    descriptor: Descriptor
    content: bytes


class Manifests:
    """The manifests of one repository."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def get(self, target: str) -> Document:
        """The manifest at a tag or digest. Raises NotFound, WrongContent and BrokenAnswer among others."""
        document = await self.find(target)
        if document is None:
            answer = await self._get(
                target, ok=(200,)
            )  # asks once more, for the error in the registry's words
            return self._document(target, answer)
        return document

    async def find(self, target: str) -> Document | None:
        """The same, or None when the registry says 404."""
        answer = await self._get(target, ok=(200, 404))
        return None if answer.status == 404 else self._document(target, answer)

    async def resolve(self, target: str) -> str | None:
        """The digest that a tag points to, without fetching it; None when there is no such tag.

        It is the registry's word: what is fetched by that digest is checked against it.
        """
        url = self._transport.url(f"manifests/{target}")
        what = f"look-up of {self._transport.repository}:{target}"
        answer = await self._transport.call(
            "HEAD",
            url,
            what,
            ok=(200, 404),
            scopes=self._transport.scopes("pull"),
            headers={"accept": ACCEPT},
        )
        if answer.status == 404:
            return None
        stated: str = answer.headers.get("docker-content-digest", "")
        if DIGEST.fullmatch(stated):
            return stated
        document = await self.find(target)
        return document.descriptor.digest if document is not None else None

    async def put(self, content: bytes, media_type: str, tag: str | None = None) -> str:
        """Write a manifest at its digest, or at a tag; returns the digest. Its blobs must be there."""
        digest = digest_of(content)
        target = tag or digest
        what = f"push of manifest {target}"
        answer = await self._transport.call(
            "PUT",
            self._transport.url(f"manifests/{target}"),
            what,
            ok=(201,),
            scopes=self._transport.scopes("pull", "push"),
            headers={"content-type": media_type},
            body=Body.of(content),
        )
        stored = answer.headers.get("docker-content-digest", digest)
        if stored != digest:
            raise WrongContent(
                f"{what}: expected it to be stored as {digest}, the registry says {stored[:80]}",
                "the registry or a proxy before it rewrites manifests: use another one",
                answer.status,
            )
        return digest

    async def delete(self, digest: str) -> bool:
        """Delete a manifest, and with it every tag that points to it; False when it was not there.

        Raises Rejected (405) and AccessDenied among others when the registry forbids deleting.
        """
        return await delete(self._transport, f"manifests/{check_digest(digest)}", f"manifest {digest}")

    async def _get(self, target: str, ok: tuple[int, ...]) -> Answer:
        return await self._transport.call(
            "GET",
            self._transport.url(f"manifests/{target}"),
            f"pull of manifest {target}",
            ok=ok,
            scopes=self._transport.scopes("pull"),
            headers={"accept": ACCEPT},
            limit=DOCUMENT_LIMIT,
        )

    def _document(self, target: str, answer: Answer) -> Document:
        what = f"pull of manifest {target}"
        digest = digest_of(answer.content)
        stated = answer.headers.get("docker-content-digest", digest)
        wanted = target if target.startswith("sha256:") else stated
        if digest != wanted:
            raise WrongContent(
                f"{what}: expected bytes with the digest {wanted[:80]}, "
                f"found {len(answer.content)} with {digest}",
                "the registry or a proxy before it changed the manifest: pull from another one",
                answer.status,
            )
        loaded = parse_object(answer.content, what)
        sent_as = answer.headers.get("content-type", "").partition(";")[0].strip()
        media_type = loaded.get("mediaType", sent_as)
        # One document must not be a manifest for one reader and an index for another.
        if not isinstance(media_type, str) or media_type != sent_as:
            raise BrokenAnswer(
                f"{what}: sent as {sent_as[:80] or 'nothing'}, but its mediaType is {str(media_type)[:80]}",
                "the registry or a proxy before it changes media types: pull from another one",
                answer.status,
            )
        return Document(
            Descriptor(media_type=media_type, digest=digest, size=len(answer.content)), answer.content
        )

"""The tags of a repository (OCI distribution specification, Listing Tags)."""

from __future__ import annotations

from supply_chain.errors import BrokenAnswer, InvalidDocument, InvalidReference
from supply_chain.oci import parse_object
from supply_chain.reference import check_tag
from supply_chain.registry.paging import next_page
from supply_chain.registry.transport import Transport
from supply_chain.registry.wire import Answer

# More than any repository is kept with: a listing that never ends is refused.
MOST_TAGS = 100_000
_PAGE = 1000
_WHAT = "listing of tags"


async def list_tags(transport: Transport) -> list[str]:
    """Every tag, each once; none when there is no such repository. Raises BrokenAnswer among others."""
    found: dict[str, None] = {}
    url = transport.url("tags/list", n=str(_PAGE))
    pages = 0
    while True:
        answer = await transport.call("GET", url, _WHAT, ok=(200, 404), scopes=transport.scopes("pull"))
        if answer.status == 404 and pages == 0:
            return []
        if answer.status == 404:
            raise transport.error(answer, _WHAT)
        tags = _tags(answer)
        found |= dict.fromkeys(tags)
        following = next_page(answer)
        if following is None:
            return list(found)
        pages += 1
        if not tags or pages > MOST_TAGS or len(found) > MOST_TAGS:
            raise BrokenAnswer(f"{_WHAT}: it does not end", "check the registry", answer.status)
        url = following


def _tags(answer: Answer) -> list[str]:
    try:
        # Docker's registry says null for a repository whose last tag is gone.
        tags = parse_object(answer.content, _WHAT).get("tags") or []
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise InvalidDocument(f"{_WHAT}: expected a list of tags", "check the registry")
        return [check_tag(tag) for tag in tags]
    except (InvalidDocument, InvalidReference) as error:
        raise BrokenAnswer(f"{_WHAT}: {error.what}", error.hint, answer.status) from None

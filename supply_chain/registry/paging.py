"""Lists that come in pages: the next one's URL."""

from __future__ import annotations

import re

import httpx

from supply_chain.errors import BrokenAnswer
from supply_chain.registry.wire import Answer

_NEXT = re.compile(r'<([^<>]*)>\s*;[^,]*\brel="?next"?(?=[\s,;]|$)', re.IGNORECASE)


def next_page(answer: Answer) -> httpx.URL | None:
    """The Link header's next page (RFC 8288), which must be on the same host."""
    found = _NEXT.search(answer.headers.get("link", ""))
    if found is None:
        return None
    try:
        url = answer.url.join(found[1])
    except httpx.InvalidURL:
        raise BrokenAnswer(
            "listing: a next page that is no URL", "check the registry", answer.status
        ) from None
    if (url.scheme, url.host, url.port) != (answer.url.scheme, answer.url.host, answer.url.port):
        raise BrokenAnswer("listing: the next page is on another host", "check the registry", answer.status)
    return url

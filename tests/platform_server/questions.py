"""What listings are asked: both ends of each list and its middle, and each filter, for what is common, for
what is oldest, and for what is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from tests.platform_server.history import PLATFORMS, STORY, TOGETHER, History

PAGE = 50


@dataclass(frozen=True)
class Question:
    """A GET, or a POST where there is a body; the right answer lists so many rows by this name."""

    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    name: str = "disk_image_publications"
    rows: int = PAGE


_Asks = Callable[[History], Question]


def _middle(ids: Sequence[UUID]) -> UUID:
    """Far enough from the oldest that a page is full in a short history too."""
    return ids[len(ids) * 3 // 4]


def _of_platform(history: History) -> str:
    return f"/node_platforms/{history.platform}/disk_image_publications"


def _publications(before: Callable[[Sequence[UUID]], UUID] | None = None, **query: Any) -> _Asks:
    """Of a platform that has a tenth of them."""

    def ask(history: History) -> Question:
        place = {} if before is None else {"before": before(history.publications)}
        return Question(_of_platform(history), {**query, **place})

    return ask


def _none(history: History) -> Question:
    return Question(_of_platform(history), {"status": "published"}, rows=0)


def _old_platform(history: History) -> Question:
    return Question(f"/node_platforms/{history.old_platform}/disk_image_publications")


def _action(rows: int = PAGE, **body: Any) -> _Asks:
    path = "/actions/system_list_disk_image_publications"
    return lambda history: Question(path, body=body, name="publications", rows=rows)


def _events(before: Callable[[Sequence[UUID]], UUID] | None = None, rows: int = PAGE, **query: Any) -> _Asks:
    def ask(history: History) -> Question:
        place = {} if before is None else {"before": before(history.events)}
        return Question("/events", {**query, **place}, name="events", rows=rows)

    return ask


def _story(before: Callable[[Sequence[UUID]], UUID] | None = None) -> _Asks:
    """A tenth of all events belong together."""
    return lambda history: _events(before, correlation_id=history.story)(history)


def _of_one(history: History) -> Question:
    return Question("/events", {"correlation_id": history.correlation}, name="events", rows=TOGETHER)


_PUBLISHED = "system.disk_image_published"

QUESTIONS: Mapping[str, _Asks] = {
    "publications of a platform": _publications(),
    "… in the middle": _publications(_middle),
    "… the last page": _publications(lambda ids: ids[len(ids) // 10 + PAGE * PLATFORMS]),
    "… of a common status": _publications(status="purged"),
    "… of a common status, in the middle": _publications(_middle, status="purged"),
    "… of a status that none has": _none,
    "… of a platform long unused": _old_platform,
    "publications, by action": _action(),
    "… of a common status, by action": _action(status="purged"),
    "… of an old status, by action": _action(status="failed"),
    "… of a status that none has, by action": _action(0, status="queued"),
    "node platforms": lambda _: Question("/node_platforms", name="node_platforms", rows=PLATFORMS + 1),
    "events": _events(),
    "events in the middle": _events(_middle),
    "events, the last page": _events(lambda ids: ids[PAGE]),
    "events of a common kind": _events(kind_prefix=_PUBLISHED),
    "events of a common kind, in the middle": _events(_middle, kind_prefix=_PUBLISHED),
    "events of two kinds, in the middle": _events(_middle, kind_prefix="system.disk_image_publish"),
    "events of an old kind": _events(kind_prefix="system.disk_image_webhook"),
    "events of a kind that none has": _events(rows=0, kind_prefix="system.disk_image_rolled_back"),
    "events of one correlation id": _of_one,
    "events of a correlation id that none has": _events(rows=0, correlation_id="none"),
    "events of a correlation id that a tenth has": _story(),
    "… in the middle, with it": _story(_middle),
    "… the last page, with it": _story(lambda ids: ids[PAGE * STORY]),
}

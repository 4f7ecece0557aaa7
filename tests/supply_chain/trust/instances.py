"""A private instance on loopback: an embedded trust's services, some of whose answers are others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from supply_chain.trust import Trust, init_embedded, load_trust
from supply_chain.trust.embedded.answers import Answer, Request, as_json
from supply_chain.trust.embedded.create import served_at
from supply_chain.trust.embedded.server import serving
from supply_chain.trust.embedded.services import Services

# What an instance answers at a path in place of its own answer.
Answers = Mapping[str, Callable[[Request], Answer]]


@asynccontextmanager
async def instance(folder: Path, answers: Answers | None = None) -> AsyncIterator[Trust]:
    """The trust in an instance whose issuer is named by its URL. `folder` is made, or holds its secrets."""
    trust = _made(folder)
    assert trust.embedded is not None
    services: list[Services] = []

    def answer(request: Request) -> Answer:
        given = (answers or {}).get(request.path)
        return given(request) if given else services[0].answer(request)

    async with serving(answer) as url:
        own = replace(trust.embedded, issuer=url)
        services.append(Services(trust, own))
        services[0].url = url
        yield replace(trust, config=served_at(url), embedded=None)


def html(_: Request) -> Answer:
    """What a proxy or another program answers."""
    return Answer(200, b"<!DOCTYPE html><title>Log in</title>", "text/html")


def status(code: int) -> Callable[[Request], Answer]:
    """An error."""
    return lambda _: as_json({"message": "no"}, code)


def _made(folder: Path) -> Trust:
    if not folder.exists():
        init_embedded(folder)
    return load_trust(folder)

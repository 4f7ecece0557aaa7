"""Services that fail: signing ends in a whole set of verified bundles, or in a clear error within its bounds
that leaves the layout as it was, and then the same call completes.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import anyio
import pytest

from supply_chain import layout_write
from supply_chain.errors import LayoutError, ServiceDown, SigningError, SupplyChainError
from supply_chain.signing.sign import sign_layout
from tests.supply_chain.registry_server import Fault, Planned
from tests.supply_chain.signing.faulty import Reply
from tests.supply_chain.signing.through_proxy import (
    AUTHORITY,
    LOG,
    REQUESTS,
    SERVICES,
    TIMESTAMPER,
    Behind,
)
from tests.waits import Waits

CUTS = (Fault.CUT_BEFORE, Fault.CUT_IN_BODY, Fault.CUT_AFTER, Fault.CUT_IN_ANSWER)
PASSING = (*CUTS, Fault.TOO_MANY, Fault.ERROR, Fault.BUSY)
NAMES = {AUTHORITY: "certificate authority", TIMESTAMPER: "timestamp authority", LOG: "transparency log"}


@contextmanager
def fails(
    behind: Behind, kind: type[SupplyChainError], said: str
) -> Iterator[pytest.ExceptionInfo[SupplyChainError]]:
    """An error of this very kind; nothing is written, and the finished build stays."""
    before = behind.state()
    with pytest.raises(kind, match=said) as caught:
        yield caught
    assert type(caught.value) is kind
    assert caught.value.hint
    assert behind.state() == before


def completes(behind: Behind) -> None:
    """With the services well again, the same call signs."""
    behind.proxy.faults, behind.proxy.answer = [], behind.forward
    assert behind.sign().signed
    behind.verify()


@pytest.mark.parametrize("fault", CUTS)
@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_a_cut_at_any_request_is_healed(number: int, fault: Fault, behind: Behind) -> None:
    behind.proxy.faults = [Planned(fault, at=number)]
    assert behind.sign().signed
    assert len(behind.proxy.seen) == len(REQUESTS) + 1
    behind.verify()


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("fault", [Fault.TOO_MANY, Fault.ERROR, Fault.BUSY])
def test_what_passes_is_waited_for(service: str, fault: Fault, behind: Behind, waits: Waits) -> None:
    behind.goes_wrong(fault, service, times=3)
    behind.proxy.retry_after = "7"
    assert behind.sign().signed
    assert len(waits.slept) == 3
    assert fault is Fault.ERROR or waits.slept == [7, 7, 7]
    behind.verify()


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("fault", PASSING)
def test_what_does_not_pass_ends(service: str, fault: Fault, behind: Behind) -> None:
    behind.goes_wrong(fault, service, times=1000)
    with fails(behind, ServiceDown, rf"{NAMES[service]} http://127\.0\.0\.1:.*\(attempt 4, the last one\)"):
        behind.sign()
    assert behind.proxy.asked(service) == 4
    completes(behind)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_may_ask_for_patience_but_not_too_much(service: str, behind: Behind, waits: Waits) -> None:
    behind.goes_wrong(Fault.BUSY, service)
    behind.proxy.retry_after = "86400"
    with fails(behind, ServiceDown, f"{NAMES[service]} .*: HTTP 503, it asks to wait 86400"):
        behind.sign()
    assert not waits.slept


@pytest.mark.parametrize("service", SERVICES)
def test_a_trickle_ends(service: str, behind: Behind) -> None:
    behind.policy = replace(behind.policy, attempts=2, silence=0.2, connect_timeout=0.5, slowest=1e9)
    behind.goes_wrong(Fault.TRICKLE, service, times=1000)
    with fails(behind, ServiceDown, f"{NAMES[service]} .*: slower than allowed"):
        behind.sign()


@pytest.mark.parametrize("service", SERVICES)
def test_a_refused_connection_ends(service: str, behind: Behind) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        config = behind.trust.config
        assert config is not None
        urls = {AUTHORITY: config.ca_urls, TIMESTAMPER: config.tsa_urls, LOG: config.rekor_tlog_urls}
        (one,) = urls[service]
        # Bound and not listening: nobody else can take the port meanwhile.
        one.url = one.url.replace(behind.proxy.url, f"http://127.0.0.1:{taken.getsockname()[1]}")
        trust = replace(behind.trust, config=config)
        with fails(behind, ServiceDown, f"{NAMES[service]} .*: can't connect"):
            anyio.run(_sign, behind, trust)
    completes(behind)


async def _sign(behind: Behind, trust: object) -> None:
    await sign_layout(behind.layout.folder, trust, behind.environment, policy=behind.policy)  # type: ignore[arg-type]


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("fault", [Fault.HTML, Fault.TRUNCATED])
def test_what_is_no_answer_of_the_service_is_told(service: str, fault: Fault, behind: Behind) -> None:
    behind.goes_wrong(fault, service)
    with fails(behind, SigningError, NAMES[service]):
        behind.sign()
    assert behind.proxy.asked(service) == 1
    completes(behind)


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("at", [0.02, 0.2, 0.35, 0.5, 0.65, 0.8, 0.97])
def test_a_changed_byte_never_makes_a_set_that_does_not_hold(
    service: str, at: float, behind: Behind
) -> None:
    def changed(request: object) -> Reply:
        reply = behind.forward(request)  # type: ignore[arg-type]
        where = int(len(reply.body) * at)
        body = reply.body[:where] + bytes([reply.body[where] ^ 1]) + reply.body[where + 1 :]
        return replace(reply, body=body)

    behind.answers(service, changed)
    before = behind.state()
    try:
        behind.sign()
    except SigningError:
        assert behind.state() == before
        completes(behind)
    else:
        # A byte that says nothing: the authority's root comes along, and is not what is believed.
        behind.verify()


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("body", [b"", b"null", b"{}", b"[]", b"\x30\x03\x0a\x01\x02", b"[" * 100_000])
def test_any_other_answer_is_told(service: str, body: bytes, behind: Behind) -> None:
    behind.answers(service, lambda _: Reply(201, body))
    with fails(behind, SigningError, f"{NAMES[service]} .*: "):
        behind.sign()


@pytest.mark.parametrize("service", SERVICES)
def test_an_endless_answer_is_cut_off(service: str, behind: Behind) -> None:
    behind.answers(service, lambda _: Reply(201, b'{"x": "' + b"x" * (2 << 20)))
    with fails(behind, SigningError, "the answer has more than 1048576 bytes"):
        behind.sign()


@pytest.mark.parametrize("service", SERVICES)
def test_a_redirect_is_not_followed(service: str, behind: Behind) -> None:
    behind.answers(service, lambda _: Reply(307, headers={"Location": f"{behind.proxy.url}/elsewhere"}))
    with fails(behind, SigningError, f"{NAMES[service]} .*: HTTP 307, a redirect, which is not followed"):
        behind.sign()
    assert behind.proxy.asked("/elsewhere") == 0


@pytest.mark.parametrize("service", SERVICES)
def test_a_refusal_is_told_in_the_services_own_words(service: str, behind: Behind) -> None:
    behind.answers(service, lambda _: Reply(400, b'{"code":3,"message":"not on\\u001b[2J Sundays"}'))
    with fails(behind, SigningError, r"HTTP 400: not on \[2J Sundays"):
        behind.sign()
    assert behind.proxy.asked(service) == 1


@pytest.mark.parametrize("fault", [*PASSING, Fault.HTML, Fault.TRUNCATED])
def test_the_log_has_no_entry_that_lacks_its_timestamp(fault: Fault, behind: Behind) -> None:
    behind.goes_wrong(fault, TIMESTAMPER, times=1000)
    with pytest.raises(SigningError):
        behind.sign()
    assert behind.proxy.asked(LOG) == 0


def test_a_layout_that_takes_nothing_is_told_before_anything_is_asked(
    behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(layout_write, "TemporaryFile", read_only)
    with fails(behind, LayoutError, "can't be written: Read-only file system"):
        behind.sign()
    assert not behind.proxy.seen


def test_all_has_one_deadline(behind: Behind) -> None:
    behind.policy = replace(behind.policy, sleep=anyio.sleep, patience=1000.0)
    behind.goes_wrong(Fault.BUSY, LOG, times=1000)
    behind.proxy.retry_after = "30"
    said = "signing was not done after 2 s, the last of it waiting for the transparency log http://127"
    with fails(behind, ServiceDown, said):
        behind.sign(deadline=2.0)
    completes(behind)


def test_who_gives_up_is_not_kept(behind: Behind) -> None:
    behind.policy = replace(behind.policy, sleep=anyio.sleep, patience=1000.0)
    behind.goes_wrong(Fault.BUSY, AUTHORITY, times=1000)
    behind.proxy.retry_after = "1000"
    before = behind.state()

    async def given_up() -> bool:
        with anyio.move_on_after(1.0) as scope:
            await _sign(behind, behind.trust)
        return scope.cancelled_caught

    assert anyio.run(given_up)
    assert behind.state() == before

"""The log: lines for machines and for people, what belongs together, and what must never stand in it."""

from __future__ import annotations

import io
import json
import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from structlog.contextvars import bound_contextvars

from platform_server.logs import LogFormat, escaped, start_log
from platform_server.requests import request_id_of
from platform_server.state_folder import Platform
from tests.platform_server.api import Api, Pipeline, standard
from tests.platform_server.images import Images
from tests.platform_server.made import Made
from tests.platform_server.process import process
from tests.platform_server.verifying import POLICY

log = logging.getLogger("test")


@pytest.fixture
def restored() -> Iterator[None]:
    """Logging as it was before."""
    root = logging.getLogger()
    handlers, level, hook = root.handlers[:], root.level, threading.excepthook
    yield
    logging.captureWarnings(False)
    root.handlers[:], threading.excepthook = handlers, hook
    root.setLevel(level)


@pytest.fixture
def logged(restored: None) -> Callable[[LogFormat], io.StringIO]:
    """Starts a log that is kept in memory."""

    def start(form: LogFormat) -> io.StringIO:
        stream = io.StringIO()
        start_log(form, stream=stream)
        return stream

    return start


ATTACK = 'x\n{"message": "forged"}\r\x1b[2J\x7f\x00\u2028\x9b\udcff\u202e\u2066'


def test_a_line_is_one_json_object_with_what_is_bound(logged: Callable[[LogFormat], io.StringIO]) -> None:
    stream = logged(LogFormat.JSON)
    with bound_contextvars(correlation_id="c", caller=ATTACK):
        log.warning("the text %s", ATTACK, extra={"status": 200})
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "test",
        "message": f"the text {ATTACK}",
        "correlation_id": "c",
        "caller": ATTACK,
        "status": 200,
    }
    assert stream.getvalue().endswith("}\n")
    assert stream.getvalue()[:-1].isprintable()


def test_log_injection_by_text_and_field_makes_no_line_of_its_own(
    logged: Callable[[LogFormat], io.StringIO],
) -> None:
    stream = logged(LogFormat.TEXT)
    with bound_contextvars(caller=ATTACK):
        log.warning("the text %s", ATTACK)
    (line,) = stream.getvalue().splitlines()
    shown = r'x\n{"message": "forged"}\r\x1b[2J\x7f\x00\u2028\x9b\udcff\u202e\u2066'
    assert line[20:] == f" WARNING test: the text {shown} caller={shown}"


def test_a_traceback_is_a_field(logged: Callable[[LogFormat], io.StringIO]) -> None:
    for form in LogFormat:
        stream = logged(form)
        try:
            raise ValueError(ATTACK)
        except ValueError:
            log.exception("it failed")
        if form is LogFormat.JSON:
            (line,) = stream.getvalue().splitlines()
            trace = json.loads(line)["exception"]
            assert trace.startswith("Traceback (most recent call last):\n")
            assert trace.endswith(f"ValueError: {ATTACK}")
        else:
            first, *rest = stream.getvalue().splitlines()
            assert first.endswith("ERROR test: it failed")
            assert all(each.startswith("    ") and each.isprintable() for each in rest)


def test_a_thread_that_ends_is_logged(logged: Callable[[LogFormat], io.StringIO]) -> None:
    stream = logged(LogFormat.JSON)

    def fail() -> None:
        raise RuntimeError("lost")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    line = json.loads(stream.getvalue())
    assert (line["level"], line["message"]) == ("critical", "a thread ended")
    assert line["exception"].endswith("RuntimeError: lost")


@given(st.text())
def test_whatever_is_escaped_is_one_printable_line(content: str) -> None:
    shown = escaped(content)
    assert len(shown.splitlines()) <= 1
    assert shown.isprintable()
    shown.encode()


def test_a_statement_that_fails_does_not_show_its_values(platform: Platform) -> None:
    secret = secrets.token_urlsafe(32)
    with pytest.raises(DBAPIError) as failed:
        platform.database.write_now(lambda on: on.execute(text("SELECT :secret FROM x"), {"secret": secret}))
    assert secret not in str(failed.value)


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("headers", "kept"),
    [
        ([("x-request-id", "f00dcafe-1")], "f00dcafe-1"),
        ([("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")], TRACE),
        ([("x-request-id", "f00dcafe-1"), ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")], "f00dcafe-1"),
        ([("x-request-id", "x"), ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")], TRACE),
        ([("x-request-id", "a" * 65)], None),
        ([("x-request-id", "f00dcafe-1\n{}")], None),
        ([("x-request-id", "f00dcafe 1")], None),
        ([("x-request-id", "f00dcafe-1"), ("x-request-id", "f00dcafe-2")], None),
        ([("traceparent", f"00-{'0' * 32}-00f067aa0ba902b7-01")], None),
        ([("traceparent", f"00-{TRACE}-{'0' * 16}-01")], None),
        ([("traceparent", f"ff-{TRACE}-00f067aa0ba902b7-01")], None),
        ([("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01-more")], None),
        ([], None),
    ],
)
def test_a_request_id_is_kept_if_it_is_one(headers: list[tuple[str, str]], kept: str | None) -> None:
    found = request_id_of([(name.encode(), value.encode()) for name, value in headers])
    if kept is None:
        assert len(found) == 36
        assert all(value not in found for _, value in headers)
    else:
        assert found == kept


def test_a_webhook_is_followed_by_its_id_to_the_event(
    made: Made, images: Images, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    """From the request to the event that tells of the publication, in the log of the real process."""
    images.push()
    trust = images.forge.trust.path
    with (
        process(made, "--trust", trust) as served,
        httpx.Client(base_url=served.url, trust_env=False, timeout=60) as client,
    ):
        api = Api(client, made.admin_token)
        fields = {"name": "debian", "trusted_registries": [images.server.host], **POLICY}
        api.post("/node_platforms", {"node_platform": fields})
        hook = api.post("/disk_image_webhooks", {"label": "pipeline"})
        pipeline = Pipeline(client, _now, hook["webhook_id"], hook["webhook_secret"])
        body = pipeline.body(oci_ref=images.ref())
        signed = standard(pipeline.secret, body, _now(), "msg_1")
        answer = pipeline.send(body, {**signed, "x-request-id": "build-4711"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (202, "build-4711")
        publication_id = answer.json()["publication_id"]
        wait_for(lambda: bool(served.lines("publication published")))

        (request,) = served.lines("request", request_id="build-4711")
        correlation_id = request["correlation_id"]
        assert request["route"] == "/api/v1/system/webhooks/disk_image/built/{webhook_id}"
        assert (request["status"], request["outcome"], request["reason"]) == (202, "queued", None)
        followed = served.lines(correlation_id=correlation_id)
        assert [line["message"] for line in followed] == [
            "request",
            "verification begins",
            "publication published",
        ]
        assert {line["publication_id"] for line in followed} == {publication_id}
        (event,) = api.get("/events", correlation_id=correlation_id)["events"]
        assert event["kind"] == "system.disk_image_published"
        assert event["payload"]["publication_id"] == publication_id

        again = pipeline.send(body, signed)
        assert again.status_code == 200
        wait_for(
            lambda: bool(served.lines("request", correlation_id=correlation_id, outcome="idempotent_hit"))
        )
        api.with_token("pnu_wrong").error(401, "GET", "/events", params={"kind_prefix": "queryvalue"})
        wait_for(lambda: bool(served.lines("request", status=401)))
        (operator, *_) = served.lines("request", route="/api/v1/system/disk_image_webhooks")
        assert (operator["method"], operator["caller"]) == ("POST", "admin")
        served.stop()
        everything = served.log.read_text()
        assert "uvicorn.error" in {line["logger"] for line in served.lines()}
    for secret in (made.admin_token, hook["webhook_secret"], "pnu_wrong", "queryvalue"):
        assert secret not in everything
    for header in ("webhook-signature", "v1,"):
        assert header not in everything


def _now() -> datetime:
    return datetime.now(UTC)

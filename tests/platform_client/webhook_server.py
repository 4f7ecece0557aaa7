"""A platform's webhook on loopback, with switches for what platforms, proxies and networks do wrong.

It judges signatures with other code than ours: the reference's form by hand, Standard Webhooks by the
reference library. What it takes it remembers as a platform does: by delivery id and by image.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from standardwebhooks import Webhook as ReferenceWebhook
from standardwebhooks import WebhookVerificationError

from tests.loopback import Cut, Handler, LoopbackServer, serving

PATH = "/api/v1/system/webhooks/disk_image/built/0195d3b6-7c1e-7f00-8000-00000000beef"
SECRET = "pndis_0aK3b-Qm_x7VtR2nYw9cZsLdPfGhJuEiToXq4B6C8"


class Fault(StrEnum):
    """What goes wrong with one delivery."""

    CUT_BEFORE = "the connection is cut before the request is read"
    CUT_IN_BODY = "the connection is cut in the middle of the request's body"
    CUT_AFTER = "the delivery is taken, the connection is cut instead of an answer"
    CUT_IN_ANSWER = "the delivery is taken, the connection is cut in the middle of the answer"
    TOO_MANY = "429 with Retry-After"
    ERROR = "500 with a page"
    BUSY = "503 with Retry-After"
    BUSY_FOR_A_DAY = "503, asking to wait for longer than anybody would"
    TRICKLE = "the delivery is taken, the answer comes a byte at a time"
    HTML = "a login page with 200"
    EMPTY = "204 without a word"
    REDIRECT = "307 to elsewhere"
    WRONG_TYPE = "the right answer as text/plain"
    HUGE = "200 and megabytes of JSON"
    GONE = "410"
    ALWAYS_200_ERROR = "200 with the status error, as the reference answers"
    CONFLICT_200 = "200 with the status conflict"
    UNKNOWN_STATUS = "200 with a status that no contract has"
    CONTRADICTION = "400 with the status queued"
    FAILURE = "200, queued, and success false"


@dataclass
class Planned:
    """A fault for the next so many requests."""

    fault: Fault
    times: int = 1


@dataclass(frozen=True)
class Seen:
    """A request as it came; `verified` says whether both signatures held."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    verified: bool


@dataclass
class Delivery:
    """What was taken."""

    body: bytes
    publication: str
    times: int = 1


def _nothing() -> None:
    """Without a hook."""


class WebhookServer(LoopbackServer):
    """Change the public attributes between requests. `up` False: it takes connections and cuts them."""

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        super().__init__(_Handler, tls)
        self.lock = threading.RLock()
        self.up = True
        self.faults: list[Planned] = []
        self.seen: list[Seen] = []
        self.taken: dict[str, Delivery] = {}
        self.secret = SECRET
        self.always_200 = False
        self.echo = ""
        self.note = ""
        # called for each request: when it arrives, and when it was taken and is to be answered
        self.on_arrival: Callable[[], None] = _nothing
        self.on_answer: Callable[[], None] = _nothing
        self.retry_after = "1"

    @property
    def url(self) -> str:
        """The webhook's."""
        return f"{self.root}{PATH}"

    @property
    def publications(self) -> set[str]:
        """The images that were taken, each once, by their bodies' digests."""
        return {one.publication for one in self.taken.values()}

    def environment(self) -> dict[str, str]:
        """What a pipeline is given."""
        return {
            "POWERNODE_DISK_IMAGE_WEBHOOK_URL": self.url,
            "POWERNODE_DISK_IMAGE_WEBHOOK_SECRET": self.secret,
        }


@contextmanager
def webhook_server(tls: tuple[Path, Path] | None = None) -> Iterator[WebhookServer]:
    """A webhook for the length of a test; `tls` are certificate and key."""
    with serving(WebhookServer(tls)) as server:
        yield server


def verified(secret: str, headers: Mapping[str, str], body: bytes) -> bool:
    """Whether both signatures are of this body by this secret, and the time is now."""
    expected = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, headers.get("x-powernode-signature", "")):
        return False
    # The library takes its key in base64.
    reference = ReferenceWebhook(base64.b64encode(secret.encode()).decode())
    try:
        reference.verify(body, dict(headers))
    except WebhookVerificationError:
        return False
    return True


class _Handler(Handler):
    server: WebhookServer

    def do_GET(self) -> None:
        self._answer(404, {"success": False, "status": "error", "reason": "not_a_webhook"})

    def do_POST(self) -> None:
        try:
            self._post()
        except Cut:
            self.cut()

    def _post(self) -> None:
        server = self.server
        server.on_arrival()
        with server.lock:
            planned = next((one for one in server.faults if one.times > 0), None)
            if planned is not None:
                planned.times -= 1
        fault = planned.fault if planned else None
        if not server.up or fault is Fault.CUT_BEFORE:
            raise Cut
        length = int(self.headers["content-length"])
        if fault is Fault.CUT_IN_BODY:
            self.rfile.read(length // 2)
            raise Cut
        body = self.rfile.read(length)
        headers = {name.lower(): value for name, value in self.headers.items()}
        good = verified(server.secret, headers, body)
        with server.lock:
            server.seen.append(Seen(self.path, headers, body, good))
        self._play(fault, headers, body, good)

    def _play(self, fault: Fault | None, headers: Mapping[str, str], body: bytes, good: bool) -> None:
        wait = {"Retry-After": self.server.retry_after}
        if fault is Fault.TOO_MANY:
            return self._answer(429, {"success": False, "status": "error", "reason": "rate_limited"}, **wait)
        if fault is Fault.ERROR:
            return self._page(500, b"<h1>Internal Server Error</h1>")
        if fault is Fault.BUSY:
            return self._page(503, b"<h1>Back soon</h1>", **wait)
        if fault is Fault.BUSY_FOR_A_DAY:
            return self._page(503, b"", **{"Retry-After": "86400"})
        if fault is Fault.HTML:
            return self._page(200, b"<!DOCTYPE html><title>Log in</title>")
        if fault is Fault.EMPTY:
            return self._page(204, b"")
        if fault is Fault.REDIRECT:
            return self._page(307, b"", Location="http://127.0.0.1:9/elsewhere")
        if fault is Fault.HUGE:
            return self._page(200, b'{"status": "queued", "x": "' + b"x" * (4 << 20) + b'"}')
        if fault is Fault.GONE:
            return self._page(410, b"")
        if fault is Fault.ALWAYS_200_ERROR:
            return self._answer(
                200,
                {"success": True, "status": "error", "reason": "unknown_platform", "hint": self.server.echo},
            )
        if fault is Fault.CONFLICT_200:
            said = {"success": True, "status": "conflict", "reason": "published_artifact_mismatch"}
            return self._answer(200, said)
        if fault is Fault.UNKNOWN_STATUS:
            return self._answer(200, {"success": True, "status": "sleeping"})
        if fault is Fault.CONTRADICTION:
            return self._answer(400, {"success": True, "status": "queued", "publication_id": "1"})
        if fault is Fault.FAILURE:
            return self._answer(200, {"success": False, "status": "queued"})
        status, said = self._judge(headers, body, good)
        self.server.on_answer()
        if fault is Fault.CUT_AFTER:
            raise Cut
        content = json.dumps(said).encode()
        if fault is Fault.WRONG_TYPE:
            return self._page(status, content, **{"Content-Type": "text/plain"})
        if fault in (Fault.TRICKLE, Fault.CUT_IN_ANSWER):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if fault is Fault.CUT_IN_ANSWER:
                self.wfile.write(content[: len(content) // 2])
                raise Cut
            for at in range(len(content)):
                self.wfile.write(content[at : at + 1])
                threading.Event().wait(0.05)
            return
        self._answer(200 if self.server.always_200 else status, said)

    def _judge(self, headers: Mapping[str, str], body: bytes, good: bool) -> tuple[int, dict[str, object]]:
        """As the contract says."""
        if urlsplit(self.path).path != PATH:
            return 404, {"success": False, "status": "error", "reason": "unknown_webhook"}
        if not good:
            return 401, {"success": False, "status": "error", "reason": "bad_signature"}
        loaded = json.loads(body)
        if not (loaded.get("platform_slug") or loaded.get("platform_name")) or "oci_ref" not in loaded:
            return 422, {"success": False, "status": "error", "reason": "invalid_payload"}
        with self.server.lock:
            known = self.server.taken.get(headers["webhook-id"])
            if known is not None and known.body != body:
                return 409, {"success": False, "status": "conflict", "reason": "delivery_mismatch"}
            if known is not None:
                known.times += 1
                return 200, {
                    "success": True,
                    "status": "idempotent_hit",
                    "publication_id": known.publication,
                    "note": self.server.note,
                }
            publication = hashlib.sha256(body).hexdigest()[:12]
            self.server.taken[headers["webhook-id"]] = Delivery(body, publication)
        return 202, {"success": True, "status": "queued", "publication_id": publication}

    def _answer(self, status: int, said: Mapping[str, object], **headers: str) -> None:
        self._page(status, json.dumps(said).encode(), **{"Content-Type": "application/json", **headers})

    def _page(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "text/html", **headers}.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status != 204:
            self.wfile.write(content)

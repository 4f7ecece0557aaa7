"""sigstore-python's HTTP carried out by ours: its clients use requests, without timeouts or retries.

Each request is handed from sigstore-python's thread to the event loop. So every call has our bounds, and
when the caller is cancelled, the thread ends too. What a service refuses becomes an error here, where its
own words are still at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import urljoin, urlsplit

import anyio.from_thread
import requests
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from supply_chain.errors import SigningError
from supply_chain.registry.wire import Answer
from supply_chain.signing.services import Services

# All that these clients' headers say to a service; the rest is about connections, which are ours.
_HEADERS = ("accept", "authorization", "content-type")


class Bridge(BaseAdapter):
    """The transport of one service's session. `refused` makes the error of an answer that is no success."""

    def __init__(self, services: Services, service: str, refused: Callable[[Answer], SigningError]) -> None:
        super().__init__()
        self._services = services
        self._service = service
        self._refused = refused

    def carry(self, session: requests.Session) -> None:
        """Have this session's requests go here."""
        for prefix in ("http://", "https://"):
            session.mount(prefix, self)
        # ~/.netrc would replace the identity token by a password.
        session.trust_env = False

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: object = None,
        verify: object = True,
        cert: object = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """One request, for as long as the services' policy allows. Raises SigningError, ServiceDown."""
        url, body = request.url or "", request.body or b""
        if isinstance(body, str):
            body = body.encode()
        assert isinstance(body, bytes), "these clients send no streams"
        headers = {name: str(request.headers[name]) for name in _HEADERS if name in request.headers}
        answer = self._call(request.method or "", url, headers, body)
        if answer.status == 409 and (there := _location(url, answer)) is not None:
            # Rekor 1 has this entry: the connection was cut after it had taken it.
            answer = self._call("GET", there, {"accept": "application/json"}, b"")
        if not 200 <= answer.status < 300:
            raise self._refused(answer)
        response = requests.Response()
        response.status_code = answer.status
        response.headers = CaseInsensitiveDict(answer.headers.items())
        response.url, response.request = url, request
        response._content = answer.content
        return response

    def close(self) -> None:
        """The connections are the services'."""

    def _call(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        return anyio.from_thread.run(self._services.call, self._service, method, url, headers, body)


def _location(url: str, answer: Answer) -> str | None:
    """Where the answer points to at the same service."""
    location = answer.headers.get("location")
    if location is None:
        return None
    there = urljoin(url, location)
    return there if urlsplit(there)[:2] == urlsplit(url)[:2] else None

"""What the services are asked and answer: plain values between HTTP and each service."""

from __future__ import annotations

import json
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose body is whole and within bounds. Header names are lower case."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, a content type and a body."""

    status: int
    body: bytes
    content_type: str = "application/json"


class Refused(Exception):
    """A request that a service does not carry out. `message` reaches the caller: it holds no token."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status

    def answer(self) -> Answer:
        """The error as the real services' gRPC gateways write it: code 3 is INVALID_ARGUMENT, 5 NOT_FOUND,
        8 RESOURCE_EXHAUSTED, 16 UNAUTHENTICATED, 13 INTERNAL.
        """
        code = {400: 3, 401: 16, 404: 5, 507: 8}.get(self.status, 13)
        return as_json({"code": code, "message": self.message, "details": []}, self.status)


def as_json(value: object, status: int = 200) -> Answer:
    """An answer of JSON."""
    return Answer(status, json.dumps(value).encode())


def json_object(body: bytes) -> dict[str, object]:
    """The body's JSON object. Raises Refused."""
    try:
        loaded = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused("the body is not JSON") from None
    if not isinstance(loaded, dict):
        raise Refused("the body is not a JSON object")
    return loaded

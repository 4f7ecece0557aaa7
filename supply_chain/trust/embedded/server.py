"""A small HTTP/1.1 server on loopback: bounded headers, bodies, time and connections, one request each.

h11 speaks the protocol. Requests are carried out in worker threads of their own, because they wait for the
disk.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit

import anyio
import h11
from anyio.abc import SocketAttribute, SocketStream

from supply_chain.errors import TrustError
from supply_chain.trust.embedded.answers import Answer, Refused, Request
from supply_chain.trust.embedded.log_file import DiskFull

HEADER_LIMIT = 16 * 1024
BODY_LIMIT = 64 * 1024
# Seconds for a request to come in whole, and for its answer to be taken.
_PATIENCE = 15.0
_CONNECTIONS = 64
_WORKERS = 4

_logger = logging.getLogger(__name__)


@asynccontextmanager
async def serving(answer: Callable[[Request], Answer], port: int = 0) -> AsyncIterator[str]:
    """Serve `answer` on 127.0.0.1, at any free port when `port` is 0; yields the base URL.

    `answer` runs in a worker thread and raises Refused for what it does not do. Raises TrustError when the
    port is taken. The server ends with the context.
    """
    try:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
    except OSError as error:
        raise TrustError(
            f"127.0.0.1:{port}: can't be listened on: {error.strerror}",
            "end what listens there, or make a trust for another port: disk-image trust init DIR --port N",
        ) from None
    connections = anyio.CapacityLimiter(_CONNECTIONS)
    workers = anyio.CapacityLimiter(_WORKERS)

    async def connection(stream: SocketStream) -> None:
        async with connections, stream:
            try:
                with anyio.fail_after(_PATIENCE):
                    await _serve(stream, answer, workers)
            except _GONE:
                pass
            except Exception:  # one connection must not end the others
                _logger.exception("a connection failed")

    failed: Exception | None = None
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, connection)
        bound = listener.extra(SocketAttribute.local_port)
        try:
            yield f"http://127.0.0.1:{bound}"
        except Exception as error:  # out of the group it would be an ExceptionGroup
            failed = error
        tasks.cancel_scope.cancel()
    if failed is not None:
        raise failed


_GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, TimeoutError)


async def _serve(
    stream: SocketStream, answer: Callable[[Request], Answer], workers: anyio.CapacityLimiter
) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_LIMIT)
    body = True
    try:
        request = await _read(stream, connection)
        body = request.method != "HEAD"
        if request.method not in ("GET", "POST"):
            raise Refused("the methods are GET and POST", 405)
        result = await anyio.to_thread.run_sync(_answered, answer, request, limiter=workers)
    except Refused as refused:
        result = refused.answer()
    except h11.RemoteProtocolError as error:
        result = Refused("the request is not HTTP/1.1, or too large", error.error_status_hint).answer()
    await _write(stream, connection, result, body=body)


def _answered(answer: Callable[[Request], Answer], request: Request) -> Answer:
    try:
        return answer(request)
    except Refused as refused:
        return refused.answer()
    except TrustError as error:
        # Nobody is to ask again, as after a 500, until there is room.
        status = HTTPStatus.INSUFFICIENT_STORAGE if isinstance(error, DiskFull) else 500
        return Refused(f"{error.what}: {error.hint}", status).answer()
    except Exception:
        _logger.exception("%s %s failed", request.method, request.path)
        return Refused("internal error", 500).answer()


async def _read(stream: SocketStream, connection: h11.Connection) -> Request:
    """The whole request. Raises Refused for a body over the limit, RemoteProtocolError, EndOfStream."""
    head: h11.Request | None = None
    body = bytearray()
    while True:
        match connection.next_event():
            case h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    proceed = h11.InformationalResponse(status_code=100, headers=[])
                    await stream.send(connection.send(proceed))
                connection.receive_data(await stream.receive())
            case h11.Request() as head:
                pass
            case h11.Data(data=data):
                body += data
                if len(body) > BODY_LIMIT:
                    raise Refused(f"the body has more than {BODY_LIMIT} bytes", 413)
            case h11.EndOfMessage() if head is not None:
                break
            case _:
                raise anyio.EndOfStream
    try:
        target = urlsplit(head.target.decode("latin-1"))
    except ValueError:
        raise Refused("the request's target is no path") from None
    return Request(
        method=head.method.decode(),
        path=target.path,
        query=dict(parse_qsl(target.query)),
        headers={name.decode(): value.decode("latin-1") for name, value in head.headers},
        body=bytes(body),
    )


async def _write(stream: SocketStream, connection: h11.Connection, answer: Answer, *, body: bool) -> None:
    headers = [
        ("content-type", answer.content_type),
        ("content-length", str(len(answer.body))),
        ("connection", "close"),
    ]
    reason = HTTPStatus(answer.status).phrase.encode()
    response = h11.Response(status_code=answer.status, headers=headers, reason=reason)
    content = (
        connection.send(response),
        connection.send(h11.Data(answer.body)) if body else None,
        connection.send(h11.EndOfMessage()),
    )
    await stream.send(b"".join(one for one in content if one))
    # until the other side has read it all: closing with unread input would reset the connection and lose it
    await stream.send_eof()
    with anyio.move_on_after(1):
        while await stream.receive():
            pass

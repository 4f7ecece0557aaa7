"""Services of the caller's machine at the addresses that they have there.

A function's container can reach no registry, platform or trust that listens on the caller's loopback. The
engine tunnels to such a service, under a name of its own. Here each is listened for at 127.0.0.1 and its
port, so that references and URLs mean the same on both sides, and plain http stays on loopback.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import anyio
import dagger
from anyio.abc import ByteReceiveStream, ByteSendStream, ByteStream

from pipelines.errors import UsageError


@asynccontextmanager
async def reachable(services: Sequence[dagger.Service]) -> AsyncIterator[None]:
    """Each of `services` (as `tcp://127.0.0.1:PORT` names one) is at 127.0.0.1:PORT here too, meanwhile.

    Raises UsageError for two of one port.
    """
    failed: Exception | None = None
    async with AsyncExitStack() as stack, anyio.create_task_group() as group:
        try:
            listening: set[int] = set()
            for service in services:
                host, _, port = (await service.endpoint()).rpartition(":")
                if int(port) in listening:
                    raise UsageError(f"two services of port {port}", "name each service once")
                listening.add(int(port))
                listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=int(port))
                await stack.enter_async_context(listener)
                group.start_soon(listener.serve, partial(_join, host, int(port)))
            yield
        except Exception as error:
            # raised below as itself: a task group would wrap it
            failed = error
        group.cancel_scope.cancel()
    if failed is not None:
        raise failed


async def _join(host: str, port: int, near: ByteStream) -> None:
    """Both directions of one connection, until either side ends it."""
    async with near:
        try:
            far = await anyio.connect_tcp(host, port)
        except OSError:
            return  # whoever asked sees that nobody answers, and says so
        async with far, anyio.create_task_group() as group:
            group.start_soon(_copy, near, far)
            await _copy(far, near)
            group.cancel_scope.cancel()


async def _copy(source: ByteReceiveStream, target: ByteStream | ByteSendStream) -> None:
    try:
        async for chunk in source:
            await target.send(chunk)
        if isinstance(target, ByteStream):
            await target.send_eof()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass

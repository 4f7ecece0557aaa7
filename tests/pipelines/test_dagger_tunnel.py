"""Services behind other addresses, reached at 127.0.0.1 and their own ports.

127.0.0.2 stands for the engine's network.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import anyio
import dagger
import pytest
from anyio.abc import SocketAttribute, SocketStream

from pipelines.dagger_tunnel import reachable
from pipelines.errors import UsageError

SIZE = 3 << 20


@dataclass
class Service:
    """What a tunnel is to the module."""

    address: str

    async def endpoint(self) -> str:
        return self.address


def tunnel(port: int) -> dagger.Service:
    return cast(dagger.Service, Service(f"127.0.0.2:{port}"))


async def echo(client: SocketStream) -> None:
    """Answer when the other side has ended, with all that it sent."""
    async with client:
        content = b"".join([chunk async for chunk in client])
        await client.send(content)


@asynccontextmanager
async def far() -> AsyncIterator[int]:
    """A service's port."""
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.2") as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, echo)
        yield listener.extra(SocketAttribute.local_port)
        group.cancel_scope.cancel()


async def asked(port: int, content: bytes) -> bytes:
    async with await anyio.connect_tcp("127.0.0.1", port) as client:
        await client.send(content)
        await client.send_eof()
        return b"".join([chunk async for chunk in client])


def test_both_directions_and_both_ends() -> None:
    async def main() -> None:
        content = bytes(range(256)) * (SIZE // 256)
        async with (
            far() as one,
            far() as other,
            reachable([tunnel(one), tunnel(other)]),
            anyio.create_task_group() as group,
        ):
            for port in (one, other):
                group.start_soon(check, port, content)

    async def check(port: int, content: bytes) -> None:
        assert await asked(port, content) == content

    anyio.run(main)


def test_nobody_listens_afterwards_and_a_failure_stays_itself() -> None:
    async def main() -> None:
        async with far() as port:
            with pytest.raises(ValueError, match="ours"):
                async with reachable([tunnel(port)]):
                    raise ValueError("ours")
            with pytest.raises(OSError, match=r"refused|attempts failed"):
                await anyio.connect_tcp("127.0.0.1", port)

    anyio.run(main)


def test_a_service_that_is_gone_ends_the_connection() -> None:
    async def main() -> None:
        async with far() as port:
            pass
        async with reachable([tunnel(port)]):
            with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
                async with await anyio.connect_tcp("127.0.0.1", port) as client:
                    await client.receive()

    anyio.run(main)


def test_two_services_of_one_port_are_refused() -> None:
    async def main() -> None:
        async with far() as port:
            with pytest.raises(UsageError, match=f"two services of port {port}"):
                async with reachable([tunnel(port), tunnel(port)]):
                    pass

    anyio.run(main)

"""Serving: uvicorn with the platform's limits, on sockets that were bound before, and how that ends.

1. signal: SIGTERM or SIGINT. /readyz says 503 from here on; whoever comes meanwhile is answered.
2. `drain_seconds` later, at once for SIGINT, no connection is taken any more, jobs go back into the queue,
   sweeps end at their next step, and requests under way are answered, at most for `stop_seconds`.
3. exit with 0. A second signal, or a step that does not end, ends the process at once: everything that was
   answered is in the database, and the next process takes up the rest.

SIGHUP reads certificate and key again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, cast

import prometheus_client
import uvicorn

from platform_server.app import Process, create_app
from platform_server.errors import StateError
from platform_server.handshakes import Handshakes
from platform_server.notify import READY, STOPPING, WATCHDOG, notify, watchdog_seconds
from platform_server.proxies import Proxies
from platform_server.slow_clients import Senders, impatient
from platform_server.state_folder import Platform
from platform_server.tls import Tls

log = logging.getLogger(__name__)

# What the end may take beyond the bounds of its steps, in seconds.
_SLACK = 15.0
# What else is open: the database's, uploads, registries.
_OTHER_DESCRIPTORS = 500


def server(platform: Platform, started: Callable[[], None], tls: Tls | None = None) -> Server:
    """The server, not yet running; it calls `started` when it answers."""
    limits = platform.settings.limits
    proxies = Proxies(platform.settings.proxies)
    app = create_app(platform)
    senders = Senders(limits, proxies)
    handshakes = None if tls is None else Handshakes(tls.context, limits, senders)
    config = uvicorn.Config(
        proxies.before(app),
        http=impatient(limits, senders),
        ws="none",
        loop="uvloop",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=limits.keep_alive_seconds,
        timeout_graceful_shutdown=limits.stop_seconds,
        h11_max_incomplete_event_size=limits.header,
        lifespan="on",
    )
    return Server(config, platform, app.state.process, started, tls, handshakes)


def serve(
    platform: Platform,
    listening: Sequence[socket.socket],
    started: Callable[[], None],
    *,
    tls: Tls | None = None,
    metrics: tuple[str, int] | None = None,
) -> None:
    """Serve until a signal ends it; what there is to watch, also at the address `metrics`.

    Raises StateError when it can't.
    """
    _have_descriptors(platform.settings.limits.connections + _OTHER_DESCRIPTORS)
    running = server(platform, started, tls)
    try:
        if metrics is not None:
            running.show_metrics(*metrics)
        running.run(sockets=list(listening))
    finally:
        platform.database.close()
    if not running.started:
        raise StateError("the platform did not start", "its log above has the reason")


class Server(uvicorn.Server):
    """uvicorn's, which ends as the module says and tells the service manager how it goes."""

    def __init__(
        self,
        config: uvicorn.Config,
        platform: Platform,
        process: Process,
        started: Callable[[], None],
        tls: Tls | None,
        handshakes: Handshakes | None,
    ) -> None:
        super().__init__(config)
        self._limits = platform.settings.limits
        self._process = process
        self._say = started
        self._tls = tls
        self._handshakes = handshakes
        self._ends = float("inf")
        patience = watchdog_seconds()
        self._beat = patience and patience / 3
        self._next_beat = 0.0

    def show_metrics(self, host: str, port: int) -> None:
        """Answer GET /metrics there, to whoever can connect. Raises StateError."""
        try:
            prometheus_client.start_http_server(port, host, self._process.registry)
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise StateError(
                f"can't listen on {host} port {port}: {reason or error}", "choose another --metrics"
            ) from None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets if self._handshakes is None else [])
        if not self.started:
            return
        if self._handshakes is not None:
            for each in sockets or ():
                self._handshakes.begin(each, self._connected)
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        self._say()
        notify(READY)

    def _connected(self, sender: str | None) -> asyncio.Protocol:
        """The protocol of a connection that is counted already."""
        made: Any = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        made.counted, made.is_counted = sender, True
        return cast(asyncio.Protocol, made)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # 1
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        self._process.health.stop()
        drain = self._limits.drain_seconds if sig == signal.SIGTERM else 0.0
        self._ends = time.monotonic() + drain
        longest = threading.Timer(drain + self._limits.stop_seconds + _SLACK, _give_up)
        longest.daemon = True
        longest.start()

    async def on_tick(self, counter: int) -> bool:
        now = time.monotonic()
        if self._beat and now >= self._next_beat and self._process.beside.trouble() is None:
            self._next_beat = now + self._beat
            notify(WATCHDOG)
        return await super().on_tick(counter) or now >= self._ends

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # 2
        self._process.health.stop()
        notify(STOPPING)
        self._process.beside.stop()
        if self._handshakes is not None:
            self._handshakes.stop()
        await super().shutdown(sockets)

    def _reload(self) -> None:
        if self._tls is None:
            log.warning("SIGHUP: there is no certificate to read again")
            return
        try:
            self._tls.reload()
        except StateError as error:
            log.error("the certificate stays as it was: %s", error.what, extra={"hint": error.hint})


def _have_descriptors(wanted: int) -> None:
    """Let the process have as many files open as its connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        log.warning("%d files may be open, of the %d that the limit of connections needs", hard, wanted)
        wanted = hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _give_up() -> None:
    log.critical("it did not end in time, so it is ended")
    os._exit(1)

"""Where requests come in: an address, a socket file for a proxy, or what systemd hands over."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from platform_server.errors import StateError

_BACKLOG = 2048
# sd_listen_fds(3)
_FIRST_HANDED_OVER = 3


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises StateError when it can't be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        with _closed_on_failure(listening):
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen(_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise StateError(
            f"can't listen on {host} port {port}: {reason or error}", "choose another --host or --port"
        ) from None
    return listening


def listen_at(path: Path) -> socket.socket:
    """A listening socket at a path, for its owner and group alone; one that nobody serves is replaced.

    Raises StateError when it can't be had.
    """
    try:
        if _is_left_over(path):
            path.unlink()
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _closed_on_failure(listening):
            mask = os.umask(0o117)
            try:
                listening.bind(os.fspath(path))
            finally:
                os.umask(mask)
            listening.listen(_BACKLOG)
    except OSError as error:
        raise StateError(
            f"can't listen at {path}: {error.strerror or error}",
            "name a free path of 100 bytes at most",
        ) from None
    return listening


def handed_over(environment: MutableMapping[str, str] = os.environ) -> Sequence[socket.socket]:
    """The listening sockets that systemd opened for this process, which are taken once; none without it.

    Raises StateError for one that nobody can connect to.
    """
    count, pid = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_PID", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return ()
    found = []
    for descriptor in range(_FIRST_HANDED_OVER, _FIRST_HANDED_OVER + int(count)):
        try:
            os.set_inheritable(descriptor, False)
            one = socket.socket(fileno=descriptor)
            listens = one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            raise StateError(
                f"descriptor {descriptor} from the service manager: {error.strerror}", "see its socket unit"
            ) from None
        if not listens or one.type != socket.SOCK_STREAM:
            raise StateError(
                f"descriptor {descriptor} from the service manager: expected a listening stream socket",
                "ListenStream= and Accept=no in its socket unit",
            )
        found.append(one)
    return found


def name_of(listening: socket.socket, scheme: str) -> str:
    """The URL of a listening socket, as those on this machine reach it."""
    if listening.family == socket.AF_UNIX:
        return f"unix:{listening.getsockname()}"
    host, port = listening.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def _closed_on_failure(listening: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        listening.close()
        raise


def _is_left_over(path: Path) -> bool:
    """Whether a socket is there that nobody serves any more."""
    with suppress(FileNotFoundError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return False
        try:
            asking.connect(os.fspath(path))
        except ConnectionRefusedError:
            return True
    return False

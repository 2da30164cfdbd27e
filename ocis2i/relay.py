"""Carries bytes between two connections, both ways at once."""

from __future__ import annotations

import contextlib
import select
import socket
import time

from ocis2i.lazy_dataclass import dataclass

# Where nothing moves for so long nobody is there any more; a slow server is waited for.
IDLE_SECONDS = 300.0
LINGER_SECONDS = 2.0
_CHUNK = 64 << 10


@dataclass(slots=True)
class _Way:
    """Bytes from one socket to another; `left` are still allowed, `None`: as many as come."""

    source: socket.socket
    sink: socket.socket
    waiting: bytes
    left: int | None
    over: bool = False

    @property
    def wants(self) -> bool:
        """Whether there is room for more."""
        return not self.over and not self.waiting and self.left != 0

    def read(self) -> None:
        """Takes what is there; at the end the other side is told."""
        size = _CHUNK if self.left is None else min(_CHUNK, self.left)
        try:
            self.waiting = self.source.recv(size)
        except ConnectionError:
            self.waiting = b""
        if self.left is not None:
            self.left -= len(self.waiting)
        if not self.waiting:
            self.over = True
            with contextlib.suppress(OSError):
                self.sink.shutdown(socket.SHUT_WR)

    def write(self) -> None:
        """Hands on what fits; whoever takes no more may still have something to say."""
        try:
            self.waiting = self.waiting[self.sink.send(self.waiting) :]
        except ConnectionError:
            self.waiting, self.over = b"", True


def relay(
    client: socket.socket, server: socket.socket, rest: bytes = b"", length: int | None = None
) -> None:
    """Both ways at once, until both have ended or nothing moves for `IDLE_SECONDS`.

    `rest` was read from the client already. With a `length` of what the client may send (an
    exchange and no tunnel) the end of the server is the end.
    """
    for one in (client, server):
        one.settimeout(0)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    rest = rest if length is None else rest[:length]
    up = _Way(client, server, rest, None if length is None else length - len(rest))
    down = _Way(server, client, b"", None)
    while not (down.over and (length is not None or up.over)):
        if not _move(up, down):
            break


def _move(up: _Way, down: _Way) -> bool:
    """Waits for one of the sockets and does what is possible; false when nothing comes any more."""
    poll = select.poll()
    for own, other in ((up, down), (down, up)):
        events = (select.POLLIN if own.wants else 0) | (select.POLLOUT if other.waiting else 0)
        if events:
            poll.register(own.source, events)
    ready = dict(poll.poll(IDLE_SECONDS * 1000))
    for own, other in ((up, down), (down, up)):
        events = ready.get(own.source.fileno(), 0)
        with contextlib.suppress(BlockingIOError):
            if other.waiting and events & (select.POLLOUT | select.POLLERR | select.POLLHUP):
                other.write()
            if own.wants and events & (select.POLLIN | select.POLLERR | select.POLLHUP):
                own.read()
    return bool(ready)


def linger(client: socket.socket) -> None:
    """Ends a connection so that what was sent arrives.

    Closed with something unread, TCP would reset it (RFC 9112, 9.6).
    """
    client.settimeout(LINGER_SECONDS)
    client.shutdown(socket.SHUT_WR)
    latest = time.monotonic() + LINGER_SECONDS
    while time.monotonic() < latest and client.recv(_CHUNK):
        pass

"""Gives a process a terminal of its own, whose other side the parent holds.

The terminal is made where the process runs, so that it finds it in its own /dev/pts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import termios
from typing import Any

from ocis2i.agent.owners import give


def take(channel: int, user: dict[str, Any]) -> None:
    """Makes a terminal, the standard streams and the controlling terminal of this process.

    The process must be the first of its session. The other side goes through the socket `channel`.
    The terminal belongs to the `user` of an OCI runtime config then. Raises `OSError`.
    """
    parents, ours = os.openpty()
    try:
        # In place there is nobody else to give it to.
        with contextlib.suppress(PermissionError):
            give(ours, user["uid"], user["gid"])
        hold(ours)
        send(channel, parents)
    finally:
        os.close(parents)
    for number in range(3):
        os.dup2(ours, number, inheritable=True)
    os.close(ours)


def hold(terminal: int) -> None:
    """Makes it the controlling terminal: its Ctrl-C and its size are for this session."""
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


def send(channel: int, terminal: int) -> None:
    """Hands the parent its side."""
    with socket.socket(fileno=os.dup(channel)) as other:
        socket.send_fds(other, [b"terminal"], [terminal])

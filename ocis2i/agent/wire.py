"""The agent's side of the conversation: one JSON object a packet, descriptors attached.

`SOCK_SEQPACKET` keeps packets apart. An object too large for a packet comes as `{"memfd": true}`
with an anonymous file as first descriptor.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

PACKET_LIMIT = 64 << 10
MAX_DESCRIPTORS = 8


def send(channel: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Sends one message with its descriptors."""
    data = json.dumps(message).encode()
    if len(data) <= PACKET_LIMIT:
        socket.send_fds(channel, [data], fds)
        return
    memory = os.memfd_create("message")
    try:
        os.truncate(memory, len(data))
        os.pwrite(memory, data, 0)
        socket.send_fds(channel, [b'{"memfd": true}'], (memory, *fds))
    finally:
        os.close(memory)


def receive(channel: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The next message and its descriptors; `None` at the end of the conversation."""
    data, fds, _, _ = socket.recv_fds(channel, PACKET_LIMIT + 1, MAX_DESCRIPTORS)
    if not data:
        return None, fds
    for fd in fds:
        os.set_inheritable(fd, False)
    message = json.loads(data)
    if message.get("memfd"):
        memory = fds.pop(0)
        message = json.loads(os.pread(memory, os.fstat(memory).st_size, 0))
        os.close(memory)
    return message, fds

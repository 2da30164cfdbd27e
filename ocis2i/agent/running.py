"""Waits for a program or a container, passing the parent's signals on."""

from __future__ import annotations

import os
import select
import signal
import socket
from typing import Any

from ocis2i.agent.failure import AgentError
from ocis2i.agent.wire import receive


def start_program(argv: list[str], environment: dict[str, str], stdio: list[int]) -> int:
    """Starts a host program (runc) with the given standard streams; returns its pid."""
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(stdio)]
    try:
        return os.posix_spawn(
            argv[0],
            argv,
            environment,
            file_actions=actions,
            setsid=True,
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
    except OSError as error:
        raise AgentError("isolation", f"`{argv[0]}` cannot be run: {error.strerror}") from error


def wait_for(pid: int, parent: socket.socket) -> int:
    """Waits for the end of `pid`; its exit code, or 128 plus the signal that ended it.

    Meanwhile the parent may send `{"op": "signal", "number": N}`, which goes to every process of
    the container: the first process of a pid namespace ignores signals that it does not handle.
    The end of the parent is the end of this process, and with it of the whole pid namespace.
    """
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(parent, select.POLLIN)
    try:
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if pidfd in ready:
                break
            message, fds = receive(parent)
            for fd in fds:
                os.close(fd)
            if message is None:
                os._exit(1)
            _take(message)
    finally:
        os.close(pidfd)
    _, status = os.waitpid(pid, 0)
    reap()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _take(message: dict[str, Any]) -> None:
    if message.get("op") == "signal":
        signal_container(int(message["number"]))


def signal_container(number: int) -> None:
    """Sends a signal to every process in a pid namespace below ours."""
    for name in os.listdir("/proc"):
        if name.isdigit() and _is_inside(name):
            try:
                os.kill(int(name), number)
            except ProcessLookupError:
                continue


def _is_inside(pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"NSpid:"):
                    return len(line.split()) > 2
    except (FileNotFoundError, ProcessLookupError):
        return False
    return False


def reap() -> None:
    """Collects orphans: this process is the first of its pid namespace."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return

"""Starts the agent of a build and talks to it. See `ocis2i.agent` for the other side."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ocis2i.agent
from ocis2i.agent.wire import receive, send
from ocis2i.errors import (
    ImageError,
    IsolationError,
    Ocis2iError,
    OutputError,
    PolicyError,
    ScriptError,
    UsageError,
)
from ocis2i.isolation.ids import map_ids, subordinate_ids, user_name
from ocis2i.proc import Process, spawn

Reply = dict[str, Any]

_PROGRAM = Path(ocis2i.agent.__file__).with_name("__main__.py")
_ERRORS: dict[str, type[Ocis2iError]] = {
    "image": ImageError,
    "isolation": IsolationError,
    "output": OutputError,
    "policy": PolicyError,
    "usage": UsageError,
}
# What a shell says of a program that cannot be started.
_EXIT_CODES = {"not-found": 127, "not-executable": 126}


class Agent:
    """A running agent. Requests are answered one at a time; not for several threads."""

    def __init__(self, process: Process, channel: socket.socket) -> None:
        self._process = process
        self._channel = channel
        self._serial = 0

    def fileno(self) -> int:
        """The channel's descriptor, to wait for a reply."""
        return self._channel.fileno()

    def post(self, operation: str, *fds: int, **fields: object) -> None:
        """Sends a request without waiting for its reply (`reply` reads that)."""
        if operation != "signal":
            self._serial += 1
        try:
            send(self._channel, {"op": operation, "id": self._serial, **fields}, fds)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._died() from error

    def reply(self) -> Reply:
        """The reply to the request before; raises the error that the agent met."""
        answer: Reply | None = {}
        # A signal to us may have kept an earlier request's reply from being read.
        while answer is not None and answer.get("id") != self._serial:
            try:
                answer, _ = receive(self._channel)
            except ConnectionResetError:
                answer = None
        if answer is None:
            raise self._died()
        if "error" in answer:
            raise _error(answer)
        return answer

    def request(self, operation: str, *fds: int, **fields: object) -> Reply:
        """Sends a request and waits for its reply."""
        self.post(operation, *fds, **fields)
        return self.reply()

    def kill(self) -> None:
        """Ends the agent and, with its pid namespace, everything it started."""
        self._process.kill()
        self._channel.close()
        self._process.wait()

    def close(self) -> None:
        """Ends the agent in peace; everything it mounted is gone with it."""
        try:
            send(self._channel, {"op": "quit"})
        except OSError:
            self._process.kill()
        self._channel.close()
        self._process.wait()

    def _died(self) -> IsolationError:
        self._process.kill()
        code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return IsolationError(f"the build agent ended unexpectedly ({how})")


def _error(answer: Reply) -> Ocis2iError:
    kind, message, hint = str(answer.get("kind")), str(answer["error"]), answer.get("hint")
    if kind in _EXIT_CODES:
        return ScriptError(message, script_exit_code=_EXIT_CODES[kind], hint=hint)
    return _ERRORS.get(kind, IsolationError)(message, hint=hint)


@contextmanager
def agent(*, search_path: str | None, keep_open: Sequence[int] = ()) -> Iterator[Agent]:
    """Starts an agent and ends it. Call from the main thread: the agent dies with the thread.

    `keep_open` are descriptors that the agent holds as long as it lives (the build's lock).
    Raises `IsolationError` with the reason why this host does not allow it.
    """
    _refuse_root()
    for kind in ("subuid", "subgid"):
        subordinate_ids(kind, user_name(), os.getuid())
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    argv = [sys.executable, "-I", "-S", str(_PROGRAM), str(theirs.fileno())]
    process = spawn(argv, environment={}, pass_fds=(theirs.fileno(), *keep_open))
    theirs.close()
    running = Agent(process, ours)
    try:
        _shake_hands(process.pid, ours, search_path)
        yield running
    except BaseException:
        running.kill()
        raise
    running.close()


def _refuse_root() -> None:
    if os.geteuid() == 0:
        raise IsolationError(
            "ocis2i builds as an ordinary user, and you are root",
            hint="run it as a user that has subordinate ids in /etc/subuid and /etc/subgid",
        )


def _shake_hands(pid: int, channel: socket.socket, search_path: str | None) -> None:
    first, _ = receive(channel)
    if first is None or "error" in first:
        raise _cannot_unshare(first)
    map_ids(pid, search_path=search_path)
    send(channel, {"mapped": True})
    second, _ = receive(channel)
    if second is None or "error" in second:
        said = second["error"] if second else "it ended"
        raise IsolationError(
            f"the build agent cannot set up its namespaces: {said}",
            hint="inside a container, /proc must not be masked (systempaths=unconfined)",
        )


def _cannot_unshare(answer: Reply | None) -> IsolationError:
    number = answer.get("errno") if answer else None
    reasons = {
        errno.ENOSPC: (
            "this host allows no (more) user namespaces",
            "raise the sysctl user.max_user_namespaces",
        ),
        errno.EPERM: (
            "this host forbids user namespaces",
            "a seccomp profile or the sysctl kernel.unprivileged_userns_clone stands in the way",
        ),
    }
    if number in reasons:
        message, hint = reasons[number]
        return IsolationError(message, hint=hint)
    said = answer["error"] if answer else "it ended"
    return IsolationError(f"the build agent cannot make a user namespace: {said}")

"""Carries a running process's output to whoever listens, and signals to the process."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable
from typing import Literal

from ocis2i.errors import Interrupted
from ocis2i.isolation.agent import Agent
from ocis2i.runner import OutputLine, Stdio

# How long a process may take to end after it was told to, before it is killed.
GRACE_SECONDS = 8.0
# When a script is told again: a command that it started just after the first signal got none, and
# the shell that waits for it, as first process of its pid namespace, ignores signals.
_AGAIN_SECONDS = (0.5, 2.0)
_LONGEST_LINE = 64 << 10
_CHUNK = 64 << 10

Post = Callable[..., None]


class LineSplitter:
    """Cuts a stream of bytes into lines; a line without end is cut after 64 KiB."""

    def __init__(self, stream: Literal["stdout", "stderr"], line: OutputLine) -> None:
        self._stream: Literal["stdout", "stderr"] = stream
        self._line = line
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Takes the next bytes; passes on every line that is complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._emit(line)
        while len(self._rest) > _LONGEST_LINE:
            self._emit(self._rest[:_LONGEST_LINE])
            self._rest = self._rest[_LONGEST_LINE:]

    def close(self) -> None:
        """Passes on what is left without a line end."""
        if self._rest:
            self._emit(self._rest)
        self._rest = b""

    def _emit(self, line: bytes) -> None:
        self._line(self._stream, line.decode(errors="replace").rstrip("\r"))


def carry(agent: Agent, post: Post, stdio: Stdio) -> int:
    """Starts a run by `post(stdin, stdout, stderr)` and follows it to its end; its exit code.

    `Interrupted` (a signal to us) goes to every process of the container; what has not ended after
    `GRACE_SECONDS`, or at a second signal, is killed together with the agent.
    """
    if stdio.line is None:
        post(0, 1, 2)
        return _Follower(agent, {}).follow()
    null = os.open("/dev/null", os.O_RDONLY)
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    try:
        post(null, out_write, err_write)
    finally:
        for fd in (null, out_write, err_write):
            os.close(fd)
    splitters = {
        out_read: LineSplitter("stdout", stdio.line),
        err_read: LineSplitter("stderr", stdio.line),
    }
    try:
        return _Follower(agent, splitters).follow()
    finally:
        os.close(out_read)
        os.close(err_read)


class _Follower:
    """Waits for the reply of the agent and, at the same time, for output."""

    def __init__(self, agent: Agent, splitters: dict[int, LineSplitter]) -> None:
        self._agent = agent
        self._splitters = splitters
        self._selector = selectors.DefaultSelector()
        for fd in (*splitters, agent.fileno()):
            self._selector.register(fd, selectors.EVENT_READ)
        self._code: int | None = None
        self._interrupted: Interrupted | None = None
        self._deadline: float | None = None
        self._again: list[float] = []

    def follow(self) -> int:
        """To the end of the process and of its output. Raises `Interrupted` after a signal."""
        with self._selector:
            while self._code is None or self._open_streams():
                try:
                    if not self._step():
                        break
                except Interrupted as interrupted:
                    self._interrupt(interrupted)
        for splitter in self._splitters.values():
            splitter.close()
        if self._interrupted:
            raise self._interrupted
        if self._code is None:
            raise Interrupted(9)
        return self._code

    def _open_streams(self) -> bool:
        return any(fd in self._selector.get_map() for fd in self._splitters)

    def _step(self) -> bool:
        """Takes what has come; false when the patience with a dead process's pipes is over."""
        moments = [*self._again[:1], *([] if self._deadline is None else [self._deadline])]
        timeout = max(0.0, min(moments) - time.monotonic()) if moments else None
        events = self._selector.select(timeout)
        if self._again and time.monotonic() >= self._again[0]:
            del self._again[0]
            self._pass_on()
        for key, _ in events:
            if key.fd == self._agent.fileno():
                self._take_reply()
            else:
                self._take_output(key.fd)
        # Also while there is output: a script may print for ever and ignore every signal.
        if self._deadline is None or time.monotonic() < self._deadline:
            return True
        if self._code is None:
            self._agent.kill()
        return False

    def _take_reply(self) -> None:
        self._selector.unregister(self._agent.fileno())
        self._code = int(self._agent.reply()["exit"])
        # Whatever still holds the pipes is no child of the container's; it gets a moment.
        self._deadline = time.monotonic() + 2.0

    def _take_output(self, fd: int) -> None:
        data = os.read(fd, _CHUNK)
        if data:
            self._splitters[fd].feed(data)
        else:
            self._selector.unregister(fd)

    def _interrupt(self, interrupted: Interrupted) -> None:
        if self._interrupted:
            self._agent.kill()
            raise interrupted
        self._interrupted = interrupted
        if self._code is None:
            self._pass_on()
            now = time.monotonic()
            self._deadline = now + GRACE_SECONDS
            # A server that is tried out may take a second signal for impatience.
            self._again = [now + pause for pause in _AGAIN_SECONDS] if self._splitters else []

    def _pass_on(self) -> None:
        if self._interrupted and self._code is None:
            self._agent.post("signal", number=self._interrupted.signal_number)

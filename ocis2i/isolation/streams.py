"""Carries a running process's output to whoever listens, and signals to the process."""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, Literal, Protocol

from ocis2i.errors import Interrupted, IsolationError, Ocis2iError, OutputError, PolicyError
from ocis2i.fs import explain
from ocis2i.isolation.agent import Agent
from ocis2i.isolation.cgroups import Confinement, confinement
from ocis2i.limits import Kind, Limits, exceeded
from ocis2i.runner import OutputLine, Stdio

# How long a process may take to end after it was told to, before it is killed.
GRACE_SECONDS = 8.0
# When a script is told again: a command that it started just after the first signal got none, and
# the shell that waits for it, as first process of its pid namespace, ignores signals.
_AGAIN_SECONDS = (0.5, 2.0)
# What is still in a pipe when its process is gone comes at once; nobody who holds it is the
# container's.
_LAST_SECONDS = 2.0
LONGEST_LINE = 64 << 10
_CHUNK = 64 << 10

Post = Callable[..., None]

NO_LIMITS = Limits(tasks=None)


class Sink(Protocol):
    """What takes the bytes of one stream."""

    def feed(self, data: bytes) -> None:
        """Takes the next bytes."""

    def close(self) -> None:
        """There are no more."""


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
        while len(self._rest) > LONGEST_LINE:
            self._emit(self._rest[:LONGEST_LINE])
            self._rest = self._rest[LONGEST_LINE:]

    def close(self) -> None:
        """Passes on what is left without a line end."""
        if self._rest:
            self._emit(self._rest)
        self._rest = b""

    def _emit(self, line: bytes) -> None:
        self._line(self._stream, line.decode(errors="replace").rstrip("\r"))


class RawOutput:
    """Writes the bytes of standard output, up to `limit` of them, to a file as they are.

    Raises `PolicyError` when there are more, and `OutputError` when the file takes no more; after
    that all that comes is thrown away.
    """

    def __init__(self, file: BinaryIO, limit: int | None, name: str) -> None:
        self._file = file
        self._limit = limit
        self._name = name
        self._size_bytes = 0
        self._failed = False

    def feed(self, data: bytes) -> None:
        """Writes the next bytes."""
        if self._failed:
            return
        self._size_bytes += len(data)
        if self._limit is not None and self._size_bytes > self._limit:
            self._failed = True
            raise PolicyError(
                f"`{self._name}` writes more than {self._limit} bytes to its standard output",
                hint="raise the limit with OCIS2I_LAYER_LIMIT if that is right",
            )
        try:
            rest = memoryview(data)
            while rest:  # an unbuffered file may take less than it was given
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._failed = True
            raise self._explained(error) from error

    def close(self) -> None:
        """Hands over what is still in memory; the file stays open, it is the caller's."""
        if self._failed:
            return
        try:
            self._file.flush()
        except OSError as error:
            raise self._explained(error) from error

    def _explained(self, error: OSError) -> Ocis2iError:
        return explain(error, f"the output of `{self._name}` cannot be kept")


class OurStream:
    """Passes bytes on to one of our own streams, a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def feed(self, data: bytes) -> None:
        """Writes the next bytes."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            raise explain(error, "the output cannot be passed on") from error

    def close(self) -> None:
        """Nothing: the stream stays ours."""


def carry(
    agent: Agent,
    post: Post,
    stdio: Stdio,
    *,
    name: str,
    limits: Limits = NO_LIMITS,
    stderr: Callable[[Sink], Sink] | None = None,
    terminal: bool = False,
) -> int:
    """Starts a run by `post(stdin, stdout, stderr, …)` and follows it to its end; its exit code.

    `post` hands on to the agent what else it is given: descriptors, and the field `confine`. `name`
    is the program's, for messages. `Interrupted` (a signal to us) goes to every process of the
    container; what has not ended after `GRACE_SECONDS`, or at a second signal, is killed together
    with the agent. Output that cannot be taken, or a limit that is reached, kills the container and
    not the agent. `stderr` may put a sink of its own before the one for standard error. With
    `terminal` it is our own terminal that is joined with one of the container, and no `stdio`
    (`ocis2i.isolation.console`).
    """
    if terminal:
        from ocis2i.isolation.console import converse  # noqa: PLC0415 - few builds load it

        return converse(agent, post, limits, stderr)
    with confinement(limits) as confined, _streams(stdio, name, stderr) as (given, followed):
        post(*given, *confined.fds, confine=dict(confined.wish))
        while given:
            os.close(given.pop())
        return _Follower(agent, followed, name, confined).follow()


@contextmanager
def _streams(
    stdio: Stdio, name: str, stderr: Callable[[Sink], Sink] | None
) -> Iterator[tuple[list[int], dict[int, Sink]]]:
    """What the process is given as its streams, and what we follow."""
    ours_alone = stdio.line is None and stdio.output is None
    followed: dict[int, Sink] = {}
    given: list[int] = []
    try:
        given.append(os.dup(0) if ours_alone else os.open("/dev/null", os.O_RDONLY))
        out, err = _sinks(stdio, name)
        if stderr is not None:
            err = stderr(err or OurStream(2))
        for ours, sink in enumerate((out, err), start=1):
            given.append(os.dup(ours) if sink is None else _follow_pipe(sink, followed))
        yield given, followed
    finally:
        for fd in (*given, *followed):
            os.close(fd)


def _sinks(stdio: Stdio, name: str) -> tuple[Sink | None, Sink | None]:
    """What takes standard output and standard error; `None` where it is our own stream."""
    lines = None if stdio.line is None else LineSplitter("stderr", stdio.line)
    if stdio.output is not None:
        return RawOutput(stdio.output, stdio.output_limit, name), lines
    return (None if stdio.line is None else LineSplitter("stdout", stdio.line)), lines


def _follow_pipe(sink: Sink, followed: dict[int, Sink]) -> int:
    """A new pipe into `sink`: its end to read from is `followed`, the other one returned."""
    read_end, write_end = os.pipe()
    followed[read_end] = sink
    return write_end


class _Follower:
    """Waits for the reply of the agent and, at the same time, for output."""

    def __init__(
        self, agent: Agent, sinks: dict[int, Sink], name: str, confined: Confinement
    ) -> None:
        self._agent = agent
        self._sinks = sinks
        self._name = name
        self._confined = confined
        seconds = confined.limits.seconds
        self._latest = None if seconds is None else time.monotonic() + seconds
        self._output_bytes = 0
        self._selector = selectors.DefaultSelector()
        for fd in (*sinks, agent.fileno()):
            self._selector.register(fd, selectors.EVENT_READ)
        self._code: int | None = None
        self._failure: Ocis2iError | None = None
        self._interrupted: Interrupted | None = None
        self._deadline: float | None = None
        self._again: list[float] = []

    def follow(self) -> int:
        """To the end of the process and of its output.

        Raises `Interrupted` after a signal, and what a sink raised.
        """
        with self._selector:
            while self._code is None or self._open_streams():
                try:
                    if not self._step():
                        break
                except Interrupted as interrupted:
                    self._interrupt(interrupted)
            unfinished = self._open_streams()
        self._close_sinks(unfinished)
        error = self._interrupted or self._failure
        if error:
            raise error
        if self._code is None:
            raise Interrupted(9)
        return self._code

    def _close_sinks(self, unfinished: list[Sink]) -> None:
        for sink in self._sinks.values():
            try:
                sink.close()
            except OutputError as error:
                self._failure = self._failure or error
        if any(isinstance(sink, RawOutput) for sink in unfinished):
            self._failure = self._failure or IsolationError(
                f"the output of `{self._name}` has no end: something outside of its container "
                "holds the pipe open"
            )

    def _open_streams(self) -> list[Sink]:
        waiting = self._selector.get_map()
        return [sink for fd, sink in self._sinks.items() if fd in waiting]

    def _step(self) -> bool:
        """Takes what has come; false when the patience with a dead process's pipes is over."""
        ends = (self._deadline, self._latest)
        moments = [*self._again[:1], *(one for one in ends if one is not None)]
        timeout = max(0.0, min(moments) - time.monotonic()) if moments else None
        events = self._selector.select(timeout)
        if self._latest is not None and time.monotonic() >= self._latest:
            self._latest = None
            if self._code is None:
                self._over("time")
        if self._again and time.monotonic() >= self._again[0]:
            del self._again[0]
            self._pass_on()
        for key, _ in events:
            if key.fd == self._agent.fileno():
                self._take_reply()
            else:
                self._take_output(key.fd)
        if self._deadline is None or time.monotonic() < self._deadline:
            return True
        if events and self._code is not None and not self._interrupted:
            return True  # its last words; whoever takes them may be slower than the deadline
        # Also while there is output: a script may print for ever and ignore every signal.
        if self._code is None:
            self._agent.kill()
        return False

    def _take_reply(self) -> None:
        self._selector.unregister(self._agent.fileno())
        reply = self._agent.reply()
        self._code = int(reply["exit"])
        reached = reply.get("limit") or (self._confined.reached() if self._code else None)
        if reached and self._failure is None:
            self._failure = exceeded(reached, self._confined.limits, self._name)
        self._deadline = time.monotonic() + _LAST_SECONDS

    def _take_output(self, fd: int) -> None:
        data = os.read(fd, _CHUNK)
        if not data:
            self._selector.unregister(fd)
            return
        if not isinstance(self._sinks[fd], RawOutput):
            self._output_bytes += len(data)
            limit = self._confined.limits.output_bytes
            if limit is not None and self._output_bytes > limit:
                self._over("output")
                return
        try:
            self._sinks[fd].feed(data)
        except (OutputError, PolicyError) as error:
            self._fail(error)

    def _over(self, kind: Kind) -> None:
        self._fail(exceeded(kind, self._confined.limits, self._name))

    def _fail(self, error: Ocis2iError) -> None:
        """Kills the container; what it wrote is still read, so that its end is seen."""
        if self._failure is None:
            self._failure = error
            self._deadline = self._deadline or time.monotonic() + GRACE_SECONDS
            if self._code is None:
                self._agent.post("signal", number=int(signal.SIGKILL))

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
            self._again = [now + pause for pause in _AGAIN_SECONDS] if self._sinks else []

    def _pass_on(self) -> None:
        if self._interrupted and self._code is None:
            self._agent.post("signal", number=self._interrupted.signal_number)

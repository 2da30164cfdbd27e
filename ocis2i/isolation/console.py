"""Joins our own terminal with that of a process in a container, for as long as the process lives.

Ours is raw meanwhile: every key, Ctrl-C among them, is for the terminal inside, which makes signals
of them for the programs that run there. Nothing of what is said is kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import socket
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from ocis2i.errors import IsolationError
from ocis2i.isolation.agent import Agent
from ocis2i.isolation.cgroups import confinement
from ocis2i.limits import Limits

# Standard output is for the result.
KEYBOARD, SCREEN = 0, 2
_CHUNK = 64 << 10
# What a terminal still holds when its process is gone comes at once.
_LAST_SECONDS = 2.0


class Sink(Protocol):
    """What takes the bytes of one stream."""

    def feed(self, data: bytes) -> None:
        """Takes the next bytes."""

    def close(self) -> None:
        """There are no more."""


class Screen:
    """What is not for the terminal inside and still is to be read."""

    def feed(self, data: bytes) -> None:
        """Shows the bytes, their line ends as a raw terminal wants them."""
        write_all(SCREEN, data.replace(b"\n", b"\r\n"))

    def close(self) -> None:
        """Nothing is open."""


def is_terminal() -> bool:
    """Whether somebody sits there who can type and see."""
    return all(os.isatty(fd) for fd in (KEYBOARD, SCREEN))


def size() -> tuple[int, int]:
    """Rows and columns of our terminal."""
    found = os.get_terminal_size(SCREEN)
    return found.lines, found.columns


def converse(
    agent: Agent,
    post: Callable[..., None],
    limits: Limits,
    stderr: Callable[[Sink], Sink] | None = None,
) -> int:
    """Starts a run by `post`, as `streams.carry` does, with a terminal; its exit code.

    `stderr` gets what the executor itself has to say, and the sink for what of it is to be shown.
    Raises `IsolationError` where no terminal can be made. A signal to us (`Interrupted`) leaves the
    run to the end of the agent; the terminal is put back whatever happens.
    """
    with contextlib.ExitStack() as stack:
        confined = stack.enter_context(confinement(limits))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(ours)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, null)
        words, said = os.pipe()
        stack.callback(os.close, words)
        with theirs, os.fdopen(said, "wb", buffering=0):
            fds = (null, null, said, *confined.fds, theirs.fileno())
            post(*fds, confine=dict(confined.wish), console=True)
        sink = stderr(Screen()) if stderr else Screen()
        inside = _receive(agent, ours)
        stack.callback(os.close, inside)
        os.set_blocking(inside, False)
        with _raw(KEYBOARD), _same_size(inside):
            return _Conversation(agent, inside, words, sink).hold()


def _receive(agent: Agent, ours: socket.socket) -> int:
    """The other side of the terminal inside; raises what kept it from being made."""
    with selectors.DefaultSelector() as selector:
        for one in (ours.fileno(), agent.fileno()):
            selector.register(one, selectors.EVENT_READ)
        ready = {key.fd for key, _ in selector.select()}
    if ours.fileno() in ready:
        _, fds, _, _ = socket.recv_fds(ours, 64, 1)
        if fds:
            return fds[0]
    code = agent.reply()["exit"]
    raise IsolationError(
        f"a terminal could not be made in the container (exit code {code})",
        hint="try another --isolation",
    )


@contextmanager
def _raw(fd: int) -> Iterator[None]:
    """A terminal that passes on every key, until the end."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        # A window that was closed has no state to go back to; the hang-up must not be lost for it.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextmanager
def _same_size(inside: int) -> Iterator[None]:
    """The terminal inside is as large as ours, also when that changes."""

    def follow(_: int, __: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(SCREEN, termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(inside, termios.TIOCSWINSZ, size)

    before = signal.signal(signal.SIGWINCH, follow)
    try:
        follow(signal.SIGWINCH, None)
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


class _Conversation:
    """Carries keys in and characters out until the agent says that the process is gone."""

    def __init__(self, agent: Agent, inside: int, words: int, sink: Sink) -> None:
        self._agent = agent
        self._inside = inside
        self._words = words
        self._sink = sink
        self._keys = b""
        self._code: int | None = None
        self._deadline: float | None = None
        self._selector = selectors.DefaultSelector()
        for fd in (KEYBOARD, inside, words, agent.fileno()):
            self._selector.register(fd, selectors.EVENT_READ)

    def hold(self) -> int:
        """To the end; the exit code."""
        with self._selector:
            while self._goes_on():
                for key, events in self._selector.select(self._patience()):
                    self._step(key.fd, events)
        self._sink.close()
        return self._code or 0

    def _goes_on(self) -> bool:
        if self._deadline is None:
            return True
        waiting = self._selector.get_map()
        is_open = self._inside in waiting or self._words in waiting
        return is_open and time.monotonic() < self._deadline

    def _patience(self) -> float | None:
        """How many seconds to wait for something to happen."""
        if self._deadline is None:
            return None
        return max(0.0, self._deadline - time.monotonic())

    def _step(self, fd: int, events: int) -> None:
        if fd == self._agent.fileno():
            self._selector.unregister(fd)
            self._code = int(self._agent.reply()["exit"])
            self._deadline = time.monotonic() + _LAST_SECONDS
        elif fd == KEYBOARD:
            self._take_keys()
        elif fd == self._words:
            self._pass_words()
        else:
            if events & selectors.EVENT_WRITE:
                self._type()
            if events & selectors.EVENT_READ:
                self._show()

    def _take_keys(self) -> None:
        data = _read(KEYBOARD)
        if data == b"":  # the terminal is gone: so is who could end this
            self._selector.unregister(KEYBOARD)
            if self._code is None:
                self._agent.post("signal", number=int(signal.SIGKILL))
            return
        self._keys += data or b""
        self._type()

    def _type(self) -> None:
        """Types what the terminal inside takes; it has little room for a text that is pasted."""
        with contextlib.suppress(OSError):  # also when it is full
            self._keys = self._keys[os.write(self._inside, self._keys) :]
        if self._inside in self._selector.get_map():
            more = selectors.EVENT_WRITE if self._keys else 0
            self._selector.modify(self._inside, selectors.EVENT_READ | more)

    def _show(self) -> None:
        data = _read(self._inside)
        if data:
            write_all(SCREEN, data)
        elif data == b"":
            self._selector.unregister(self._inside)

    def _pass_words(self) -> None:
        data = _read(self._words)
        if data:
            self._sink.feed(data)
        else:
            self._selector.unregister(self._words)


def _read(fd: int) -> bytes | None:
    """What there is, `None` for nothing yet; empty at the end, which a terminal tells by EIO."""
    try:
        return os.read(fd, _CHUNK)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def write_all(fd: int, data: bytes) -> None:
    """Writes the bytes, or nothing where nobody sees them any more."""
    rest = memoryview(data)
    with contextlib.suppress(OSError):
        while rest:
            rest = rest[os.write(fd, rest) :]

"""Somebody who sits at a real terminal, types, and reads what comes; used by tests."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PATIENCE_SECONDS = 20.0


@dataclass
class Typist:
    """A program at a terminal of its own; its standard output is a pipe, as in `$(...)`."""

    process: subprocess.Popen[bytes]
    keyboard: int
    ours: int
    settings: list[Any]
    seen: str = ""
    _at: int = field(default=0)

    def read(self, text: str) -> str:
        """Reads until `text` is there; what came before it since the last time."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while text not in self.seen[self._at :]:
            is_over = self.process.poll() is not None or time.monotonic() > end
            if select.select([self.keyboard], [], [], 0.1)[0]:
                data = os.read(self.keyboard, 1 << 16)
                self.seen += data.decode(errors="replace").replace("\r\n", "\n")
            else:
                assert not is_over, f"`{text}` did not come:\n{self.seen}"
        found = self.seen.index(text, self._at)
        before, self._at = self.seen[self._at : found], found + len(text)
        return before

    def type(self, keys: str) -> None:
        """Types."""
        os.write(self.keyboard, keys.encode())

    def run(self, line: str, prompt: str = "$ ") -> str:
        """Types a line of shell and reads to the next prompt; what it printed."""
        # A shell on a terminal echoes what is typed: the end is not to be in that.
        self.type(f"{line}; echo 'en''d'\n")
        said = self.read("\nend\n") + "\n"
        self.read(prompt)
        return said.partition("en''d'\n")[2]

    def start(self, line: str) -> None:
        """Types a line of shell that goes on, and waits until it is the terminal's own job."""
        # What is typed earlier finds a shell that reads its line, or its job not there yet.
        self.type(f'sh -c "echo be""gun; {line}"\n')
        self.read("\nbegun\n")

    def resize(self, rows: int, columns: int) -> None:
        """Makes the window another size; the kernel tells the program."""
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def leave(self) -> tuple[int, str]:
        """Reads to the end of the program; its exit code and its standard output."""
        assert self.process.stdout
        end = time.monotonic() + _PATIENCE_SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it does not end:\n{self.seen}"
            ready, _, _ = select.select([self.keyboard], [], [], 0.05)
            if ready:
                self.seen += os.read(self.keyboard, 1 << 16).decode(errors="replace")
        out = self.process.stdout.read().decode()
        while select.select([self.keyboard], [], [], 0)[0]:
            self.seen += os.read(self.keyboard, 1 << 16).decode(errors="replace")
        self.seen = self.seen.replace("\r\n", "\n")
        return self.process.returncode, out

    @property
    def is_as_before(self) -> bool:
        """Whether the terminal has the settings that it had at the beginning."""
        return termios.tcgetattr(self.ours) == self.settings


@contextmanager
def typing(
    argv: Sequence[str | Path], environment: Mapping[str, str], size: tuple[int, int] = (30, 100)
) -> Iterator[Typist]:
    """Starts a program at a new terminal, and ends it."""
    keyboard, ours = os.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    process = subprocess.Popen(
        [*map(str, argv)],
        env={**environment, "TERM": "dumb"},
        stdin=ours,
        stdout=subprocess.PIPE,
        stderr=ours,
        start_new_session=True,
        preexec_fn=_take_terminal,  # noqa: PLW1509 - no other thread holds a lock
    )
    try:
        yield Typist(process, keyboard, ours, termios.tcgetattr(ours))
    finally:
        _end(process)
        os.close(keyboard)
        os.close(ours)


def _end(process: subprocess.Popen[bytes]) -> None:
    """A launcher passes on that it shall end, and not that it was killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
            break
    if process.stdout:
        process.stdout.close()


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)

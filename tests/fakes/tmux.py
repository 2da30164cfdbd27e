"""A terminal of its own for a program, and what a person would see in it; used by tests."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Terminal:
    """One window of a tmux server."""

    socket: Path

    def _tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", str(self.socket), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return done.stdout

    def screen(self) -> list[str]:
        """The lines that are seen, without the empty ones at the end."""
        return self._tmux("capture-pane", "-p").rstrip("\n").split("\n")

    def everything(self) -> list[str]:
        """The same with what has scrolled away; a line that was wrapped is one."""
        return self._tmux("capture-pane", "-p", "-J", "-S", "-").rstrip("\n").split("\n")

    def raw(self) -> str:
        """What is seen with its colours."""
        return self._tmux("capture-pane", "-p", "-e")

    def value(self, name: str) -> str:
        """A variable of tmux, as `cursor_flag`: whether the cursor is to be seen."""
        return self._tmux("display-message", "-p", f"#{{{name}}}").strip()

    def resize(self, columns: int, rows: int = 24) -> None:
        """Makes the window narrower or wider."""
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def columns(self) -> int:
        """How wide the program in it takes it to be: tmux tells it a little later."""
        with Path(self.value("pane_tty")).open() as terminal:
            return os.get_terminal_size(terminal.fileno()).columns

    def press(self, *keys: str) -> None:
        """Presses keys, as `C-c`."""
        self._tmux("send-keys", *keys)

    def until(self, words: str, seconds: float = 60, *, at_the_end: bool = False) -> list[str]:
        """Waits for words on the screen, or in its last line; the screen that has them."""
        end = time.monotonic() + seconds
        while True:
            screen = self.screen()
            if any(words in line for line in screen[-1 if at_the_end else 0 :]):
                return screen
            assert time.monotonic() < end, "\n".join(screen)
            time.sleep(0.05)


@contextmanager
def terminal(
    directory: Path, command: Sequence[str | Path], environment: Mapping[str, str], *, columns: int
) -> Iterator[Terminal]:
    """Runs a command in a new terminal of 24 rows; `ended N` with its exit code follows."""
    socket = directory / "tmux"
    words = " ".join(shlex.quote(str(word)) for word in command)
    script = directory / "in-terminal"
    exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in environment.items())
    script.write_text(f"{exports}trap : INT\n{words}\necho ended $?\nexec sleep 600\n")
    tmux = ("tmux", "-S", str(socket))
    options = ["-x", str(columns), "-y", "24"]
    subprocess.run(
        [*tmux, "-f", "/dev/null", "new-session", "-d", *options, "sh", str(script)],
        env={**environment, "LC_ALL": "C.UTF-8", "TERM": "xterm"},
        check=True,
        timeout=30,
    )
    try:
        yield Terminal(socket)
    finally:
        subprocess.run([*tmux, "kill-server"], check=False, capture_output=True)
